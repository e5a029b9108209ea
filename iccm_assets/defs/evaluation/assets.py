"""The canary set, and the evaluation of a candidate against production."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import dagster as dg
from pydantic import Field

from iccm_assets.defs.code_versions import code_version
from iccm_assets.defs.column_schemas import CANARY_SET, column_schema
from iccm_assets.defs.metadata import (
    table_metadata,
    with_markdown,
    worker_metadata,
)
from iccm_assets.defs.partitions import OWNERS, weekly_freshness
from iccm_assets.defs.resources import PlatformResource
from iccm_assets.defs.workers import WorkerClient

QUALITY_GATE = "quality_gate"
NO_MISSING_ITEMS = "no_missing_items"
PLOTTED_METADATA = ("improvement", "candidate_test_pass_rate", "production_test_pass_rate")
RECOVERY = (
    "Nothing was deployed and production is unchanged. `verdict_rules` names the rule and its numbers. "
    "Inconclusive: evaluate again with more evidence (`iccm evaluate VERSION`). Failed: the examples stay "
    "selectable for the next retrain. To deploy anyway: `iccm deploy VERSION --force --reason …`."
)


@dg.asset(
    group_name="evaluation",
    kinds={"json"},
    owners=OWNERS,
    code_version=code_version("curation.canary_set"),
    metadata=column_schema(CANARY_SET),
)
def canary_set(context: dg.AssetExecutionContext, platform: PlatformResource) -> dg.MaterializeResult[None]:
    """The frozen evaluation set (`ICCM_CANARY_SET`), sliced by domain and never trained on."""
    from iccm_assets.curation.canary_set import load_canary_set

    loaded = load_canary_set(platform.settings.canary_set)
    slices = [{"slice": name, "items": items} for name, items in loaded.slices.items()]
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(loaded.items),
            "digest": loaded.digest,
            "slices": len(loaded.slices),
            "items_by_slice": table_metadata(slices),
            "path": dg.MetadataValue.path(platform.settings.canary_set),
        },
        data_version=dg.DataVersion(loaded.digest),
    )


class EvaluationConfig(dg.Config):
    """Options of an evaluation."""

    version: str = Field(
        "", description="The version to evaluate; empty: the one this run trained, else the newest candidate."
    )


@dg.asset(
    group_name="evaluation",
    kinds={"python", "pytorch"},
    owners=OWNERS,
    code_version=code_version(
        *("evaluation.paired_evaluation", "evaluation.quality_gate", "evaluation.version_comparison"),
        *("evaluation.confidence_bounds", "models.generation", "suites.suite_runner"),
    ),
    freshness_policy=weekly_freshness,
    deps=["fine_tuned_checkpoint", "canary_set"],
)
def canary_evaluation(
    context: dg.AssetExecutionContext,
    config: EvaluationConfig,
    platform: PlatformResource,
    workers: dg.ResourceParam[WorkerClient],
) -> dg.MaterializeResult[None]:
    """Candidate and production, measured on the same items by running code, and the verdict of the gate.

    One process loads both models; scores are cached by model, item, orchestra and judge. The verdict is
    stored with its evidence, and the status of the candidate follows it.
    """
    from iccm_assets.registry.versions import resolve_candidate
    from iccm_assets.retraining import pipeline

    claimed = pipeline.get_claimed_run(platform.engine, context.run.run_id)
    candidate = resolve_candidate(platform.engine, context.run.run_id, config.version)
    with pipeline.record_failure(platform.engine, claimed) if claimed else nullcontext():
        messages = workers.run(
            context,
            platform,
            "iccm_assets.evaluation.evaluation_worker",
            {
                "candidate": candidate,
                "emergency": bool(claimed and claimed.emergency),
                "training_run_id": claimed.id if claimed else None,
                "dagster_run_id": context.run.run_id,
            },
        )
        metadata = worker_metadata(messages)
        if claimed:
            pipeline.record_verdict(platform.engine, claimed, candidate)
    return dg.MaterializeResult(metadata=with_markdown(metadata))


def quality_gate_result(metadata: Mapping[str, Any]) -> dg.AssetCheckResult:
    """The verdict in the metadata of an evaluation; what to do next only where it is not a pass."""
    passed = metadata["verdict"] == "pass"
    return dg.AssetCheckResult(
        check_name=QUALITY_GATE,
        passed=passed,
        severity=dg.AssetCheckSeverity.ERROR,
        description=metadata["summary"],
        metadata={
            "verdict": metadata["verdict"],
            "verdict_rules": metadata["verdict_rules"],
            **({} if passed else {"recovery": dg.MetadataValue.md(RECOVERY)}),
            **{name: metadata[name] for name in PLOTTED_METADATA if name in metadata},
        },
    )
