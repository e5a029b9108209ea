"""`iccm rollout`: inspect, control and simulate progressive rollouts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Group
from rich.live import Live
from rich.markup import escape

from iccm_assets.cli.console import AsJson, Reason, echo_json, get_actor, make_table, out, progress_bar
from iccm_assets.cli.context import open_platform
from iccm_assets.cli.run_job import report_to_dagster
from iccm_assets.errors import RecordNotFoundError, UsageError
from iccm_assets.reporting.formatting import format_duration
from iccm_assets.rollout.policy import Policy
from iccm_assets.settings import load_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from iccm_assets.rollout.simulation import Simulation

Evidence = Literal["sequential", "point"]

# More takes hours and does not make the estimates better.
MAX_RUNS = 100_000
MAX_SESSIONS_PER_DAY = 100_000.0
_BAR_WIDTH = 40
_COMMANDS = {
    "pause": "Freeze the traffic weight until `resume`; health checks continue.",
    "resume": "Continue after `pause`.",
    "approve": "Skip the minimum time of this stage; samples and health are still required.",
    "abort": "End the rollout without a verdict; after a promotion the previous version is restored.",
}

group = typer.Typer(help="Inspect, control and simulate progressive rollouts.", no_args_is_help=True)


@group.command()
def show(
    rollout: Annotated[int | None, typer.Argument(help="Rollout id; by default the newest.")] = None,
    watch: Annotated[
        float | None, typer.Option("--watch", help="Refresh every so many seconds until the rollout ends.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show state, weight, lease, evidence with its thresholds, and what the rollout waits for."""
    if watch is not None and (as_json or not 0 < watch <= 86_400):
        raise UsageError("--watch is a number of seconds up to a day and cannot be combined with --json")
    _, engine = open_platform()
    state = _load(engine, rollout)
    if as_json:
        echo_json(state)
    elif watch is None:
        out.print(_render(state))
    else:
        with Live(_render(state), console=out, auto_refresh=False) as screen:
            while state["live"]:
                time.sleep(watch)
                state = _load(engine, state["id"])
                screen.update(_render(state), refresh=True)


def _load(engine: Engine, rollout_id: int | None) -> dict[str, Any]:
    from iccm_assets.db.clock import now
    from iccm_assets.rollout import repository
    from iccm_assets.rollout.summary import to_dict

    with engine.connect() as conn:
        state = (
            repository.get_latest_rollout(conn)
            if rollout_id is None
            else repository.get_rollout(conn, rollout_id)
        )
        if state is None:
            raise RecordNotFoundError("there was no rollout yet", hint="iccm deploy VERSION opens one.")
        return {
            **to_dict(state, now(conn)),
            "answers": repository.count_samples(conn, state.id),
            "events": repository.list_events(conn, state.id),
        }


def _render(state: dict[str, Any]) -> Group:
    arms = [{"arm": "canary", **state["canary"]}, {"arm": "production", **state["production_arm"]}]
    tests = [
        {"test": test["test"], "e-value": test["e_value"], "violated at": round(test["threshold"])}
        for test in state["tests"]
    ]
    lines = [
        f"[bold]rollout {state['id']}[/]: {escape(state['candidate'])} against {escape(state['production'])}"
        f"{', emergency' if state['emergency'] else ''}",
        f"[bold]{state['state']}[/], stage {state['stage']} at {state['weight']:.0%}"
        f" (now {state['weight_now']:.0%}{_format_lease(state['lease_seconds_left'])})",
        f"healthy for {format_duration(state['healthy_seconds'])} of"
        f" {format_duration(state['healthy_seconds_needed'])},"
        f" {state['scored_sessions']} of {state['scored_sessions_needed']} scored canary-arm sessions",
    ]
    if state["live"]:
        hours = state["forecast_hours"]
        forecast = "unknown" if hours is None else f"in {format_duration(hours * 3600)}"
        reasons = "; ".join(state["waiting_for"]) or "the next tick"
        lines.append(f"waiting for: {reasons}; end of the stage: {forecast}")
    lines.append(escape(state["reason"]))
    return Group(
        *lines, make_table("this stage", arms), make_table("sequential tests since the start", tests)
    )


def _format_lease(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f", lease expired {-seconds:.0f} s ago" if seconds < 0 else f", lease expires in {seconds:.0f} s"


def _make_command(verb: str) -> Callable[..., None]:
    def command(reason: Reason = "", as_json: AsJson = False) -> None:
        from iccm_assets.rollout import controller

        settings, engine = open_platform()
        decision = controller.execute_command(engine, settings, verb, actor=get_actor(), note=reason.strip())
        state = decision.state
        if as_json:
            echo_json(
                {"id": state.id, "state": state.state, "weight": state.weight, "reason": decision.reason}
            )
        else:
            out.print(
                f"rollout {state.id} of {state.candidate}: [bold]{state.state}[/], {escape(decision.reason)}"
            )
        report_to_dagster(settings, engine)

    return command


for _verb, _help in _COMMANDS.items():
    group.command(_verb, help=_help)(_make_command(_verb))


@group.command()
def simulate(
    production: Annotated[float, typer.Option(help="True mean pass rate of the production version, 0 to 1.")],
    canary: Annotated[float, typer.Option(help="True mean pass rate of the candidate, 0 to 1.")],
    sessions_per_day: Annotated[float, typer.Option(help="Scored sessions a day, of both arms together.")],
    runs: Annotated[int, typer.Option(help="Number of rollouts to simulate.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same rollouts.")] = 0,
    evidence: Annotated[Evidence, typer.Option(help="How a guardrail violation is detected.")] = "sequential",
    plot: Annotated[Path | None, typer.Option(help="Write a PNG histogram of the rollouts' ends.")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict the outcome of a candidate: the controller's own decisions on a virtual clock.

    Durations, samples and limits are those of the production profile, even under the local profile;
    ICCM_ROLLOUT__… variables change them. docs/explanation/rollout.md describes how traffic and scores are
    drawn.
    """
    _check(production, canary, sessions_per_day, runs, seed)
    result = _simulate(production, canary, sessions_per_day, runs, seed, evidence)
    if plot is not None:
        _plot(result, plot)
    if as_json:
        echo_json(result.to_json())
    else:
        _print(result)


def _check(production: float, canary: float, sessions_per_day: float, runs: int, seed: int) -> None:
    sessions = f"{sessions_per_day:g} is not above 0 and at most {MAX_SESSIONS_PER_DAY:.0f}"
    for valid, message in (
        (0.0 <= production <= 1.0, f"--production {production:g} is not a pass rate between 0 and 1"),
        (0.0 <= canary <= 1.0, f"--canary {canary:g} is not a pass rate between 0 and 1"),
        (0.0 < sessions_per_day <= MAX_SESSIONS_PER_DAY, f"--sessions-per-day {sessions}"),
        (0 < runs <= MAX_RUNS, f"--runs {runs} is not between 1 and {MAX_RUNS}"),
        (0 <= seed < 2**63, f"--seed {seed} is not between 0 and 2^63 - 1"),
    ):
        if not valid:
            raise UsageError(message)


def _simulate(
    production: float, canary: float, sessions_per_day: float, runs: int, seed: int, evidence: Evidence
) -> Simulation:
    from iccm_assets.rollout import simulation

    settings = load_settings(profile="production")
    policy = replace(Policy.from_settings(settings.rollout, settings.evaluation), evidence=evidence)
    effect = simulation.TrueEffect(
        production, canary, sessions_per_day, settings.rollout.replay_threshold_sessions
    )
    with progress_bar("rollouts", runs, transient=True) as update:
        return simulation.simulate(effect, policy, runs, seed, lambda count: update(advance=count))


def _print(result: Simulation) -> None:
    from iccm_assets.rollout.simulation import OUTCOMES, percentiles

    rows = []
    for name in OUTCOMES:
        outcomes = result.with_outcome(name)
        row: dict[str, Any] = {"outcome": name, "share": len(outcomes) / len(result.outcomes)}
        for label, values in (
            ("hours", percentiles([outcome.hours for outcome in outcomes])),
            ("canary sessions", percentiles([outcome.canary_sessions for outcome in outcomes])),
        ):
            for key in ("median", "p90"):
                row[f"{label} ({key})"] = "-" if values is None else f"{values[key]:.1f}"
        rows.append(row)
    out.print(make_table(f"{len(result.outcomes)} rollouts: {_describe(result)}", rows))
    for reason, count in result.to_json()["reasons"].items():
        out.print(f"rolled back for {reason}: {count}")
    _print_histogram([outcome.hours for outcome in result.outcomes])


def _describe(result: Simulation) -> str:
    effect = result.effect
    return (
        f"production {effect.production:g}, candidate {effect.canary:g}, {effect.sessions_per_day:g} scored"
        f" sessions a day, evidence {result.evidence}"
    )


def _print_histogram(hours: Sequence[float], bins: int = 12) -> None:
    """Print how many rollouts ended when, as bars of characters."""
    width = max(max(hours) / bins, 1e-9)
    counts = [0] * bins
    for value in hours:
        counts[min(int(value / width), bins - 1)] += 1
    out.print("\nhours until the end")
    for index, count in enumerate(counts):
        bar = "█" * math.ceil(count / max(counts) * _BAR_WIDTH)
        out.print(f"{index * width:8.1f} - {(index + 1) * width:8.1f}  {bar} {count}")


def _plot(result: Simulation, path: Path) -> None:
    """Write a PNG histogram of the rollouts' ends by outcome."""
    import matplotlib

    from iccm_assets.rollout.simulation import OUTCOMES

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.hist(
        [[outcome.hours for outcome in result.with_outcome(name)] for name in OUTCOMES],
        bins=30,
        stacked=True,
        color=["#2e7d32", "#c62828", "#9e9e9e"],
        label=[f"{name} {len(result.with_outcome(name)) / len(result.outcomes):.0%}" for name in OUTCOMES],
    )
    axes.set_xlabel("hours until the end")
    axes.set_ylabel("rollouts")
    axes.set_title(_describe(result))
    axes.legend()
    figure.savefig(path, format="png", dpi=120)
    plt.close(figure)
