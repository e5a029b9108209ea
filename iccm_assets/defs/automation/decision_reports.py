"""Reports to Dagster of what was decided outside its runs: verdicts, deployments, and results of checks.

Dagster's event log is the only memory of what was reported. The newest materialization of an asset is
compared with the database and reported again where they differ; so is each check whose result has changed, or
that was not evaluated since the materialization. A lock in PostgreSQL lets concurrent reporters wait for each
other: nothing is reported twice. Ids, numbers and reasons are reported, never conversation text (V6).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from iccm_assets.defs.evaluation.assets import NO_MISSING_ITEMS, quality_gate_result
from iccm_assets.defs.metadata import to_asset_check_result, to_metadata, with_markdown

if TYPE_CHECKING:
    import sqlalchemy as sa

    from iccm_assets.settings import Settings

EVALUATION = dg.AssetKey("canary_evaluation")
DEPLOYMENT = dg.AssetKey("deployed_model_version")
QUALITY = dg.AssetKey("production_quality")
# Checks whose result a command, a gateway, the controller or a setting can change: functions below
# `iccm_assets` that read little, since they are called at every tick.
LIVE_CHECKS: Mapping[dg.AssetKey, Sequence[str]] = MappingProxyType(
    {
        dg.AssetKey("base_model"): ("training.checks.production_descends_from_base_model",),
        dg.AssetKey("fine_tuned_checkpoint"): ("training.checks.lineage_is_complete",),
        DEPLOYMENT: (
            "rollout.checks.exactly_one_production_version",
            "rollout.checks.statuses_match_rollout",
            "rollout.checks.canary_lease_is_active",
        ),
        QUALITY: ("monitoring.checks.production_quality_is_stable",),
    }
)


def report_decisions(conn: sa.Connection, settings: Settings, instance: dg.DagsterInstance) -> list[str]:
    """Report what differs between the database and Dagster; return a line for each report.

    ``conn`` is in a transaction, which keeps the lock until it ends.
    """
    from iccm_assets.db.locks import Lock, acquire_lock

    acquire_lock(conn, Lock.DAGSTER_REPORTS)
    return [
        *_report_verdicts(conn, instance),
        *_report_deployment(conn, instance),
        *_report_quality(conn, instance),
        *_report_checks(conn, settings, instance),
    ]


def _report_verdicts(conn: sa.Connection, instance: dg.DagsterInstance) -> Iterator[str]:
    """Report the verdicts of evaluations outside Dagster, and of runs that ended before they reported."""
    from iccm_assets.evaluation.stored_verdict import (
        check_evidence,
        load_unreported_verdicts,
        verdict_metadata,
    )

    latest = _latest(instance, EVALUATION)
    reported = int(_value(latest, "verdict_id") or 0) or None
    for stored in load_unreported_verdicts(conn, reported, latest.run_id if latest else None):
        if stored.dagster_run_id and _is_running(instance, stored.dagster_run_id):
            return
        metadata = to_metadata(verdict_metadata(stored))
        _materialize(instance, EVALUATION, metadata["summary"], metadata)
        _evaluate(instance, EVALUATION, quality_gate_result(metadata), blocking=True)
        if evidence := check_evidence(stored):
            _evaluate(instance, EVALUATION, to_asset_check_result(evidence, NO_MISSING_ITEMS))
        yield f"verdict {stored.id} on {stored.version}: {stored.status}"


def _report_quality(conn: sa.Connection, instance: dg.DagsterInstance) -> Iterator[str]:
    """Report the quality of another production version, or a measurement whose run did not report it."""
    from iccm_assets.monitoring.quality_status import STATE_KEYS, load_quality_status

    status, run_id = load_quality_status(conn)
    latest = _latest(instance, QUALITY)
    has_numbers = status.keys() > {"version", "source"}
    if not status or (latest is None and not has_numbers):
        return
    if _agrees(latest, status, STATE_KEYS) or (run_id and _is_running(instance, run_id)):
        return
    summary = f"{status['version']} is in production: {status['source']}"
    _materialize(instance, QUALITY, summary, to_metadata(status))
    yield summary


def _report_deployment(conn: sa.Connection, instance: dg.DagsterInstance) -> Iterator[str]:
    """Report the current state of the deployment."""
    from iccm_assets.registry.versions import get_production_version
    from iccm_assets.rollout.deployment_status import (
        STATE_KEYS,
        describe_deployment,
        load_deployment_status,
    )

    status = load_deployment_status(conn)
    if not status or _agrees(_latest(instance, DEPLOYMENT), status, STATE_KEYS):
        return
    summary = describe_deployment(status)
    production = get_production_version(conn)
    tags = {DATA_VERSION_TAG: production.digest} if production else None
    _materialize(instance, DEPLOYMENT, summary, to_metadata(status), tags)
    yield summary


def _report_checks(conn: sa.Connection, settings: Settings, instance: dg.DagsterInstance) -> Iterator[str]:
    """Report the checks whose result is new, once anything has been deployed."""
    if _latest(instance, DEPLOYMENT) is None:
        return
    for asset, functions in LIVE_CHECKS.items():
        for function in functions:
            module, name = f"iccm_assets.{function}".rsplit(".", 1)
            result = to_asset_check_result(getattr(import_module(module), name)(conn, settings), name)
            if _is_evaluated(instance, asset, result):
                continue
            _evaluate(instance, asset, result)
            yield f"check {name}: {'passed' if result.passed else 'failed'}"


def deployment_metadata(conn: sa.Connection) -> dict[str, Any]:
    """Return the current state of the deployment as metadata of its asset."""
    from iccm_assets.rollout.deployment_status import load_deployment_status

    return to_metadata(load_deployment_status(conn))


def _latest(instance: dg.DagsterInstance, asset: dg.AssetKey) -> dg.EventLogRecord | None:
    return next(iter(instance.fetch_materializations(asset, limit=1).records), None)


def _value(record: dg.EventLogRecord | None, name: str) -> Any:
    materialization = record.asset_materialization if record else None
    value = materialization.metadata.get(name) if materialization else None
    return None if value is None else value.value


def _agrees(record: dg.EventLogRecord | None, values: Mapping[str, Any], keys: Sequence[str]) -> bool:
    """Whether a materialization shows these values; without one, nothing is shown."""
    return record is not None and all(_value(record, key) == values.get(key) for key in keys)


def _is_running(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether a run of this instance may still report its own result."""
    run = instance.get_run_by_id(run_id)
    return run is not None and not run.is_finished


def _is_evaluated(instance: dg.DagsterInstance, asset: dg.AssetKey, result: dg.AssetCheckResult) -> bool:
    """Whether the newest evaluation of a check has this result, and is of the newest materialization.

    A run that is going to evaluate the check is waited for.
    """
    key = dg.AssetCheckKey(asset, str(result.check_name))
    record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key]).get(key)
    if record is None:
        return False
    # A run that plans a check and dies, or does not get to it, leaves the plan where its evaluation would be.
    if record.event is None or not isinstance(record.evaluation, dg.AssetCheckEvaluation):
        return _is_running(instance, record.run_id)
    latest = _latest(instance, asset)
    is_newer = latest is None or latest.timestamp <= record.event.timestamp
    return is_newer and record.evaluation.passed == result.passed


def _materialize(
    instance: dg.DagsterInstance,
    asset: dg.AssetKey,
    summary: str,
    metadata: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
) -> None:
    instance.report_runless_asset_event(
        dg.AssetMaterialization(asset, description=summary, metadata=with_markdown(metadata), tags=tags)
    )


def _evaluate(
    instance: dg.DagsterInstance, asset: dg.AssetKey, result: dg.AssetCheckResult, *, blocking: bool = False
) -> None:
    latest = _latest(instance, asset)
    target = latest and AssetCheckEvaluationTargetMaterializationData(
        storage_id=latest.storage_id, run_id=latest.run_id, timestamp=latest.timestamp
    )
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(
            asset_key=asset,
            check_name=str(result.check_name),
            passed=result.passed,
            metadata=result.metadata,
            target_materialization_data=target,
            severity=result.severity,
            description=result.description,
            blocking=blocking,
        )
    )
