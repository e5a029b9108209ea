"""`iccm restore`: restore a backup into an empty home and database, or verify it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from iccm_assets.cli.console import AsJson, echo_json, get_actor, pluralize, print_plain, progress_bar
from iccm_assets.cli.context import open_platform
from iccm_assets.errors import UsageError
from iccm_assets.settings import get_settings

if TYPE_CHECKING:
    from iccm_assets.governance.restore import RestoreReport


def restore(
    directory: Annotated[str, typer.Argument(help="Directory or URL of the backups.")],
    name: Annotated[
        str | None, typer.Option("--backup", help="Name of the backup; the newest one by default.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace what the home and the databases hold.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Only read and verify every file; restore nothing.")
    ] = False,
    erasures_only: Annotated[
        bool,
        typer.Option("--erasures-only", help="Only erase again what was erased, in a recovered database."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Restore a backup into the home and the databases of the settings: everything, or nothing.

    Every file is verified first. An older schema is upgraded. What was erased after the backup is erased
    again. Stop what runs on the target before.
    """
    from iccm_assets.governance.restore import erase_recorded, restore_backup, verify_backup

    if replace + verify + erasures_only > 1 or (name and erasures_only):
        raise UsageError(
            "--replace, --verify and --erasures-only cannot be combined, nor the last with --backup"
        )
    with progress_bar("starting", in_bytes=True, transient=True) as update:

        def show(step: str, size: int) -> None:
            update(description=step[:60], advance=size)

        report, not_shared = None, ""
        if verify:
            report = verify_backup(directory, name, progress=show)
            erased, unfinished = report.erased_again, ""
        elif erasures_only:
            settings, engine = open_platform()
            erased, unfinished = erase_recorded(engine, settings, directory, actor=get_actor(), progress=show)
        else:
            report = restore_backup(
                get_settings(), directory, name, replace_existing=replace, actor=get_actor(), progress=show
            )
            erased, unfinished = report.erased_again, report.erasures_unfinished
            not_shared = report.not_shared
    if as_json:
        erasures = {
            "erasures_repeated": len(erased),
            "conversations_erased_again": sum(erased),
            "physical_erasure_error": unfinished or None,
            "storage_error": not_shared or None,
        }
        echo_json({**_make_document(report, restored=not verify), **erasures} if report else erasures)
        return
    if report:
        _print_report(report, restored=not verify)
    if erased or erasures_only:
        conversations = pluralize(sum(erased), "conversation")
        print_plain(f"Repeated {pluralize(len(erased), 'later erasure')}: {conversations}.")
    if unfinished:
        print_plain(f"No row holds the erased text, files of the server may: {unfinished}")
    if not_shared:
        print_plain(f"Restored here, but not published (`iccm storage push` does it): {not_shared}")


def _make_document(report: RestoreReport, *, restored: bool) -> dict[str, Any]:
    manifest = report.manifest
    return {
        "name": manifest.name,
        "created_at": manifest.created_at,
        "schema_revision": manifest.schema_revision,
        "production": manifest.production,
        "files": len(manifest.files),
        "bytes": manifest.size,
        "missing": manifest.missing,
        "restored": restored,
    }


def _print_report(report: RestoreReport, *, restored: bool) -> None:
    manifest = report.manifest
    size = f"{pluralize(len(manifest.files), 'file')}, {manifest.size:,} bytes"
    if not restored:
        print_plain(f"Backup {manifest.name} is intact: {size}.")
        return
    print_plain(f"Restored {manifest.name} of {manifest.created_at:%Y-%m-%d %H:%M} UTC: {size}.")
    print_plain(f"In production: {manifest.production or 'none'}.")
    for name, reason in manifest.missing.items():
        print_plain(f"Not in the backup: {name}: {reason}.")
