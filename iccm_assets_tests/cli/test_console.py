"""Tables are whole at any width; long work shows a bar in a terminal, and lines where there is none."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from iccm_assets.cli import console, run_job
from iccm_assets.cli.main import build_app
from iccm_assets.settings import Settings
from iccm_assets.suites import suite_runner
from iccm_assets.suites.suite_runner import JudgeResult

IDS = st.from_regex(r"[a-z0-9-]{1,24}", fullmatch=True)
CELLS = st.one_of(
    IDS,
    st.none(),
    st.integers(-(10**9), 10**9),
    st.floats(-1e6, 1e6),
    st.just(datetime(2026, 11, 28, 1, 2, tzinfo=UTC)),
    st.lists(IDS, min_size=2, max_size=12).map(" ".join),
)
ROWS = st.lists(IDS, min_size=1, max_size=9, unique=True).flatmap(
    lambda names: st.lists(st.fixed_dictionaries(dict.fromkeys(names, CELLS)), min_size=1, max_size=5)
)


def render(rows: list[dict[str, Any]], width: int, title: str = "a title") -> str:
    screen = Console(file=io.StringIO(), width=width)
    screen.print(console.make_table(title, rows))
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, width=st.sampled_from([60, 80, 132]))
def test_a_table_of_any_width_holds_every_header_and_every_word_whole(
    rows: list[dict[str, Any]], width: int
) -> None:
    printed = render(rows, width)
    assert "…" not in printed and max(map(len, printed.splitlines())) <= width
    words = printed.split()
    for row in rows:
        for name, value in row.items():
            assert name in words
            shown = f"{value:.3f}" if isinstance(value, float) else str("-" if value is None else value)
            expected = ["2026-11-28", "01:02"] if isinstance(value, datetime) else shown.split()
            assert set(expected) <= set(words)


def test_rows_that_fit_are_a_table_and_others_are_fields_beside_each_other() -> None:
    arms = [{"arm": arm, **{f"metric_{n}": 0.5 for n in range(9)}} for arm in ("canary", "production")]
    lines = render(arms, 200).splitlines()
    assert lines[1].split()[:2] == ["arm", "metric_0"] and lines[3].split()[:2] == ["canary", "0.500"]
    lines = render(arms, 80).splitlines()
    assert lines[1].split() == ["arm", "canary", "production"]
    assert lines[2].split() == ["metric_0", "0.500", "0.500"]
    assert len(lines) == 1 + 1 + 9


def test_brackets_in_titles_headers_and_cells_are_no_markup() -> None:
    assert "[red]x[/] [all]" in render([{"[bold]": "[red]x[/] [all]"}], 80)
    assert "[bold]" in render([{"[bold]": "x"}], 80)


def test_a_title_is_not_wrapped_at_the_width_of_its_table() -> None:
    assert (
        render([{"a": 1}], 80, title="many more words than columns").splitlines()[0].split()[-1] == "columns"
    )


def test_a_pipe_has_the_width_that_a_table_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console._Output(file=io.StringIO()).width == console.PIPE_WIDTH
    monkeypatch.setenv("COLUMNS", "80")
    assert console._Output(file=io.StringIO()).width == 80


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"total": 8}, r"work [all], 3 of 8, "),
        ({"total": 800, "in_bytes": True}, r"work [all], 3 of 800 bytes, "),
        ({}, "work [all], 3, "),
    ],
)
def test_without_a_terminal_progress_is_a_line_per_interval(
    options: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PROGRESS_LINE_SECONDS", 0.05)
    file = io.StringIO()
    with console.progress_bar("work [all]", console=Console(file=file, width=40), **options) as update:
        update(advance=3)
        while not file.getvalue():
            time.sleep(0.01)
    lines = file.getvalue().splitlines()
    assert lines and all(line.startswith(expected) and line.endswith(" s") for line in lines)


def test_a_terminal_shows_a_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PROGRESS_LINE_SECONDS", 0.01)
    file = io.StringIO()
    screen = Console(file=file, width=80, force_terminal=True)
    with console.progress_bar("work [all]", 8, console=screen) as update:
        update(completed=8)
        time.sleep(0.05)
    assert "work [all]" in file.getvalue() and "8/8" in file.getvalue() and "8 of 8" not in file.getvalue()


def test_short_work_prints_nothing_without_a_terminal() -> None:
    file = io.StringIO()
    with console.progress_bar("work", 8, console=Console(file=file)) as update:
        update(advance=8)
    assert file.getvalue() == ""


def test_a_batch_of_implementations_and_a_dagster_run_report_progress(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(console, "PROGRESS_LINE_SECONDS", 0.05)
    suite = {"kind": "cases", "cases": [{"call": "f", "args": [1], "expect": 1}]}
    lines = [json.dumps({"id": n, "implementation": "def f(x): return x", "suite": suite}) for n in range(3)]
    (tmp_path / "batch.jsonl").write_text("\n".join(lines))

    def run_suites(items: Iterable[Any], _settings: Settings) -> Iterator[JudgeResult]:
        for _ in items:
            yield JudgeResult(1.0, (), reason="")
            time.sleep(0.2)

    monkeypatch.setattr(suite_runner, "run_suites", run_suites)
    result = CliRunner().invoke(build_app("judge"), ["judge", "--batch", str(tmp_path / "batch.jsonl")])
    assert result.exit_code == 0 and re.search(r"^judging, [123], 0 s$", result.stderr, re.MULTILINE)
    assert result.stdout.count("test pass rate 1.000") == 3

    entry = SimpleNamespace(is_dagster_event=False, user_message="step 30 of 375 [loss]\nmore")
    records = SimpleNamespace(cursor="1", records=[SimpleNamespace(event_log_entry=entry)])
    instance: Any = SimpleNamespace(get_records_for_run=lambda *_args, **_options: records)
    screen = Console(file=io.StringIO(), width=40)
    assert isinstance(screen.file, io.StringIO)

    def work(**_options: object) -> SimpleNamespace:
        deadline = time.monotonic() + 20
        while "30 of 375" not in screen.file.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        return SimpleNamespace(success=True, all_events=[])

    job = SimpleNamespace(execute_in_process=work)
    monkeypatch.setattr(run_job, "POLL_INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(run_job, "_get_instance", lambda settings: nullcontext(instance))
    jobs = SimpleNamespace(resolve_job_def=lambda name: job)
    monkeypatch.setattr("iccm_assets.definitions.defs", lambda: jobs)
    assert run_job.run_job("retrain_job", title="retrain 3", console=screen).success
    assert "retrain 3: step 30 of 375 [loss], 0 s" in screen.file.getvalue()
