"""A platform on which a small demo has run, shared by the tests of this folder."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from iccm_assets.db.database import create_engine_for
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets.settings import PACKAGED_CANARY_SET

ICCM = [sys.executable, "-c", "from iccm_assets.cli.main import main; main()"]


@dataclass(frozen=True)
class Platform:
    """A home with an embedded server, and how to run commands in it."""

    home: Path
    environment: dict[str, str]
    demo: subprocess.CompletedProcess[str]

    @property
    def engine(self) -> sa.Engine:
        return create_engine_for(self.iccm("db", "url").stdout.strip())

    def iccm(self, *arguments: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        return run([*ICCM, *arguments], self.environment, timeout)

    def json(self, *arguments: str) -> Any:
        done = self.iccm(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def rows(self, query: str, **values: Any) -> list[Any]:
        engine = self.engine
        try:
            with engine.connect() as conn:
                return list(conn.execute(sa.text(query), values).all())
        finally:
            engine.dispose()

    def production(self) -> str:
        [[version]] = self.rows("select version from iccm.model_versions where status = 'production'")
        return str(version)


def run(command: list[str], environment: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `last` change the shared platform for good: run them after all others."""
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


@pytest.fixture(scope="session")
def platform() -> Iterator[Platform]:
    """A demo of 130 conversations against every fourth canary item."""
    home = Path(tempfile.mkdtemp(prefix="iccm-loop-"))
    canary_set = home / "canary.jsonl"
    lines = gzip.decompress(PACKAGED_CANARY_SET.read_bytes()).decode().splitlines()
    canary_set.write_text("\n".join(lines[::4]) + "\n", encoding="utf-8")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("ICCM_", "DAGSTER_"))
    }
    environment |= {
        "ICCM_HOME": str(home / "iccm"),
        "ICCM_CANARY_SET": str(canary_set),
        # A spoiled model never stops by itself: one round of few long answers is enough of them.
        "ICCM_EVALUATION__LATENCY_ITEMS": "20",
        "ICCM_EVALUATION__LATENCY_ROUNDS": "1",
        "COLUMNS": "160",
    }
    try:
        demo = run([*ICCM, "demo", "--no-rollout", "--conversations", "130", "--days", "3"], environment, 900)
        yield Platform(home / "iccm", environment, demo)
    finally:
        EmbeddedServer(home / "iccm").stop()
        for path in [home, *home.rglob("*")]:
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(home, ignore_errors=True)
