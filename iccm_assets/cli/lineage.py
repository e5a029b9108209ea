"""`iccm lineage`: a version back to its conversations, a conversation on to its versions (V1)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from sqlalchemy import Connection

from iccm_assets.cli.console import AsJson, echo_json, out, table
from iccm_assets.errors import InputError
from iccm_assets.settings import get_settings
from iccm_assets.store.lineage import ConversationLineage, VersionLineage

LISTED = 20


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("lineage")(lineage)


def lineage(
    version: Annotated[
        str | None, typer.Argument(help="Model version, the start of its digest, or `production`.")
    ] = None,
    conversation: Annotated[
        int | None, typer.Option("--conversation", help="Conversation id: where it went.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what taught VERSION and what was decided about it, or where a conversation went."""
    from iccm_assets.store.database import connect
    from iccm_assets.store.lineage import conversation_lineage, version_lineage

    if (version is None) == (conversation is None):
        raise InputError("give either a VERSION or --conversation ID")
    with connect(get_settings()).connect() as conn:
        if conversation is not None:
            found = conversation_lineage(conn, conversation)
            echo_json(asdict(found)) if as_json else _show_conversation(found)
        elif version is not None:
            line = version_lineage(conn, _named(conn, version))
            echo_json({**asdict(line), "roles": line.roles}) if as_json else _show_version(line)


def _named(conn: Connection, given: str) -> str:
    from iccm_assets.learning import versions

    if given != "production":
        return versions.get(conn, given).version
    serving = versions.production(conn)
    if serving is None:
        raise InputError(
            "there is no version in production yet", hint="`iccm retrain` starts with the base model."
        )
    return serving.version


def _show_version(found: VersionLineage) -> None:
    deployed = f", deployed {found.deployed_at:%Y-%m-%d %H:%M} UTC" if found.deployed_at else ""
    out.print(
        f"[bold]{found.version}[/] {found.status}, made {found.created_at:%Y-%m-%d %H:%M} UTC{deployed}"
    )
    out.print(f"digest {found.digest}\nfiles  {found.path}", highlight=False, soft_wrap=True)
    run = found.run
    if run is not None:
        cause = f"run    {run.id} ({run.trigger}, {run.trigger_key}): {run.status}"
        out.print(f"{cause}, dataset {run.dataset_digest or '-'}", soft_wrap=True)
    out.print(table("Descent", [asdict(one) for one in found.line]))
    roles = ", ".join(f"{count} {role}" for role, count in found.roles.items()) or "none"
    out.print(f"Conversations of its own run: {roles}")
    if found.conversations:
        rows = [asdict(one) for one in found.conversations[:LISTED]]
        out.print(table(f"The first {len(rows)} of {len(found.conversations)} (all with --json)", rows))
    for verdict in found.verdicts:
        reasons = "; ".join(verdict.verdict.get("reasons", []))
        out.print(
            f"gate   {verdict.created_at:%Y-%m-%d %H:%M} {verdict.status}: {escape(reasons)}", soft_wrap=True
        )
    if found.traffic:
        out.print(table("Traffic decisions", [asdict(one) for one in found.traffic]))


def _show_conversation(found: ConversationLineage) -> None:
    out.print(
        f"[bold]conversation {found.conversation_id}[/] (session {found.session_id}, {found.origin}, "
        f"{found.timestamp:%Y-%m-%d %H:%M} UTC)" + (", erased" if found.erased_at else "")
    )
    score = "not scored" if found.test_pass_rate is None else f"test pass rate {found.test_pass_rate:.3f}"
    where = [
        score,
        "passed the filter" if found.filtered else "did not pass the filter",
        ("in the training pool" + (" (pinned)" if found.pinned else ""))
        if found.in_pool
        else "not in the pool",
    ]
    out.print(", ".join(where))
    for left in found.left_out:
        twin = f", duplicate of {left.duplicate_of} ({left.similarity})" if left.duplicate_of else ""
        out.print(f"left out by {left.stage}: {escape(left.reason)}{twin}")
    if found.uses:
        out.print(table("Training runs that used it", [asdict(one) for one in found.uses]))
    if found.versions:
        out.print(table("Versions that learned from it", [asdict(one) for one in found.versions]))
    else:
        out.print("No version has learned from it.")
