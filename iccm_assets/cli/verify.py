"""`iccm verify`: train a version again and compare its weights bit for bit."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from iccm_assets.cli.console import EXIT_NEGATIVE, AsJson, echo_json, parse_progress, print_line, progress_bar
from iccm_assets.cli.context import open_platform


def verify(
    version: Annotated[
        str, typer.Argument(help="Model version, the start of its digest, or `production`.")
    ] = "production",
    as_json: AsJson = False,
) -> None:
    """Train VERSION again from its stored parent, dataset, configuration and seed; compare the weights.

    Exits 0 if they are identical bit for bit, or if VERSION was imported and its files are intact; 3 if they
    differ; 1 if its records no longer allow a comparison. Changes nothing.
    """
    from iccm_assets.registry import versions
    from iccm_assets.storage_cache import open_storage
    from iccm_assets.training.reproducibility import reproduce_version

    settings, engine = open_platform()
    with engine.connect() as conn:
        original = versions.get_version(conn, version)
    with progress_bar(f"{original.version}: starting the trainer", transient=True) as update:

        def show_progress(line: str) -> None:
            if counts := parse_progress(line):
                update(description=line[:90], **counts)

        report = reproduce_version(
            engine, settings.home, original, storage=open_storage(settings), on_line=show_progress
        )
    status = {"reproduced": 0, "imported": 0, "differs": EXIT_NEGATIVE, "impossible": 1}[report.outcome]
    if as_json:
        echo_json(asdict(report))
    else:
        style = "bold red" if status else "bold green"
        print_line(f"{original.version}: [{style}]{report.outcome}[/], {escape(report.reason)}")
        if report.reproduced_weights_digest:
            print_line(
                f"weights {report.reproduced_weights_digest}; {report.examples} examples,"
                f" {report.seconds:.1f} s"
            )
    raise typer.Exit(status)
