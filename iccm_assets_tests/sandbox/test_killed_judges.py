"""A judge that is killed at any moment leaves nothing behind: its sandboxes notice and end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def run_scenario(home: Path, *arguments: object) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "iccm_assets_tests.factories.killed_judges", *map(str, arguments)],
        env={**os.environ, "ICCM_HOME": str(home), "TMPDIR": str(home)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("sandbox", "start", "max_delay", "kills"),
    [
        ("strict", "cold", 0.3, 15),
        pytest.param("strict", "warm", 1.5, 15, marks=pytest.mark.slow),
        ("unsafe", "cold", 1.0, 3),
    ],
)
def test_a_judge_killed_at_any_moment_leaves_nothing(sandbox, start, max_delay, kills, tmp_path):
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    report = run_scenario(tmp_path, sandbox, start, max_delay, kills)
    assert report["max_orphans"] > 2, "no sandbox was ever started"
    assert report["survivors"] == []
    assert Path("/proc/self/mountinfo").read_text(encoding="utf-8") == mounts
    assert not os.listdir(tmp_path)


def test_a_fork_of_a_killed_judge_keeps_no_sandbox_going(tmp_path):
    assert run_scenario(tmp_path, "fork") == {"sandboxes": 2, "fork_lives": True, "survivors": []}
