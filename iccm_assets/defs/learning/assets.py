"""The base model, and the candidate trained from production (L1-L7)."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from iccm_assets.defs.learning.progress import observing
from iccm_assets.defs.learning.runs import RetrainConfig, training_run_of
from iccm_assets.defs.partitions import WEEKLY
from iccm_assets.defs.resources import Platform
from iccm_assets.defs.show import table
from iccm_assets.orphans import started_by_me

if TYPE_CHECKING:
    from iccm_assets.learning.retrain import Plan
    from iccm_assets.learning.versions import ModelVersion

OWNERS = ["team:ml-platform"]


@dg.asset(
    group_name="learning",
    kinds={"huggingface"},
    owners=OWNERS,
    code_version="1",
    freshness_policy=WEEKLY,
)
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
    freshness_policy=WEEKLY,
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

    request, dispatch = training_run_of(context, platform.engine, config)
    with retrain.attempt(platform.engine, request, context.run.run_id, dispatch) as claimed:
        if isinstance(claimed, retrain.Skipped):
            context.log.info(claimed.reason)
            return
        plan = retrain.prepare(platform.engine, platform.settings, claimed)
        context.log.info(plan.reason)
        if isinstance(plan, retrain.Skipped):
            return
        answer = observing(pipes, context).run(
            context=context,
            command=[sys.executable, "-m", "iccm_assets.learning.trainer"],
            env=started_by_me(),
            extras={"job": plan.job.to_dict()},
        )
        outcome = read_reply(answer.get_custom_messages())
        candidate = retrain.register(platform.engine, claimed, plan, outcome)
    yield dg.MaterializeResult(
        metadata={
            **retrain.describe(candidate, plan, outcome),
            **_links(candidate, plan, platform),
            "loss_curve": dg.MetadataValue.md(loss_curve_markdown(outcome.history)),
        },
        data_version=dg.DataVersion(candidate.digest),
    )


def _links(candidate: "ModelVersion", plan: "Plan", platform: Platform) -> dict[str, dg.MetadataValue]:
    """Where the version, its card, its parent and its training set are, and who taught it: ids, no text."""
    from iccm_assets.learning.card import CARD
    from iccm_assets.learning.facts import dagster_run_of, teachers

    with platform.engine.connect() as conn:
        parent_run = dagster_run_of(conn, plan.base.version)
        taught = [vars(one) for one in teachers(conn, plan.job.training_run_id)]
    card = Path(candidate.path) / CARD
    return {
        "path": dg.MetadataValue.path(candidate.path),
        "model_card": dg.MetadataValue.md(_without_front_matter(card.read_text(encoding="utf-8"))),
        "parent_path": dg.MetadataValue.path(plan.base.path),
        **({"parent_run": dg.MetadataValue.dagster_run(parent_run)} if parent_run else {}),
        "dataset": dg.MetadataValue.path(plan.job.dataset),
        "taught_by": table(taught, "no conversations"),
    }


def _without_front_matter(card: str) -> str:
    """The card as a person reads it; the front matter is for the hub."""
    return card.split("---\n", 2)[-1] if card.startswith("---\n") else card


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(assets=[base_model, fine_tuned_checkpoint])
