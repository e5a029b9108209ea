"""What the quality gate cannot decide with a canary set, before a candidate is trained for it (E3)."""

from __future__ import annotations

from iccm_assets.curation.canary_set import CanaryItem, CanarySet
from iccm_assets.errors import TestSuiteError
from iccm_assets.evaluation.quality_gate import MIN_LATENCIES
from iccm_assets.settings import EvaluationSettings
from iccm_assets.suites.test_suites import Case, parse_suite

MAX_NAMES = 5


def find_canary_limits(canary_set: CanarySet, settings: EvaluationSettings) -> list[str]:
    """Return one sentence for each rule of the gate that cannot decide; none for a sound set."""
    sizes, count = canary_set.slices, len(canary_set.items)
    small = [f"{name} ({size})" for name, size in sizes.items() if size < settings.min_slice_items]
    broken = {item.item: reason for item in canary_set.items if (reason := _find_defect(item))}
    required = min(MIN_LATENCIES, settings.latency_items)
    limits = (
        (
            small,
            f"forgetting is not judged on {len(small)} of {len(sizes)} slices, which have fewer than"
            f" {settings.min_slice_items} items: {_join(small)}",
        ),
        (
            count < required,
            f"no candidate passes with {count} items: latency_regression is inconclusive below {required}",
        ),
        (
            broken,
            f"{len(broken)} items compare no result, so the gate is inconclusive or judges nothing on them:"
            f" {_join([f'{name} ({reason})' for name, reason in broken.items()])}",
        ),
    )
    return [sentence for applies, sentence in limits if applies]


def _find_defect(item: CanaryItem) -> str:
    """Return why an item's suite cannot tell a good response from a bad one; empty if it can."""
    try:
        suite = parse_suite(item.test_suite)
    except TestSuiteError as error:
        return error.detail
    # A suite of kind pytest compares by its own assertions.
    compares = suite.kind == "pytest" or any(map(_compares, suite.cases))
    return "" if compares else "no `expect` and no `raises`"


def _compares(case: Case) -> bool:
    expectations = [case.expected, *(expected for _, expected in case.steps or ())]
    return any(expected.value is not None or expected.raises is not None for expected in expectations)


def _join(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
