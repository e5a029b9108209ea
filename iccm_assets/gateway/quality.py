"""The monitoring worker: measure served production on the canary set and the production holdout (T8).

The asset `production_quality` runs it as ``python -m iccm_assets.gateway.quality`` under Dagster Pipes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from dagster_pipes import PipesContext
from sqlalchemy import Engine

from iccm_assets.errors import ModelNotFound
from iccm_assets.gateway.fleet import Load
from iccm_assets.gateway.probing import serving_path
from iccm_assets.judging import evaluation, quality
from iccm_assets.judging.orchestra import orchestra_of
from iccm_assets.judging.report import markdown_table
from iccm_assets.learning import triggers, versions
from iccm_assets.orphans import run_pipes_worker
from iccm_assets.settings import Settings, load_settings
from iccm_assets.store.database import connect

Log = Callable[[str], None]


def measure_production(
    engine: Engine,
    settings: Settings,
    *,
    dagster_run_id: str | None = None,
    log: Log = lambda message: None,
    load: Load | None = None,
) -> dict[str, Any]:
    """Measure production, store a row per set, and return the metadata.

    Nothing is stored if production changes meanwhile. Raises ``ModelNotFoundError`` if there is no production
    version, and what loading it raises.
    """
    with engine.connect() as conn:
        version = versions.production(conn)
    if version is None:
        raise ModelNotFound("no production version", hint="Materialize base_model first.")
    orchestra = orchestra_of(settings)
    sets = [evaluation.canary_items(settings), evaluation.holdout_items(engine, settings)]
    with serving_path(engine, settings, version, load) as path:
        log(f"measuring {version.version} through its serving path: {path.name}")
        measured = [
            quality.measure(engine, version, items, path, orchestra, settings, tell=log) for items in sets
        ]
        ids = quality.store(
            engine, version, measured, orchestra, path=path.name, dagster_run_id=dagster_run_id
        )
        return metadata(version.version, path.name, measured, ids, settings)


def metadata(
    version: str, path: str, measured: Sequence[quality.Measurement], ids: dict[str, int], settings: Settings
) -> dict[str, Any]:
    """Build the materialization's metadata in Dagster Pipes form; Dagster plots numbers over time."""
    result: dict[str, Any] = {"version": version, "serving_path": path}
    verdicts, rows = [], []
    for measurement in measured:
        drop, name = measurement.fall, measurement.set
        numbers = {
            "measurement_id": ids[name],
            "items": drop.n,
            "test_pass_rate": drop.mean,
            "baseline": drop.baseline_mean,
            "standard_error": drop.standard_error,
            "implementation_variance": measurement.variance,
            "quality_drop": (
                None
                if drop.mean is None or drop.baseline_mean is None
                else round(drop.baseline_mean - drop.mean, 9)
            ),
        }
        result |= {f"{name}_{key}": value for key, value in numbers.items() if value is not None}
        decision = triggers.degradation(
            triggers.Measurement(
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
        prefix = "**degraded**: " if isinstance(decision, triggers.Fire) else ""
        suffix = f" ({drop.remark})" if drop.remark else ""
        verdicts.append(f"- {prefix}{decision.reason}{suffix}")
        source = measurement.baseline.source if measurement.baseline else "none"
        rows.append(
            {"set": name, **numbers, "baseline source": source, "unscored": measurement.reasons or ""}
        )
    result["verdict"] = {"type": "md", "raw_value": "\n".join(verdicts)}
    result["measurements"] = {"type": "md", "raw_value": markdown_table(rows)}
    return result


def _measure_request(pipes: PipesContext) -> dict[str, Any]:
    settings = load_settings()
    run_id = pipes.extras.get("dagster_run_id")
    return measure_production(connect(settings), settings, dagster_run_id=run_id, log=pipes.log.info)


def main() -> int:
    """Run the worker under Dagster Pipes."""
    return run_pipes_worker(_measure_request)


if __name__ == "__main__":
    sys.exit(main())
