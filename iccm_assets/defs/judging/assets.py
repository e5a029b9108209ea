"""The frozen evaluation set, and the candidate's measurement against production (E1-E4)."""

import sys

import dagster as dg

from iccm_assets.defs.resources import Platform

OWNERS = ["team:ml-platform"]
QUALITY_GATE = "quality_gate"
RECOVERY = (
    "Nothing was deployed and production is untouched. `verdict_in_words` names the rule and its numbers. "
    "Inconclusive: evaluate again with more evidence (`iccm evaluate VERSION`). Failed: the examples stay "
    "selectable for the next retrain. To deploy anyway: `iccm deploy VERSION --force --reason …`."
)


@dg.asset(group_name="judging", kinds={"json"}, owners=OWNERS, code_version="1")
def canary_set(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """The frozen evaluation set (`ICCM_CANARY_SET`), sliced by domain and never trained on (X3)."""
    from iccm_assets.curation.canary_set import load_canary_set

    loaded = load_canary_set(platform.settings.canary_set)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(loaded.items),
            "digest": loaded.digest,
            "slices": dg.MetadataValue.json(loaded.slices),
            "path": dg.MetadataValue.path(platform.settings.canary_set),
        },
        data_version=dg.DataVersion(loaded.digest),
    )


class EvaluationConfig(dg.Config):
    """Which version to evaluate; empty: the one this run trained, else the newest candidate."""

    version: str = ""


@dg.asset(
    group_name="judging",
    kinds={"python", "torch"},
    owners=OWNERS,
    code_version="1",
    deps=["fine_tuned_checkpoint", "canary_set"],
    check_specs=[
        dg.AssetCheckSpec(
            QUALITY_GATE,
            asset="canary_evaluation",
            blocking=True,
            description="May this candidate replace production? pass, fail or inconclusive (E3).",
        )
    ],
)
def canary_evaluation(
    context: dg.AssetExecutionContext,
    config: EvaluationConfig,
    platform: Platform,
    pipes: dg.PipesSubprocessClient,
) -> dg.MaterializeResult:
    """Candidate and production, measured on the same items by running code, and the gate's verdict.

    Both models are asked in one process; scores are cached by model, item, orchestra and judge. The
    verdict is stored with its evidence, and the candidate's status follows it.
    """
    from contextlib import nullcontext

    from iccm_assets.errors import IccmError
    from iccm_assets.learning import retrain
    from iccm_assets.rollout.candidates import trained_in

    claimed = retrain.running_in(platform.engine, context.run_id)
    candidate = trained_in(platform.engine, context.run_id, config.version)
    with retrain.failing(platform.engine, claimed) if claimed else nullcontext():
        answer = pipes.run(
            context=context,
            command=[sys.executable, "-m", "iccm_assets.judging.evaluator"],
            extras={
                "candidate": candidate,
                "emergency": bool(claimed and claimed.run.emergency),
                "training_run_id": claimed.run.id if claimed else None,
                "dagster_run_id": context.run_id,
            },
        )
        reply = next(iter(answer.get_custom_messages()), {})
        if "metadata" not in reply:
            raise IccmError.from_dict(reply.get("error") or {"name": "IccmError", "detail": "", "hint": ""})
        if claimed:
            retrain.conclude(platform.engine, claimed, candidate)
    metadata = {name: _metadata_value(value) for name, value in reply["metadata"].items()}
    verdict = reply["metadata"]["verdict"]
    return dg.MaterializeResult(
        metadata=metadata,
        check_results=[
            dg.AssetCheckResult(
                check_name=QUALITY_GATE,
                passed=verdict == "pass",
                severity=dg.AssetCheckSeverity.ERROR,
                description=f"{candidate}: {verdict}",
                metadata={
                    "verdict_in_words": metadata["verdict_in_words"],
                    "recovery": dg.MetadataValue.md(RECOVERY),
                },
            )
        ],
    )


def _metadata_value(value: object) -> object:
    return dg.MetadataValue.md(value["raw_value"]) if isinstance(value, dict) else value


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(assets=[canary_set, canary_evaluation])
