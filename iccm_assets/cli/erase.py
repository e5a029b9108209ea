"""`iccm erase`: erase a conversation, a session or a user everywhere."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iccm_assets.cli.console import (
    AsJson,
    echo_json,
    get_actor,
    make_table,
    out,
    pluralize,
    print_plain,
    progress_bar,
)
from iccm_assets.cli.context import open_platform
from iccm_assets.errors import OperationNotAllowedError, UsageError

if TYPE_CHECKING:
    from iccm_assets.governance.erasure import ErasureResult
    from iccm_assets.governance.physical_erasure import PhysicalErasureReport


def erase(
    conversation: Annotated[str | None, typer.Option("--conversation", help="Conversation id.")] = None,
    session: Annotated[str | None, typer.Option("--session", help="Session id.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="User id: all sessions of the user.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be erased, change nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Skip the confirmation.")] = False,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Retrain affected versions in service from a clean ancestor.")
    ] = False,
    rewrite_tables: Annotated[
        bool,
        typer.Option("--rewrite-tables", help="Also rewrite the tables of an external PostgreSQL server."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Erase content from every table and file, and list the versions trained on it, with a plan.

    This cannot be undone. A second run finishes an interrupted erasure and shows the plan again.
    """
    from iccm_assets.governance import erasure, physical_erasure

    subject = erasure.DataSubject(*_parse_subject(conversation, session, user))
    if retrain and as_json:
        raise UsageError(
            "--retrain cannot be combined with --json", hint="Run the command named in the plan."
        )
    if as_json and not (yes or dry_run):
        raise UsageError("--json cannot ask for confirmation", hint="Give --yes as well, or --dry-run.")
    settings, engine = open_platform()
    if dry_run or not yes:
        preview = erasure.erase(engine, subject, actor=get_actor(), dry_run=True)
        if dry_run:
            _report(preview, None, as_json, dry_run=True)
            return
        _print_erasure(preview, dry_run=True)
        if not typer.confirm(f"Erase {subject} permanently?", err=True):
            raise OperationNotAllowedError("not confirmed, nothing was erased")
    result = erasure.erase(engine, subject, actor=get_actor())
    with progress_bar("erasing from files", transient=True) as update:
        files = physical_erasure.erase_from_files(
            engine,
            settings,
            result.hashes,
            subject=subject,
            rewrite=True if rewrite_tables else None,
            progress=lambda step: update(description=f"erasing from files: {step}"),
        )
    _report(result, files, as_json)
    if retrain:
        _retrain(result)


def _parse_subject(conversation: str | None, session: str | None, user: str | None) -> tuple[Any, str]:
    options = {"conversation": conversation, "session": session, "user": user}
    match [(kind, value) for kind, value in options.items() if value is not None]:
        case [(kind, value)]:
            return kind, value
    raise UsageError("give exactly one of --conversation ID, --session ID and --user ID")


def _report(
    result: ErasureResult, files: PhysicalErasureReport | None, as_json: bool, *, dry_run: bool = False
) -> None:
    if as_json:
        echo_json(
            {
                "dry_run": dry_run,
                "erasure": result.erasure if not dry_run or result.erased_before else None,
                "subject": result.subject.kind,
                "conversations": list(result.conversations),
                "newly_erased": result.newly_erased,
                "erased_before": result.erased_before,
                "rows": result.counts,
                "stopped_training_runs": list(result.stopped_runs),
                **asdict(result.plan),
                "files": None if files is None else asdict(files),
            }
        )
        return
    _print_erasure(result, dry_run=dry_run)
    for remark in files.out_of_reach if files else ():
        print_plain(f"Not covered, your responsibility: {remark}.")


def _print_erasure(result: ErasureResult, *, dry_run: bool = False) -> None:
    would_be = "would be " if dry_run else ""
    conversations = pluralize(result.newly_erased, "conversation")
    out.print(f"[bold]{conversations}[/] {would_be}erased", highlight=False)
    if result.erased_before is not None:
        out.print(f"Erased before, on {result.erased_before:%Y-%m-%d %H:%M} UTC; the plan covers everything.")
    if rows := [{"table": name, "rows": count} for name, count in result.counts.items() if count]:
        out.print(make_table("Rows emptied or deleted", rows))
    for run in result.stopped_runs:
        out.print(f"Training run {run} used it and {would_be or 'was '}stopped.")
    if result.plan.versions:
        _print_plan(result, dry_run)
    else:
        out.print("No model version was trained on it.")


def _print_plan(result: ErasureResult, dry_run: bool) -> None:
    out.print(make_table("Versions trained on it", [asdict(version) for version in result.plan.versions]))
    for step in result.plan.replacements:
        print_plain(f"{step.version} is in service. {step.reason}.")
        if step.retrain and not dry_run:
            print_plain(f"  retrain it:              {step.retrain}")
            print_plain(f"  or serve the ancestor:   {step.deploy_base}")
    if not result.plan.replacements:
        out.print("None of them is in service.")


def _retrain(result: ErasureResult) -> None:
    """Execute the plan: one retrain for each version in service, once per erasure."""
    from iccm_assets.cli.retrain import request_retrain

    status = 0
    for step in result.plan.replacements:
        if step.base is None:
            raise OperationNotAllowedError(f"{step.version} cannot be replaced: {step.reason}")
        key = f"erasure:{result.erasure}:{step.version}"
        status = max(status, request_retrain(f"erasure {result.erasure}", key=key, base=step.base))
    raise typer.Exit(status)
