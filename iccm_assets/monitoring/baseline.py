"""Baseline: the scores of a production version at its deployment, stored with the version (T8).

The gate measured the version on the canary set and the production holdout before the deployment; responses
and scores are in ``canary_results``. When judge or orchestra have changed since, those responses are scored
again, so that a new judge neither looks like a drop nor hides one.

Where nothing was measured before the deployment (the first version, a new canary set), the first measurement
afterwards becomes the baseline.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.evaluation.paired_evaluation import (
    CANARY_SET,
    EvaluationItem,
    EvaluationSet,
    decoding_key,
    to_evaluation_item,
)
from iccm_assets.evaluation.production_holdout import load_holdout_rows
from iccm_assets.registry import versions
from iccm_assets.registry.versions import ModelVersion
from iccm_assets.scoring.orchestra import Orchestra
from iccm_assets.scoring.scoring import ScoringTask, score_texts
from iccm_assets.settings import Settings
from iccm_assets.suites.suite_runner import get_judge_version

AT_DEPLOYMENT, SCORED_AGAIN, FIRST_MEASUREMENT = "at deployment", "scored again", "first measurement"


@dataclass(frozen=True)
class Baseline:
    """Pass rates by item, the judge, orchestra and set they belong to, and their source."""

    rates: dict[str, float]
    identity: dict[str, str]
    source: str
    recorded_at: str


def baseline_identity(
    evaluation_set: EvaluationSet, orchestra: Orchestra, settings: Settings
) -> dict[str, str]:
    """Return what a baseline and a measurement must have in common to be comparable."""
    return {
        "judge_version": get_judge_version(settings),
        "orchestra": orchestra.digest,
        "decoding": decoding_key(settings),
        "set_digest": evaluation_set.digest,
    }


def get_stored_baseline(version: ModelVersion, name: str, identity: dict[str, str]) -> Baseline | None:
    """Return the version's stored baseline on a set, if it has this identity."""
    baseline = version.metrics.get("baseline", {}).get(name)
    return Baseline(**baseline) if baseline and baseline["identity"] == identity else None


def build_deployment_baseline(
    engine: sa.Engine,
    version: ModelVersion,
    evaluation_set: EvaluationSet,
    orchestra: Orchestra,
    settings: Settings,
) -> Baseline | None:
    """Build the baseline from the measurements before the deployment; None if there are none."""
    results = _load_results(engine, version, evaluation_set, settings)
    judge_version = get_judge_version(settings)
    newest = {item: _newest_rate(rows, orchestra, judge_version) for item, rows in results.items()}
    rates = {item: rate for item, rate in newest.items() if rate is not None}
    # The other responses were scored by another judge or orchestra: they are scored again, unless their item
    # has changed since, as the stored response then belongs to another source.
    responses = {item: rows[-1] for item, rows in results.items() if item not in rates}
    rescored = _load_unchanged_items(engine, evaluation_set, responses)
    tasks = [
        ScoringTask(responses[item.name].requirements, item.suite, item.source_code) for item in rescored
    ]
    for item, score in zip(rescored, score_texts(tasks, orchestra, settings), strict=True):
        if score.test_pass_rate is not None:
            rates[item.name] = score.test_pass_rate
    if not rates:
        return None
    recorded_at = (version.deployed_at or version.created_at).isoformat()
    source = SCORED_AGAIN if rescored else AT_DEPLOYMENT
    return Baseline(rates, baseline_identity(evaluation_set, orchestra, settings), source, recorded_at)


def store_baseline(conn: sa.Connection, version: str, name: str, baseline: Baseline) -> None:
    """Store a set's baseline in the version's metrics; those of other sets stay."""
    mv = t.model_versions.c
    metrics = conn.execute(sa.select(mv.metrics).where(mv.version == version).with_for_update()).scalar_one()
    baselines = {**metrics.get("baseline", {}), name: asdict(baseline)}
    versions.merge_metrics(conn, version, baseline=baselines)


def _load_results(
    engine: sa.Engine, version: ModelVersion, evaluation_set: EvaluationSet, settings: Settings
) -> dict[str, list[Any]]:
    """Load the rows of `canary_results` from before the version's deployment, by item, oldest first."""
    cr = t.canary_results.c
    query = sa.select(t.canary_results).where(
        cr.model_digest == version.digest,
        cr.set == evaluation_set.name,
        cr.decoding == decoding_key(settings),
    )
    if version.deployed_at is not None:
        query = query.where(cr.created_at <= version.deployed_at)
    if evaluation_set.name == CANARY_SET:
        query = query.where(cr.canary_set_digest == evaluation_set.digest)
    results: dict[str, list[Any]] = defaultdict(list)
    with engine.connect() as conn:
        for row in conn.execute(query.order_by(cr.id)):
            results[row.item].append(row)
    return results


def _newest_rate(rows: Sequence[Any], orchestra: Orchestra, judge_version: str) -> float | None:
    """Return the rate of the newest response, if the judge and every member of the orchestra are the same."""
    identity = (orchestra.digest, judge_version, rows[-1].canary_set_digest)
    rates = {
        row.reconstructor: row.test_pass_rate
        for row in rows
        if (row.orchestra, row.judge_version, row.canary_set_digest) == identity
        and row.status in ("scored", "unreadable")
        and row.test_pass_rate is not None
    }
    return fmean(rates.values()) if set(rates) == {member.name for member in orchestra.members} else None


def _load_unchanged_items(
    engine: sa.Engine, evaluation_set: EvaluationSet, responses: Mapping[str, Any]
) -> list[EvaluationItem]:
    """Load the items of these responses (rows, by item), without those that changed since."""
    ids = [int(name.removeprefix("conversation:")) for name in responses if evaluation_set.name != CANARY_SET]
    items = (
        evaluation_set.items
        if evaluation_set.name == CANARY_SET
        else map(to_evaluation_item, load_holdout_rows(engine, ids))
    )
    return [
        item
        for item in items
        if item.name in responses
        and responses[item.name].canary_set_digest == (item.digest or evaluation_set.digest)
    ]
