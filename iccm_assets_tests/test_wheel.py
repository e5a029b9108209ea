"""The wheel: it holds every file of the package, and `iccm` runs from it without the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT_FILES = ("pyproject.toml", "README.md", "LICENSE")

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ICCM_")}
    done = subprocess.run(command, cwd=cwd, env=kept | variables, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the package, built with the setuptools that are installed."""
    source = tmp_path_factory.mktemp("source")
    for name in PROJECT_FILES:
        shutil.copy2(ROOT / name, source / name)
    shutil.copytree(
        ROOT / "iccm_assets", source / "iccm_assets", ignore=shutil.ignore_patterns("__pycache__")
    )
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation")
    run(*pip, "--wheel-dir", source / "dist", source, cwd=source)
    [path] = (source / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A new virtual environment with the wheel, which borrows the dependencies of this one."""
    directory = tmp_path_factory.mktemp("installed")
    venv.create(directory / "venv", with_pip=True)
    python = directory / "venv" / "bin" / "python"
    # A line of a .pth file only extends the path: the editable installation of this environment stays unseen.
    site = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=directory).strip()
    )
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=directory)
    yield directory
    run(directory / "venv" / "bin" / "iccm", "db", "stop", cwd=directory, ICCM_HOME=str(directory / "home"))


def test_every_file_of_the_package_is_in_the_wheel_and_no_test(wheel: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "iccm_assets"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    names = zipfile.ZipFile(wheel).namelist()
    assert {"iccm_assets/py.typed", "iccm_assets/profiles/local.toml"} <= set(names)
    assert (
        sorted(name for name in tracked.stdout.splitlines() if (ROOT / name).exists() and name not in names)
        == []
    )
    assert [name for name in names if not name.startswith(("iccm_assets/", "iccm_assets-"))] == []
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_doctor_and_a_command_with_a_database_run_from_the_wheel(installed: Path) -> None:
    iccm, home = installed / "venv" / "bin" / "iccm", str(installed / "home")
    package = run(
        installed / "venv" / "bin" / "python",
        "-c",
        "import iccm_assets; print(iccm_assets.__file__)",
        cwd=installed,
    )
    assert str(installed) in package
    assert "ready" in run(iccm, "doctor", cwd=installed, ICCM_HOME=home)
    assert '"production": null' in run(iccm, "status", "--json", cwd=installed, ICCM_HOME=home)
