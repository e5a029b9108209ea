"""Checks of the canary set, and of the newest evaluation: its evidence and its verdict."""

import dagster as dg

from iccm_assets.defs.check_factory import platform_check
from iccm_assets.defs.evaluation.assets import QUALITY_GATE, quality_gate_result
from iccm_assets.defs.metadata import to_metadata
from iccm_assets.defs.resources import PlatformResource

digest_is_unchanged = platform_check(
    "canary_set", "evaluation.checks.digest_is_unchanged", "The canary set is the one of the last verdict."
)
slices_have_min_items = platform_check(
    "canary_set",
    "evaluation.checks.slices_have_min_items",
    "At least one slice is large enough for the gate to detect forgetting.",
)
no_train_test_overlap = platform_check(
    "canary_set",
    "evaluation.checks.no_train_test_overlap",
    "The newest rows of the training pool and the canary set are disjoint: nothing equal, nothing similar.",
)
no_missing_items = platform_check(
    "canary_evaluation",
    "evaluation.checks.no_missing_items",
    "Every canary item has a reliable score for both versions.",
)


@dg.asset_check(
    asset="canary_evaluation",
    name=QUALITY_GATE,
    blocking=True,
    description="The candidate may replace production: it is better, and no rule of the gate fails.",
)
def quality_gate(context: dg.AssetCheckExecutionContext, platform: PlatformResource) -> dg.AssetCheckResult:
    """Show the verdict of this run's evaluation or, in a run of the check alone, the newest one."""
    from iccm_assets.evaluation.stored_verdict import load_verdict, verdict_metadata

    with platform.engine.connect() as conn:
        stored = load_verdict(conn, context.run.run_id)
    if stored is None:
        metadata = {"verdict": "none", "verdict_rules": "", "summary": "no version has been evaluated yet"}
    else:
        metadata = to_metadata(verdict_metadata(stored))
    return quality_gate_result(metadata)
