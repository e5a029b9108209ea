"""`iccm judge`: run one implementation against one suite (J4)."""

from __future__ import annotations

import json
import tokenize
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from iccm_assets.errors import InputError, SandboxUnavailable
from iccm_assets.judging.judge import JudgeResult, judge
from iccm_assets.judging.suites import read_suite
from iccm_assets.settings import get_settings


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("judge")(judge_command)


def judge_command(
    implementation: Annotated[Path, typer.Option(help="Python source file to judge.")],
    suite: Annotated[Path, typer.Option(help="Test suite, JSON (docs/judge.md).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Judge one implementation in the sandbox; exit code 0 whenever there is a verdict."""
    settings = get_settings()
    plan = read_suite(suite)
    result = judge(_source(implementation), plan, settings)
    if as_json:
        typer.echo(json.dumps(as_data(result)))
    elif result.test_pass_rate is not None:
        _print(result)
    if result.test_pass_rate is None:
        raise SandboxUnavailable(result.reason, hint="`iccm doctor` says what is missing.")


def as_data(result: JudgeResult) -> dict[str, object]:
    """The result as it is promised to other programs (J4, section 11)."""
    return {
        "test_pass_rate": result.test_pass_rate,
        "results": [
            {"case": one.case, "verdict": one.verdict, "detail": one.detail} for one in result.results
        ],
        "suspect": result.suspect,
        "suspicions": list(result.suspicions),
        "evidence": result.evidence,
        "layers": result.layers,
        "reason": result.reason,
        "duration_ms": result.duration_ms,
    }


def _source(path: Path) -> str:
    """The file's text, in the encoding that it declares as Python source."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, SyntaxError):
        raise InputError(f"{path}: not text in the encoding it declares (UTF-8 if none)") from None


def _print(result: JudgeResult) -> None:
    table = Table("case", "verdict", "detail")
    for one in result.results:
        style = "green" if one.verdict == "passed" else "red"
        table.add_row(str(one.case), Text(one.verdict, style=style), Text(one.detail))
    console = Console()
    console.print(table)
    passed = sum(one.verdict == "passed" for one in result.results)
    rate = result.test_pass_rate or 0.0
    console.print(
        f"test pass rate {rate:.3f} ({passed} of {len(result.results)}), {result.duration_ms:.0f} ms"
    )
    if result.evidence == "pytest":
        console.print("evidence: pytest, the weaker kind: tests and implementation shared a process")
    if result.suspect:
        console.print(Text("suspect: " + "; ".join(result.suspicions), style="yellow"))
