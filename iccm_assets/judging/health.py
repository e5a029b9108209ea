"""Checks of scores, verdicts and production quality: complete and comparable? Pure functions, no I/O (U4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from iccm_assets.findings import Finding, named

INCONCLUSIVE_SHARE = 0.1
FEWEST_SCORED = 10
# From this size on the gate judges a slice for forgetting.
SLICE_ITEMS = 20
# Two rounds of the six-hourly measurement, and time to make it.
QUALITY_HOURS = 13.0
FALL = 0.05


def missing_scores(with_suite: int, missing: Sequence[int], days: int) -> Finding:
    """Check that the texts (ids) of the last complete days that have a suite were all scored."""
    return Finding(
        not missing,
        f"{len(missing)} of {with_suite} texts with a test suite in the last {days} days have no score",
        "Materialize `reconstructions` for their days: it scores what has no score and can be stopped and "
        "resumed. If it ends with members missing, `iccm orchestra check` asks every member once.",
        error=False,
        numbers={"with_suite": float(with_suite), "missing": float(len(missing))},
        ids=named(list(missing)),
    )


def inconclusive(scored: int, without: int, days: int) -> Finding:
    """Check how many scored texts have no pass rate: not bad, but not measured."""
    share = without / scored if scored else 0.0
    return Finding(
        scored < FEWEST_SCORED or share <= INCONCLUSIVE_SHARE,
        f"{without} of {scored} scored texts in the last {days} days are inconclusive ({share:.1%})",
        "Their `evidence` column gives the reason. Members missing: `iccm orchestra check`. A sandbox layer "
        "missing: `iccm doctor` names it and its fix. Then materialize the days again: it retries texts that "
        "lacked members; for the others clear `scored_at`.",
        error=False,
        numbers={"scored": float(scored), "inconclusive": float(without), "inconclusive_share": share},
    )


def same_canary_set(digest: str, last: str | None, since: str) -> Finding:
    """Check that the canary set is the one of the last verdict, which was on ``last_version``."""
    verdict = f"the last verdict ({since}) used {last}" if last else "there is no verdict yet"
    return Finding(
        last in (None, digest),
        f"canary set {digest}; {verdict}",
        "The canary set is frozen: scores on another one cannot be compared with the baseline. Restore the "
        "previous file (`ICCM_CANARY_SET`). If it was replaced on purpose, measure production again: `iccm "
        "evaluate production`, and materialize the days again to check the pool against the new set.",
    )


def slice_sizes(slices: Mapping[str, int]) -> Finding:
    """Check that the gate can judge slices for forgetting."""
    small = sorted(name for name, items in slices.items() if items < SLICE_ITEMS)
    names = f" ({', '.join(small)}): the gate does not judge those for forgetting" if small else ""
    return Finding(
        len(slices) > len(small),
        f"{len(slices)} slices, {sum(slices.values())} items; {len(small)} slices below {SLICE_ITEMS} items"
        + names,
        f"Only slices of at least {SLICE_ITEMS} items are judged one by one; smaller ones count in the mean. "
        "Add items to a new version of the canary set, and measure production on it again.",
        error=False,
        numbers={"slices": float(len(slices)), "small_slices": float(len(small))},
    )


def missing_items(version: str, items: int, missing: Sequence[str]) -> Finding:
    """Check that every canary item has scores that the judge trusts, in the newest verdict's evidence."""
    return Finding(
        not missing,
        f"{version}: {len(missing)} of {items} items have no reliable score for both versions",
        "The verdict is inconclusive while an item is missing. Each item's `unreliable_reason` is in "
        "`gate_verdicts.evidence`. Fix what stopped the judge (`iccm doctor`, `iccm orchestra check`) and "
        f"run `iccm evaluate {version}`: existing scores are kept.",
        numbers={"items": float(items), "missing": float(len(missing))},
        ids=named(list(missing)),
    )


def quality_is_known(version: str, hours: float, holdout: int, fallen: Sequence[str]) -> Finding:
    """Check that production was measured recently and is as good as its baseline (T8).

    ``hours`` since its last measurement or, without one, its deployment; on ``dropped_sets`` the last
    measurement is more than ``MAX_QUALITY_DROP`` below the baseline.
    """
    drop = f"more than {FALL:g} below its baseline on {', '.join(fallen)}" if fallen else "no drop"
    return Finding(
        hours <= QUALITY_HOURS and not fallen,
        f"{version}: measured or deployed {hours:.1f} h ago, {holdout} holdout sessions; {drop}",
        "Not measured for two rounds: check that `production_quality_schedule` and the daemon are running; "
        "materialize `production_quality` to measure now, the log of its run names the obstacle. A "
        "significant drop starts an emergency retrain; the ticks of `quality_degradation_sensor` log with "
        "numbers why not. `iccm rollback` restores the previous version immediately.",
        error=False,
        numbers={"hours_since": round(hours, 2), "holdout_sessions": float(holdout)},
        ids=tuple(fallen),
    )
