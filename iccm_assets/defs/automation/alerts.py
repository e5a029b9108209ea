"""Alerts: the outbox is delivered by the daemon, and a Dagster run that fails raises one (A1, A2)."""

import dagster as dg

from iccm_assets.defs.resources import Platform


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Sends what waits in the alert outbox to the channels of ICCM_ALERT_URLS (A1).",
)
def alert_delivery_sensor(context: dg.SensorEvaluationContext, platform: Platform):
    from iccm_assets.alerts.delivery import deliver_alerts, is_due, waiting

    engine, settings = platform.engine, platform.settings
    if not is_due(engine, settings):
        left = waiting(engine)
        named = "" if settings.alert_urls else ", and ICCM_ALERT_URLS names no channel"
        return dg.SkipReason(f"{left} alerts wait, none is due{named}")
    report = deliver_alerts(engine, settings)
    context.log.info(report.sentence())
    return dg.SkipReason(report.sentence())


@dg.run_failure_sensor(
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="A Dagster run of this platform failed: one alert a run (A2).",
)
def run_failure_alert_sensor(context: dg.RunFailureSensorContext, platform: Platform):
    from iccm_assets.alerts.outbox import raise_alert

    run = context.dagster_run
    errors = [one.step_failure_data.error for one in context.get_step_failure_events()]
    # A red check is an answer, which has raised its own alert; the run has ended as it should.
    answer = bool(errors) and all("AssetCheckFailed" in (one.cls_name or "") for one in errors if one)
    with platform.engine.begin() as conn:
        raise_alert(
            conn,
            f"dagster_run_failed:{run.run_id}",
            "info" if answer else "critical",
            f"{run.job_name} was stopped by a check" if answer else f"{run.job_name} failed",
            f"Dagster run {run.run_id}: {_cause(errors) or context.failure_event.message}",
        )


def _cause(errors: list) -> str:
    """What the first failed step was caused by, in one line."""
    for error in errors:
        while error is not None and error.cause is not None:
            error = error.cause
        if error is not None and (lines := error.message.strip().splitlines()):
            return lines[0][:500]
    return ""


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(sensors=[alert_delivery_sensor, run_failure_alert_sensor])
