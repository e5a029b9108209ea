"""`iccm erase`: take a conversation, a session or a user out of every table and file (V2)."""

from __future__ import annotations

import getpass
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iccm_assets.cli.console import AsJson, echo_json, err, out, table
from iccm_assets.errors import InputError, NotAllowed
from iccm_assets.settings import get_settings

if TYPE_CHECKING:
    from iccm_assets.governance.erasure import Erased, Subject
    from iccm_assets.governance.scrub import Scrub


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("erase")(erase)


def erase(
    conversation: Annotated[str | None, typer.Option("--conversation", help="Conversation id.")] = None,
    session: Annotated[str | None, typer.Option("--session", help="Session id.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="User id: all of the user's sessions.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Retrain what is in service from its last clean ancestor.")
    ] = False,
    scrub: Annotated[
        bool, typer.Option("--scrub", help="Rewrite the tables of your own PostgreSQL server as well.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Erase content from every table and file, and list the versions that learned from it, with a plan.

    It cannot be undone. Running it again finishes what was interrupted and shows the plan anew.
    """
    from iccm_assets.governance import erasure
    from iccm_assets.governance.scrub import scrub as scrub_files
    from iccm_assets.store.database import connect

    subject = _subject(conversation, session, user)
    if replace and as_json:
        raise InputError("--replace and --json go not together", hint="Run the command the plan names.")
    settings = get_settings()
    engine = connect(settings)
    if dry_run or not yes:
        trial = erasure.erase(engine, subject, actor=_actor(), trial=True)
        if dry_run:
            _report(trial, None, as_json, dry_run=True)
            return
        if as_json:
            raise NotAllowed("--json asks no questions", hint="Give --yes as well, or --dry-run.")
        _show(trial, dry_run=True)
        if not typer.confirm(f"Erase {subject} for good?", err=True):
            raise NotAllowed("not confirmed, nothing was erased")
    done = erasure.erase(engine, subject, actor=_actor())
    files = scrub_files(
        engine,
        settings,
        done.hashes,
        rewrite=True if scrub else None,
        progress=lambda step: err.print(f"[dim]out of the files: {step}[/]"),
    )
    _report(done, files, as_json)
    if replace:
        _replace(done)


def _subject(conversation: str | None, session: str | None, user: str | None) -> Subject:
    from iccm_assets.governance.erasure import Subject

    given = {"conversation": conversation, "session": session, "user": user}
    named = [(kind, value) for kind, value in given.items() if value is not None]
    if len(named) != 1:
        raise InputError("give exactly one of --conversation ID, --session ID and --user ID")
    kind, value = named[0]
    return Subject(kind, value)  # type: ignore[arg-type]


def _actor() -> str:
    return f"user:{getpass.getuser()}"


def _report(done: Erased, files: Scrub | None, as_json: bool, *, dry_run: bool = False) -> None:
    if as_json:
        echo_json(_document(done, files, dry_run))
        return
    _show(done, dry_run=dry_run)
    for remark in files.remains if files else ():
        out.print(f"Beyond reach, yours to deal with: {remark}.", soft_wrap=True, markup=False)


def _document(done: Erased, files: Scrub | None, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "erasure": done.erasure if not dry_run or done.earlier else None,
        "subject": done.subject.kind,
        "conversations": list(done.conversations),
        "newly_erased": done.newly,
        "erased_before": done.earlier,
        "rows": done.counts,
        "stopped_training_runs": list(done.stopped_runs),
        **asdict(done.plan),
        "files": None if files is None else asdict(files),
    }


def _show(done: Erased, *, dry_run: bool = False) -> None:
    verb = "would be erased" if dry_run else "erased"
    out.print(f"[bold]{done.newly} conversations[/] {verb}", highlight=False)
    if done.earlier is not None:
        out.print(f"Erased before, on {done.earlier:%Y-%m-%d %H:%M} UTC; the plan is for all of it.")
    rows = [{"table": name, "rows": count} for name, count in done.counts.items() if count]
    if rows:
        out.print(table("Rows emptied or deleted", rows))
    for run in done.stopped_runs:
        out.print(f"Training run {run} was learning from it: {'to be ' if dry_run else ''}stopped.")
    if not done.plan.versions:
        out.print("No model version has learned from it.")
        return
    out.print(table("Versions that learned from it", [asdict(one) for one in done.plan.versions]))
    for step in done.plan.replacements:
        out.print(f"{step.version} is in service. {step.reason}.", soft_wrap=True, markup=False)
        if step.retrain and not dry_run:
            out.print(f"  replace it:              {step.retrain}", soft_wrap=True, markup=False)
            out.print(f"  or serve the ancestor:   {step.deploy_base}", soft_wrap=True, markup=False)
    if not done.plan.replacements:
        out.print("None of them is in service.")


def _replace(done: Erased) -> None:
    """Carry the plan out: one retraining for each version in service, once for each erasure."""
    from iccm_assets.cli.retrain import retrain

    for step in done.plan.replacements:
        if step.base is None:
            raise NotAllowed(f"{step.version} cannot be replaced: {step.reason}")
        key = f"erasure:{done.erasure}:{step.version}"
        retrain(reason=f"erasure {done.erasure}", emergency=False, key=key, base=step.base, as_json=False)
