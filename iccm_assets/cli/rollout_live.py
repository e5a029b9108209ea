"""`iccm rollout show|pause|resume|approve|abort`: the live rollout, looked at and ordered about (R9)."""

from __future__ import annotations

import getpass
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.markup import escape

from iccm_assets.cli.console import AsJson, echo_json, out, table
from iccm_assets.errors import InputError, NotAllowed
from iccm_assets.settings import get_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

Note = Annotated[str, typer.Option("--reason", help="Why; recorded with your name.")]


def register(group: typer.Typer) -> None:
    """Add the commands to the group `iccm rollout`."""
    group.command("show")(show)
    for verb, help_text in (
        ("pause", "Keep the weight as it is until `resume`; health goes on being watched."),
        ("resume", "Go on after `pause`."),
        ("approve", "Skip the wait for this stage's time, not its samples nor its health."),
        ("abort", "End it without a verdict; after the promotion the former version comes back."),
    ):
        group.command(verb, help=help_text)(_order(verb))


def actor() -> str:
    """Who gives an order: the user of the operating system."""
    return f"user:{getpass.getuser()}"


def show(
    rollout: Annotated[int | None, typer.Argument(help="Its number; by default the newest.")] = None,
    watch: Annotated[
        float | None, typer.Option("--watch", help="Show it again every so many seconds until it ends.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The rollout: state, weight, lease, evidence beside its thresholds, and what it waits for."""
    from iccm_assets.store.database import connect

    if watch is not None and (as_json or watch <= 0):
        raise InputError("--watch wants seconds above 0, and no --json")
    engine = connect(get_settings())
    found = _described(engine, rollout)
    if as_json:
        echo_json(found)
    elif watch is None:
        out.print(_drawn(found))
    else:
        _watch(engine, found, watch)


def _watch(engine: Engine, found: dict[str, Any], seconds: float) -> None:
    from rich.live import Live

    with Live(_drawn(found), console=out, auto_refresh=False) as screen:
        while found["live"]:
            time.sleep(seconds)
            found = _described(engine, found["id"])
            screen.update(_drawn(found), refresh=True)


def _described(engine: Engine, rollout_id: int | None) -> dict[str, Any]:
    from iccm_assets.rollout import records
    from iccm_assets.rollout.view import describe
    from iccm_assets.store.clock import now

    with engine.connect() as conn:
        state = records.newest(conn) if rollout_id is None else records.get(conn, rollout_id)
        if state is None:
            raise NotAllowed("there was no rollout yet", hint="iccm deploy VERSION opens one.")
        return {
            **describe(state, now(conn)),
            "answers": records.answers(conn, state.id),
            "events": records.history(conn, state.id),
        }


def _drawn(found: dict[str, Any]) -> Group:
    lease = found["lease_seconds_left"]
    leased = "" if lease is None else f", lease {'ended' if lease < 0 else 'ends'} {_ago(lease)}"
    rows = [
        {"arm": name, **found[key]} for name, key in (("canary", "canary"), ("production", "production_arm"))
    ]
    tests = [
        {"test": one["test"], "evidence": f"{one['e_value']:.3g}", "threshold": f"{one['threshold']:.3g}"}
        for one in found["tests"]
    ]
    hours = found["forecast_hours"]
    lines = [
        f"[bold]rollout {found['id']}[/]: {escape(found['candidate'])} against {escape(found['production'])}"
        f"{', emergency' if found['emergency'] else ''}",
        f"[bold]{found['state']}[/], stage {found['stage']} at {found['weight']:.0%}"
        f" (now {found['weight_now']:.0%}{leased})",
        f"healthy {found['healthy_seconds'] / 3600:.2f} of {found['healthy_seconds_needed'] / 3600:g} h,"
        f" {found['scored_sessions']} of {found['scored_sessions_needed']} scored canary-arm sessions",
    ]
    if found["live"]:
        waits = "; ".join(found["waiting_for"]) or "the next tick"
        lines.append(f"waits for {waits}; stage ends {'?' if hours is None else f'in {hours:.1f} h'}")
    lines.append(escape(found["reason"]))
    return Group(*lines, table("this stage", rows), table("evidence since the opening", tests))


def _ago(seconds: float) -> str:
    return f"{-seconds:.0f} s ago" if seconds < 0 else f"in {seconds:.0f} s"


def _order(verb: str) -> Any:
    def command(reason: Note = "", as_json: AsJson = False) -> None:
        from iccm_assets.rollout import controller
        from iccm_assets.store.database import connect

        settings = get_settings()
        decision = controller.order(connect(settings), settings, verb, actor=actor(), note=reason.strip())
        state = decision.state
        if as_json:
            echo_json(
                {"id": state.id, "state": state.state, "weight": state.weight, "reason": decision.reason}
            )
        else:
            out.print(
                f"rollout {state.id} of {state.candidate}: [bold]{state.state}[/], {escape(decision.reason)}"
            )

    return command
