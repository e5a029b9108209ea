"""The monitoring worker: measure served production on the canary set and the production holdout (T8).

The asset `production_quality` runs it as ``python -m iccm_assets.monitoring.monitoring_worker`` under Pipes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from dagster_pipes import PipesContext
from sqlalchemy import Engine

from iccm_assets.db.database import connect
from iccm_assets.evaluation import paired_evaluation
from iccm_assets.gateway.model_pool import ModelLoader
from iccm_assets.monitoring import production_quality
from iccm_assets.monitoring.serving_path import open_serving_path
from iccm_assets.registry import training_runs, versions
from iccm_assets.reporting.formatting import markdown_table, snake_case_keys
from iccm_assets.retraining import triggers as retraining_triggers
from iccm_assets.scoring.orchestra import load_orchestra_from_settings
from iccm_assets.settings import Settings, load_settings
from iccm_assets.suites.suite_runner import get_judge_version
from iccm_assets.worker_process import run_pipes_worker

LogFunction = Callable[[str], None]


def measure_production(
    engine: Engine,
    settings: Settings,
    *,
    dagster_run_id: str | None = None,
    log: LogFunction = lambda message: None,
    load: ModelLoader | None = None,
) -> dict[str, Any]:
    """Measure production, store a row per set, and return the metadata.

    Nothing is stored if production changes meanwhile. Raises ``VersionNotFoundError`` if there is no
    production version, and what loading it raises.
    """
    with engine.connect() as conn:
        version = versions.get_version(conn, versions.PRODUCTION)
    orchestra = load_orchestra_from_settings(settings)
    sets = [
        paired_evaluation.load_canary_items(settings),
        paired_evaluation.load_holdout_items(engine, settings),
    ]
    with open_serving_path(engine, settings, version, load) as path:
        log(f"measuring {version.version} through its serving path: {path.name}")
        measured = [
            production_quality.measure_quality(engine, version, items, path, orchestra, settings, log=log)
            for items in sets
        ]
        ids = production_quality.store_measurements(
            engine,
            version,
            measured,
            orchestra,
            serving_path=path.name,
            judge_version=get_judge_version(settings),
            dagster_run_id=dagster_run_id,
        )
        return measurement_metadata(version.version, path.name, measured, ids, settings)


def measurement_metadata(
    version: str,
    path: str,
    measured: Sequence[production_quality.SetMeasurement],
    ids: dict[str, int],
    settings: Settings,
) -> dict[str, Any]:
    """Build the materialization's metadata in Dagster Pipes form; Dagster plots numbers over time."""
    result: dict[str, Any] = {"version": version, "serving_path": path}
    verdicts, rows = [], []
    for measurement in measured:
        drop, name = measurement.drop, measurement.set
        numbers = {
            "measurement_id": ids[name],
            "items": drop.n,
            "test_pass_rate": drop.mean,
            "baseline": drop.baseline_mean,
            "standard_error": drop.standard_error,
            "implementation_variance": measurement.variance,
            **snake_case_keys(measurement.suite_kinds, "evidence"),
            "quality_drop": (
                None
                if drop.mean is None or drop.baseline_mean is None
                else round(drop.baseline_mean - drop.mean, 9)
            ),
        }
        result |= {f"{name}_{key}": value for key, value in numbers.items() if value is not None}
        decision = retraining_triggers.decide_degradation(
            retraining_triggers.QualityMeasurement(
                ids[name],
                version,
                name,
                drop.n,
                drop.mean,
                drop.standard_error,
                drop.baseline_mean,
                confidence=drop.confidence,
            ),
            settings.triggers,
        )
        prefix = "**degraded**: " if isinstance(decision, training_runs.TriggerFired) else ""
        suffix = f" ({drop.remark})" if drop.remark else ""
        verdicts.append(f"- {prefix}{decision.reason}{suffix}")
        source = measurement.baseline.source if measurement.baseline else "none"
        rows.append(
            {
                "set": name,
                **numbers,
                "baseline_source": source,
                "unscored": measurement.unscored_reasons or "",
            }
        )
    result["verdict"] = {"type": "md", "raw_value": "\n".join(verdicts)}
    result["measurements"] = {"type": "md", "raw_value": markdown_table(rows)}
    return result


def _measure_request(pipes: PipesContext) -> dict[str, Any]:
    settings = load_settings()
    run_id = pipes.extras.get("dagster_run_id")
    return measure_production(connect(settings), settings, dagster_run_id=run_id, log=pipes.log.info)


def main() -> int:
    """Run the worker under Pipes."""
    return run_pipes_worker(_measure_request)


if __name__ == "__main__":
    sys.exit(main())
