"""`iccm verify`: train a version again and compare its weights, bit for bit (L5)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress

from iccm_assets.cli.console import AsJson, echo_json, err, out
from iccm_assets.settings import get_settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify")(verify)


def verify(
    version: Annotated[
        str, typer.Argument(help="Model version, the start of its digest, or `production`.")
    ] = "production",
    as_json: AsJson = False,
) -> None:
    """Train VERSION again from its stored parent, training set, configuration and seed; compare the weights.

    Exit code 0 when they are the same bit for bit, 1 otherwise. Changes nothing.
    """
    from iccm_assets.cli.launch import COUNTED
    from iccm_assets.learning import versions
    from iccm_assets.learning.verification import retrace
    from iccm_assets.store.database import connect

    settings = get_settings()
    engine = connect(settings)
    with engine.connect() as conn:
        chosen = versions.get(conn, version)
    with Progress(console=err, transient=True) as bar:
        task = bar.add_task(f"{chosen.version}: starting the trainer", total=None)

        def tell(line: str) -> None:
            counted = COUNTED.search(line)
            if counted:
                done, total = int(counted[1]), int(counted[2])
                bar.update(task, description=line[:90], completed=done, total=total)

        found = retrace(engine, settings.home, chosen, tell=tell)
    if as_json:
        echo_json(asdict(found))
    else:
        colour = "green" if found.outcome == "reproduced" else "red"
        out.print(
            f"{chosen.version}: [bold {colour}]{found.outcome}[/], {escape(found.reason)}", soft_wrap=True
        )
        if found.made_weights_digest:
            took = f"{found.examples} examples, {found.seconds:.1f} s"
            out.print(f"weights {found.made_weights_digest}; {took}", highlight=False, soft_wrap=True)
    raise typer.Exit(0 if found.outcome == "reproduced" else 1)
