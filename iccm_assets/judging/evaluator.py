"""The evaluation worker: answers with both models, has them judged, lets the gate decide, stores it all.

Run by the asset `canary_evaluation` as ``python -m iccm_assets.judging.evaluator`` under Dagster Pipes,
and by `iccm evaluate` as a function. One process loads both models, so both meet the same machine (E1).
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
from iccm_assets.judging.evaluation import gate_evidence as gate_evidence
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

Log = Callable[[str], None]

# Columns of the forgetting matrix before production's; more are not readable.
MOST_ANCESTORS = 8
# What a verdict makes of a candidate that is not settled yet (E4).
STATUS_OF_VERDICT = {"pass": "candidate", "fail": "gate_failed", "inconclusive": "inconclusive"}


@dataclass(frozen=True)
class EvaluationJob:
    """What to evaluate: a candidate against the version in production now."""

    candidate: str
    emergency: bool = False
    training_run_id: int | None = None
    dagster_run_id: str | None = None


def evaluate(
    engine: sa.Engine, job: EvaluationJob, settings: Settings, log: Log = lambda message: None
) -> EvaluationOutcome:
    """Measure the candidate and production on the canary set and the production holdout, and judge.

    Raises ``ModelNotFound`` and ``DamagedCheckpoint`` for what cannot be loaded; nothing is stored then.
    """
    with engine.connect() as conn:
        candidate = versions.get(conn, job.candidate)
        production = versions.production(conn)
        line = _ancestors(conn, production) if production else []
    if production is None:
        raise IccmError(
            "there is no production version to compare with", hint="Materialize base_model first."
        )
    orchestra = orchestra_of(settings)
    subjects = (_subject(candidate, settings), _subject(production, settings))
    canary_set = evaluation.canary_items(settings)
    holdout_set = evaluation.holdout_items(engine, settings)
    canary = _measure_both(engine, subjects, canary_set, orchestra, settings, log)
    past = [evaluation.remembered(engine, one, canary_set, orchestra, settings) for one in line]
    holdout = _measure_both(engine, subjects, holdout_set, orchestra, settings, log)
    timed = canary_set.items[:: max(1, len(canary_set.items) // settings.evaluation.latency_items)]
    timed = timed[: settings.evaluation.latency_items]
    log(f"latency at batch 1 on {len(timed)} items, {settings.evaluation.latency_rounds} rounds")
    latency = evaluation.measure_latency(subjects, timed, settings.evaluation.latency_rounds)
    evidence = gate_evidence(canary, canary_set, (latency[0], latency[1]))
    verdict = gate.decide(evidence, settings.evaluation, emergency=job.emergency)
    outcome = EvaluationOutcome(
        candidate,
        production,
        canary,
        holdout,
        (latency[0], latency[1]),
        {item.item: item.slice for item in canary_set.items},
        verdict,
        ancestors=tuple(one for one in past if one.scores),
    )
    _store(engine, job, outcome, evidence, canary_set.digest, orchestra, settings)
    log(f"quality gate: {verdict.status}; {'; '.join(verdict.reasons)}")
    return outcome


def _ancestors(conn: sa.Connection, version: ModelVersion) -> list[ModelVersion]:
    """The nearest versions it descends from, oldest first."""
    found: list[ModelVersion] = []
    while version.parent_version and len(found) < MOST_ANCESTORS:
        version = versions.get(conn, version.parent_version)
        found.append(version)
    return found[::-1]


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
    log: Log,
) -> tuple[Measured, Measured]:
    total, done = 2 * len(chosen.items), 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        log(f"{chosen.name}: {done} of {total} answers scored")

    first = evaluation.measure(engine, subjects[0], chosen, orchestra, settings, progress)
    second = evaluation.measure(engine, subjects[1], chosen, orchestra, settings, progress)
    return first, second


def _store(
    engine: sa.Engine,
    job: EvaluationJob,
    outcome: EvaluationOutcome,
    evidence: GateEvidence,
    canary_set_digest: str,
    orchestra: Orchestra,
    settings: Settings,
) -> None:
    """One transaction: the verdict with its evidence, an alert unless it passed, statuses and metrics."""
    verdict = outcome.verdict
    with engine.begin() as conn:
        stored = t.gate_verdicts.insert().values(
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
        verdict_id = conn.execute(stored.returning(t.gate_verdicts.c.id)).scalar_one()
        if verdict.status != "pass":
            raise_alert(conn, **_alert(verdict_id, outcome))
        _update_versions(conn, outcome)


def _update_versions(conn: sa.Connection, outcome: EvaluationOutcome) -> None:
    """Both versions get their metrics; the status follows the verdict for an unsettled candidate only."""
    mv = t.model_versions
    summary = report.summary(outcome)
    for role, version in (("candidate", outcome.candidate), ("production", outcome.production)):
        merged = mv.c.metrics.op("||")(sa.cast({"evaluation": summary[role]}, JSONB))
        conn.execute(mv.update().where(mv.c.version == version.version).values(metrics=merged))
    unsettled = mv.c.status.in_(["candidate", "inconclusive", "gate_failed"])
    conn.execute(
        mv.update()
        .where(mv.c.version == outcome.candidate.version, unsettled)
        .values(status=STATUS_OF_VERDICT[outcome.verdict.status])
    )


def _alert(verdict_id: int, outcome: EvaluationOutcome) -> dict[str, str]:
    """The outbox row for a candidate that is not deployed (E4)."""
    verdict = outcome.verdict
    return {
        "key": f"quality_gate:{verdict_id}",
        "severity": "warning",
        "title": f"Quality gate: {verdict.status}",
        "body": f"{outcome.candidate.version} is not deployed, {outcome.production.version} stays: "
        + "; ".join(verdict.reasons),
    }


def main() -> int:
    """Under Dagster Pipes: evaluate what the extras name and answer with `metadata` or a named `error`."""
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
