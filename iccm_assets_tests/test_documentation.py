"""What the documentation names exists, and the reference pages follow the code."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from iccm_assets.cli.main import COMMANDS, ENTRY_POINT_GROUP
from iccm_assets.db import tables
from iccm_assets.definitions import defs
from iccm_assets.gateway.openapi import openapi_document
from iccm_assets.settings import known_variables
from scripts import check_names

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference pages as one process writes them, under settings that must not matter."""
    directory = tmp_path_factory.mktemp("reference")
    assert (
        generate(directory, PYTHONHASHSEED="1", ICCM_BASE_MODEL="org/model", ICCM_JUDGE__WORKERS="3")[0] == 0
    )
    return directory


def generate(directory: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "scripts.generate_reference", "--directory", str(directory), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, check=False, capture_output=True, text=True
    )
    return done.returncode, done.stderr


@pytest.mark.slow
def test_a_stale_reference_page_fails_the_check_that_names_it(reference: Path, tmp_path: Path) -> None:
    for path in reference.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    page = tmp_path / "settings.md"
    page.write_text(page.read_text(encoding="utf-8").replace("`ICCM_HOME`", "`ICCM_HOUSE`"), encoding="utf-8")
    (tmp_path / "metrics.md").unlink()
    # No other page is stale: they are the same in another process with other settings.
    status, message = generate(tmp_path, "--check", PYTHONHASHSEED="2")
    assert (status, message) == (
        1,
        "stale in docs/reference/: settings.md, metrics.md; `make docs` writes them\n",
    )
    assert "ICCM_HOUSE" in page.read_text(encoding="utf-8"), "a check writes nothing"


def test_everything_has_its_place_on_a_reference_page(reference: Path) -> None:
    repository = defs().get_repository_def()
    graph = repository.asset_graph
    jobs = [job.name for job in repository.get_all_jobs() if not job.name.startswith("__")]
    automation = [item.name for item in (*repository.schedule_defs, *repository.sensor_defs)]
    expected = {
        "settings.md": known_variables(),
        "commands.md": [f"## iccm {name}" for name in COMMANDS],
        "http-api.md": list(openapi_document()["paths"]),
        "tables.md": [f"## {table.name}" for table in tables.metadata.tables.values()],
        "assets.md": [f"## {key.to_user_string()}" for key in graph.get_all_asset_keys()],
        "checks.md": [f"`{key.name}`" for key in graph.asset_check_keys],
        "automation.md": [*jobs, *automation],
        "metrics.md": ["iccm_gateway_requests_total", "iccm_arm_pass_rate", "iccm_database_metrics_up"],
        "alerts.md": ["Model Rollback", "quality_gate:<verdict_id>", "training_run:<run_id>:failed"],
    }
    for page, texts in expected.items():
        content = (reference / page).read_text(encoding="utf-8")
        assert [text for text in texts if text not in content] == [], page


def links(path: Path) -> Iterator[str]:
    for link in LINK.findall(re.sub(FENCE, "", path.read_text(encoding="utf-8"))):
        if not re.match(r"[a-z]+:", link):
            yield link


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_of_the_repository(path: Path) -> None:
    targets = [path.parent / link.partition("#")[0] for link in links(path) if not link.startswith("#")]
    assert [str(target) for target in targets if not target.exists()] == []


def read(path: Path) -> str:
    """Read a page without what it says is planned."""
    return re.sub(r"\*Planned:\*[^|]*", "", path.read_text(encoding="utf-8"))


def written_commands(path: Path) -> Iterator[list[str]]:
    """The words of every command line in code spans and code blocks."""
    text = read(path)
    lines = [line for block in FENCE.findall(text) for line in block.splitlines()]
    for line in (*lines, *CODE.findall(FENCE.sub("", text))):
        yield re.sub(r"\s#.*", "", line).split()


def test_no_page_and_no_message_names_a_superseded_command_of_dagster() -> None:
    """It prints that the command is superseded, and how `dg` is called instead."""
    superseded = re.compile(r"\bdagster (?:dev|asset materialize|job execute|definitions validate)\b")
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
    for path in (ROOT / "iccm_assets").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts[str(path.relative_to(ROOT))] = "\n".join(text for _, text in check_names.visible_strings(tree))
    assert [(name, match[0]) for name, text in texts.items() for match in superseded.finditer(text)] == []


def test_every_command_verb_and_variable_that_a_page_names_exists() -> None:
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    commands = {*COMMANDS, *entry_points(group=ENTRY_POINT_GROUP).names}
    variables = set(known_variables())
    unknown = set()
    for path in PAGES:
        if path.name == "CHANGELOG.md":  # names what was removed
            continue
        for words in written_commands(path):
            match words:
                case ["iccm", name, *_] if re.fullmatch(r"[a-z]+", name) and name not in commands:
                    unknown.add((path.name, f"iccm {name}"))
                case ["make", name, *_] if re.fullmatch(r"[a-z-]+", name) and name not in verbs:
                    unknown.add((path.name, f"make {name}"))
        for name in re.findall(r"\bICCM_[A-Z0-9_]*[A-Z0-9]\b(?![_*…<{])", read(path)):
            if name not in variables:
                unknown.add((path.name, name))
    assert unknown == set()
