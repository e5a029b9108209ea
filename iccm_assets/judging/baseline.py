"""What production scored when it was deployed (T8): kept in its row, made from the evaluation of that time.

The gate measured the version on the canary set and on the production holdout before it was deployed; its
answers and scores are in ``canary_results``. When the judge or the orchestra is another one now, those very
answers are judged again, so that a new judge does not look like a fall and an old fall is not forgotten.

What was never measured before the deployment (the first version, a new canary set) has its first measurement
afterwards as its baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from iccm_assets.judging.evaluation import CANARY_SET, EvaluationSet, Item, decoding_of, holdout_item
from iccm_assets.judging.holdout import rows_of
from iccm_assets.judging.judge import JUDGE_VERSION
from iccm_assets.judging.orchestra import Orchestra
from iccm_assets.judging.scoring import ScoringTask, score_texts
from iccm_assets.learning.versions import ModelVersion
from iccm_assets.settings import Settings
from iccm_assets.store import tables as t

AT_DEPLOYMENT, JUDGED_AGAIN, FIRST = "at deployment", "judged again", "first measurement"


@dataclass(frozen=True)
class Baseline:
    """Pass rates by item, who judged them, and where they come from."""

    rates: dict[str, float]
    identity: dict[str, str]
    source: str
    recorded_at: str

    def to_json(self) -> dict[str, Any]:
        return vars(self)


def identity_of(chosen: EvaluationSet, orchestra: Orchestra, settings: Settings) -> dict[str, str]:
    """What a baseline has to agree with to be compared with a measurement made now."""
    return {
        "judge_version": JUDGE_VERSION,
        "orchestra": orchestra.digest,
        "decoding": decoding_of(settings),
        "set_digest": chosen.digest,
    }


def stored(version: ModelVersion, name: str, identity: dict[str, str]) -> Baseline | None:
    """The version's baseline on a set, if it was made by today's judge and orchestra on today's set."""
    found = version.metrics.get("baseline", {}).get(name)
    return Baseline(**found) if found and found["identity"] == identity else None


@dataclass(frozen=True)
class _Answer:
    """What the version wrote for an item, and its score by today's judge and orchestra, if it has one."""

    text: str
    digest: str
    rate: float | None


def at_deployment(
    engine: sa.Engine, version: ModelVersion, chosen: EvaluationSet, orchestra: Orchestra, settings: Settings
) -> Baseline | None:
    """The baseline from what was measured before the deployment; ``None`` where nothing was."""
    answers = _answers(engine, version, chosen, orchestra, settings)
    rates = {item: one.rate for item, one in answers.items() if one.rate is not None}
    again = [
        one
        for one in _items(engine, chosen, [item for item in answers if item not in rates])
        if (one.digest or chosen.digest) == answers[one.item].digest
    ]
    tasks = [ScoringTask(answers[one.item].text, one.suite, one.source_code) for one in again]
    for one, score in zip(again, score_texts(tasks, orchestra, settings), strict=True):
        if score.test_pass_rate is not None:
            rates[one.item] = score.test_pass_rate
    if not rates:
        return None
    moment = version.deployed_at or version.created_at
    source = JUDGED_AGAIN if again else AT_DEPLOYMENT
    return Baseline(rates, identity_of(chosen, orchestra, settings), source, moment.isoformat())


def record(conn: sa.Connection, version: str, name: str, baseline: Baseline) -> None:
    """Keep a baseline in the version's metrics; another set's stays."""
    mv = t.model_versions
    kept = conn.execute(sa.select(mv.c.metrics).where(mv.c.version == version).with_for_update()).scalar_one()
    all_sets = {**kept.get("baseline", {}), name: baseline.to_json()}
    merged = mv.c.metrics.op("||")(sa.cast({"baseline": all_sets}, JSONB))
    conn.execute(mv.update().where(mv.c.version == version).values(metrics=merged))


def _answers(
    engine: sa.Engine, version: ModelVersion, chosen: EvaluationSet, orchestra: Orchestra, settings: Settings
) -> dict[str, _Answer]:
    """The version's answers of before its deployment, by item."""
    cr = t.canary_results.c
    query = sa.select(t.canary_results).where(
        cr.model_digest == version.digest, cr.set == chosen.name, cr.decoding == decoding_of(settings)
    )
    if version.deployed_at is not None:
        query = query.where(cr.created_at <= version.deployed_at)
    if chosen.name == CANARY_SET:
        query = query.where(cr.canary_set_digest == chosen.digest)
    by_item: dict[str, list[Any]] = {}
    with engine.connect() as conn:
        for row in conn.execute(query.order_by(cr.id)):
            by_item.setdefault(row.item, []).append(row)
    return {item: _answer(rows, orchestra) for item, rows in by_item.items()}


def _answer(rows: Sequence[Any], orchestra: Orchestra) -> _Answer:
    newest = rows[-1]
    heard = {
        row.reconstructor: row.test_pass_rate
        for row in rows
        if (row.orchestra, row.judge_version) == (orchestra.digest, JUDGE_VERSION)
        and row.canary_set_digest == newest.canary_set_digest
        and row.status in ("scored", "unreadable")
        and row.test_pass_rate is not None
    }
    whole = set(heard) == {member.name for member in orchestra.members}
    return _Answer(newest.requirements, newest.canary_set_digest, fmean(heard.values()) if whole else None)


def _items(engine: sa.Engine, chosen: EvaluationSet, names: Sequence[str]) -> list[Item]:
    """The items of these names: the canary set's, or the conversations as they are now."""
    if chosen.name == CANARY_SET:
        return [one for one in chosen.items if one.item in names]
    rows = rows_of(engine, [int(name.removeprefix("conversation:")) for name in names]) if names else []
    return [holdout_item(row) for row in rows]
