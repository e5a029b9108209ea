"""Helpers of schedules and sensors: short transactions, and the run request of a trigger that fired."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dagster as dg

from iccm_assets.defs.automation.training_run_tags import run_request
from iccm_assets.defs.resources import PlatformResource

if TYPE_CHECKING:
    import sqlalchemy as sa

    from iccm_assets.registry.training_runs import TrainingRun
    from iccm_assets.retraining.triggers import TriggerSkipped

# Dagster cancels a tick after 60 s: a failed statement is reported earlier than a canceled tick.
STATEMENT_TIMEOUT_SECONDS = 5
LOCK_TIMEOUT_SECONDS = 2


@contextmanager
def tick_transaction(platform: PlatformResource) -> Iterator[sa.Connection]:
    """One transaction of a tick, with statement and lock timeouts."""
    import sqlalchemy as sa

    with platform.engine.begin() as conn:
        conn.execute(sa.text(f"set local statement_timeout = '{STATEMENT_TIMEOUT_SECONDS}s'"))
        conn.execute(sa.text(f"set local lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"))
        yield conn


def request_run_or_skip(
    conn: sa.Connection, platform: PlatformResource, decision: TrainingRun | TriggerSkipped
) -> dg.RunRequest | dg.SkipReason:
    """The run request of a trigger that has just fired, in the transaction of its row; else the skip reason.

    If another retrain or a live rollout blocks it, the row waits for `retrain_dispatch_sensor`.
    """
    from iccm_assets.retraining import run_queue
    from iccm_assets.retraining.triggers import TriggerSkipped

    if isinstance(decision, TriggerSkipped):
        return dg.SkipReason(decision.reason)
    claimed = run_queue.claim_dispatch_if_free(conn, decision, platform.settings.triggers)
    if isinstance(claimed, str):
        return dg.SkipReason(f"fired: training run {decision.id} ({decision.notes}); it waits: {claimed}")
    return run_request(claimed)
