"""A real instance with the UI in front of it: embedded PostgreSQL, webserver and daemon as processes.

Skipped, with its reason, where there is no Chromium or no Playwright.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import httpx2 as httpx
import pytest
import sqlalchemy as sa

from iccm_assets.capture.conversations import Conversation, upsert_conversation
from iccm_assets.db.database import create_engine_for
from iccm_assets.simulation.language.families import FAMILIES
from iccm_assets.simulation.language.generator import generate_example
from iccm_assets_tests.factories.commands import ICCM, run
from iccm_assets_tests.factories.demo_platforms import temporary_home, write_canary_items
from iccm_assets_tests.factories.processes import BIN, bare_environment, free_port, start_dagster, stop
from iccm_assets_tests.factories.ui_instances import Instance

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
]


@pytest.fixture(scope="session")
def browser_path() -> str:
    """Where a Chromium is."""
    pytest.importorskip("playwright.sync_api", reason="needs Playwright (extra `dev`)")
    path = os.environ.get("UI_TEST_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not path:
        pytest.skip("needs a Chromium on PATH, or its path in UI_TEST_CHROMIUM")
    return path


@pytest.fixture(scope="session")
def instance(browser_path: str) -> Iterator[Instance]:
    """Sixty conversations of ten days on modules of the reference world; an eighth of the canary set."""
    with temporary_home("iccm-ui-") as home:
        environment = bare_environment() | {
            "ICCM_HOME": str(home / "iccm"),
            "ICCM_CANARY_SET": write_canary_items(home / "canary.jsonl", 47),
            "COLUMNS": "160",
        }
        processes: list[subprocess.Popen[bytes]] = []
        try:
            started = run([*ICCM, "db", "start"], environment, 600)
            assert started.returncode == 0, started.stderr[-3000:]
            today = a_day_that_lasts()
            fill(run([*ICCM, "db", "url"], environment, 300).stdout.strip(), today)
            shown = run([*ICCM, "env"], environment, 120).stdout
            environment |= dict(line.removeprefix("export ").split("=", 1) for line in shown.splitlines())
            port = free_port()
            for command in (
                [str(BIN / "dagster-webserver"), "-h", "127.0.0.1", "-p", str(port)],
                [str(BIN / "dagster-daemon"), "run"],
            ):
                processes.append(start_dagster(command, environment, home / "processes.log"))
            wait_for_server(f"http://127.0.0.1:{port}/server_info", home / "processes.log")
            yield Instance(f"http://127.0.0.1:{port}", environment, today - timedelta(days=1))
        finally:
            stop(processes)


@pytest.fixture(scope="module")
def page(instance: Instance, browser_path: str) -> Iterator[Any]:
    """One window on the UI; its pictures go to $UI_TEST_PICTURES where that is set.

    Playwright keeps an event loop running in this thread, so it ends with the module: tests of other modules
    run loops of their own.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        tab = browser.new_context(base_url=instance.url, viewport={"width": 1680, "height": 1000}).new_page()
        tab.set_default_timeout(180_000)
        yield tab
        browser.close()


def a_day_that_lasts(minutes: int = 10) -> date:
    """Today (UTC), once it has at least ``minutes`` left: what the tests see changes at midnight."""
    while (datetime.now(UTC) + timedelta(minutes=minutes)).date() != datetime.now(UTC).date():
        time.sleep(5)
    return datetime.now(UTC).date()


def fill(url: str, today: date) -> None:
    """Six conversations a day. Yesterday's have no scores yet, the others those of perfect requirements."""
    rng = Random(1)
    engine = create_engine_for(url)
    midnight = datetime(today.year, today.month, today.day, tzinfo=UTC)
    with engine.begin() as conn:
        for number in range(60):
            module = generate_example(sorted(FAMILIES)[number % len(FAMILIES)], rng)
            upsert_conversation(
                conn,
                Conversation(
                    session_id=f"session-{number}",
                    user_id=f"user-{number % 12}",
                    timestamp=midnight - timedelta(days=10 - number // 6, hours=-9),
                    messages=[
                        {"role": "user", "content": f"```python\n{module.source_code}\n```"},
                        {"role": "assistant", "content": module.requirements},
                    ],
                    requirements=module.requirements,
                    test_suite=module.test_suite,
                    origin="simulated",
                ),
            )
        conn.execute(
            sa.text(
                """update iccm.requirements r set test_pass_rate = 1 - (r.id % 5) * 0.04,
                       implementation_variance = 0, scored_at = iccm.now()
                   from iccm.conversations c
                   where c.id = r.conversation_id and c."timestamp" < :yesterday"""
            ),
            {"yesterday": midnight - timedelta(days=1)},
        )
    engine.dispose()


def wait_for_server(url: str, log: Path, seconds: float = 300) -> None:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"no UI at {url}: {log.read_text('utf-8', 'replace')[-3000:]}")
