"""`iccm lineage`: trace a version to its training data, or the other way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from iccm_assets.cli.console import AsJson, echo_json, make_table, out, pluralize, print_line
from iccm_assets.cli.context import open_platform
from iccm_assets.errors import UsageError

if TYPE_CHECKING:
    from iccm_assets.reporting.lineage import ConversationLineage, VersionLineage
    from iccm_assets.reporting.traffic_history import ServingPeriod

MAX_LISTED = 10
ROLE_HEADINGS = {
    "new": "Trained on as new",
    "self": "Trained on by an own answer",
    "rehearsal": "Rehearsed",
    "validation": "Used for validation",
}


def lineage(
    version: Annotated[
        str | None, typer.Argument(help="Model version, the start of its digest, or `production`.")
    ] = None,
    conversation: Annotated[int | None, typer.Option("--conversation", help="Conversation id.")] = None,
    session: Annotated[str | None, typer.Option("--session", help="Session id of a conversation.")] = None,
    all_rows: Annotated[
        bool, typer.Option("--all", help=f"List all rows, not the first {MAX_LISTED} of each kind.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the training conversations, verdicts and traffic of VERSION, or the use of a conversation."""
    from iccm_assets.reporting.lineage import (
        find_conversation,
        load_conversation_lineage,
        load_version_lineage,
    )

    if [version, conversation, session].count(None) != 2:
        raise UsageError("give either a VERSION or --conversation ID or --session ID")
    _, engine = open_platform()
    with engine.connect() as conn:
        if version is not None:
            traced = load_version_lineage(conn, version)
            if as_json:
                echo_json({**asdict(traced), "roles": traced.roles, "evidence": traced.evidence})
            else:
                _print_version(traced, all_rows)
            return
        number = conversation if conversation is not None else find_conversation(conn, session or "")
        use = load_conversation_lineage(conn, number)
    echo_json(asdict(use)) if as_json else _print_conversation(use, all_rows)


def _print_version(version: VersionLineage, all_rows: bool) -> None:
    deployed = f", deployed {version.deployed_at:%Y-%m-%d %H:%M} UTC" if version.deployed_at else ""
    created = f"created {version.created_at:%Y-%m-%d %H:%M} UTC"
    print_line(f"[bold]{version.version}[/] {version.status}, {created}{deployed}")
    print_line(f"digest {version.digest}\nfiles  {escape(version.path)}")
    if version.base_digest is not None:
        print_line(f"base   {version.base_digest}, which this adapter changes")
    if (run := version.run) is not None:
        cause = f"run    {run['id']} ({run['trigger']}, {escape(run['trigger_key'])}): {run['status']}"
        print_line(f"{cause}, dataset {run['dataset_digest'] or '-'}")
    _print_rows("Ancestry", [asdict(ancestor) for ancestor in version.ancestry], all_rows)
    _print_training(version, all_rows)
    for verdict in version.verdicts:
        reasons = escape("; ".join(map(str, verdict["verdict"].get("reasons", []))))
        against = f"against {verdict['production_version']}"
        print_line(f"gate   {verdict['created_at']:%Y-%m-%d %H:%M} {verdict['status']} {against}: {reasons}")
    _print_lines("traffic", [_format_decision(event) for event in version.traffic], all_rows)
    _print_lines("rollback", [_format_rollback(event) for event in version.rollbacks], all_rows)
    _print_lines("served", [_format_period(period) for period in version.periods], all_rows)


def _print_training(version: VersionLineage, all_rows: bool) -> None:
    roles = ", ".join(f"{count} {role}" for role, count in version.roles.items()) or "none"
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(version.evidence.items()))
    print_line(f"Conversations in its own training run: {roles}" + (f"; evidence: {kinds}" if kinds else ""))
    for role, heading in ROLE_HEADINGS.items():
        rows = [
            {
                "id": conversation.conversation_id,
                "session": conversation.session_id,
                "day": conversation.day,
                "score": conversation.quality_score,
                "suite": "erased" if conversation.erased else conversation.evidence,
            }
            for conversation in version.conversations
            if conversation.role == role
        ]
        _print_rows(f"{heading}: {pluralize(len(rows), 'conversation')}", rows, all_rows)


def _format_decision(event: Mapping[str, Any]) -> str:
    parts = (
        f"{event['timestamp']:%Y-%m-%d %H:%M}",
        event["event_type"],
        "forced" if event["forced"] and event["event_type"] != "forced" else "",
        f"{event['version']} at {event['weight']:.0%}" if event["version"] else "",
        f"{event['from_state'] or '-'} → {event['to_state'] or '-'}",
        f"by {event['actor']}" + (f": {event['notes']}" if event["notes"] else ""),
    )
    return " ".join(filter(None, parts))


def _format_rollback(event: Mapping[str, Any]) -> str:
    versions = f"{event['from_version'] or '-'} → {event['to_version'] or '-'}"
    notes = f": {event['notes']}" if event["notes"] else ""
    return f"{event['timestamp']:%Y-%m-%d %H:%M} {event['reason']}, {versions}, by {event['actor']}{notes}"


def _format_period(period: ServingPeriod) -> str:
    until = f"{period.until:%Y-%m-%d %H:%M}" if period.until else "now"
    return f"{period.since:%Y-%m-%d %H:%M} to {until} with {period.weight:.0%} of the traffic"


def _print_conversation(conversation: ConversationLineage, all_rows: bool) -> None:
    session = f"session {escape(conversation.session_id)}, {conversation.origin}"
    erased = ", erased" if conversation.erased_at else ""
    print_line(
        f"[bold]conversation {conversation.conversation_id}[/] ({session},"
        f" {conversation.timestamp:%Y-%m-%d %H:%M} UTC){erased}"
    )
    rate = conversation.test_pass_rate
    scored = "not scored" if rate is None else f"test pass rate {rate:.3f}"
    print_line(_format_suite(conversation))
    # Every conversation of a day that was filtered has a filtered row or a rejection.
    passed = "did not pass the filter" if conversation.rejections else "not filtered yet"
    passed = "passed the filter" if conversation.filtered else passed
    in_pool = f"in the training pool{' (pinned)' if conversation.pinned else ''}"
    print_line(f"{scored}, {passed}, {in_pool if conversation.in_pool else 'not in the pool'}")
    for rejection in conversation.rejections:
        duplicate = f", duplicate of {rejection.duplicate_of} ({rejection.similarity})"
        suffix = duplicate if rejection.duplicate_of else ""
        print_line(f"rejected by {rejection.stage}: {escape(rejection.reason)}{suffix}")
    _print_rows("Training runs that used it", [asdict(use) for use in conversation.uses], all_rows)
    versions = [asdict(version) for version in conversation.versions]
    _print_rows("Versions trained on it", versions, all_rows)
    if not versions:
        print_line("No version was trained on it.")


def _format_suite(conversation: ConversationLineage) -> str:
    """Describe the suite of the accepted text: the kind of evidence, its origin and its quality."""
    if conversation.evidence is None:
        return "no test suite"
    weaker = ", the weaker evidence" if conversation.evidence == "pytest" else ""
    strength = conversation.suite_strength
    parts = (
        f"{conversation.test_suite_origin} test suite of kind {conversation.evidence}{weaker}",
        conversation.suite_status or "not measured",
        "" if strength is None else f"strength {strength:.2f}",
        f"in environment {conversation.environment[:12]}" if conversation.environment else "",
    )
    reason = f": {conversation.inconclusive_reason}" if conversation.inconclusive_reason else ""
    return escape(", ".join(filter(None, parts)) + reason)


def _print_lines(name: str, lines: Sequence[str], all_rows: bool) -> None:
    """Print one line each: no table is wide enough for reasons written by people."""
    shown = lines if all_rows else lines[:MAX_LISTED]
    for line in shown:
        print_line(f"{name:8} {escape(line)}")
    if len(shown) < len(lines):
        print_line(f"{name:8} … {len(lines) - len(shown)} more with --all")


def _print_rows(title: str, rows: Sequence[Mapping[str, Any]], all_rows: bool) -> None:
    """Print the rows as a table; nothing without rows."""
    if not rows:
        return
    shown = rows if all_rows else rows[:MAX_LISTED]
    limit = f", the first {len(shown)} (--all lists all {len(rows)})" if len(shown) < len(rows) else ""
    out.print(make_table(f"{title}{limit}", shown))
