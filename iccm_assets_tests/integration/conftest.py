"""A platform on which a small demo has run, shared by the tests of this folder."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from iccm_assets_tests.factories.commands import ICCM, run
from iccm_assets_tests.factories.demo_platforms import Platform, temporary_home, write_canary_items
from iccm_assets_tests.factories.processes import bare_environment


@pytest.fixture(scope="session")
def platform() -> Iterator[Platform]:
    """A demo of 130 conversations against a quarter of the canary set; no test may change its production."""
    with temporary_home("iccm-loop-") as folder:
        environment = bare_environment() | {
            "ICCM_HOME": str(folder / "iccm"),
            "ICCM_CANARY_SET": write_canary_items(folder / "canary.jsonl", 94),
            # What the candidate learns is left to the gate: two epochs of five show a curve.
            "ICCM_TRAINING__EPOCHS": "2",
            # A spoiled model never stops by itself: one round of few long answers is enough of them.
            "ICCM_EVALUATION__LATENCY_ITEMS": "20",
            "ICCM_EVALUATION__LATENCY_ROUNDS": "1",
            "COLUMNS": "160",
        }
        demo = run([*ICCM, "demo", "--no-rollout", "--conversations", "130", "--days", "3"], environment, 900)
        yield Platform(folder / "iccm", environment, demo)


@pytest.fixture
def platform_copy(platform: Platform) -> Iterator[Platform]:
    """The same platform in another home, for a test that changes it for good."""
    with temporary_home("iccm-copy-") as folder:
        stopped = platform.iccm("db", "stop")
        assert stopped.returncode == 0, stopped.stderr
        # With owners: as root the server's files belong to another user.
        subprocess.run(["cp", "-a", str(platform.home), str(folder / "iccm")], check=True)
        environment = platform.environment | {"ICCM_HOME": str(folder / "iccm")}
        yield replace(platform, home=folder / "iccm", environment=environment)
