"""Production quality: measure the production version now and store the result (T2, T8).

Nothing is cached: production generates every response again through its serving path, every member of the
orchestra implements it again, and the judge runs again. The serving path is passed in as a function.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.errors import IccmError
from iccm_assets.evaluation.paired_evaluation import CANARY_SET, EvaluationSet, generate_ahead
from iccm_assets.monitoring import baseline as baselines
from iccm_assets.monitoring.baseline import FIRST_MEASUREMENT, Baseline
from iccm_assets.monitoring.degradation import QualityDrop, paired_drop, unpaired_drop
from iccm_assets.registry.versions import ModelVersion
from iccm_assets.scoring.orchestra import Orchestra
from iccm_assets.scoring.scoring import LENGTH_STOPPED, SOURCE_TRUNCATED, ScoringTask, score_texts
from iccm_assets.settings import Settings
from iccm_assets.suites.suite_runner import JUDGE_VERSION

if TYPE_CHECKING:
    from iccm_assets.monitoring.serving_path import ProbeResult

# Sources -> production's response to each, in order, through the serving path.
ProbeFunction = Callable[[Sequence[str]], "Sequence[ProbeResult]"]


@dataclass(frozen=True)
class ItemRating:
    """The rate of production's current response to one item; ``reason`` says why there is none."""

    item: str
    rate: float | None
    variance: float | None
    reason: str = ""


@dataclass(frozen=True)
class SetMeasurement:
    """Production on one set: its ratings, the drop, and the baseline (``is_new_baseline``: to be stored).

    ``suite_kinds`` counts the items by the kind of their suites; ``pytest`` is the weaker evidence.
    """

    set: str
    set_digest: str
    ratings: tuple[ItemRating, ...]
    drop: QualityDrop
    baseline: Baseline | None
    is_new_baseline: bool
    unscored_reasons: dict[str, int] = field(default_factory=dict)
    suite_kinds: dict[str, int] = field(default_factory=dict)

    @property
    def variance(self) -> float | None:
        """Mean implementation variance."""
        variances = [rating.variance for rating in self.ratings if rating.variance is not None]
        return fmean(variances) if variances else None


def rate_items(
    evaluation_set: EvaluationSet,
    probe: ProbeFunction,
    orchestra: Orchestra,
    settings: Settings,
    log: Callable[[str], None],
) -> list[ItemRating]:
    """Let production respond to every item, and score each response by the rules of the evaluation (L10)."""
    ratings: list[ItemRating] = []
    for batch, results in generate_ahead(evaluation_set.items, probe):
        responses = list(zip(batch, results, strict=True))
        tasks = [
            ScoringTask(
                response.text,
                item.suite,
                item.source_code,
                rejection=LENGTH_STOPPED if response.finish_reason == "length" else "",
            )
            for item, response in responses
            if response.text is not None and response.finish_reason != "truncated"
        ]
        scores = iter(list(score_texts(tasks, orchestra, settings)))
        for item, response in responses:
            if response.text is None:
                ratings.append(ItemRating(item.name, None, None, f"no response: {response.error}"))
                continue
            if response.finish_reason == "truncated":
                ratings.append(ItemRating(item.name, None, None, SOURCE_TRUNCATED))
                continue
            score = next(scores)
            reason = "" if score.test_pass_rate is not None else "inconclusive"
            ratings.append(ItemRating(item.name, score.test_pass_rate, score.implementation_variance, reason))
        log(f"{evaluation_set.name}: {len(ratings)} of {len(evaluation_set.items)} responses scored")
    return ratings


def measure_quality(
    engine: sa.Engine,
    version: ModelVersion,
    evaluation_set: EvaluationSet,
    probe: ProbeFunction,
    orchestra: Orchestra,
    settings: Settings,
    log: Callable[[str], None] = lambda message: None,
) -> SetMeasurement:
    """Measure production on one set against its baseline; without one, this measurement becomes it."""
    ratings = rate_items(evaluation_set, probe, orchestra, settings, log)
    rates = {rating.item: rating.rate for rating in ratings}
    identity = baselines.baseline_identity(evaluation_set, orchestra, settings)
    stored = baselines.get_stored_baseline(version, evaluation_set.name, identity)
    baseline = stored or baselines.build_deployment_baseline(
        engine, version, evaluation_set, orchestra, settings
    )
    min_items = settings.triggers.degradation_min_items
    if baseline is not None and len(baseline.rates) < min_items:
        baseline = None  # too few conversations of that time to prove a drop
    drop = _drop(evaluation_set.name, rates, baseline, settings)
    if baseline is None and drop.mean is not None and drop.n >= min_items:
        with engine.connect() as conn:
            recorded_at = now(conn).isoformat()
        measured = {item: value for item, value in rates.items() if value is not None}
        baseline = Baseline(measured, identity, FIRST_MEASUREMENT, recorded_at)
        drop = _drop(evaluation_set.name, rates, baseline, settings)
    reasons = dict(Counter(rating.reason for rating in ratings if rating.reason))
    return SetMeasurement(
        evaluation_set.name,
        evaluation_set.digest,
        tuple(ratings),
        drop,
        baseline,
        baseline is not stored,
        reasons,
        evaluation_set.evidence,
    )


def _drop(
    name: str, rates: dict[str, float | None], baseline: Baseline | None, settings: Settings
) -> QualityDrop:
    if name == CANARY_SET:
        return paired_drop(rates, baseline.rates if baseline else None, settings.triggers.max_quality_drop)
    return unpaired_drop(rates, list(baseline.rates.values()) if baseline else None)


def store_measurements(
    engine: sa.Engine,
    version: ModelVersion,
    measurements: Sequence[SetMeasurement],
    orchestra: Orchestra,
    *,
    serving_path: str,
    judge_version: str = JUDGE_VERSION,
    dagster_run_id: str | None = None,
) -> dict[str, int]:
    """Store the measurements in one transaction and return their ids by set.

    Raises ``IccmError`` if another version has become production meanwhile.
    """
    ids = {}
    with engine.begin() as conn:
        mv = t.model_versions
        status = conn.execute(
            sa.select(mv.c.status).where(mv.c.version == version.version).with_for_update()
        ).scalar_one()
        if status != "production":
            raise IccmError(
                f"{version.version} is {status} now; it was in production when the measurement began",
                hint="Nothing was stored; the next measurement is of the current production version.",
            )
        for measurement in measurements:
            if measurement.baseline is not None and measurement.is_new_baseline:
                baselines.store_baseline(conn, version.version, measurement.set, measurement.baseline)
            statement = t.quality_measurements.insert().values(
                version=version.version,
                measured_at=now(conn),
                set=measurement.set,
                n=measurement.drop.n,
                mean=measurement.drop.mean,
                standard_error=measurement.drop.standard_error,
                baseline_mean=measurement.drop.baseline_mean,
                judge_version=judge_version,
                orchestra=orchestra.digest,
                set_digest=measurement.set_digest,
                evidence=_evidence(measurement, serving_path),
                dagster_run_id=dagster_run_id,
            )
            row = conn.execute(statement.returning(t.quality_measurements.c.id))
            ids[measurement.set] = row.scalar_one()
    return ids


def _evidence(measurement: SetMeasurement, path: str) -> dict[str, Any]:
    evidence: dict[str, Any] = {
        "path": path,
        "items": len(measurement.ratings),
        "suites": measurement.suite_kinds,
        "without_score": measurement.unscored_reasons,
        "remark": measurement.drop.remark,
        "confidence": measurement.drop.confidence,
        "implementation_variance": measurement.variance,
    }
    if base := measurement.baseline:
        evidence["baseline"] = {"n": len(base.rates), "source": base.source, "recorded_at": base.recorded_at}
    return evidence
