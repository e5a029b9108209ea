"""A worker on another machine ends soon after nobody waits for it any more, and not before."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from iccm_assets.db.worker_presence import TOKEN_ENV, hold_presence, is_held, is_on_cluster
from iccm_assets.worker_process import EXIT_STATUS
from iccm_assets_tests.factories.processes import bare_environment, killed_at_the_end

WORKER = """
import sys, time
from iccm_assets.db.database import create_engine_for
from iccm_assets.db.worker_presence import exit_without_presence
exit_without_presence(lambda: create_engine_for(sys.argv[1]), interval_seconds=0.1, absence_seconds=1.0)
time.sleep(60)
"""


def test_the_lock_is_held_during_the_block_only(engine: sa.Engine) -> None:
    with hold_presence(engine) as environment:
        assert is_held(engine, environment[TOKEN_ENV])
        assert not is_held(engine, "another")
    wait_until(lambda: not is_held(engine, environment[TOKEN_ENV]))


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for what follows the end of a connection."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_lost_connection_is_replaced_and_the_lock_taken_again(engine: sa.Engine) -> None:
    with hold_presence(engine, interval_seconds=0.05) as environment:
        with engine.begin() as conn:
            conn.execute(
                sa.text(
                    "select pg_terminate_backend(pid) from pg_locks"
                    " where locktype = 'advisory' and pid <> pg_backend_pid()"
                )
            )
        wait_until(lambda: is_held(engine, environment[TOKEN_ENV]))


def test_a_worker_ends_once_nobody_waits_for_it(engine: sa.Engine) -> None:
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    presence = hold_presence(engine)
    environment = {**bare_environment(), **presence.__enter__()}
    with killed_at_the_end([sys.executable, "-c", WORKER, url], env=environment) as worker:
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                worker.wait(4)
        finally:
            presence.__exit__(None, None, None)
        assert worker.wait(60) == EXIT_STATUS


def test_without_a_token_a_process_is_not_on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_ENV, raising=False)
    assert not is_on_cluster()
    monkeypatch.setenv(TOKEN_ENV, "t")
    assert is_on_cluster()
