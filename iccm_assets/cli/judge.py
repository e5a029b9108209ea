"""`iccm judge`: run one implementation against one test suite."""

from __future__ import annotations

import json
import tokenize
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from iccm_assets.cli.console import AsJson, make_table, out
from iccm_assets.errors import InputError, SandboxUnavailableError
from iccm_assets.settings import get_settings
from iccm_assets.suites import suite_runner as runner
from iccm_assets.suites.suite_runner import JudgeResult
from iccm_assets.suites.test_suites import load_suite_file


def judge(
    implementation: Annotated[Path, typer.Option(help="Python source file to test.")],
    suite: Annotated[Path, typer.Option(help="Test suite, JSON (docs/judge.md).")],
    as_json: AsJson = False,
) -> None:
    """Test one implementation in the sandbox; exits 0 whenever there is a verdict."""
    plan = load_suite_file(suite)
    result = runner.run_suite(_read_source(implementation), plan, get_settings())
    if as_json:
        # The keys are promised to other programs.
        cases = [
            {"case": case.case, "verdict": case.verdict, "detail": case.detail} for case in result.results
        ]
        document = {
            "test_pass_rate": result.test_pass_rate,
            "results": cases,
            "suspect": result.suspect,
            "suspicions": list(result.violations),
            "evidence": result.evidence,
            "layers": result.layers,
            "reason": result.reason,
            "duration_ms": result.duration_ms,
        }
        typer.echo(json.dumps(document))
    elif result.test_pass_rate is not None:
        _print(result)
    if result.test_pass_rate is None:
        raise SandboxUnavailableError(result.reason, hint="`iccm doctor` names what is missing.")


def _read_source(path: Path) -> str:
    """Read the file in the encoding that it declares as Python source."""
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
    out.print(
        f"test pass rate {result.test_pass_rate:.3f} ({passed} of {len(result.results)}),"
        f" {result.duration_ms:.0f} ms"
    )
    if result.evidence == "pytest":
        out.print("evidence: pytest, the weaker kind: tests and implementation share a process")
    if result.suspect:
        out.print(Text("suspect: " + "; ".join(result.violations), style="yellow"))
