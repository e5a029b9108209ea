"""Measuring the quality of production now, and keeping what was measured (T2, T8).

Nothing is taken from a cache here: production answers afresh through whatever serves it, every member of the
orchestra implements afresh, and the judge runs afresh. How production is asked comes in as a function.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import fmean
from typing import Any, Protocol

import sqlalchemy as sa

from iccm_assets.errors import IccmError
from iccm_assets.judging import baseline as baselines
from iccm_assets.judging.baseline import FIRST, Baseline
from iccm_assets.judging.evaluation import CANARY_SET, EvaluationSet
from iccm_assets.judging.fall import Fall, fall_on_other_items, fall_on_same_items
from iccm_assets.judging.judge import JUDGE_VERSION
from iccm_assets.judging.orchestra import Orchestra
from iccm_assets.judging.scoring import ScoringTask, score_texts
from iccm_assets.learning.versions import ModelVersion
from iccm_assets.settings import Settings
from iccm_assets.store import tables as t
from iccm_assets.store.clock import now

BATCH = 48

Progress = Callable[[str], None]


class Told(Protocol):
    """Production's answer to one source: its text, or why there is none."""

    @property
    def text(self) -> str | None: ...

    @property
    def error(self) -> str: ...


Asking = Callable[[Sequence[str]], Sequence[Told]]
"""Sources -> one answer each, in order, through the serving path."""


@dataclass(frozen=True)
class Rated:
    """One item as production answers it now; ``reason`` says why there is no rate."""

    item: str
    rate: float | None
    variance: float | None
    reason: str = ""


@dataclass(frozen=True)
class Measurement:
    """Production on one set: what was rated, how far that is from the baseline, and the baseline it made."""

    set: str
    set_digest: str
    rated: tuple[Rated, ...]
    fall: Fall
    baseline: Baseline | None
    is_new: bool
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def variance(self) -> float | None:
        """Mean implementation variance."""
        found = [one.variance for one in self.rated if one.variance is not None]
        return fmean(found) if found else None


def rate(
    chosen: EvaluationSet, ask: Asking, orchestra: Orchestra, settings: Settings, tell: Progress
) -> list[Rated]:
    """Have production answer every item, and each answer judged."""
    rated: list[Rated] = []
    for start in range(0, len(chosen.items), BATCH):
        batch = chosen.items[start : start + BATCH]
        answers = list(zip(batch, ask([item.source_code for item in batch]), strict=True))
        spoken = [(item, told.text) for item, told in answers if told.text is not None]
        tasks = [ScoringTask(text, item.suite, item.source_code) for item, text in spoken]
        scores = dict(
            zip([item.item for item, _ in spoken], score_texts(tasks, orchestra, settings), strict=True)
        )
        for item, told in answers:
            score = scores.get(item.item)
            if score is None:
                rated.append(Rated(item.item, None, None, f"no answer: {told.error}"))
            else:
                reason = "" if score.test_pass_rate is not None else "inconclusive"
                rated.append(Rated(item.item, score.test_pass_rate, score.implementation_variance, reason))
        tell(f"{chosen.name}: {len(rated)} of {len(chosen.items)} answers of production scored")
    return rated


def measure(
    engine: sa.Engine,
    version: ModelVersion,
    chosen: EvaluationSet,
    ask: Asking,
    orchestra: Orchestra,
    settings: Settings,
    tell: Progress = lambda message: None,
) -> Measurement:
    """Production on one set beside its baseline; a version without one gets this measurement as its own."""
    rated = rate(chosen, ask, orchestra, settings, tell)
    rates = {one.item: one.rate for one in rated}
    identity = baselines.identity_of(chosen, orchestra, settings)
    known = baselines.stored(version, chosen.name, identity)
    base = known or baselines.at_deployment(engine, version, chosen, orchestra, settings)
    enough = settings.triggers.degradation_min_items
    if base is not None and len(base.rates) < enough:
        base = None  # a few conversations of back then say nothing about a fall
    found = _fall(chosen.name, rates, base, settings)
    if base is None and found.mean is not None and found.n >= enough:
        with engine.connect() as conn:
            moment = now(conn)
        base = Baseline(
            {item: one for item, one in rates.items() if one is not None}, identity, FIRST, moment.isoformat()
        )
        found = _fall(chosen.name, rates, base, settings)
    reasons = Counter(one.reason for one in rated if one.reason)
    return Measurement(
        chosen.name, chosen.digest, tuple(rated), found, base, base is not known, dict(reasons)
    )


def store(
    engine: sa.Engine,
    version: ModelVersion,
    measurements: Sequence[Measurement],
    orchestra: Orchestra,
    *,
    path: str,
    dagster_run_id: str | None = None,
) -> dict[str, int]:
    """Both sets' rows in one transaction, by set; ``IccmError`` when another version serves by now."""
    with engine.begin() as conn:
        mv = t.model_versions
        status = conn.execute(
            sa.select(mv.c.status).where(mv.c.version == version.version).with_for_update()
        ).scalar_one()
        if status != "production":
            raise IccmError(
                f"{version.version} is {status} now; it was production when it was asked",
                hint="Nothing was stored; the next measurement is of the version that serves.",
            )
        at = now(conn)
        for one in measurements:
            if one.baseline is not None and one.is_new:
                baselines.record(conn, version.version, one.set, one.baseline)
        return {
            one.set: _insert(conn, version.version, one, orchestra, at, path, dagster_run_id)
            for one in measurements
        }


def _fall(name: str, rates: dict[str, float | None], base: Baseline | None, settings: Settings) -> Fall:
    if name == CANARY_SET:
        return fall_on_same_items(rates, base.rates if base else None, settings.triggers.degradation_drop)
    return fall_on_other_items(rates, list(base.rates.values()) if base else None)


def _insert(
    conn: sa.Connection,
    version: str,
    one: Measurement,
    orchestra: Orchestra,
    at: datetime,
    path: str,
    dagster_run_id: str | None,
) -> int:
    evidence: dict[str, Any] = {
        "path": path,
        "items": len(one.rated),
        "without_score": one.reasons,
        "remark": one.fall.remark,
        "confidence": one.fall.confidence,
        "implementation_variance": one.variance,
    }
    if one.baseline is not None:
        evidence["baseline"] = {
            "n": len(one.baseline.rates),
            "source": one.baseline.source,
            "recorded_at": one.baseline.recorded_at,
        }
    return int(
        conn.execute(
            t.quality_measurements.insert()
            .values(
                version=version,
                measured_at=at,
                set=one.set,
                n=one.fall.n,
                mean=one.fall.mean,
                standard_error=one.fall.standard_error,
                baseline_mean=one.fall.baseline_mean,
                judge_version=JUDGE_VERSION,
                orchestra=orchestra.digest,
                set_digest=one.set_digest,
                evidence=evidence,
                dagster_run_id=dagster_run_id,
            )
            .returning(t.quality_measurements.c.id)
        ).scalar_one()
    )
