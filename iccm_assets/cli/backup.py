"""`iccm backup`: back up both databases and the files of the home, beside running services."""

from __future__ import annotations

from typing import Annotated

import typer

from iccm_assets.cli.console import EXIT_NEGATIVE, AsJson, echo_json, pluralize, print_plain, progress_bar
from iccm_assets.cli.context import open_platform


def backup(
    directory: Annotated[
        str,
        typer.Argument(help="Directory of the backups, created if necessary, or a URL: s3://bucket/prefix."),
    ],
    keep: Annotated[
        int | None, typer.Option(min=1, help="Afterwards delete all but the newest N backups.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Back up both databases, the models, the datasets and the environments, as of one time.

    Services keep running. Files that an earlier backup in DIRECTORY has are not copied again. A backup is
    complete or does not appear. Exits 3 if files that the home lacks, or has damaged, are not in it.
    """
    from iccm_assets.worker_process import lowest_priority

    # Also while this is loaded: that takes a second of processor time, and a gateway may run beside it.
    with lowest_priority(), progress_bar("starting", in_bytes=True, transient=True) as update:
        from iccm_assets.governance.backup import create_backup

        settings, engine = open_platform()
        report = create_backup(
            engine,
            settings,
            directory,
            keep=keep,
            progress=lambda step, size: update(description=step[:60], advance=size),
        )
    manifest = report.manifest
    if as_json:
        echo_json(
            {
                "name": manifest.name,
                "path": str(report.path),
                "created_at": manifest.created_at,
                "schema_revision": manifest.schema_revision,
                "production": manifest.production,
                "files": len(manifest.files),
                "bytes": manifest.size,
                "copied_bytes": report.copied_bytes,
                "missing": manifest.missing,
                "deleted": report.deleted,
            }
        )
    else:
        print_plain(
            f"{report.path}: {pluralize(len(manifest.files), 'file')}, {manifest.size:,} bytes,"
            f" {report.copied_bytes:,} of them new; production is {manifest.production or 'none'}"
        )
        for name, reason in manifest.missing.items():
            print_plain(f"Not in the backup: {name}: {reason}.")
        if report.deleted:
            print_plain(f"Deleted {pluralize(len(report.deleted), 'older backup')}.")
    if manifest.missing:
        raise typer.Exit(EXIT_NEGATIVE)
