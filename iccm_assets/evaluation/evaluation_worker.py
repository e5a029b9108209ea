"""Evaluation worker: generate responses with both models, judge them, decide the gate and store the verdict.

The asset `canary_evaluation` runs it as ``python -m iccm_assets.evaluation.evaluation_worker`` under Pipes,
and `iccm evaluate` calls it as a function. One process loads both models, so that both meet the same load
(E1).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa
from dagster_pipes import PipesContext

from iccm_assets.alerts.outbox import raise_alert
from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.db.database import connect
from iccm_assets.db.worker_presence import exit_without_presence
from iccm_assets.errors import ModelError
from iccm_assets.evaluation import evaluation_report, paired_evaluation, quality_gate
from iccm_assets.evaluation.gate_evidence import GateEvidence
from iccm_assets.evaluation.paired_evaluation import (
    EvaluatedVersion,
    EvaluationOutcome,
    EvaluationSet,
    VersionScores,
)
from iccm_assets.models.generation import (
    GeneratedResponse,
    check_answers,
    generate,
    load_model,
    set_threads,
)
from iccm_assets.registry import versions
from iccm_assets.registry.model_store import fetch_model
from iccm_assets.registry.registry_events import record_verdict
from iccm_assets.registry.versions import ModelVersion
from iccm_assets.scoring.orchestra import Orchestra, load_orchestra_from_settings
from iccm_assets.settings import Settings, load_settings
from iccm_assets.suites.suite_runner import get_judge_version
from iccm_assets.training.run_tracking import TRACKER_RUNS, update_runs, version_tags
from iccm_assets.worker_process import run_pipes_worker

# Columns of the forgetting matrix before production's; more are not readable.
MAX_ANCESTORS = 8
# Status that a verdict gives to a candidate without a final status.
VERSION_STATUSES = {"pass": "candidate", "fail": "gate_failed", "inconclusive": "inconclusive"}


def evaluate(
    engine: sa.Engine,
    candidate_version: str,
    settings: Settings,
    *,
    emergency: bool = False,
    training_run_id: int | None = None,
    dagster_run_id: str | None = None,
    log: Callable[[str], None] = lambda message: None,
) -> EvaluationOutcome:
    """Measure the candidate and production on the canary set and the holdout, and store the verdict.

    Raises ``VersionNotFoundError``, ``ModelNotFoundError``, ``CorruptCheckpointError``, or ``ModelError`` for
    a version that cannot answer; nothing is stored then.
    """
    with engine.connect() as conn:
        candidate = versions.get_version(conn, candidate_version)
        production = versions.get_version(conn, versions.PRODUCTION)
        ancestors = _load_ancestors(conn, production)
    orchestra = load_orchestra_from_settings(settings)
    evaluated = (_load_version(candidate, settings), _load_production(production, candidate, settings))
    canary_set = paired_evaluation.load_canary_items(settings)
    holdout_set = paired_evaluation.load_holdout_items(engine, settings)
    canary = _measure_both(engine, evaluated, canary_set, orchestra, settings, log)
    holdout = _measure_both(engine, evaluated, holdout_set, orchestra, settings, log)
    count, rounds = settings.evaluation.latency_items, settings.evaluation.latency_rounds
    latency_items = canary_set.items[:: max(1, len(canary_set.items) // count)][:count]
    log(f"latency at batch 1 on {len(latency_items)} items, {rounds} rounds")
    latency = paired_evaluation.measure_latency(evaluated, latency_items, rounds)
    evidence = paired_evaluation.build_gate_evidence(canary, canary_set, latency)
    cached = [
        paired_evaluation.load_cached_scores(engine, v, canary_set, orchestra, settings) for v in ancestors
    ]
    verdict = quality_gate.evaluate_gate(evidence, settings.evaluation, emergency=emergency)
    outcome = EvaluationOutcome(
        candidate,
        production,
        canary,
        holdout,
        latency,
        {item.name: item.slice for item in canary_set.items},
        verdict,
        ancestors=tuple(scores for scores in cached if scores.scores),
        holdout_evidence=holdout_set.evidence,
    )
    context = {
        "training_run_id": training_run_id,
        "dagster_run_id": dagster_run_id,
        "gate": settings.evaluation.model_dump(mode="json"),
        "canary_set_digest": canary_set.digest,
        "orchestra": orchestra.digest,
        "judge_version": get_judge_version(settings),
    }
    _store_verdict(engine, outcome, evidence, context)
    log(f"quality gate: {verdict.status}; {'; '.join(verdict.reasons)}")
    _report_to_trackers(outcome, settings, log)
    return outcome


def score_production(
    engine: sa.Engine, settings: Settings, progress: Callable[[int], None] = lambda done: None
) -> None:
    """Score production on the canary set before there is a candidate; its evaluation takes the cached scores.

    ``progress`` receives each number of scored responses, and may raise to end this.
    """
    with engine.connect() as conn:
        production = versions.get_version(conn, versions.PRODUCTION)
    orchestra = load_orchestra_from_settings(settings)
    canary_set = paired_evaluation.load_canary_items(settings)
    cached = paired_evaluation.load_cached_scores(engine, production, canary_set, orchestra, settings)
    if len(cached.scores) < len(canary_set.items):
        evaluated = _load_version(production, settings)
        paired_evaluation.evaluate_version(engine, evaluated, canary_set, orchestra, settings, progress)


def _load_ancestors(conn: sa.Connection, version: ModelVersion) -> list[ModelVersion]:
    """Load the nearest ancestors of the version, oldest first."""
    ancestors: list[ModelVersion] = []
    while version.parent_version and len(ancestors) < MAX_ANCESTORS:
        version = versions.get_version(conn, version.parent_version)
        ancestors.insert(0, version)
    return ancestors


def _load_version(version: ModelVersion, settings: Settings) -> EvaluatedVersion:
    set_threads(settings.training.threads)
    loaded = load_model(fetch_model(version.path, settings), shared=True)
    check_answers(loaded, settings.evaluation.max_new_tokens)

    def generate_responses(sources: Sequence[str], batch_size: int) -> list[GeneratedResponse]:
        return generate(
            loaded,
            sources,
            max_new_tokens=settings.evaluation.max_new_tokens,
            batch_size=batch_size,
            max_source_tokens=settings.training.max_source_tokens,
        )

    return EvaluatedVersion(version, generate_responses)


def _load_production(
    production: ModelVersion, candidate: ModelVersion, settings: Settings
) -> EvaluatedVersion:
    """Load the version in production; an error says how to replace one that cannot answer."""
    try:
        return _load_version(production, settings)
    except ModelError as error:
        raise ModelError(
            f"{production.version} is in production and {candidate.version} cannot be compared with it:"
            f" {error.detail}",
            hint=f"Replace it: iccm deploy {candidate.version} --force --skip-rollout --reason '…'.",
        ) from error


def _measure_both(
    engine: sa.Engine,
    evaluated: tuple[EvaluatedVersion, EvaluatedVersion],
    evaluation_set: EvaluationSet,
    orchestra: Orchestra,
    settings: Settings,
    log: Callable[[str], None],
) -> tuple[VersionScores, VersionScores]:
    total, done = 2 * len(evaluation_set.items), 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        log(f"{evaluation_set.name}: {done} of {total} responses scored")

    candidate, production = (
        paired_evaluation.evaluate_version(engine, version, evaluation_set, orchestra, settings, progress)
        for version in evaluated
    )
    return candidate, production


def _store_verdict(
    engine: sa.Engine, outcome: EvaluationOutcome, evidence: GateEvidence, context: dict[str, Any]
) -> None:
    """Store the verdict with its evidence, status and metrics, and an alert unless it passed."""
    verdict = outcome.verdict
    with engine.begin() as conn:
        statement = t.gate_verdicts.insert().values(
            version=outcome.candidate.version,
            production_version=outcome.production.version,
            status=verdict.status,
            improvement=verdict.improvement,
            verdict=json.loads(verdict.to_json()),
            evidence=json.loads(evidence.to_json()),
            created_at=now(conn),
            **context,
        )
        verdict_id = conn.execute(statement.returning(t.gate_verdicts.c.id)).scalar_one()
        record_verdict(conn, verdict_id)
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


def _report_to_trackers(outcome: EvaluationOutcome, settings: Settings, log: Callable[[str], None]) -> None:
    """Add the verdict and its figures to the runs that show the candidate's training."""
    verdict = outcome.verdict
    update_runs(
        outcome.candidate.metrics.get(TRACKER_RUNS, {}),
        outcome.candidate.version,
        home=settings.home,
        timeout_seconds=settings.training.report_timeout_seconds,
        warn=lambda text: log(f"warning: {text}"),
        tags={
            **version_tags(outcome.candidate),
            "iccm.verdict": verdict.status,
            "iccm.verdict_reason": "; ".join(verdict.reasons),
            "iccm.production": outcome.production.version,
        },
        figures=evaluation_report.tracked_figures(outcome),
    )


def _update_versions(conn: sa.Connection, outcome: EvaluationOutcome) -> None:
    """Store both versions' metrics, and the candidate's status by its verdict unless that is final."""
    mv = t.model_versions
    summary = evaluation_report.summarize_versions(outcome)
    for role, version in (("candidate", outcome.candidate), ("production", outcome.production)):
        versions.merge_metrics(conn, version.version, evaluation=summary[role])
    not_final = mv.c.status.in_(["candidate", "inconclusive", "gate_failed"])
    conn.execute(
        mv.update()
        .where(mv.c.version == outcome.candidate.version, not_final)
        .values(status=VERSION_STATUSES[outcome.verdict.status])
    )


def _evaluate_request(pipes: PipesContext) -> dict[str, Any]:
    """Evaluate the candidate that the Pipes extras name, with their options, and return the metadata."""
    settings, options = load_settings(), dict(pipes.extras)
    exit_without_presence(partial(connect, settings))
    candidate = options.pop("candidate")
    return evaluation_report.build_metadata(
        evaluate(connect(settings), candidate, settings, log=pipes.log.info, **options)
    )


def main() -> int:
    """Run the worker under Dagster Pipes."""
    return run_pipes_worker(_evaluate_request)


if __name__ == "__main__":
    sys.exit(main())
