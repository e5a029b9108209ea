"""The quality of the version in production in plain values: its last measurements, or its evaluation."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from iccm_assets.evaluation.paired_evaluation import CANARY_SET
from iccm_assets.evaluation.production_holdout import HOLDOUT
from iccm_assets.registry import versions

# Two states that agree in these values are the same state.
STATE_KEYS = ("version", f"{CANARY_SET}_measurement_id", f"{HOLDOUT}_measurement_id")
_LATEST = sa.text(
    """
    select distinct on ("set") id, "set", n, mean, baseline_mean, dagster_run_id
    from iccm.quality_measurements where version = :version
    order by "set", measured_at desc, id desc
    """
)


def load_quality_status(conn: sa.Connection) -> tuple[dict[str, Any], str | None]:
    """Return what is known of production's quality, and the Dagster run of the last measurement, if any.

    Empty while nothing is in production. A version that serves and was not measured yet has the pass rate of
    the evaluation that came before its deployment; without either, ``source`` says so.
    """
    production = versions.get_production_version(conn)
    if production is None:
        return {}, None
    rows = conn.execute(_LATEST, {"version": production.version}).all()
    values: dict[str, Any] = {"version": production.version}
    for row in rows:
        drop = None if None in (row.mean, row.baseline_mean) else round(row.baseline_mean - row.mean, 9)
        numbers = {
            "measurement_id": row.id,
            "items": row.n,
            "test_pass_rate": row.mean,
            "baseline": row.baseline_mean,
            "quality_drop": drop,
        }
        values |= {f"{row.set}_{name}": value for name, value in numbers.items() if value is not None}
    evaluation = production.metrics.get("evaluation", {})
    if rows:
        source = "the last measurement through its serving path"
    elif (rate := evaluation.get("test_pass_rate")) is not None:
        values |= {f"{CANARY_SET}_items": evaluation["items"], f"{CANARY_SET}_test_pass_rate": round(rate, 6)}
        source = "its last evaluation; not measured through its serving path yet"
    else:
        source = "not measured yet"
    newest = max(rows, key=lambda row: row.id, default=None)
    return {**values, "source": source}, newest.dagster_run_id if newest else None
