"""What a user reads is plain: no contract ids anywhere, no retired names in the package."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import iccm_assets
from iccm_assets import errors
from iccm_assets.cli.main import build_app
from iccm_assets.definitions import defs
from iccm_assets.gateway.openapi import openapi_document
from iccm_assets.settings import known_variables
from scripts import check_names

DOCS = Path(iccm_assets.__file__).parents[1] / "docs"


def help_texts() -> Iterator[str]:
    """Help of every command, group, option and argument."""
    stack = [typer.main.get_command(build_app())]
    while stack:
        command = stack.pop()
        yield command.help or ""
        for parameter in command.params:
            yield getattr(parameter, "help", None) or ""
        stack += list(getattr(command, "commands", {}).values())


def definition_texts() -> Iterator[str]:
    """Descriptions of every asset, column, check, job, op, schedule, sensor and run configuration field."""
    repository = defs().get_repository_def()
    graph = repository.asset_graph
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        yield node.description or ""
        yield repr(node.metadata.get("dagster/column_schema"))
    for key in graph.asset_check_keys:
        yield graph.get_check_spec(key).description or ""
    for job in repository.get_all_jobs():
        yield job.description or ""
        for node in job.nodes:
            yield node.definition.description or ""
            yield repr(getattr(node.definition, "config_schema", ""))
    for automation in (*repository.schedule_defs, *repository.sensor_defs):
        yield automation.description or ""


def error_texts() -> Iterator[str]:
    """The docstring of every error is the beginning of its message."""
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.IccmError):
            yield error.__doc__ or ""


SOURCES = {
    "command line": help_texts,
    "OpenAPI": lambda: iter([json.dumps(openapi_document())]),
    "definitions": definition_texts,
    "errors": error_texts,
    "settings": lambda: iter(known_variables().values()),
    "log lines and messages": lambda: (
        text
        for path in Path(iccm_assets.__file__).parent.rglob("*.py")
        if path.parent.name != "versions"  # migrations that were applied do not change
        for _, text in check_names.visible_strings(ast.parse(path.read_text(encoding="utf-8")))
    ),
    "documentation": lambda: (
        path.read_text(encoding="utf-8")
        for path in (*DOCS.rglob("*.md"), *DOCS.parent.glob("*.md"))
        if path.name != "guarantees.md"
    ),
}


@pytest.mark.parametrize("source", SOURCES)
def test_no_text_that_a_user_reads_has_a_contract_id(source: str) -> None:
    texts = list(SOURCES[source]())
    assert sum(map(bool, texts)) > 0
    matches = {match[0]: text[:200] for text in texts if (match := check_names.CONTRACT_ID.search(text))}
    assert matches == {}


@pytest.mark.slow
def test_the_package_has_no_retired_names_and_no_name_twice() -> None:
    assert list(check_names.check(check_names.PACKAGE)) == []
    for folder in check_names.OTHER_CODE:
        assert list(check_names.check_identifiers(folder)) == []


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("for one in rows: pass", "retired name `one`"),
        ("def text_of(row): pass", "retired name `text_of`"),
        ("MOST_ROWS = 3", "retired name `MOST_ROWS`"),
        ("self.found = 3", "retired name `found`"),
        ("raise ValueError('not allowed (E3)')", "contract id E3"),
        ("raise ValueError('not allowed (R1-R9)')", "contract id R1-R9"),
        ("raise ValueError('allowed by L1–L13')", "contract id L1–L13"),
        ("class Row: pass\n", "class `Row` stands in 2 places"),
    ],
)
def test_each_rule_finds_its_violation(tmp_path: Path, source: str, problem: str) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "first.py").write_text(source + "\n", encoding="utf-8")
    (tmp_path / "package" / "second.py").write_text("class Row: pass\n", encoding="utf-8")
    assert any(problem in line for line in check_names.check(tmp_path / "package"))


def test_a_docstring_may_name_a_contract_id_unless_it_is_shown() -> None:
    hidden = 'def f():\n    """Do it (E3)."""\n'
    shown = 'import dagster as dg\n@dg.asset\ndef f():\n    """Do it (E3)."""\n'
    texts = [list(check_names.visible_strings(ast.parse(source))) for source in (hidden, shown)]
    assert texts == [[], [(4, "Do it (E3).")]]
