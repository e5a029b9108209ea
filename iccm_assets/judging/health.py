"""Is what the judge says complete and comparable? Decisions over counts (U4, O1, E1, T8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from iccm_assets.findings import Finding, named

INCONCLUSIVE_SHARE = 0.1
FEWEST_SCORED = 10
# From this size on the gate judges a slice for forgetting (E3).
SLICE_ITEMS = 20
# Two rounds of the six-hourly measurement, and time to make it.
QUALITY_HOURS = 13.0
FALL = 0.05


def missing_scores(with_suite: int, missing: Sequence[int], days: int) -> Finding:
    """Requirements texts (ids) of the last complete days that have a suite and were never scored."""
    told = f"{len(missing)} of {with_suite} texts with a test suite in the last {days} days were never scored"
    recovery = (
        "Materialize `reconstructions` for their days: it scores what has no score and can be stopped and "
        "resumed. If it ends with members missing, `iccm orchestra check` asks every member once."
    )
    return Finding(
        not missing,
        told,
        recovery,
        error=False,
        numbers={"with_suite": float(with_suite), "missing": float(len(missing))},
        ids=named(list(missing)),
    )


def inconclusive(scored: int, without: int, days: int) -> Finding:
    """How many tried texts have no pass rate: not bad, not measured."""
    share = without / scored if scored else 0.0
    told = f"{without} of {scored} scored texts in the last {days} days are inconclusive ({share:.1%})"
    recovery = (
        "Their `evidence` column says why. Members missing: `iccm orchestra check`. A sandbox layer missing: "
        "`iccm doctor` names it and its fix. Afterwards materialize the days again; texts that lacked "
        "members are asked again, for the others clear `scored_at`."
    )
    return Finding(
        scored < FEWEST_SCORED or share <= INCONCLUSIVE_SHARE,
        told,
        recovery,
        error=False,
        numbers={"scored": float(scored), "inconclusive": float(without), "inconclusive_share": share},
    )


def same_canary_set(digest: str, last: str | None, since: str) -> Finding:
    """Whether the file still is the set the last verdict was reached on; ``since`` names that version."""
    told = (
        f"canary set {digest}; no verdict was reached yet"
        if last is None
        else f"canary set {digest}; the last verdict ({since}) was reached on {last}"
    )
    recovery = (
        "The canary set is frozen: scores on another one cannot be compared with the baseline. Put the "
        "former file back (`ICCM_CANARY_SET`), or, if it was replaced on purpose, measure production again: "
        "`iccm evaluate production` (T8). The pool is checked against the new set when its days are "
        "materialized again."
    )
    return Finding(last in (None, digest), told, recovery)


def slice_sizes(slices: Mapping[str, int]) -> Finding:
    """Slices the gate can judge for forgetting."""
    small = sorted(name for name, items in slices.items() if items < SLICE_ITEMS)
    told = (
        f"{len(slices)} slices, {sum(slices.values())} items; {len(small)} slices below {SLICE_ITEMS} items"
    )
    if small:
        told += f" ({', '.join(small)}): the gate does not judge those for forgetting"
    recovery = (
        f"Only slices of at least {SLICE_ITEMS} items are judged one by one (E3); smaller ones count in the "
        "mean. Add items to a new version of the canary set, and measure production on it again."
    )
    return Finding(
        len(slices) > len(small),
        told,
        recovery,
        error=False,
        numbers={"slices": float(len(slices)), "small_slices": float(len(small))},
    )


def missing_items(version: str, items: int, missing: Sequence[str]) -> Finding:
    """Canary items without a score the judge stands by, in the newest verdict's evidence (E3)."""
    told = f"{version}: {len(missing)} of {items} items have no reliable score for both versions"
    recovery = (
        "The gate says inconclusive when an item is missing. Each item's `doubt` stands in "
        "`gate_verdicts.evidence`. Mend what stopped the judge (`iccm doctor`, `iccm orchestra check`) and "
        f"run `iccm evaluate {version}`: what was scored is not scored again."
    )
    return Finding(
        not missing,
        told,
        recovery,
        numbers={"items": float(items), "missing": float(len(missing))},
        ids=named(list(missing)),
    )


def quality_is_known(version: str, hours: float, holdout: int, fallen: Sequence[str]) -> Finding:
    """Whether somebody still looks at production (T8): ``hours`` since its last measurement or, without one,
    its deployment; the sets on which the last measurement lies more than 0.05 below the baseline."""
    told = f"{version}: measured or deployed {hours:.1f} h ago, {holdout} holdout sessions; "
    told += f"more than {FALL:g} below its baseline on {', '.join(fallen)}" if fallen else "no fall"
    recovery = (
        "Not measured for two rounds: `production_quality_schedule` must be running and the daemon alive; "
        "materialize `production_quality` to measure now, its run's log says what stopped it. A fall that is "
        "no noise starts an emergency retrain by itself; the ticks of `quality_degradation_sensor` say with "
        "numbers why not. `iccm rollback` goes back to the former version at once."
    )
    return Finding(
        hours <= QUALITY_HOURS and not fallen,
        told,
        recovery,
        error=False,
        numbers={"hours_since": round(hours, 2), "holdout_sessions": float(holdout)},
        ids=tuple(fallen),
    )
