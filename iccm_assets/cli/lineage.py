"""`iccm lineage`: a version back to its conversations, a conversation on to its versions (V1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from iccm_assets.cli.console import AsJson, echo_json, out, table
from iccm_assets.errors import InputError
from iccm_assets.settings import get_settings

if TYPE_CHECKING:
    from iccm_assets.store.lineage import ConversationLineage, VersionLineage
    from iccm_assets.store.traffic import Period

LISTED = 10
# Wide enough for any table here: a pipe has no width, and a narrow terminal wraps what it cannot show.
WIDTH = 240
HEADINGS = {"new": "Learned as new", "rehearsal": "Rehearsed", "validation": "Chosen by (validation)"}


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
    session: Annotated[str | None, typer.Option("--session", help="The same by its session id.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help=f"List all rows, not the first {LISTED} of each kind.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what taught VERSION and what was decided about it, or where a conversation went."""
    from iccm_assets.store.database import connect
    from iccm_assets.store.lineage import conversation_lineage, conversation_of, version_lineage

    if sum(one is not None for one in (version, conversation, session)) != 1:
        raise InputError("give either a VERSION or --conversation ID or --session ID")
    with connect(get_settings()).connect() as conn:
        if version is not None:
            line = version_lineage(conn, version)
            echo_json({**asdict(line), "roles": line.roles}) if as_json else _show_version(line, everything)
            return
        number = conversation if conversation is not None else conversation_of(conn, session or "")
        found = conversation_lineage(conn, number)
    echo_json(asdict(found)) if as_json else _show_conversation(found, everything)


def _show_version(found: VersionLineage, everything: bool) -> None:
    deployed = f", deployed {found.deployed_at:%Y-%m-%d %H:%M} UTC" if found.deployed_at else ""
    _say(f"[bold]{found.version}[/] {found.status}, made {found.created_at:%Y-%m-%d %H:%M} UTC{deployed}")
    _say(f"digest {found.digest}\nfiles  {escape(found.path)}")
    if found.run is not None:
        run = found.run
        cause = f"run    {run['id']} ({run['trigger']}, {escape(run['trigger_key'])}): {run['status']}"
        _say(f"{cause}, dataset {run['dataset_digest'] or '-'}")
    _rows("Descent", [asdict(one) for one in found.line], everything)
    roles = ", ".join(f"{count} {role}" for role, count in found.roles.items()) or "none"
    _say(f"Conversations of its own run: {roles}")
    for role, heading in HEADINGS.items():
        taught = [asdict(one) for one in found.conversations if one.role == role]
        _rows(f"{heading}: {len(taught)} conversations", _without(taught, "role"), everything)
    for verdict in found.verdicts:
        reasons = escape("; ".join(str(one) for one in verdict["verdict"].get("reasons", [])))
        against = f"against {verdict['production_version']}"
        _say(f"gate   {verdict['created_at']:%Y-%m-%d %H:%M} {verdict['status']} {against}: {reasons}")
    _lines("traffic", [_decision(one) for one in found.traffic], everything)
    _lines("rollback", [_rollback(one) for one in found.rollbacks], everything)
    _lines("served", [_period(one) for one in found.periods], everything)


def _decision(event: Mapping[str, Any]) -> str:
    what = "forced" if event["forced"] and event["event_type"] != "forced" else ""
    parts = [f"{event['timestamp']:%Y-%m-%d %H:%M}", event["event_type"], what]
    parts.append(f"{event['version']} at {event['weight']:.0%}" if event["version"] else "")
    parts.append(f"{event['from_state'] or '-'} → {event['to_state'] or '-'}")
    parts.append(f"by {event['actor']}" + (f": {event['notes']}" if event["notes"] else ""))
    return " ".join(part for part in parts if part)


def _rollback(event: Mapping[str, Any]) -> str:
    way = f"{event['from_version'] or '-'} → {event['to_version'] or '-'}"
    told = f"{event['timestamp']:%Y-%m-%d %H:%M} {event['reason']}, {way}, by {event['actor']}"
    return told + (f": {event['notes']}" if event["notes"] else "")


def _period(period: Period) -> str:
    until = f"{period.until:%Y-%m-%d %H:%M}" if period.until else "now"
    return f"{period.since:%Y-%m-%d %H:%M} to {until} with {period.weight:.0%} of the traffic"


def _show_conversation(found: ConversationLineage, everything: bool) -> None:
    _say(
        f"[bold]conversation {found.conversation_id}[/] (session {escape(found.session_id)}, {found.origin}, "
        f"{found.timestamp:%Y-%m-%d %H:%M} UTC)" + (", erased" if found.erased_at else "")
    )
    pool = "in the training pool" + (" (pinned)" if found.pinned else "")
    where = [
        "not scored" if found.test_pass_rate is None else f"test pass rate {found.test_pass_rate:.3f}",
        "passed the filter" if found.filtered else "did not pass the filter",
        pool if found.in_pool else "not in the pool",
    ]
    _say(", ".join(where))
    for left in found.left_out:
        twin = f", duplicate of {left.duplicate_of} ({left.similarity})" if left.duplicate_of else ""
        _say(f"left out by {left.stage}: {escape(left.reason)}{twin}")
    _rows("Training runs that used it", [asdict(one) for one in found.uses], everything)
    _rows("Versions that learned from it", [asdict(one) for one in found.versions], everything)
    if not found.versions:
        _say("No version has learned from it.")


def _say(line: str) -> None:
    out.print(line, highlight=False, soft_wrap=True)


def _lines(name: str, lines: Sequence[str], everything: bool) -> None:
    """One line each: no table is wide enough for reasons in a person's words."""
    shown = lines if everything else lines[:LISTED]
    for line in shown:
        _say(f"{name:8} {escape(line)}")
    if len(shown) < len(lines):
        _say(f"{name:8} … {len(lines) - len(shown)} more with --all")


def _without(rows: Iterable[Mapping[str, Any]], column: str) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != column} for row in rows]


def _rows(title: str, rows: Sequence[Mapping[str, Any]], everything: bool) -> None:
    """The rows as a table, whole where nothing limits its width; nothing for no rows."""
    if not rows:
        return
    shown = rows if everything else rows[:LISTED]
    left = f", the first {len(shown)} (--all lists all {len(rows)})" if len(shown) < len(rows) else ""
    drawn: Table = table(f"{title}{left}", shown)
    for column in drawn.columns:
        column.overflow = "fold"
    out.print(drawn, width=None if out.is_terminal else max(out.width, WIDTH))
