"""The recording worker: record missing suites of some days, in a process of its own.

The asset `test_suites` calls `work`, or on a cluster runs ``python -m iccm_assets.scoring.recording_worker``
under Pipes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import sqlalchemy as sa
from dagster_pipes import PipesContext

from iccm_assets.db.database import connect
from iccm_assets.db.worker_presence import exit_without_presence
from iccm_assets.scoring.scoring_worker import parse_days
from iccm_assets.scoring.suite_recordings import record_missing_suites
from iccm_assets.settings import Settings, load_settings
from iccm_assets.worker_process import run_pipes_worker


def work(
    engine: sa.Engine, settings: Settings, request: Mapping[str, Any], log: Callable[[str], None]
) -> dict[str, Any]:
    """Record the suites of the requested ``days`` and return the counts."""
    report = record_missing_suites(
        engine,
        settings,
        days=parse_days(request["days"]),
        progress=lambda count: log(f"recorded {count} sources"),
    )
    return report.counts()


def _work_for(pipes: PipesContext) -> dict[str, Any]:
    settings = load_settings()
    exit_without_presence(partial(connect, settings))
    return work(connect(settings), settings, pipes.extras, pipes.log.info)


def main() -> int:
    """Run the worker under Dagster Pipes."""
    return run_pipes_worker(_work_for)


if __name__ == "__main__":
    sys.exit(main())
