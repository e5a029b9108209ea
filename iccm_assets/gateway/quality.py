"""The measurement worker: production on the canary set and on the production holdout, as it is served (T8).

Run by the asset `production_quality` as ``python -m iccm_assets.gateway.quality`` under Dagster Pipes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

from iccm_assets.errors import IccmError, ModelNotFound
from iccm_assets.gateway.fleet import Load
from iccm_assets.gateway.probing import serving_path
from iccm_assets.judging import evaluation, quality
from iccm_assets.judging.orchestra import orchestra_of
from iccm_assets.judging.quality import Measurement
from iccm_assets.judging.report import markdown_table
from iccm_assets.learning import triggers, versions
from iccm_assets.learning.triggers import Fire
from iccm_assets.orphans import end_with_starter
from iccm_assets.settings import Settings, load_settings

Log = Callable[[str], None]


def measure_production(
    engine: sa.Engine,
    settings: Settings,
    *,
    dagster_run_id: str | None = None,
    log: Log = lambda message: None,
    load: Load | None = None,
) -> dict[str, Any]:
    """Measure, store both rows, and tell it as metadata; nothing is stored if production changed meanwhile.

    Raises ``ModelNotFound`` before there is a production version, and what loading it raises.
    """
    with engine.connect() as conn:
        version = versions.production(conn)
    if version is None:
        raise ModelNotFound("no production version", hint="Materialize base_model first.")
    orchestra = orchestra_of(settings)
    sets = [evaluation.canary_items(settings), evaluation.holdout_items(engine, settings)]
    with serving_path(engine, settings, version, load) as path:
        log(f"{version.version} is asked through its serving path: {path.name}")
        measured = [
            quality.measure(engine, version, one, path, orchestra, settings, tell=log) for one in sets
        ]
        ids = quality.store(
            engine, version, measured, orchestra, path=path.name, dagster_run_id=dagster_run_id
        )
        return metadata(version.version, path.name, measured, ids, settings)


def metadata(
    version: str, path: str, measured: Sequence[Measurement], ids: dict[str, int], settings: Settings
) -> dict[str, Any]:
    """The materialization's metadata in Dagster Pipes form; numbers become plots over time."""
    shown: dict[str, Any] = {"version": version, "serving_path": path}
    words, rows = [], []
    for one in measured:
        fall, name = one.fall, one.set
        numbers = {
            "measurement_id": ids[name],
            "items": fall.n,
            "test_pass_rate": fall.mean,
            "baseline": fall.baseline_mean,
            "standard_error": fall.standard_error,
            "implementation_variance": one.variance,
            "fall": _difference(fall.baseline_mean, fall.mean),
        }
        shown |= {f"{name}_{what}": value for what, value in numbers.items() if value is not None}
        decision = triggers.degradation(
            triggers.Measurement(
                ids[name], version, name, fall.n, fall.mean, fall.standard_error, fall.baseline_mean,
                confidence=fall.confidence,
            ),
            settings.triggers,
        )  # fmt: skip
        told = "**degraded**: " if isinstance(decision, Fire) else ""
        remark = f" ({fall.remark})" if fall.remark else ""
        words.append(f"- {told}{decision.reason}{remark}")
        source = one.baseline.source if one.baseline else "none"
        rows.append({"set": name, **numbers, "baseline from": source, "without a score": one.reasons or ""})
    shown["verdict_in_words"] = {"type": "md", "raw_value": "\n".join(words)}
    shown["measurements"] = {"type": "md", "raw_value": markdown_table(rows)}
    return shown


def _difference(before: float | None, now: float | None) -> float | None:
    return None if before is None or now is None else round(before - now, 9)


def main() -> int:
    """Under Dagster Pipes: measure and answer with `metadata` or a named `error`."""
    from dagster_pipes import open_dagster_pipes

    from iccm_assets.store.database import connect

    end_with_starter()
    with open_dagster_pipes() as pipes:
        try:
            settings = load_settings()
            found = measure_production(
                connect(settings),
                settings,
                dagster_run_id=pipes.extras.get("dagster_run_id"),
                log=pipes.log.info,
            )
        except IccmError as error:
            pipes.report_custom_message({"error": error.to_dict()})
        else:
            pipes.report_custom_message({"metadata": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
