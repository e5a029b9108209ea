"""`iccm import`: import conversations from transcripts, rollouts and chats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iccm_assets.cli.console import AsJson, echo_json, echo_json_line, err, make_table, out, pluralize
from iccm_assets.cli.context import open_platform
from iccm_assets.cli.env import load_first_day
from iccm_assets.cli.import_files import (
    CLAUDE_CODE,
    CODEX,
    OPENAI,
    ImportFile,
    ImportFormat,
    find_files,
    read_files,
)
from iccm_assets.cli.import_reports import ImportSummary, preview_to_json, preview_to_row, print_summary
from iccm_assets.settings import get_settings

if TYPE_CHECKING:
    from iccm_assets.capture.claude_code.importer import TranscriptImporter
    from iccm_assets.capture.messages import FilePart

group = typer.Typer(help="Import conversations from other tools.", no_args_is_help=True)

User = Annotated[str | None, typer.Option(help="User id of the author, where a conversation names none.")]
Repository = Annotated[
    Path | None,
    typer.Option(help="Folder of the project, whose test files may be the suite of a session's source."),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Store nothing; show the source and requirements of each session."),
]


@group.command()
def claude_code(
    files: Annotated[
        list[str],
        typer.Argument(help="Transcripts (.jsonl), directories of them, or - for standard input."),
    ],
    user: User = None,
    repository: Repository = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Import Claude Code transcripts. A repeated import changes nothing; a longer one extends its session.

    A file of another kind is an error that names the kind; the other files are imported.
    """
    _run(CLAUDE_CODE, files, user, repository, dry_run, as_json)


@group.command()
def codex(
    files: Annotated[
        list[str],
        typer.Argument(help="Rollouts (rollout-*.jsonl), directories of them, or - for standard input."),
    ],
    user: User = None,
    repository: Repository = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Import rollouts of the Codex command line. A longer file extends its session.

    A repeated import changes nothing; a resumed or forked session keeps only its own turns. A file of
    another kind is an error that names the kind; the other files are imported.
    """
    _run(CODEX, files, user, repository, dry_run, as_json)


@group.command()
def openai(
    files: Annotated[
        list[str],
        typer.Argument(help="Files of JSON lines, or one JSON array; directories of .jsonl files, or -."),
    ],
    user: User = None,
    repository: Repository = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Import chats as OpenAI (`messages`) or ShareGPT (`conversations`) writes them, one a line.

    A record may name a session, a user, a time, requirements and tests. A repeated import changes nothing; a
    longer record extends its session. A file of another kind is an error that names the kind; the other
    files are imported.
    """
    _run(OPENAI, files, user, repository, dry_run, as_json)


def _run(
    file_format: ImportFormat,
    names: list[str],
    user: str | None,
    repository: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    from iccm_assets.capture.conversations import validate_user_id
    from iccm_assets.capture.repository_tests import read_repository_tests

    validate_user_id(user)
    files = list(find_files(names))
    tests = read_repository_tests(repository) if repository is not None else ()
    run = _preview if dry_run else _import
    run(file_format, files, user, tests, as_json)


def _import(
    file_format: ImportFormat,
    files: list[ImportFile],
    user: str | None,
    tests: tuple[FilePart, ...],
    as_json: bool,
) -> None:
    from iccm_assets.capture.claude_code.importer import TranscriptImporter

    summary = ImportSummary(file_format)
    importer: TranscriptImporter | None = None
    for file, transcript in read_files(files, file_format):
        if summary.add_file(file, transcript):
            if importer is None:
                settings, engine = open_platform()
                first_day = load_first_day(engine, settings)
                importer = TranscriptImporter(
                    engine, settings, user_id=user, repository=tests, origin=file_format.name
                )
            summary.add_sessions(importer.import_transcript(transcript))
    if importer is not None:
        if as_json:
            echo_json(summary.to_json())
        else:
            print_summary(summary)
        if (earlier := load_first_day(engine, settings)) < first_day:
            err.print(f"The daily partitions begin on {earlier} from the next start of `iccm dev` on.")
    summary.raise_errors(has_sessions=bool(summary.conversations))


def _preview(
    file_format: ImportFormat,
    files: list[ImportFile],
    user: str | None,
    tests: tuple[FilePart, ...],
    as_json: bool,
) -> None:
    from iccm_assets.capture.claude_code.importer import TranscriptPreview

    summary = ImportSummary(file_format)
    preview = TranscriptPreview(get_settings(), user_id=user, repository=tests)
    for file, transcript in read_files(files, file_format):
        if summary.add_file(file, transcript):
            preview.add_transcript(transcript)
    sessions = preview.sessions()
    if as_json:
        for session in sessions:
            echo_json_line(preview_to_json(session))
    elif sessions:
        title = f"{pluralize(len(sessions), 'session')}, nothing stored"
        out.print(make_table(title, [preview_to_row(row) for row in sessions]))
    summary.raise_errors(has_sessions=bool(sessions))
