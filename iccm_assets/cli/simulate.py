"""`iccm simulate`: developers who talk with the production model, correct it, accept and rate (X4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from iccm_assets.cli.console import AsJson, echo_json, err, out
from iccm_assets.cli.own_gateway import own_gateway, token_of
from iccm_assets.errors import GatewayError, InputError
from iccm_assets.settings import Settings, get_settings

if TYPE_CHECKING:
    from iccm_assets.reference.developers import PlannedSession
    from iccm_assets.reference.http_traffic import Replies
    from iccm_assets.reference.traffic import Pending, Traffic

DAYS = 7
COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("simulate")(simulate)


def simulate(
    conversations: Annotated[int, typer.Option(min=1, max=100000, help="How many sessions.")] = 200,
    days: Annotated[int | None, typer.Option(min=1, max=365, help="Days they spread over [7].")] = None,
    start: Annotated[str, typer.Option(help="The first day, YYYY-MM-DD (UTC).")] = "",
    end: Annotated[str, typer.Option(help="The last day; default: yesterday.")] = "",
    users: Annotated[int, typer.Option(min=1, max=10000, help="How many developers.")] = 44,
    drift: Annotated[
        str,
        typer.Option(
            help="Share of new domains, first to last day (0.2:0.7), or when one appears (NAME@DAY);"
            " several with commas."
        ),
    ] = "",
    new_domains: Annotated[
        str, typer.Option(help="The new domains that are asked about, with commas [all].")
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Another seed brings other sessions.")] = 1,
    gateway: Annotated[
        str, typer.Option(help="URL of a gateway that runs [one of this command's own, for as long].")
    ] = "",
    token: Annotated[str, typer.Option(help="Bearer token for it [ICCM_GATEWAY__TOKENS' first].")] = "",
    workers: Annotated[int, typer.Option(min=1, max=256, help="Sessions held at a time.")] = 16,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Sessions begun a second at most [no limit].")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate developers who use the gateway. The same seed and dates hold the same sessions again."""
    from iccm_assets.reference.developers import plan_conversations
    from iccm_assets.reference.drift import Drift, parse_drift

    settings = get_settings()
    first, last = period(start, end, days)
    length = (last - first).days + 1
    chosen = domains(new_domains)
    mix = parse_drift(drift, chosen, length) if drift else Drift()
    err.print(f"[dim]planning {conversations} sessions of {users} developers, {first} to {last}[/]")
    plan = plan_conversations(
        seed,
        n=conversations,
        days=length,
        users=users,
        end=last,
        drift=mix,
        new_families=chosen,
        name=f"{seed}-{first:%Y%m%d}-{last:%Y%m%d}",
    )
    with _gateway(settings, gateway) as url:
        traffic, _, replies = over_http(
            url, token or token_of(settings), plan, by=end_of(last), workers=workers, rate=rate
        )
    if as_json:
        echo_json({"first_day": first, "last_day": last, **asdict(traffic), "gateway": asdict(replies)})
    else:
        show(traffic)
        show_replies(replies)
    check_replies(replies)
    if not as_json:
        out.print("Materialize these days in Dagster to make examples of them.", highlight=False)


@contextmanager
def _gateway(settings: Settings, url: str) -> Iterator[str]:
    """The gateway at ``url``, or one of our own that serves the production version (else the base model)."""
    if url:
        yield url
        return
    from iccm_assets.learning.model_store import ModelStore
    from iccm_assets.rollout.bootstrap import ensure_production
    from iccm_assets.store.database import connect

    ensure_production(connect(settings), ModelStore(settings.home), settings)
    with err.status("starting a gateway"), ExitStack() as stack:
        started = stack.enter_context(own_gateway(settings))
        running = stack.pop_all()
    with running:
        yield started


def over_http(
    url: str,
    token: str,
    plan: Sequence[PlannedSession],
    *,
    by: datetime,
    workers: int = 16,
    rate: float | None = None,
) -> tuple[Traffic, list[Pending], Replies]:
    """Hold the sessions over HTTP, with a progress bar; what failed is in the replies."""
    from iccm_assets.reference import http_traffic
    from iccm_assets.reference.wire import Wire

    with (
        closing(Wire(url, token, connections=workers)) as wire,
        Progress(*COLUMNS, console=err) as bar,
    ):
        task = bar.add_task(f"conversations over HTTP, {url}", total=len(plan))

        def moved(done: int) -> None:
            bar.update(task, completed=done)

        return http_traffic.hold(wire, plan, by=by, workers=workers, rate=rate, progress=moved)


def show(traffic: Traffic) -> None:
    """What came of the sessions, in two lines."""
    mix = ", ".join(f"{count} {name}" for name, count in traffic.domains.items())
    err.print(
        f"{traffic.users} developers; {traffic.accepted_as_is} answers taken as they were,"
        f" {traffic.corrected} corrected, {traffic.open} left open;"
        f" {traffic.thumbs_up} thumbs up, {traffic.thumbs_down} down",
        highlight=False,
    )
    err.print(f"[dim]{traffic.new_domain} about domains the base model never saw: {mix}[/]", highlight=False)


def show_replies(replies: Replies) -> None:
    """Which arm answered, and which replies there were beside 200."""
    arms = ", ".join(f"{count} by the {arm} arm" for arm, count in replies.arms.items()) or "none"
    other = ", ".join(f"{count} x {status}" for status, count in replies.statuses.items() if status != "200")
    again = f"; {replies.retried} sent again ({other})" if other else ""
    err.print(f"[dim]answers: {arms}{again}[/]", highlight=False)


def check_replies(replies: Replies) -> None:
    """Raises ``GatewayError`` when sessions could not be held."""
    if replies.failures:
        raise GatewayError(
            f"{len(replies.failures)} sessions could not be held, the first since {replies.failures[0]}",
            hint="The same command again holds those that are missing.",
        )


def domains(text: str) -> tuple[str, ...]:
    """The new domains a list names, all of them for an empty one; ``InputError`` for one there is not."""
    from iccm_assets.reference.world import NEW_FAMILIES

    names = tuple(dict.fromkeys(one.strip() for one in text.split(","))) if text else NEW_FAMILIES
    unknown = [name for name in names if name not in NEW_FAMILIES]
    if unknown:
        raise InputError(
            f"--new-domains: {', '.join(map(repr, unknown))} is no new domain",
            hint=f"There are {', '.join(NEW_FAMILIES)}.",
        )
    return names


def period(start: str, end: str, days: int | None) -> tuple[date, date]:
    """First and last day from what of them is given; ``InputError`` unless each has a daily partition."""
    first, last = _day("--start", start), _day("--end", end)
    if first and last and days is not None and (last - first).days + 1 != days:
        raise InputError(
            f"--start {first} to --end {last} are {(last - first).days + 1} days, not {days}",
            hint="Give two of --start, --end and --days.",
        )
    span = timedelta(days=(days or DAYS) - 1)
    last = last or (first + span if first else datetime.now(UTC).date() - timedelta(days=1))
    first = first or last - span
    if last < first:
        raise InputError(f"--start {first} is after --end {last}")
    return _checked(first), _checked(last)


def end_of(day: date) -> datetime:
    """The moment a UTC day is over."""
    return datetime.combine(day + timedelta(days=1), time(), UTC)


def _checked(day: date) -> date:
    """The day, when it has, or gets tonight, a partition to be materialized in."""
    from iccm_assets.defs.partitions import DAILY

    earliest, today = DAILY.start.date(), datetime.now(UTC).date()
    if not earliest <= day <= today:
        raise InputError(
            f"{day} has no daily partition: they go from {earliest} to {today}",
            hint="Choose other dates, or fewer --days.",
        )
    return day


def _day(option: str, text: str) -> date | None:
    if not text:
        return None
    try:
        return _checked(date.fromisoformat(text))
    except ValueError:
        raise InputError(f"{option} {text!r} is not a date", hint="Write it as YYYY-MM-DD.") from None
