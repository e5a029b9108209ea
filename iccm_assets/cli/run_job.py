"""Run the platform's Dagster jobs from the command line, with their log as a progress bar.

The runs go to the instance that the UI shows. A log message with "N of M" moves the bar.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from iccm_assets.cli.console import err, parse_progress
from iccm_assets.cli.context import open_platform
from iccm_assets.cli.env import get_dagster_environment
from iccm_assets.settings import get_settings

if TYPE_CHECKING:
    import dagster as dg

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
    import dagster as dg
    from dagster._core.utils import make_new_run_id

    from iccm_assets.definitions import defs

    # Dagster's warnings about its own interfaces are for developers, and its other messages are in the run's
    # log.
    warnings.simplefilter("ignore", dg.PreviewWarning)
    warnings.simplefilter("ignore", dg.BetaWarning)
    # A run resets the level of "dagster"; the level of its children stays.
    for logger in ("dagster", "dagster._core"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    os.environ.update(get_dagster_environment(get_settings()))
    instance = dg.DagsterInstance.get()
    run_id = make_new_run_id()
    # The job runs in the main thread, where Dagster can turn Ctrl-C into a canceled run.
    with _follow(instance, run_id, title, console):
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

    _, engine = open_platform()
    with engine.connect() as conn:
        run = training_runs.get_run(conn, training_run_id)
    return run_job(
        "retrain_job",
        title=f"retrain {training_run_id}",
        tags=run_tags(run),
        run_config={"ops": {"deployed_model_version": {"config": {"rollout": rollout}}}},
        console=console,
    )


@contextmanager
def _follow(instance: dg.DagsterInstance, run_id: str, title: str, console: Console) -> Iterator[None]:
    """Show the run's newest message and a progress bar until the block ends."""
    stop = threading.Event()
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[message]}"),
        console=console,
    ) as bar:
        task = bar.add_task(title, total=None, message="starting")

        def follow() -> None:
            cursor: str | None = None
            while not stop.wait(POLL_INTERVAL_SECONDS):
                batch = instance.get_records_for_run(run_id, cursor=cursor, limit=500)
                cursor = batch.cursor
                for entry in (record.event_log_entry for record in batch.records):
                    if not entry.is_dagster_event:
                        message = entry.user_message.partition("\n")[0][:90]
                        bar.update(task, message=message, **parse_progress(message))

        thread = threading.Thread(target=follow, name="follow-run", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            bar.update(task, total=1, completed=1, message="")


def _root_cause(event: Any) -> str:
    """The message of the error that caused a step to fail."""
    error = event.step_failure_data.error
    while error.cause is not None:
        error = error.cause
    message = str(error.message).strip()
    return message.split(": ", 1)[-1] if message.startswith("iccm_assets.errors.") else message
