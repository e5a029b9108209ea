"""`iccm judge`: test an implementation in the sandbox, or a file of many."""

from __future__ import annotations

import json
import tokenize
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from iccm_assets.cli.console import AsJson, make_table, out, progress_bar
from iccm_assets.curation.json_lines import read_json_lines
from iccm_assets.errors import (
    IccmError,
    InputError,
    MissingPackageError,
    SandboxUnavailableError,
    TestSuiteError,
    UsageError,
)
from iccm_assets.sandbox.source_files import SourceFilesError, is_test_path, join_files
from iccm_assets.settings import get_settings
from iccm_assets.suites import suite_runner as runner
from iccm_assets.suites.suite_runner import JudgeResult
from iccm_assets.suites.test_suites import Suite, load_suite_file, parse_suite


def judge(
    implementation: Annotated[
        Path | None, typer.Option(help="Python source file to test, or a folder with several.")
    ] = None,
    suite: Annotated[Path | None, typer.Option(help="Test suite, JSON (docs/reference/judge.md).")] = None,
    batch: Annotated[
        Path | None,
        typer.Option(help="JSON lines {id, implementation, suite} instead; prints one result per line."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Test an implementation in the sandbox; exits 0 whenever there is a verdict."""
    if batch is not None and implementation is None and suite is None:
        _judge_batch(batch, as_json)
        return
    if batch is not None or implementation is None or suite is None:
        raise UsageError("give either --implementation and --suite, or --batch")
    result = runner.run_suite(_read_source(implementation), load_suite_file(suite), get_settings())
    if as_json:
        typer.echo(json.dumps(_document(result)))
    elif result.test_pass_rate is not None or result.missing_packages:
        _print(result)
    if result.missing_packages:
        raise MissingPackageError(result.reason)
    if result.test_pass_rate is None:
        raise SandboxUnavailableError(result.reason, hint="`iccm doctor` names what is missing.")


def _document(result: JudgeResult) -> dict[str, Any]:
    """Build the JSON document of a result; its keys are promised to other programs."""
    return {
        "test_pass_rate": result.test_pass_rate,
        "results": [
            {"case": case.case, "verdict": case.verdict, "detail": case.detail} for case in result.results
        ],
        "suspect": result.suspect,
        "suspicions": list(result.violations),
        "evidence": result.evidence,
        "environment": result.environment,
        "layers": result.layers,
        "reason": result.reason,
        "duration_ms": result.duration_ms,
    }


def _judge_batch(path: Path, as_json: bool) -> None:
    """Print the result of every line, in order; a line that cannot be judged says why in ``reason``."""
    lines: deque[tuple[object, str]] = deque()  # id and problem of the lines read, not printed yet

    def valid_lines() -> Iterator[tuple[str, Suite]]:
        for location, row in read_json_lines(path):
            try:
                item = _parse_line(row)
            except (InputError, TestSuiteError) as error:
                lines.append((row.get("id"), f"{location}: {error.detail}"))
            else:
                lines.append((row["id"], ""))
                yield item

    def print_problems() -> int:
        count = 0
        while lines and lines[0][1]:
            line_id, problem = lines.popleft()
            _print_line(line_id, {"test_pass_rate": None, "results": [], "reason": problem}, as_json)
            count += 1
        return count

    total = without_verdict = 0
    # In a terminal the results themselves show the progress.
    with progress_bar("judging", transient=True, hidden=out.is_terminal) as update:
        for result in runner.run_suites(valid_lines(), get_settings()):
            problems = print_problems()
            _print_line(lines.popleft()[0], _document(result), as_json)
            total += problems + 1
            without_verdict += problems + (result.test_pass_rate is None)
            update(completed=total)
        problems = print_problems()
    if without_verdict + problems:
        reason = f"{without_verdict + problems} of {total + problems} lines have no verdict"
        raise IccmError(reason, hint="The `reason` of each says why.")


def _parse_line(row: dict[str, Any]) -> tuple[str, Suite]:
    implementation = row.get("implementation")
    if not isinstance(row.get("id"), str | int) or not isinstance(implementation, str | dict):
        raise InputError("needs `id` (text or number), `implementation` (text, or {path: text}) and `suite`")
    source = implementation if isinstance(implementation, str) else _join(implementation)
    return source, parse_suite(row.get("suite"))


def _print_line(line_id: object, document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"id": line_id, **document}))
        return
    rate = document["test_pass_rate"]
    verdict = document["reason"] if rate is None else f"test pass rate {rate:.3f}"
    typer.echo(f"{line_id}: {verdict}")


def _read_source(path: Path) -> str:
    """Read a file, or a folder of files but their tests, in the encodings that they declare."""
    if not path.is_dir():
        return _read_file(path)
    names = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*.py"))}
    files = {name: _read_file(file) for name, file in names.items() if not is_test_path(name)}
    if not files:
        raise InputError(f"{path} holds no Python file")
    return _join(files)


def _join(files: dict[str, str]) -> str:
    try:
        return join_files(files)
    except SourceFilesError as error:
        raise InputError(str(error)) from None


def _read_file(path: Path) -> str:
    try:
        with tokenize.open(path) as file:
            return file.read()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, SyntaxError):
        raise InputError(f"{path}: not text in the encoding it declares (UTF-8 if none)") from None


def _print(result: JudgeResult) -> None:
    rows = [
        {
            "case": str(case.case),
            "verdict": Text(case.verdict, style="green" if case.verdict == "passed" else "red"),
            "detail": case.detail,
        }
        for case in result.results
    ]
    out.print(make_table("Cases", rows))
    passed = sum(case.verdict == "passed" for case in result.results)
    rate = "unknown" if result.test_pass_rate is None else f"{result.test_pass_rate:.3f}"
    out.print(f"test pass rate {rate} ({passed} of {len(result.results)}), {result.duration_ms:.0f} ms")
    if result.evidence == "pytest":
        out.print("evidence: pytest, the weaker kind: tests and implementation share a process")
    if result.suspect:
        out.print(Text("suspect: " + "; ".join(result.violations), style="yellow"))
