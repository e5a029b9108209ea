"""The base model, and the candidate trained from production (L1-L7)."""

import sys

import dagster as dg

from iccm_assets.defs.learning.runs import RetrainConfig, training_run_of
from iccm_assets.defs.resources import Platform

OWNERS = ["team:ml-platform"]


@dg.asset(group_name="learning", kinds={"huggingface"}, owners=OWNERS, code_version="1")
def base_model(context: dg.AssetExecutionContext, platform: Platform) -> dg.MaterializeResult:
    """The first production version: `ICCM_BASE_MODEL`, copied into the model store with its manifest.

    Once there is a production version this only verifies it.
    """
    from iccm_assets.rollout.bootstrap import ensure_production

    serving, manifest = ensure_production(platform.engine, platform.model_store, platform.settings)
    return dg.MaterializeResult(
        metadata={
            "production_version": serving.version,
            "base_model": manifest.base,
            "digest": serving.digest,
            "size_bytes": manifest.size,
            "path": dg.MetadataValue.path(serving.path),
        },
        data_version=dg.DataVersion(serving.digest),
    )


@dg.asset(
    group_name="learning",
    kinds={"huggingface", "torch"},
    owners=OWNERS,
    code_version="1",
    pool="training",
    output_required=False,
    deps=["base_model", dg.AssetDep("training_pool", partition_mapping=dg.LastPartitionMapping())],
)
def fine_tuned_checkpoint(
    context: dg.AssetExecutionContext,
    config: RetrainConfig,
    platform: Platform,
    pipes: dg.PipesSubprocessClient,
):
    """A candidate: the production model fine-tuned on selected pool examples and rehearsal (L1-L7).

    Trained in a process of its own and published under its content's digest. With fewer examples than the
    floor nothing trains (T5) and the run ends here, without an output.
    """
    from iccm_assets.learning import retrain
    from iccm_assets.learning.curves import loss_curve_markdown
    from iccm_assets.learning.job import read_reply

    request = training_run_of(context, platform.engine, config)
    with retrain.attempt(platform.engine, request, context.run_id) as claimed:
        if isinstance(claimed, retrain.Skipped):
            context.log.info(claimed.reason)
            return
        plan = retrain.prepare(platform.engine, platform.settings, claimed)
        context.log.info(plan.reason)
        if isinstance(plan, retrain.Skipped):
            return
        answer = pipes.run(
            context=context,
            command=[sys.executable, "-m", "iccm_assets.learning.trainer"],
            extras={"job": plan.job.to_dict()},
        )
        outcome = read_reply(answer.get_custom_messages())
        candidate = retrain.register(platform.engine, claimed, plan, outcome)
    yield dg.MaterializeResult(
        metadata={
            **retrain.describe(candidate, plan, outcome),
            "path": dg.MetadataValue.path(candidate.path),
            "loss_curve": dg.MetadataValue.md(loss_curve_markdown(outcome.history)),
        },
        data_version=dg.DataVersion(candidate.digest),
    )


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(assets=[base_model, fine_tuned_checkpoint])
