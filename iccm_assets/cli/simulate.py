"""`iccm simulate`: simulate developers who use the gateway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from iccm_assets.cli.console import AsJson, echo_json, err, out, pluralize, progress_bar
from iccm_assets.cli.context import ensure_production_version
from iccm_assets.errors import GatewayError, UsageError
from iccm_assets.gateway.subprocess_gateway import get_token, run_gateway
from iccm_assets.settings import Settings, get_settings

if TYPE_CHECKING:
    from iccm_assets.simulation.developers.developers import PlannedSession
    from iccm_assets.simulation.developers.http_sessions import ResponseStats
    from iccm_assets.simulation.developers.traffic_summary import PendingSession, TrafficSummary

DEFAULT_DAYS = 7


def simulate(
    conversations: Annotated[int, typer.Option(min=1, max=100000, help="Number of sessions.")] = 200,
    days: Annotated[
        int | None, typer.Option(min=1, max=365, help="Days they are spread over; default: 7.")
    ] = None,
    start: Annotated[str, typer.Option(help="First day, YYYY-MM-DD (UTC).")] = "",
    end: Annotated[str, typer.Option(help="Last day; default: yesterday.")] = "",
    users: Annotated[int, typer.Option(min=1, max=10000, help="Number of developers.")] = 44,
    drift: Annotated[
        str,
        typer.Option(
            help="Fraction of new domains, first to last day (0.2:0.7), or the day of a domain's first"
            " appearance (NAME@DAY); several separated by commas."
        ),
    ] = "",
    new_domains: Annotated[
        str, typer.Option(help="New domains to ask about, separated by commas; default: all.")
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other sessions.")] = 1,
    gateway: Annotated[
        str, typer.Option(help="URL of a running gateway; default: this command starts one.")
    ] = "",
    token: Annotated[
        str, typer.Option(help="Its bearer token; default: the first of ICCM_GATEWAY__TOKENS.")
    ] = "",
    workers: Annotated[int, typer.Option(min=1, max=256, help="Concurrent sessions.")] = 16,
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="Maximum number of new sessions a second; default: no limit."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate developers who use the gateway. The same seed and dates repeat the same sessions."""
    from iccm_assets.simulation.developers.developers import plan_conversations
    from iccm_assets.simulation.developers.drift import Drift, parse_drift

    settings = get_settings()
    first, last = parse_period(start, end, days)
    length = (last - first).days + 1
    families = parse_domains(new_domains)
    mix = parse_drift(drift, families, length) if drift else Drift()
    err.print(f"[dim]planning {conversations} sessions of {users} developers, {first} to {last}[/]")
    plan = plan_conversations(
        seed,
        n=conversations,
        days=length,
        users=users,
        end=last,
        drift=mix,
        new_families=families,
        name=f"{seed}-{first:%Y%m%d}-{last:%Y%m%d}",
    )
    with _gateway(settings, gateway) as url:
        traffic, _, replies = run_sessions(
            url, token or get_token(settings), plan, now=end_of_day(last), workers=workers, rate=rate
        )
    if as_json:
        echo_json({"first_day": first, "last_day": last, **asdict(traffic), "gateway": asdict(replies)})
        raise_on_failures(replies)
        return
    print_traffic(traffic, replies)
    raise_on_failures(replies)
    out.print("Materialize these days in Dagster to turn them into examples.", highlight=False)


@contextmanager
def _gateway(settings: Settings, url: str) -> Iterator[str]:
    """Yield ``url``, or that of a gateway of this command on the production version (else the base model)."""
    if url:
        yield url
        return
    ensure_production_version(settings)
    with progress_bar("starting a gateway", transient=True), ExitStack() as stack:
        started = stack.enter_context(run_gateway(settings))
        running = stack.pop_all()
    with running:
        yield started


def run_sessions(
    url: str,
    token: str,
    plan: Sequence[PlannedSession],
    *,
    now: datetime,
    workers: int = 16,
    rate: float | None = None,
) -> tuple[TrafficSummary, list[PendingSession], ResponseStats]:
    """Run the sessions over HTTP, with a progress bar; failures are in the replies."""
    from iccm_assets.simulation.developers import gateway_client, http_sessions

    title = f"conversations over HTTP, {url}"
    with (
        closing(gateway_client.GatewayClient(url, token, connections=workers)) as client,
        progress_bar(title, len(plan)) as update,
    ):
        return http_sessions.run_sessions(
            client, plan, as_of=now, workers=workers, rate=rate, progress=lambda done: update(completed=done)
        )


def print_traffic(traffic: TrafficSummary, replies: ResponseStats) -> None:
    """Print the outcome of the sessions, the arms that answered, and responses other than 200."""
    mix = ", ".join(f"{count} {name}" for name, count in traffic.domains.items())
    err.print(
        f"{traffic.users} developers; {traffic.accepted_as_is} answers accepted unchanged,"
        f" {traffic.corrected} corrected, {traffic.open} left open;"
        f" feedback +{traffic.thumbs_up}/−{traffic.thumbs_down}",
        highlight=False,
    )
    unknown = f"{traffic.new_domain} in domains unknown to the base model"
    err.print(f"[dim]{unknown}; all: {mix}[/]", highlight=False)
    arms = ", ".join(f"{count} by the {arm} arm" for arm, count in replies.arms.items()) or "none"
    other = ", ".join(f"{count} x {status}" for status, count in replies.statuses.items() if status != "200")
    retried = f"; {replies.retried} retried ({other})" if other else ""
    err.print(f"[dim]answers: {arms}{retried}[/]", highlight=False)


def raise_on_failures(replies: ResponseStats) -> None:
    """Raise ``GatewayError`` if sessions failed."""
    if replies.failures:
        raise GatewayError(
            f"{pluralize(len(replies.failures), 'session')} failed, the first because {replies.failures[0]}",
            hint="Repeat the command to run the missing sessions.",
        )


def parse_domains(text: str) -> tuple[str, ...]:
    """Parse a list of new domains, all of them if empty; raises ``UsageError`` for an unknown domain."""
    from iccm_assets.simulation.language.families import NEW_FAMILIES

    names = tuple(dict.fromkeys(map(str.strip, text.split(",")))) if text else NEW_FAMILIES
    if unknown := [name for name in names if name not in NEW_FAMILIES]:
        raise UsageError(
            f"--new-domains: {', '.join(map(repr, unknown))} is not a new domain",
            hint=f"Choose from {', '.join(NEW_FAMILIES)}.",
        )
    return names


def parse_period(start: str, end: str, days: int | None) -> tuple[date, date]:
    """First and last day from two of the three values; ``UsageError`` unless each has a daily partition."""
    first, last = _parse_day("--start", start), _parse_day("--end", end)
    if first and last and days is not None and (last - first).days + 1 != days:
        raise UsageError(
            f"--start {first} to --end {last} are {(last - first).days + 1} days, not {days}",
            hint="Give two of --start, --end and --days.",
        )
    span = timedelta(days=(days or DEFAULT_DAYS) - 1)
    last = last or (first + span if first else datetime.now(UTC).date() - timedelta(days=1))
    first = first or last - span
    if last < first:
        raise UsageError(f"--start {first} is after --end {last}")
    return _require_partition(first), _require_partition(last)


def end_of_day(day: date) -> datetime:
    """Return the end of a UTC day."""
    return datetime.combine(day + timedelta(days=1), time(), UTC)


def _require_partition(day: date) -> date:
    """Return the day if it has a partition to materialize, or gets one tonight."""
    from iccm_assets.defs.partitions import daily_partitions

    earliest, today = daily_partitions.start.date(), datetime.now(UTC).date()
    if not earliest <= day <= today:
        raise UsageError(
            f"{day} has no daily partition: they range from {earliest} to {today}",
            hint="Choose other dates, or fewer --days.",
        )
    return day


def _parse_day(option: str, text: str) -> date | None:
    if not text:
        return None
    try:
        return _require_partition(date.fromisoformat(text))
    except ValueError:
        raise UsageError(f"{option} {text!r} is not a date", hint="Write it as YYYY-MM-DD.") from None
