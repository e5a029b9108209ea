"""Evaluation worker: generate answers with both models, judge them, decide the gate and store the verdict.

Run by the asset `canary_evaluation` as ``python -m iccm_assets.judging.evaluator`` under Dagster Pipes,
and by `iccm evaluate` as a function. One process loads both models, so that both meet the same machine (E1).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from iccm_assets.alerts.outbox import raise_alert
from iccm_assets.errors import IccmError
from iccm_assets.judging import evaluation, gate, report
from iccm_assets.judging.evaluation import EvaluationOutcome, EvaluationSet, Measured, Subject
from iccm_assets.judging.judge import JUDGE_VERSION
from iccm_assets.judging.orchestra import Orchestra, orchestra_of
from iccm_assets.judging.verdict import GateEvidence
from iccm_assets.learning import versions
from iccm_assets.learning.versions import ModelVersion
from iccm_assets.models.seq import Answer, generate, load_model, set_threads
from iccm_assets.orphans import end_with_starter
from iccm_assets.settings import Settings, load_settings
from iccm_assets.store import tables as t
from iccm_assets.store.clock import now

# Columns of the forgetting matrix before production's; more are not readable.
MOST_ANCESTORS = 8
# Status that a verdict gives to a candidate without a final status.
STATUS_OF_VERDICT = {"pass": "candidate", "fail": "gate_failed", "inconclusive": "inconclusive"}


@dataclass(frozen=True)
class EvaluationJob:
    """The candidate to evaluate against the current production version."""

    candidate: str
    emergency: bool = False
    training_run_id: int | None = None
    dagster_run_id: str | None = None


def evaluate(
    engine: sa.Engine,
    job: EvaluationJob,
    settings: Settings,
    log: Callable[[str], None] = lambda message: None,
) -> EvaluationOutcome:
    """Measure the candidate and production on the canary set and the holdout, and store the verdict.

    Raises ``ModelNotFound`` or ``DamagedCheckpoint`` when a version cannot be loaded; nothing is stored then.
    """
    with engine.connect() as conn:
        candidate = versions.get(conn, job.candidate)
        production = versions.production(conn)
        if production is None:
            raise IccmError(
                "there is no production version to compare with", hint="Materialize base_model first."
            )
        ancestors = _ancestors(conn, production)
    orchestra = orchestra_of(settings)
    subjects = (_subject(candidate, settings), _subject(production, settings))
    canary_set = evaluation.canary_items(settings)
    holdout_set = evaluation.holdout_items(engine, settings)
    canary = _measure_both(engine, subjects, canary_set, orchestra, settings, log)
    holdout = _measure_both(engine, subjects, holdout_set, orchestra, settings, log)
    count, rounds = settings.evaluation.latency_items, settings.evaluation.latency_rounds
    latency_items = canary_set.items[:: max(1, len(canary_set.items) // count)][:count]
    log(f"latency at batch 1 on {len(latency_items)} items, {rounds} rounds")
    of_candidate, of_production = evaluation.measure_latency(subjects, latency_items, rounds)
    latency = (of_candidate, of_production)
    evidence = evaluation.gate_evidence(canary, canary_set, latency)
    cached = [evaluation.remembered(engine, v, canary_set, orchestra, settings) for v in ancestors]
    verdict = gate.decide(evidence, settings.evaluation, emergency=job.emergency)
    outcome = EvaluationOutcome(
        candidate,
        production,
        canary,
        holdout,
        latency,
        {item.item: item.slice for item in canary_set.items},
        verdict,
        ancestors=tuple(scores for scores in cached if scores.scores),
    )
    _store(engine, job, outcome, evidence, canary_set.digest, orchestra, settings)
    log(f"quality gate: {verdict.status}; {'; '.join(verdict.reasons)}")
    return outcome


def _ancestors(conn: sa.Connection, version: ModelVersion) -> list[ModelVersion]:
    """Load the nearest ancestors of the version, oldest first."""
    ancestors: list[ModelVersion] = []
    while version.parent_version and len(ancestors) < MOST_ANCESTORS:
        version = versions.get(conn, version.parent_version)
        ancestors.insert(0, version)
    return ancestors


def _subject(version: ModelVersion, settings: Settings) -> Subject:
    set_threads(settings.training.threads)
    loaded = load_model(version.path)

    def answer(sources: Sequence[str], batch_size: int) -> list[Answer]:
        return generate(
            loaded, sources, max_new_tokens=settings.evaluation.max_new_tokens, batch_size=batch_size
        )

    return Subject(version, answer)


def _measure_both(
    engine: sa.Engine,
    subjects: tuple[Subject, Subject],
    chosen: EvaluationSet,
    orchestra: Orchestra,
    settings: Settings,
    log: Callable[[str], None],
) -> tuple[Measured, Measured]:
    total, done = 2 * len(chosen.items), 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        log(f"{chosen.name}: {done} of {total} answers scored")

    candidate, production = (
        evaluation.measure(engine, subject, chosen, orchestra, settings, progress) for subject in subjects
    )
    return candidate, production


def _store(
    engine: sa.Engine,
    job: EvaluationJob,
    outcome: EvaluationOutcome,
    evidence: GateEvidence,
    canary_set_digest: str,
    orchestra: Orchestra,
    settings: Settings,
) -> None:
    """Store the verdict with its evidence, statuses and metrics, and an alert unless it passed, at once."""
    verdict = outcome.verdict
    with engine.begin() as conn:
        statement = t.gate_verdicts.insert().values(
            version=outcome.candidate.version,
            production_version=outcome.production.version,
            training_run_id=job.training_run_id,
            status=verdict.status,
            improvement=verdict.improvement,
            verdict=json.loads(verdict.to_json()),
            evidence=json.loads(evidence.to_json()),
            gate=settings.evaluation.model_dump(mode="json"),
            canary_set_digest=canary_set_digest,
            orchestra=orchestra.digest,
            judge_version=JUDGE_VERSION,
            dagster_run_id=job.dagster_run_id,
            created_at=now(conn),
        )
        verdict_id = conn.execute(statement.returning(t.gate_verdicts.c.id)).scalar_one()
        if verdict.status != "pass":
            raise_alert(
                conn,
                f"quality_gate:{verdict_id}",
                "warning",
                f"Quality gate: {verdict.status}",
                f"{outcome.candidate.version} is not deployed, {outcome.production.version} stays: "
                + "; ".join(verdict.reasons),
            )
        _update_versions(conn, outcome)


def _update_versions(conn: sa.Connection, outcome: EvaluationOutcome) -> None:
    """Store both versions' metrics, and the candidate's status by its verdict unless it is final already."""
    mv = t.model_versions
    summary = report.summary(outcome)
    for role, version in (("candidate", outcome.candidate), ("production", outcome.production)):
        merged = mv.c.metrics.op("||")(sa.cast({"evaluation": summary[role]}, JSONB))
        conn.execute(mv.update().where(mv.c.version == version.version).values(metrics=merged))
    not_final = mv.c.status.in_(["candidate", "inconclusive", "gate_failed"])
    conn.execute(
        mv.update()
        .where(mv.c.version == outcome.candidate.version, not_final)
        .values(status=STATUS_OF_VERDICT[outcome.verdict.status])
    )


def main() -> int:
    """Evaluate the job in the Pipes extras; reports `metadata` or a named `error`."""
    from dagster_pipes import open_dagster_pipes

    from iccm_assets.store.database import connect

    end_with_starter()
    with open_dagster_pipes() as pipes:
        try:
            settings = load_settings()
            job = EvaluationJob(**pipes.extras)
            outcome = evaluate(connect(settings), job, settings, log=pipes.log.info)
        except IccmError as error:
            pipes.report_custom_message({"error": error.to_dict()})
        else:
            pipes.report_custom_message({"metadata": report.metadata(outcome)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
