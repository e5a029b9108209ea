"""`iccm suite`: record a test suite from code that has none, or show the suite of a session."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from iccm_assets.cli.console import (
    AsJson,
    echo_json,
    echo_json_line,
    make_grid,
    make_table,
    out,
    progress_bar,
)
from iccm_assets.errors import InputError, RecordNotFoundError
from iccm_assets.settings import get_settings

group = typer.Typer(
    help="Record a test suite from code that has none, or show the suite of a session.", no_args_is_help=True
)


@group.command()
def record(
    paths: Annotated[list[Path], typer.Argument(help="Python files, or folders of them.")],
    as_json: AsJson = False,
) -> None:
    """Run code in the sandbox on generated inputs and record its answers as a test suite.

    With --json one line for each source: source, status, origin, strength, branch_coverage, reason, suite.
    """
    from iccm_assets.suites.suite_recording import record_suite

    settings = get_settings()
    files = list(_list_files(paths))
    rows: list[dict[str, Any]] = []
    # In a terminal the results themselves show the progress.
    with progress_bar("recording", total=len(files), transient=True, hidden=as_json) as update:
        for number, path in enumerate(files):
            recording = record_suite(_read(path), settings)
            measured = recording.measurement
            row = {
                "source": str(path),
                "status": measured.status,
                "origin": "recorded",
                "strength": measured.strength,
                "branch_coverage": measured.branch_coverage,
                "reason": measured.reason,
                "suite": recording.document,
                "environment": recording.environment,
                "left_out": recording.left_out,
            }
            rows.append(row)
            if as_json:
                echo_json_line(row)
            update(completed=number + 1)
    if not as_json:
        _print(rows)


def _list_files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            inner = sorted(item for item in path.rglob("*.py") if item.is_file())
            if not inner:
                raise InputError(f"{path} holds no Python file")
            yield from inner
        elif path.exists():
            yield path
        else:
            raise InputError(f"{path}: no such file or folder")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text") from None


def _print(rows: list[dict[str, Any]]) -> None:
    shown = [
        {
            "source": row["source"],
            "suite": row["status"],
            "cases": len(row["suite"]["cases"]) if row["suite"] else 0,
            "reason": row["reason"],
        }
        for row in rows
    ]
    out.print(make_table("Recorded suites", shown))
    for row in rows:
        for name, reason in row["left_out"].items():
            out.print(f"{row['source']}: {name} is left out: {reason}", highlight=False, markup=False)
    counts = Counter(row["status"] for row in rows)
    out.print(", ".join(f"{count} {status}" for status, count in sorted(counts.items())))


@group.command()
def show(
    session: Annotated[str, typer.Argument(help="Session id.")],
    as_json: AsJson = False,
) -> None:
    """Show the test suites of a session's texts: origin, status, strength, and the cases."""
    import sqlalchemy as sa

    from iccm_assets.cli.context import open_platform

    _, engine = open_platform()
    with engine.connect() as conn:
        rows = [dict(row) for row in conn.execute(sa.text(_SHOW), {"session": session}).mappings()]
    if not rows:
        raise RecordNotFoundError(f"session {session!r} has no requirements text")
    if as_json:
        echo_json(rows)
        return
    for row in rows:
        suite = row.pop("suite")
        out.print(make_grid([[name, "-" if value is None else str(value)] for name, value in row.items()]))
        if suite is not None:
            out.print_json(json.dumps(suite))


_SHOW = """
    select r.id as requirement, r.kind, coalesce(r.test_suite_origin, s.origin) as origin,
        coalesce(r.evidence ->> 'suite', s.status) as status, s.strength, s.branch_coverage,
        coalesce(r.evidence ->> 'reason', s.reason) as reason, coalesce(r.test_suite, s.suite) as suite
    from iccm.requirements r
    left join lateral (
        select * from iccm.test_suites s
        where s.source_sha256 = r.source_sha256
            and s.origin = coalesce(r.test_suite_origin, 'recorded')
            and (r.test_suite is null or s.suite = r.test_suite)
        order by s.created_at desc limit 1
    ) s on true
    where r.session_id = :session order by r.id
"""
