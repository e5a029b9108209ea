"""`iccm rollout`: progressive rollouts, simulated here and live in rollout_live.py (R9, R10)."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from iccm_assets.cli import rollout_live
from iccm_assets.cli.console import AsJson, echo_json, err, out, table
from iccm_assets.errors import InputError
from iccm_assets.settings import load_settings

if TYPE_CHECKING:
    from iccm_assets.rollout.simulation import Simulation

# More than this is hours of arithmetic and says nothing new.
MOST_RUNS = 100_000
MOST_SESSIONS = 100_000.0
_BAR = 40

rollout = typer.Typer(
    help="Progressive rollouts: look at the live one, order it about, simulate others.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Add the command group to the command line."""
    app.add_typer(rollout, name="rollout")


@rollout.callback()
def _group() -> None:
    """Progressive rollouts."""


rollout_live.register(rollout)


@rollout.command("simulate")
def simulate_command(
    production: Annotated[float, typer.Option(help="True mean pass rate of the production version, 0 to 1.")],
    canary: Annotated[float, typer.Option(help="True mean pass rate of the candidate, 0 to 1.")],
    sessions_per_day: Annotated[float, typer.Option(help="Scored sessions a day, of both arms together.")],
    runs: Annotated[int, typer.Option(help="Rollouts to simulate.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same rollouts.")] = 0,
    evidence: Annotated[
        Literal["sequential", "point"], typer.Option(help="What crosses a limit (R5).")
    ] = "sequential",
    plot: Annotated[Path | None, typer.Option(help="Draw when the rollouts ended, as a PNG file.")] = None,
    as_json: AsJson = False,
) -> None:
    """What would become of a candidate: the controller's own decisions on a virtual clock.

    Durations, samples and limits are the production profile's, also where the local profile is in force;
    ICCM_ROLLOUT__… variables change them. docs/rollout.md says how traffic and scores are drawn.
    """
    _check(production, canary, sessions_per_day, runs, seed)
    found = _simulated(production, canary, sessions_per_day, runs, seed, evidence)
    if plot is not None:
        _draw(found, plot)
    if as_json:
        echo_json(found.to_json())
        return
    _print(found)


def _check(production: float, canary: float, sessions_per_day: float, runs: int, seed: int) -> None:
    for name, value in (("--production", production), ("--canary", canary)):
        if not 0.0 <= value <= 1.0:
            raise InputError(f"{name} {value:g} is not a pass rate between 0 and 1")
    if not 0.0 < sessions_per_day <= MOST_SESSIONS:
        raise InputError(
            f"--sessions-per-day {sessions_per_day:g} is not above 0 and at most {MOST_SESSIONS:.0f}"
        )
    if not 0 < runs <= MOST_RUNS:
        raise InputError(f"--runs {runs} is not between 1 and {MOST_RUNS}")
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed {seed} is not between 0 and 2^63 - 1")


def _simulated(
    production: float, canary: float, sessions_per_day: float, runs: int, seed: int, evidence: str
) -> Simulation:
    from rich.progress import Progress

    from iccm_assets.rollout.policy import Policy
    from iccm_assets.rollout.simulation import World, simulate

    settings = load_settings(profile="production")
    policy = replace(Policy.frozen(settings.rollout, settings.evaluation), evidence=evidence)
    world = World(production, canary, sessions_per_day, settings.rollout.replay_below_sessions)
    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("rollouts", total=runs)
        return simulate(world, policy, runs, seed, lambda done: progress.advance(task, done))


def _print(found: Simulation) -> None:
    from iccm_assets.rollout.simulation import OUTCOMES, spread

    world = found.world
    rows = []
    for name in OUTCOMES:
        endings = found.of(name)
        hours, sessions = (
            spread([one.hours for one in endings]),
            spread([one.canary_sessions for one in endings]),
        )
        rows.append(
            {
                "outcome": name,
                "share": len(endings) / len(found.endings),
                "hours (median)": _shown(hours, "median"),
                "hours (p90)": _shown(hours, "p90"),
                "canary sessions (median)": _shown(sessions, "median"),
                "canary sessions (p90)": _shown(sessions, "p90"),
            }
        )
    out.print(
        table(
            f"{len(found.endings)} rollouts: production {world.production:g}, candidate {world.canary:g}, "
            f"{world.sessions_per_day:g} scored sessions a day, evidence {found.evidence}",
            rows,
        )
    )
    for reason, count in found.to_json()["reasons"].items():
        out.print(f"rolled back for {reason}: {count}")
    _histogram([one.hours for one in found.endings])


def _shown(values: dict[str, float] | None, name: str) -> str:
    return "-" if values is None else f"{values[name]:.1f}"


def _histogram(hours: list[float], bins: int = 12) -> None:
    """When the rollouts ended, as bars of characters."""
    width = max(max(hours) / bins, 1e-9)
    counts = [0] * bins
    for one in hours:
        counts[min(int(one / width), bins - 1)] += 1
    out.print("\nhours until the end")
    for index, count in enumerate(counts):
        bar = "█" * math.ceil(count / max(counts) * _BAR)
        out.print(f"{index * width:8.1f} - {(index + 1) * width:8.1f}  {bar} {count}")


def _draw(found: Simulation, path: Path) -> None:
    """A PNG: when rollouts ended, by outcome."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from iccm_assets.rollout.simulation import OUTCOMES

    world = found.world
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.hist(
        [[one.hours for one in found.of(name)] for name in OUTCOMES],
        bins=30,
        stacked=True,
        color=["#2e7d32", "#c62828", "#9e9e9e"],
        label=[f"{name} {len(found.of(name)) / len(found.endings):.0%}" for name in OUTCOMES],
    )
    axes.set_xlabel("hours until the end")
    axes.set_ylabel("rollouts")
    axes.set_title(
        f"production {world.production:g}, candidate {world.canary:g}, "
        f"{world.sessions_per_day:g} scored sessions a day, {found.evidence}"
    )
    axes.legend()
    figure.savefig(path, format="png", dpi=120)
    plt.close(figure)
