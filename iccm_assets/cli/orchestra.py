"""`iccm orchestra`: check the orchestra's members, serve the builtin ones."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from iccm_assets.cli.console import AsJson, echo_json, err, pluralize, print_line
from iccm_assets.errors import OrchestraError
from iccm_assets.scoring.orchestra import load_orchestra_from_settings
from iccm_assets.settings import get_settings
from iccm_assets.suites.test_suites import parse_suite

# Plain enough for any model and within the reference language, so that every member can answer.
CHECK_TEXT = (
    "The function `rate` shall take `weight`. When `weight` is less than 3, it shall return 5. "
    "Otherwise it shall return 9."
)
CHECK_CASES = [
    {"call": "rate", "args": [weight], "expect": 5 if weight < 3 else 9} for weight in (1, 2, 3, 4)
]

group = typer.Typer(help="Check and serve the orchestra of reconstructors.", no_args_is_help=True)


@group.command()
def check(as_json: AsJson = False) -> None:
    """Request one small function from every member and test it.

    Exits 1 if fewer members than the quorum answer, or if a member answers wrongly. Costs one request per
    endpoint.
    """
    from iccm_assets.scoring.scoring import ScoringTask, score_texts

    settings = get_settings()
    orchestra = load_orchestra_from_settings(settings)
    task = ScoringTask(CHECK_TEXT, parse_suite({"kind": "cases", "cases": CHECK_CASES}))
    [score] = score_texts([task], orchestra, settings)
    keys = {member.name: _describe_key(member) for member in orchestra.members}
    members: list[dict[str, Any]] = [
        {
            "member": member.reconstructor,
            "status": member.status,
            "test_pass_rate": member.test_pass_rate,
            "key": keys[member.reconstructor],
            "detail": member.detail,
        }
        for member in score.members
    ]
    answered = sum(member.test_pass_rate is not None for member in score.members)
    wrong = [row["member"] for row in members if is_wrong(row)]
    if as_json:
        echo_json(
            {
                "ok": answered >= orchestra.quorum and not wrong,
                "quorum": orchestra.quorum,
                "digest": orchestra.digest,
                "members": members,
            }
        )
    else:
        for row in members:
            print_line(_format(row))
    if answered < orchestra.quorum:
        raise OrchestraError(
            f"{pluralize(answered, 'member')} gave a score, the quorum is {orchestra.quorum}"
        )
    if wrong:
        raise OrchestraError(
            f"{pluralize(len(wrong), 'member')} implement a trivial text wrongly: {', '.join(wrong)}",
            hint="Their answers would lower every score: use another model, or correct its settings.",
        )


@group.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8765,
    fault: Annotated[
        str, typer.Option(help="Fractions of requests that fail: slow=0.1,429=0.1,hang=0.05 (docs).")
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed that selects the failing requests.")] = 17,
    slow_seconds: Annotated[float, typer.Option(min=0, help="Delay of a slow response.")] = 1.0,
) -> None:
    """Serve the builtin reconstructors as an OpenAI-compatible endpoint, until interrupted."""
    from iccm_assets.simulation.reconstructors.fault_injection import parse_faults
    from iccm_assets.simulation.reconstructors.mock_endpoint import FaultConfig, MockEndpoint

    config = FaultConfig(parse_faults(fault), seed, slow_seconds)
    endpoint = MockEndpoint(config, host, port)
    typer.echo(f"ICCM_ORCHESTRA={endpoint.members}")
    try:
        endpoint.serve()
    except KeyboardInterrupt:
        err.print(f"{pluralize(config.request_counts.total(), 'request')} answered.")
    finally:
        endpoint.stop_requested.set()


def is_wrong(member: dict[str, Any]) -> bool:
    """Whether a member answered and its implementation fails a test: the text leaves nothing open."""
    rate = member["test_pass_rate"]
    return rate is not None and rate < 1


def _format(member: dict[str, Any]) -> str:
    rate = member["test_pass_rate"]
    mark = "[red]wrong  [/]" if is_wrong(member) else "[green]ok     [/]"
    mark = "[red]missing[/]" if rate is None else mark
    result = f"{member['status']} {member['detail']}" if rate is None else f"test pass rate {rate:.3f}"
    key = f"; key in {member['key']}" if member["key"] else ""
    return mark + escape(f" {member['member']}: {result}{key}")


def _describe_key(member: Any) -> str | None:
    """Name the variable that holds a member's API key; never the key."""
    variable = getattr(member, "key_variable", None)
    return variable if variable is None or member.read_api_key() else f"{variable} (not set)"
