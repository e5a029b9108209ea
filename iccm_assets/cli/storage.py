"""`iccm storage`: what homes share at `ICCM_STORAGE`."""

from __future__ import annotations

from typing import Annotated

import typer

from iccm_assets.cli.console import EXIT_NEGATIVE, AsJson, echo_json, pluralize, print_plain, progress_bar
from iccm_assets.settings import get_settings

group = typer.Typer(help="Publish at ICCM_STORAGE what this home has.", no_args_is_help=True)


@group.callback()
def storage() -> None:
    """Publish at ICCM_STORAGE what this home has."""


@group.command()
def push(
    verify: Annotated[
        bool, typer.Option("--verify", help="Read what is stored already, and replace what is damaged.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Publish every model, training set and environment of the home that the storage lacks.

    Needed once, when ICCM_STORAGE is set for a home that has lived without it; what is made later is
    published as it is made. Exits 3 if something is damaged both in the storage and in the home.
    """
    from iccm_assets.governance.shared_home import push_home_or_fail

    settings = get_settings()
    with progress_bar("starting", transient=True) as update:
        report = push_home_or_fail(
            settings, verify=verify, progress=lambda name: update(description=name[:60])
        )
    if as_json:
        echo_json(
            {
                "storage": settings.storage,
                "published": report.published,
                "present": report.present,
                "damaged": report.damaged,
            }
        )
    else:
        published = pluralize(len(report.published), "directory is", "directories are")
        print_plain(f"{published} published at {settings.storage}; it had {len(report.present)} already.")
        for name, reason in report.damaged.items():
            print_plain(f"Damaged in the storage and in the home: {name}: {reason}.")
    if report.damaged:
        raise typer.Exit(EXIT_NEGATIVE)
