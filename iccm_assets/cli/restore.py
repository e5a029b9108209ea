"""`iccm restore`: restore a backup into an empty home and database, or verify it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iccm_assets.cli.console import AsJson, echo_json, get_actor, pluralize, print_plain, progress_bar
from iccm_assets.errors import UsageError
from iccm_assets.settings import get_settings


def restore(
    directory: Annotated[Path, typer.Argument(help="Directory of the backups.")],
    name: Annotated[
        str | None, typer.Option("--backup", help="Name of the backup; the newest one by default.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace what the home and the databases hold.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only read and verify every file; restores nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Restore a backup into the home and the databases of the settings: everything, or nothing.

    Every file is verified first. An older schema is upgraded. What was erased after the backup is erased
    again. Stop what runs on the target before.
    """
    from iccm_assets.governance.restore import restore_backup, verify_backup

    if verify and replace:
        raise UsageError("--verify restores nothing and cannot be combined with --replace")
    with progress_bar("starting", in_bytes=True, transient=True) as update:

        def show(step: str, size: int) -> None:
            update(description=step[:60], advance=size)

        if verify:
            report = verify_backup(directory, name, progress=show)
        else:
            report = restore_backup(
                get_settings(), directory, name, replace_existing=replace, actor=get_actor(), progress=show
            )
    manifest = report.manifest
    if as_json:
        echo_json(
            {
                "name": manifest.name,
                "created_at": manifest.created_at,
                "schema_revision": manifest.schema_revision,
                "production": manifest.production,
                "files": len(manifest.files),
                "bytes": manifest.size,
                "missing": manifest.missing,
                "restored": not verify,
                "erasures_repeated": len(report.erased_again),
                "conversations_erased_again": sum(report.erased_again),
                "physical_erasure_error": report.erasures_unfinished or None,
            }
        )
        return
    size = f"{pluralize(len(manifest.files), 'file')}, {manifest.size:,} bytes"
    if verify:
        print_plain(f"Backup {manifest.name} is intact: {size}.")
        return
    production = manifest.production or "none"
    print_plain(f"Restored {manifest.name} of {manifest.created_at:%Y-%m-%d %H:%M} UTC: {size}.")
    print_plain(f"In production: {production}.")
    if report.erased_again:
        conversations = pluralize(sum(report.erased_again), "conversation")
        print_plain(f"Repeated {pluralize(len(report.erased_again), 'later erasure')}: {conversations}.")
    if report.erasures_unfinished:
        print_plain(f"The bytes may still be in the server's files: {report.erasures_unfinished}")
