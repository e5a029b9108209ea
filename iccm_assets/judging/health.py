"""Checks of scores, verdicts and production quality: complete and comparable? Pure functions, no I/O (U4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from iccm_assets.findings import CheckResult, sample_ids

MAX_INCONCLUSIVE_FRACTION = 0.1
MIN_SCORED = 10
# From this size on the gate judges a slice for forgetting.
MIN_SLICE_ITEMS = 20
# Two rounds of the six-hourly measurement, and time to make it.
MAX_QUALITY_AGE_HOURS = 13.0
MAX_QUALITY_DROP = 0.05


def check_missing_scores(with_suite: int, missing: Sequence[int], days: int) -> CheckResult:
    """Check that the texts (ids) of the last complete days that have a suite were all scored."""
    return CheckResult(
        not missing,
        f"{len(missing)} of {with_suite} texts with a test suite in the last {days} days have no score",
        "Materialize `reconstructions` for their days: it scores what has no score and can be stopped and "
        "resumed. If it ends with members missing, `iccm orchestra check` asks every member once.",
        error=False,
        metrics={"with_suite": float(with_suite), "missing": float(len(missing))},
        sample_ids=sample_ids(list(missing)),
    )


def check_inconclusive_rate(scored: int, without_rate: int, days: int) -> CheckResult:
    """Check how many scored texts have no pass rate: not bad, but not measured."""
    share = without_rate / scored if scored else 0.0
    return CheckResult(
        scored < MIN_SCORED or share <= MAX_INCONCLUSIVE_FRACTION,
        f"{without_rate} of {scored} scored texts in the last {days} days are inconclusive ({share:.1%})",
        "Their `evidence` column gives the reason. Members missing: `iccm orchestra check`. A sandbox layer "
        "missing: `iccm doctor` names it and its fix. Then materialize the days again: it retries texts that "
        "lacked members; for the others clear `scored_at`.",
        error=False,
        metrics={"scored": float(scored), "inconclusive": float(without_rate), "inconclusive_share": share},
    )


def check_canary_set(digest: str, last_digest: str | None, last_version: str) -> CheckResult:
    """Check that the canary set is the one of the last verdict, which was on ``last_version``."""
    verdict = (
        f"the last verdict ({last_version}) used {last_digest}" if last_digest else "there is no verdict yet"
    )
    return CheckResult(
        last_digest in (None, digest),
        f"canary set {digest}; {verdict}",
        "The canary set is frozen: scores on another one cannot be compared with the baseline. Restore the "
        "previous file (`ICCM_CANARY_SET`). If it was replaced on purpose, measure production again: `iccm "
        "evaluate production`, and materialize the days again to check the pool against the new set.",
    )


def check_slice_sizes(slices: Mapping[str, int]) -> CheckResult:
    """Check that the gate can judge slices for forgetting."""
    small = sorted(name for name, items in slices.items() if items < MIN_SLICE_ITEMS)
    names = f" ({', '.join(small)}): the gate does not judge those for forgetting" if small else ""
    return CheckResult(
        len(slices) > len(small),
        f"{len(slices)} slices, {sum(slices.values())} items; {len(small)} slices below {MIN_SLICE_ITEMS} items"
        + names,
        f"Only slices of at least {MIN_SLICE_ITEMS} items are judged one by one; smaller ones count in the mean. "
        "Add items to a new version of the canary set, and measure production on it again.",
        error=False,
        metrics={"slices": float(len(slices)), "small_slices": float(len(small))},
    )


def check_missing_items(version: str, items: int, missing: Sequence[str]) -> CheckResult:
    """Check that every canary item has scores that the judge trusts, in the newest verdict's evidence."""
    return CheckResult(
        not missing,
        f"{version}: {len(missing)} of {items} items have no reliable score for both versions",
        "The verdict is inconclusive while an item is missing. Each item's `unreliable_reason` is in "
        "`gate_verdicts.evidence`. Fix what stopped the judge (`iccm doctor`, `iccm orchestra check`) and "
        f"run `iccm evaluate {version}`: existing scores are kept.",
        metrics={"items": float(items), "missing": float(len(missing))},
        sample_ids=sample_ids(list(missing)),
    )


def check_production_quality(
    version: str, hours: float, holdout: int, dropped_sets: Sequence[str]
) -> CheckResult:
    """Check that production was measured recently and is as good as its baseline (T8).

    ``hours`` since its last measurement or, without one, its deployment; on ``dropped_sets`` the last
    measurement is more than ``MAX_QUALITY_DROP`` below the baseline.
    """
    drop = (
        f"more than {MAX_QUALITY_DROP:g} below its baseline on {', '.join(dropped_sets)}"
        if dropped_sets
        else "no drop"
    )
    return CheckResult(
        hours <= MAX_QUALITY_AGE_HOURS and not dropped_sets,
        f"{version}: measured or deployed {hours:.1f} h ago, {holdout} holdout sessions; {drop}",
        "Not measured for two rounds: check that `production_quality_schedule` and the daemon are running; "
        "materialize `production_quality` to measure now, the log of its run names the obstacle. A "
        "significant drop starts an emergency retrain; the ticks of `quality_degradation_sensor` log with "
        "numbers why not. `iccm rollback` restores the previous version immediately.",
        error=False,
        metrics={"hours_since": round(hours, 2), "holdout_sessions": float(holdout)},
        sample_ids=tuple(dropped_sets),
    )
