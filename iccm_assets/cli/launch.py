"""Running the platform's Dagster jobs from the command line, with their log as a progress bar.

The runs go to the same instance the UI shows. A message holding "N of M" moves the bar, so whatever a
person would read in the run's log is what they see here.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from iccm_assets.cli.env import environment
from iccm_assets.settings import get_settings

if TYPE_CHECKING:
    import dagster as dg

COUNTED = re.compile(r"(\d+)(?: of |/)(\d+)")
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Launched:
    """A finished Dagster run: its id, whether it succeeded, and the error of its first failed step."""

    run_id: str
    success: bool
    error: str = ""


def dagster_instance() -> dg.DagsterInstance:
    """The platform's Dagster instance; sets the environment Dagster itself reads."""
    import dagster as dg

    os.environ.update(environment(get_settings()))
    return dg.DagsterInstance.get()


def run_job(
    name: str,
    *,
    title: str,
    tags: Mapping[str, str] | None = None,
    run_config: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Launched:
    """Run a job of the code location in this process, to its end, and follow its log."""
    import dagster as dg
    from dagster._core.utils import make_new_run_id

    from iccm_assets.definitions import defs

    # What Dagster says of its own interfaces is for developers, and the run's log holds its remarks.
    warnings.simplefilter("ignore", dg.PreviewWarning)
    warnings.simplefilter("ignore", dg.BetaWarning)
    # A run sets the level of "dagster" itself anew; below it, the level stays.
    for logger in ("dagster", "dagster._core"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    instance = dagster_instance()
    job = defs().resolve_job_def(name)
    run_id = make_new_run_id()
    # The job runs in the main thread, where Dagster can turn Ctrl-C into a cancelled run.
    with _followed(instance, run_id, title, console or Console(stderr=True)):
        result = job.execute_in_process(
            instance=instance,
            run_id=run_id,
            tags=dict(tags or {}),
            run_config={**QUIET, **(run_config or {})},
            raise_on_error=False,
        )
    failures = [event for event in result.all_events if event.is_step_failure]
    return Launched(run_id, result.success, _innermost(failures[0]) if failures else "")


def run_days(first: date, last: date, *, title: str, console: Console | None = None) -> Launched:
    """Materialize the daily data assets for a range of days in one run."""
    tags = {
        "dagster/asset_partition_range_start": first.isoformat(),
        "dagster/asset_partition_range_end": last.isoformat(),
    }
    return run_job("daily_data_job", title=title, tags=tags, console=console)


def run_retrain(training_run_id: int, *, rollout: bool = False, console: Console | None = None) -> Launched:
    """Carry a requested training run, which the caller has dispatched, through to the deployment.

    A passed candidate is promoted at once, as a demo of several weeks needs it; with ``rollout`` it is rolled
    out.
    """
    from iccm_assets.defs.learning.runs import tags_of
    from iccm_assets.learning import training_runs
    from iccm_assets.store.database import connect

    with connect(get_settings()).connect() as conn:
        run = training_runs.get(conn, training_run_id)
    return run_job(
        "retrain_job",
        title=f"retrain {training_run_id}",
        tags=tags_of(run),
        run_config={"ops": {"deployed_model_version": {"config": {"rollout": rollout}}}},
        console=console,
    )


@contextmanager
def _followed(instance: dg.DagsterInstance, run_id: str, title: str, console: Console) -> Iterator[None]:
    """Show the run's newest message, and a bar while messages count, as long as the block takes."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[message]}"),
    )
    over = threading.Event()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=None, message="starting")

        def follow() -> None:
            cursor: str | None = None
            while not over.wait(POLL_SECONDS):
                cursor = _show_new(instance, run_id, cursor, bar, task)

        thread = threading.Thread(target=follow, name="follow-run", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            bar.update(task, total=1, completed=1, message="")


def _show_new(
    instance: dg.DagsterInstance, run_id: str, cursor: str | None, bar: Progress, task: Any
) -> str | None:
    batch = instance.get_records_for_run(run_id, cursor=cursor, limit=500)
    for record in batch.records:
        entry = record.event_log_entry
        if entry.is_dagster_event:
            continue
        message = entry.user_message.splitlines()[0][:90] if entry.user_message else ""
        counted = COUNTED.search(message)
        done, total = (int(counted[1]), int(counted[2])) if counted else (None, None)
        bar.update(task, message=message, completed=done, total=total)
    return batch.cursor


def _innermost(event: Any) -> str:
    """The message of the error a failed step was caused by."""
    error = event.step_failure_data.error
    while error.cause is not None:
        error = error.cause
    said = str(error.message).strip()
    return said.split(": ", 1)[-1] if said.startswith("iccm_assets.errors.") else said
