"""The frozen evaluation set, and the candidate's measurement against production (E1-E4)."""

import sys

import dagster as dg

from iccm_assets.defs.partitions import WEEKLY
from iccm_assets.defs.resources import Platform
from iccm_assets.defs.schemas import CANARY_SET, schema
from iccm_assets.defs.show import result, table
from iccm_assets.orphans import started_by_me

OWNERS = ["team:ml-platform"]
QUALITY_GATE = "quality_gate"
# Told by the evaluation itself: a check of its own would not run after a red gate, which ends the run.
NO_MISSING_ITEMS = "no_missing_items"
PLOTTED = ("improvement", "candidate_test_pass_rate", "production_test_pass_rate")
RECOVERY = (
    "Nothing was deployed and production is untouched. `verdict_in_words` names the rule and its numbers. "
    "Inconclusive: evaluate again with more evidence (`iccm evaluate VERSION`). Failed: the examples stay "
    "selectable for the next retrain. To deploy anyway: `iccm deploy VERSION --force --reason …`."
)


@dg.asset(
    group_name="judging",
    kinds={"json"},
    owners=OWNERS,
    code_version="1",
    freshness_policy=WEEKLY,
    metadata=schema(CANARY_SET),
)
def canary_set(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """The frozen evaluation set (`ICCM_CANARY_SET`), sliced by domain and never trained on (X3)."""
    from iccm_assets.curation.canary_set import load_canary_set

    loaded = load_canary_set(platform.settings.canary_set)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(loaded.items),
            "digest": loaded.digest,
            "slices": len(loaded.slices),
            "items_by_slice": table([{"slice": name, "items": n} for name, n in loaded.slices.items()]),
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
    freshness_policy=WEEKLY,
    deps=["fine_tuned_checkpoint", "canary_set"],
    check_specs=[
        dg.AssetCheckSpec(
            QUALITY_GATE,
            asset="canary_evaluation",
            blocking=True,
            description="May this candidate replace production? pass, fail or inconclusive (E3).",
        ),
        dg.AssetCheckSpec(
            NO_MISSING_ITEMS,
            asset="canary_evaluation",
            description="Was every canary item measured for both versions?",
        ),
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

    claimed = retrain.running_in(platform.engine, context.run.run_id)
    candidate = trained_in(platform.engine, context.run.run_id, config.version)
    with retrain.failing(platform.engine, claimed) if claimed else nullcontext():
        answer = pipes.run(
            context=context,
            command=[sys.executable, "-m", "iccm_assets.judging.evaluator"],
            env=started_by_me(),
            extras={
                "candidate": candidate,
                "emergency": bool(claimed and claimed.run.emergency),
                "training_run_id": claimed.run.id if claimed else None,
                "dagster_run_id": context.run.run_id,
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
            _missing_items(platform),
            dg.AssetCheckResult(
                check_name=QUALITY_GATE,
                passed=verdict == "pass",
                severity=dg.AssetCheckSeverity.ERROR,
                description=reply["metadata"]["in_a_sentence"],
                metadata={
                    "verdict_in_words": metadata["verdict_in_words"],
                    "recovery": dg.MetadataValue.text(RECOVERY),
                    **{name: metadata[name] for name in PLOTTED if name in metadata},
                },
            ),
        ],
    )


def _missing_items(platform: Platform) -> dg.AssetCheckResult:
    """Of the verdict that was just stored."""
    from iccm_assets.judging import facts, health

    with platform.engine.connect() as conn:
        last = facts.last_verdict(conn)
    return result(health.missing_items(last.version, last.items, last.missing), NO_MISSING_ITEMS)


def _metadata_value(value: object) -> object:
    return dg.MetadataValue.md(value["raw_value"]) if isinstance(value, dict) else value


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(assets=[canary_set, canary_evaluation])
