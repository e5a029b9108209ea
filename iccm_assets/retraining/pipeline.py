"""One retraining, from its claimed row to a registered candidate, in the order of the asset's steps.

`run_attempt` claims the row and marks it as failed if the block raises; `prepare_training` selects the
examples, writes the snapshot and describes the trainer's job; `register_candidate` registers the result. The
row stays `running` until the evaluation records its outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from iccm_assets.curation.canary_set import load_canary_set
from iccm_assets.curation.training_pool import lock_pool
from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.errors import IccmError, InputError, SettingsError, TrainingError
from iccm_assets.registry import training_runs, versions
from iccm_assets.registry.hub import CONFIG_FILE, is_adapter
from iccm_assets.registry.model_store import ModelStore, find_base
from iccm_assets.registry.training_runs import TrainingRun
from iccm_assets.registry.versions import ModelVersion
from iccm_assets.reporting.formatting import snake_case_keys
from iccm_assets.retraining import example_queries, preferences, self_examples, triggers
from iccm_assets.retraining.example_selection import ExampleSelection
from iccm_assets.retraining.self_examples import SelfExampleChoice
from iccm_assets.scoring.orchestra import load_orchestra_from_settings
from iccm_assets.settings import Settings, get_settings
from iccm_assets.training.accelerate_config import load_accelerate_config
from iccm_assets.training.dataset import (
    Dataset,
    DatasetStore,
    TrainingExample,
    compose_dataset,
    describe_rehearsal_shortage,
    load_rehearsal,
)
from iccm_assets.training.run_tracking import TRACKER_RUNS, update_runs, version_tags
from iccm_assets.training.sampling import SamplingJob, SamplingReport, load_answers
from iccm_assets.training.sampling_sources import load_sources
from iccm_assets.training.training_method import is_seq2seq, require_kind
from iccm_assets.training.worker_protocol import OPERATIONAL_FIELDS, TrainingJob, TrainingOutcome


@dataclass(frozen=True)
class SkippedRun:
    """Nothing is trained now, for this reason (T5, T6)."""

    reason: str


@dataclass(frozen=True)
class TrainingPlan:
    """The trainer's job, its dataset and base, the reason for these examples, and what was sampled."""

    job: TrainingJob
    dataset: Dataset
    base: ModelVersion
    reason: str
    sampling: SamplingReport | None = None


@contextmanager
def run_attempt(
    engine: sa.Engine, run: TrainingRun, dagster_run_id: str, dispatch: int | None = None
) -> Iterator[TrainingRun | SkippedRun]:
    """Claim the row for one attempt; record an error of the block on the row and raise it again.

    Yields the claimed row, whose fence is the right to publish, or ``SkippedRun`` if the row has to wait.
    ``dispatch`` is the number of the dispatch that started this Dagster run, if any.
    """
    with engine.begin() as conn:
        fence = training_runs.claim_run(conn, run.id, dagster_run_id, dispatch=dispatch)
        run = training_runs.get_run(conn, run.id)
    if fence is None:
        yield SkippedRun(f"training run {run.id} waits: {run.notes or ''}")
        return
    with record_failure(engine, run):
        yield run


@contextmanager
def record_failure(engine: sa.Engine, run: TrainingRun) -> Iterator[None]:
    """Send the attempt's heartbeats, and mark it as failed with the error's text if the block raises."""
    interval = training_runs.heartbeat_interval(get_settings().training.heartbeat_timeout_seconds)
    try:
        with training_runs.heartbeat_loop(engine, run.id, run.fence, interval):
            yield
    except BaseException as error:
        with engine.begin() as conn:
            if training_runs.holds_fence(conn, run.id, run.fence):
                kind = "" if isinstance(error, IccmError) else f"{type(error).__name__}: "
                message = f"{kind}{error}"[:2000]
                training_runs.finish_run(conn, run.id, run.fence, "failed", error=message)
        raise


def load_input_files(settings: Settings) -> list[TrainingExample]:
    """Return the rehearsal sample; raises ``InputError`` or ``SettingsError`` if a file cannot be used.

    The canary set is needed only after the training, which would be in vain; the configuration of
    `accelerate` only after the sampling.
    """
    load_canary_set(settings.canary_set)
    load_accelerate_config(settings.training)
    return load_rehearsal(settings.rehearsal)


def plan_sampling(engine: sa.Engine, settings: Settings, run: TrainingRun) -> SamplingJob | None:
    """Return what the model answers itself before the training set is composed; None if nothing (L12).

    An emergency samples nothing: its remedy is what developers corrected, and judging takes the time that it
    has not. `dpo` needs answers to the selected sources, `rft` to all recent ones. Raises ``InputError`` like
    ``prepare_training``, and ``SettingsError`` if the objective cannot train this model.
    """
    objective = settings.training.objective
    if objective == "sft" or run.emergency:
        return None
    _load_input_files(engine, settings, run)
    with engine.connect() as conn:
        base = versions.get_version(conn, run.requested_base or versions.PRODUCTION)
        _require_kind(settings, Path(base.path))
        selection = _propose_selection(conn, settings, run)
        if triggers.below_minimum(len(selection.selected), settings.triggers):
            return None  # prepare_training says so
        limit = settings.sampling.max_sources
        sources = [row.conversation_id for row in selection.selected[:limit]]
        if objective == "rft":
            window = selection.window
            sources = example_queries.find_recent_sources(conn, window, run.requested_base, limit)
    job = SamplingJob(version=base.version, conversation_ids=tuple(sources), seed=settings.training.seed)
    return job if sources else None


def prepare_training(
    engine: sa.Engine,
    settings: Settings,
    run: TrainingRun,
    sampling: SamplingJob | None = None,
    report: SamplingReport | None = None,
) -> TrainingPlan | SkippedRun:
    """Select the examples, write the snapshot and record both; ``SkippedRun`` below the minimum (T5, T7).

    ``sampling`` is what the model answered before, with its ``report``. Raises ``InputError`` for a file that
    a setting names. The run is not tried again then: only a person can correct it.
    """
    rehearsal = _load_input_files(engine, settings, run)
    with engine.begin() as conn:
        base = versions.get_version(conn, run.requested_base or versions.PRODUCTION)
        at = now(conn)
        selection = _propose_selection(conn, settings, run)
        if too_few := triggers.below_minimum(len(selection.selected), settings.triggers):
            return _skip(conn, run, base, f"{too_few.reason}; {selection.reason}")
        new, pinned = _read_examples(conn, {row.conversation_id for row in selection.selected})
        if settings.training.objective == "dpo":
            new, pinned = (
                preferences.add_worse_answers(conn, new),
                preferences.add_worse_answers(conn, pinned),
            )
            rehearsal = []  # nothing worse is known of the base model's own sample
            if too_few := triggers.below_minimum(len(new), settings.triggers):
                lacking = f"{len(new)} selected conversations have an answer that scored worse"
                return _skip(conn, run, base, f"{too_few.reason}: {lacking}; {selection.reason}")
    chosen = _choose_self_examples(engine, settings, base, sampling, new)
    dataset = compose_dataset(
        new,
        rehearsal,
        pinned,
        rehearsal_fraction=settings.training.rehearsal_fraction,
        validation_share=settings.training.validation_share,
        seed=settings.training.seed,
        own=[example.to_training_example() for example in chosen.chosen],
    )
    with engine.begin() as conn:
        if version := _find_rolled_back(conn, base.version, dataset.digest, settings):
            reason = (
                f"the same examples, base and settings gave {version}, which was rolled back; other examples "
                f"make another candidate; to deploy it anyway: iccm deploy {version} --force --reason '…'"
            )
            return _skip(conn, run, base, reason)
    directory = DatasetStore.open(settings).write(dataset)
    job = TrainingJob(
        home=str(settings.home),
        base=base.path,
        dataset=str(directory),
        config=settings.training,
        run_id=str(run.id),
        attempt=run.attempt,
        fence=run.fence,
        emergency=run.emergency,
        training_run_id=run.id,
        storage=settings.storage,
        accelerate=load_accelerate_config(settings.training),
    )
    with engine.begin() as conn:
        _reject_erased(conn, dataset, settings)
        _record_lineage(conn, run.id, dataset, chosen)
        training_runs.update_run(
            conn,
            run.id,
            run.fence,
            base_version=base.version,
            dataset_digest=dataset.digest,
            training_timestamp=at,
            config=settings.training.model_dump(mode="json"),
        )
    shortage = describe_rehearsal_shortage(dataset, settings.training.rehearsal_fraction, settings.rehearsal)
    parts = (
        selection.reason,
        chosen.reason if sampling and settings.training.objective == "rft" else "",
        shortage,
    )
    return TrainingPlan(job, dataset, base, "; ".join(part for part in parts if part), report)


def _load_input_files(engine: sa.Engine, settings: Settings, run: TrainingRun) -> list[TrainingExample]:
    """Return the rehearsal sample; fail the run for good if a file cannot be used."""
    try:
        return load_input_files(settings)
    except (InputError, SettingsError) as error:
        with engine.begin() as conn:
            attempts = settings.triggers.max_attempts
            training_runs.finish_run(conn, run.id, run.fence, "failed", error=str(error), attempt=attempts)
        raise


def _require_kind(settings: Settings, parent: Path) -> None:
    """Raise ``SettingsError`` before anything is sampled for an objective that cannot train this model.

    A model that is not on this machine is judged where it is trained.
    """
    if settings.training.objective != "dpo":
        return
    base = find_base(parent) if is_adapter(parent) else parent
    if (base / CONFIG_FILE).is_file():
        require_kind(settings.training, seq2seq=is_seq2seq(base))


def _propose_selection(conn: sa.Connection, settings: Settings, run: TrainingRun) -> ExampleSelection:
    window = settings.selection.with_window(run.requested_window_days)
    return example_queries.propose_selection(conn, now(conn), window, run.emergency, base=run.requested_base)


def _choose_self_examples(
    engine: sa.Engine,
    settings: Settings,
    base: ModelVersion,
    sampling: SamplingJob | None,
    new: list[TrainingExample],
) -> SelfExampleChoice:
    """Choose among the answers that were sampled for `rft`; only its sets have examples of their own."""
    if sampling is None or settings.training.objective != "rft":
        return SelfExampleChoice((), {})
    orchestra, ids = load_orchestra_from_settings(settings), sampling.conversation_ids
    with engine.connect() as conn:
        sources = load_sources(conn, ids, settings.curation)
        answers = load_answers(conn, ids, base.digest, settings, sampling.seed, orchestra)
    max_variance = settings.curation.max_implementation_variance
    ranked = self_examples.choose_best(sources, answers, max_variance)
    return self_examples.choose_self_examples(engine, ranked, new, settings)


def _skip(conn: sa.Connection, run: TrainingRun, base: ModelVersion, reason: str) -> SkippedRun:
    training_runs.finish_run(conn, run.id, run.fence, "skipped", notes=reason, base_version=base.version)
    return SkippedRun(reason)


def _find_rolled_back(conn: sa.Connection, base: str, dataset: str, settings: Settings) -> str | None:
    """Return the rolled-back version that the same training gave before: it would give the same weights."""
    tr, mv = t.phase4_training_runs.c, t.model_versions.c
    config = sa.literal(settings.training.model_dump(mode="json"), tr.config.type)
    query = (
        sa.select(mv.version)
        .join(t.phase4_training_runs, tr.candidate_version == mv.version)
        .where(mv.status == "rolled_back", tr.base_version == base, tr.dataset_digest == dataset)
        # A run of an earlier release has no value for a setting that is new since: it trained by the default.
        .where(_without_operational_fields(tr.config).contained_by(config))
    )
    return conn.execute(query.limit(1)).scalar_one_or_none()


def _without_operational_fields(config: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return config.op("-")(sa.cast(sorted(OPERATIONAL_FIELDS), sa.ARRAY(sa.Text)))


def locate_outcome(store: ModelStore, outcome: TrainingOutcome) -> TrainingOutcome:
    """Return the outcome with the candidate's directory on this machine; it may be trained on another one.

    Raises ``ModelNotFoundError`` if the candidate is not in the store of this machine.
    """
    return outcome.model_copy(update={"path": str(store.get_path(outcome.digest))})


def register_candidate(
    engine: sa.Engine, run: TrainingRun, plan: TrainingPlan, outcome: TrainingOutcome
) -> ModelVersion:
    """Register the published candidate as a version, and pin its training conversations (P2)."""
    metrics = {
        "training": {
            "validation_loss": outcome.best_validation_loss,
            "initial_validation_loss": outcome.initial_validation_loss,
            "best_epoch": outcome.best_epoch,
            "weight_change": vars(outcome.weight_change),
            "counts": dict(outcome.counts),
            "method": outcome.method,
            "base_digest": outcome.base_digest,
            "objective": plan.job.config.objective,
            **({"sampling": describe_sampling(plan.sampling)} if plan.sampling else {}),
        },
        **({TRACKER_RUNS: dict(outcome.tracker_runs)} if outcome.tracker_runs else {}),
    }
    with engine.begin() as conn:
        candidate = versions.register_version(
            conn,
            digest=outcome.digest,
            path=outcome.path,
            parent=plan.base.version,
            status="candidate",
            metrics=metrics,
            base_digest=outcome.base_digest,
        )
        training_runs.update_run(conn, run.id, run.fence, candidate_version=candidate.version)
        lock_pool(conn)  # a rebuild between selecting and pinning could have removed a row
        pool = t.phase4_training_data
        # Of a conversation that gave an own answer only, the accepted text was not learned.
        learned = [row.conversation_id for row in plan.dataset.examples if row.role != "self"]
        examples = pool.c.conversation_id.in_([number for number in learned if number is not None])
        conn.execute(pool.update().where(examples).values(pinned=True))
    return candidate


def name_tracked_runs(
    candidate: ModelVersion, outcome: TrainingOutcome, settings: Settings, warn: Callable[[str], None]
) -> None:
    """Give the training's runs in the experiment trackers the name of the version that it has become."""
    update_runs(
        outcome.tracker_runs,
        candidate.version,
        home=settings.home,
        timeout_seconds=settings.training.report_timeout_seconds,
        warn=warn,
        tags=version_tags(candidate),
    )


def candidate_metadata(
    candidate: ModelVersion, plan: TrainingPlan, outcome: TrainingOutcome
) -> dict[str, Any]:
    """Return the materialization's metadata; Dagster plots the numbers over time."""
    return {
        "version": candidate.version,
        "parent_version": plan.base.version,
        "objective": plan.job.config.objective,
        "selection": plan.reason,
        "dataset_digest": outcome.dataset_digest,
        **snake_case_keys(outcome.counts, "examples"),
        **(snake_case_keys(describe_sampling(plan.sampling), "sampling") if plan.sampling else {}),
        "validation_loss": outcome.best_validation_loss,
        "initial_validation_loss": outcome.initial_validation_loss,
        "best_epoch": outcome.best_epoch,
        "weight_change": outcome.weight_change.relative,
        "weights_changed": outcome.weight_change.changed_share,
        "parameters": outcome.parameters,
        "method": outcome.method,
        **({"base_digest": outcome.base_digest} if outcome.base_digest else {}),
        "device": outcome.device,
        "resumed_from_step": outcome.resumed_from_step,
        **snake_case_keys(outcome.seconds, "seconds"),
    }


def describe_sampling(report: SamplingReport) -> dict[str, int | float]:
    """Return the counts of a sampling and its two shares, those that have a value."""
    shares = {"accepted_share": report.accepted_share, "wrong_greedy_share": report.wrong_greedy_share}
    return report.model_dump() | {
        name: round(share, 4) for name, share in shares.items() if share is not None
    }


def get_claimed_run(engine: sa.Engine, dagster_run_id: str) -> TrainingRun | None:
    """Return the training run that this Dagster run is working on; ``None`` if there is none."""
    with engine.connect() as conn:
        running = training_runs.get_running_attempt(conn)
        if running is None or running.dagster_run_id != dagster_run_id:
            return None
        return training_runs.get_run(conn, running.id)


def record_verdict(engine: sa.Engine, run: TrainingRun, candidate: str) -> TrainingRun:
    """Record the newest verdict on the candidate as the run's outcome (E4)."""
    gv = t.gate_verdicts
    with engine.begin() as conn:
        verdict = conn.execute(
            sa.select(gv).where(gv.c.version == candidate).order_by(gv.c.id.desc()).limit(1)
        ).one_or_none()
        if verdict is None:
            raise IccmError(f"{candidate} has no verdict")
        return training_runs.finish_run(
            conn,
            run.id,
            run.fence,
            training_runs.VERDICT_STATUS[verdict.status],
            notes="; ".join(verdict.verdict["reasons"]),
            improvement=verdict.improvement,
            verdict=verdict.status,
        )


def _read_examples(
    conn: sa.Connection, selected: set[int]
) -> tuple[list[TrainingExample], list[TrainingExample]]:
    """Read the selected rows and, for rehearsal, the other pinned rows that still qualify (P4, L3)."""
    pool = t.phase4_training_data.c
    rows = conn.execute(
        sa.select(pool.conversation_id, pool.source_code, pool.requirements).where(
            sa.or_(pool.conversation_id.in_(selected), sa.and_(pool.pinned, pool.qualifies))
        )
    ).all()
    examples = [
        TrainingExample(row.conversation_id, row.source_code, row.requirements, "new", "pool") for row in rows
    ]
    new = [row for row in examples if row.conversation_id in selected]
    pinned = [row for row in examples if row.conversation_id not in selected]
    return new, [replace(row, role="rehearsal", origin="pinned") for row in pinned]


def _reject_erased(conn: sa.Connection, dataset: Dataset, settings: Settings) -> None:
    """Fail if an example was erased since its selection, and delete the snapshot that holds its text (V2)."""
    c = t.conversations.c
    rows = conn.execute(
        sa.select(c.id, c.erased_at)
        .where(c.id.in_(dataset.conversation_ids))
        .order_by(c.id)
        .with_for_update(read=True, key_share=True)
    )
    erased = [str(row.id) for row in rows if row.erased_at is not None]
    if erased:
        DatasetStore.open(settings).delete(dataset.digest)
        raise TrainingError(
            f"{len(erased)} selected conversations were erased meanwhile ({', '.join(erased[:5])})"
        )


def _record_lineage(conn: sa.Connection, run_id: int, dataset: Dataset, own: SelfExampleChoice) -> None:
    """Record the conversations of this attempt's dataset in place of an earlier attempt's."""
    answers = {example.source.conversation_id: example.answer.id for example in own.chosen}
    examples = t.training_run_examples
    conn.execute(examples.delete().where(examples.c.training_run_id == run_id))
    rows = [
        {
            "training_run_id": run_id,
            "conversation_id": row.conversation_id,
            "role": row.role,
            "sampled_answer_id": answers[row.conversation_id] if row.role == "self" else None,
        }
        for row in dataset.examples
        if row.conversation_id is not None
    ]
    conn.execute(examples.insert(), rows)
