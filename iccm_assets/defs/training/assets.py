"""The base model, and the candidate fine-tuned on production conversations."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg

from iccm_assets.defs.automation.training_run_tags import RetrainConfig, get_training_run
from iccm_assets.defs.code_versions import code_version
from iccm_assets.defs.metadata import table_metadata, with_markdown
from iccm_assets.defs.partitions import OWNERS, weekly_freshness
from iccm_assets.defs.resources import PlatformResource
from iccm_assets.defs.workers import WorkerClient

if TYPE_CHECKING:
    from iccm_assets.registry.versions import ModelVersion
    from iccm_assets.retraining.pipeline import TrainingPlan
    from iccm_assets.training.sampling import SamplingJob, SamplingReport


@dg.asset(
    group_name="training",
    kinds={"huggingface"},
    owners=OWNERS,
    code_version=code_version("rollout.deployment", "models.generation"),
)
def base_model(context: dg.AssetExecutionContext, platform: PlatformResource) -> dg.MaterializeResult[None]:
    """The first production version: `ICCM_BASE_MODEL`, copied into the model store with its manifest.

    It has to load and to answer first. Once there is a production version, materializing this asset verifies
    it, and a check compares its base with the setting.
    """
    from iccm_assets.rollout.deployment import ensure_production

    production, manifest = ensure_production(platform.engine, platform.model_store, platform.settings)
    return dg.MaterializeResult(
        metadata={
            "production_version": production.version,
            "base_model": manifest.base,
            "configured_base_model": platform.settings.base_model,
            "digest": production.digest,
            "size_bytes": manifest.size,
            "path": dg.MetadataValue.path(production.path),
        },
        data_version=dg.DataVersion(production.digest),
    )


@dg.asset(
    group_name="training",
    kinds={"huggingface", "pytorch"},
    owners=OWNERS,
    code_version=code_version(
        *("training.finetuning", "training.dataset", "training.checkpoint_export"),
        *("training.whole_model", "training.adapter_training", "training.training_method"),
        *("training.preference_training", "training.sampling"),
        *("retraining.self_examples", "retraining.preferences"),
        *("retraining.example_selection", "retraining.pipeline"),
    ),
    pool="training",
    freshness_policy=weekly_freshness,
    output_required=False,
    deps=["base_model", dg.AssetDep("training_pool", partition_mapping=dg.LastPartitionMapping())],
)
def fine_tuned_checkpoint(
    context: dg.AssetExecutionContext,
    config: RetrainConfig,
    platform: PlatformResource,
    workers: dg.ResourceParam[WorkerClient],
) -> Iterator[dg.MaterializeResult[None]]:
    """A candidate: the production model fine-tuned on selected pool examples and rehearsal examples.

    It is a whole model, or an adapter of one, the default above a billion weights. A separate process trains
    it, here or on a cluster; it is published under the digest of its content. With the objective `rft`
    production answers recent sources itself before, in a process of its own, and the best of these answers
    are examples, too. With fewer examples than the minimum nothing trains and the run ends here, without an
    output.
    """
    from iccm_assets.reporting.formatting import markdown_image
    from iccm_assets.reporting.plots import plot_loss_curve
    from iccm_assets.retraining import pipeline
    from iccm_assets.training.worker_protocol import parse_reply

    request, dispatch = get_training_run(context, platform.engine, config)
    with pipeline.run_attempt(platform.engine, request, context.run.run_id, dispatch) as claimed:
        if isinstance(claimed, pipeline.SkippedRun):
            context.log.info(claimed.reason)
            return
        sampling = pipeline.plan_sampling(platform.engine, platform.settings, claimed)
        report = None if sampling is None else _sample(context, platform, workers, sampling)
        plan = pipeline.prepare_training(platform.engine, platform.settings, claimed, sampling, report)
        context.log.info(plan.reason)
        if isinstance(plan, pipeline.SkippedRun):
            return
        messages = workers.run(
            context,
            platform,
            "iccm_assets.training.trainer_worker",
            {"job": plan.job.model_dump(mode="json")},
            observe_progress=True,
        )
        outcome = pipeline.locate_outcome(platform.model_store, parse_reply(messages))
        candidate = pipeline.register_candidate(platform.engine, claimed, plan, outcome)
    pipeline.name_tracked_runs(candidate, outcome, platform.settings, context.log.warning)
    yield dg.MaterializeResult(
        metadata={
            **with_markdown(pipeline.candidate_metadata(candidate, plan, outcome)),
            **_links(candidate, plan, request.id, platform),
            "loss_curve": dg.MetadataValue.md(markdown_image(plot_loss_curve(outcome.history), "loss")),
        },
        data_version=dg.DataVersion(candidate.digest),
    )


def _sample(
    context: dg.AssetExecutionContext,
    platform: PlatformResource,
    workers: WorkerClient,
    job: "SamplingJob",
) -> "SamplingReport":
    """Let production answer the sources of the job, and log what came of it."""
    from iccm_assets.training.sampling import parse_reply

    messages = workers.run(
        context,
        platform,
        "iccm_assets.training.sampling_worker",
        {"job": job.model_dump(mode="json")},
    )
    report = parse_reply(messages)
    context.log.info(report.to_log_line())
    return report


def _links(
    candidate: "ModelVersion", plan: "TrainingPlan", training_run_id: int, platform: PlatformResource
) -> dict[str, dg.MetadataValue]:
    """Links to the version, its card, parent and dataset, and the ids of its training conversations."""
    from iccm_assets.registry.model_store import fetch_model
    from iccm_assets.training.checks import get_dagster_run, list_training_conversations
    from iccm_assets.training.model_card import MODEL_CARD_FILE

    with platform.engine.connect() as conn:
        parent_run = get_dagster_run(conn, plan.base.version)
        conversations = list_training_conversations(conn, training_run_id)
    card = (fetch_model(candidate.path, platform.settings) / MODEL_CARD_FILE).read_text(encoding="utf-8")
    # The front matter is for the Hugging Face Hub.
    body = card.split("---\n", 2)[-1] if card.startswith("---\n") else card
    return {
        "path": dg.MetadataValue.path(candidate.path),
        "model_card": dg.MetadataValue.md(body),
        "parent_path": dg.MetadataValue.path(plan.base.path),
        **({"parent_run": dg.MetadataValue.dagster_run(parent_run)} if parent_run else {}),
        "dataset": dg.MetadataValue.path(plan.job.dataset),
        "training_conversations": table_metadata(conversations, "no conversations"),
    }
