"""What the ticks of schedules and sensors share: short transactions, and how a cause becomes a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dagster as dg

from iccm_assets.defs.learning.runs import run_request
from iccm_assets.defs.resources import Platform

if TYPE_CHECKING:
    import sqlalchemy as sa

    from iccm_assets.learning.causes import Fired
    from iccm_assets.learning.triggers import Skip

# A tick must never hang to Dagster's own limit of 60 s: better a failed tick than none.
STATEMENT_SECONDS = 5
LOCK_SECONDS = 2


@contextmanager
def tick(platform: Platform) -> Iterator[sa.Connection]:
    """One transaction of a tick, with its statements' time limited."""
    import sqlalchemy as sa

    with platform.engine.begin() as conn:
        conn.execute(sa.text(f"set local statement_timeout = '{STATEMENT_SECONDS}s'"))
        conn.execute(sa.text(f"set local lock_timeout = '{LOCK_SECONDS}s'"))
        yield conn


def started(conn: sa.Connection, platform: Platform, cause: Fired | Skip) -> dg.RunRequest | dg.SkipReason:
    """The run of a cause that has just fired, in the same transaction as its row; or why there is none.

    Where the way is not free the row waits, and `retrain_dispatch_sensor` starts it (T6).
    """
    from iccm_assets.learning import dispatch
    from iccm_assets.learning.triggers import Skip

    if isinstance(cause, Skip):
        return dg.SkipReason(cause.reason)
    taken = dispatch.take_if_free(conn, cause.run, platform.settings.triggers)
    if isinstance(taken, str):
        return dg.SkipReason(f"fired, training run {cause.run.id} ({cause.reason}); it waits: {taken}")
    return run_request(taken)
