"""Continuous integration tests no less than a developer's machine: without a tool it fails."""

from __future__ import annotations

import gc
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from iccm_assets_tests.factories.processes import ROOT

SKIPS = """
import pytest

@pytest.mark.skipif(True, reason="needs a crystal ball")
def test_the_future(): pass

@pytest.fixture
def ball(): pytest.skip("needs a crystal ball")

def test_a_prophecy(ball): pass

@pytest.mark.skipif(True, reason="root reads everything")
def test_a_closed_file(): pass
"""
MODULE_SKIPS = """
import pytest

pytest.importorskip("no_such_module", reason="needs the extra `crystal`")
"""


def outcomes(folder: Path, monkeypatch: pytest.MonkeyPatch, ci: str) -> str:
    """Run the two modules under the hooks of these tests; return pytest's last line."""
    monkeypatch.setenv("CI", ci)
    (folder / "test_skips.py").write_text(SKIPS, encoding="utf-8")
    (folder / "test_module_skips.py").write_text(MODULE_SKIPS, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--continue-on-collection-errors",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, "-p", "iccm_assets_tests.conftest", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout.splitlines()[-1]


def test_a_skip_for_want_of_a_tool_fails_in_ci_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcomes(tmp_path, monkeypatch, "").startswith("4 skipped")
    assert outcomes(tmp_path, monkeypatch, "true").startswith("1 skipped, 3 errors")


def test_the_repeats_of_make_are_an_option_that_pytest_reads() -> None:
    """Also without a path, where the option is defined in a file that pytest finds by its settings."""
    make = ["make", "--dry-run", "test-repeat", "PYTEST_ARGS=--markers"]
    shown = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    [line] = [line for line in shown.splitlines() if "--repeats" in line]
    words = shlex.split(line)
    arguments = words[words.index(".venv/bin/pytest") + 1 :]
    command = [sys.executable, "-m", "pytest", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "@pytest.mark.slow" in done.stdout, done.stderr


def test_no_garbage_collection_looks_at_the_modules_and_tests() -> None:
    """Thousands of tests and what they import: to look through them takes a tenth of the time of a run."""
    assert gc.isenabled() and gc.get_freeze_count() > 100_000


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="this process runs all tests")
def test_the_tests_of_a_file_run_in_the_same_worker(request: pytest.FixtureRequest) -> None:
    """Otherwise both make what a module shares: a platform that has lived, a gateway, a trained model."""
    path = "iccm_assets_tests/test_continuous_integration.py"
    assert request.node.nodeid.endswith(f"@{path}")
