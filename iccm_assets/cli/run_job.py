"""Run the platform's Dagster jobs from the command line, and report to Dagster what commands decide.

Runs and reports go to the instance that the UI shows. A log message with "N of M" moves the progress bar.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from iccm_assets.cli.console import err, parse_progress, progress_bar, repeat_in_thread
from iccm_assets.cli.context import open_platform
from iccm_assets.cli.env import get_dagster_environment
from iccm_assets.errors import first_line
from iccm_assets.settings import Settings, get_settings

if TYPE_CHECKING:
    import dagster as dg
    from sqlalchemy import Engine

QUIET_LOGGING = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
POLL_INTERVAL_SECONDS = 0.5


@dataclass(frozen=True)
class JobResult:
    """A finished Dagster run; ``error`` is that of its first failed step."""

    run_id: str
    success: bool
    error: str = ""


def run_job(
    name: str,
    *,
    title: str,
    tags: Mapping[str, str] | None = None,
    run_config: Mapping[str, Any] | None = None,
    console: Console = err,
) -> JobResult:
    """Run a job of the code location in this process, to its end, and follow its log."""
    from dagster._core.utils import make_new_run_id

    from iccm_assets.definitions import defs

    run_id = make_new_run_id()
    # The job runs in the main thread, where Dagster can turn Ctrl-C into a canceled run.
    with _get_instance(get_settings()) as instance, _follow(instance, run_id, title, console):
        result = (
            defs()
            .resolve_job_def(name)
            .execute_in_process(
                instance=instance,
                run_id=run_id,
                tags=dict(tags or {}),
                run_config={**QUIET_LOGGING, **(run_config or {})},
                raise_on_error=False,
            )
        )
    failures = [event for event in result.all_events if event.is_step_failure]
    return JobResult(run_id, result.success, _root_cause(failures[0]) if failures else "")


def run_daily_data(first: date, last: date, *, title: str, console: Console = err) -> JobResult:
    """Materialize the daily data assets for a range of days in one run."""
    tag = "dagster/asset_partition_range"
    days = {f"{tag}_start": first.isoformat(), f"{tag}_end": last.isoformat()}
    return run_job("daily_data_job", title=title, tags=days, console=console)


def run_retrain(training_run_id: int, *, rollout: bool = False, console: Console = err) -> JobResult:
    """Run a requested and dispatched training run through to the deployment.

    A candidate that passes the quality gate is rolled out with ``rollout``, else promoted immediately.
    """
    from iccm_assets.defs.automation.training_run_tags import run_tags
    from iccm_assets.registry import training_runs

    settings, engine = open_platform()
    with engine.connect() as conn:
        run = training_runs.get_run(conn, training_run_id)
    result = run_job(
        "retrain_job",
        title=f"retrain {training_run_id}",
        tags=run_tags(run),
        run_config={"ops": {"deployed_model_version": {"config": {"rollout": rollout}}}},
        console=console,
    )
    # The run leaves the checks of the deployment to a report: a failed gate would end it before them.
    report_to_dagster(settings, engine)
    return result


def report_to_dagster(settings: Settings, engine: Engine) -> None:
    """Show in Dagster what a command has decided, if this home has a Dagster instance.

    What cannot be reported now, `decision_report_sensor` reports within a minute: the command has succeeded.
    """
    if not (settings.home / "dagster" / "dagster.yaml").is_file():
        return
    try:
        from iccm_assets.defs.automation.decision_reports import report_decisions

        with _get_instance(settings) as instance, engine.begin() as conn:
            report_decisions(conn, settings, instance)
    except Exception as error:
        err.print(f"[dim]Dagster's daemon will show this later; now: {escape(first_line(error))}[/]")


def _get_instance(settings: Settings) -> dg.DagsterInstance:
    """Return the instance that the UI shows."""
    import dagster as dg

    # Dagster's warnings about its own interfaces are for developers, and its other messages are in the run's
    # log.
    warnings.simplefilter("ignore", dg.PreviewWarning)
    warnings.simplefilter("ignore", dg.BetaWarning)
    # A run resets the level of "dagster"; the level of its children stays.
    for logger in ("dagster", "dagster._core"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    os.environ.update(get_dagster_environment(settings))
    return dg.DagsterInstance.get()


@contextmanager
def _follow(instance: dg.DagsterInstance, run_id: str, title: str, console: Console) -> Iterator[None]:
    """Show the run's newest message and a progress bar until the block ends."""
    cursor: str | None = None
    with progress_bar(title, console=console) as update:

        def follow() -> None:
            nonlocal cursor
            batch = instance.get_records_for_run(run_id, cursor=cursor, limit=500)
            cursor = batch.cursor
            for entry in (record.event_log_entry for record in batch.records):
                # What the pipe to a worker says of itself comes as a message of the run, too.
                if not (entry.is_dagster_event or entry.user_message.startswith("[pipes] ")):
                    message = entry.user_message.partition("\n")[0][:90]
                    update(description=f"{title}: {message}", **parse_progress(message))

        try:
            with repeat_in_thread(follow, POLL_INTERVAL_SECONDS, "follow-run"):
                yield
        finally:
            update(description=title, total=1, completed=1)


def _root_cause(event: Any) -> str:
    """The first line of the error that caused a step to fail, without the module of its class."""
    error = event.step_failure_data.error
    while error.cause is not None:
        error = error.cause
    message = first_line(str(error.message))
    return re.sub(r"^iccm_assets\.errors\.\w+: |^(\w+\.)+(?=\w+: )", "", message)
