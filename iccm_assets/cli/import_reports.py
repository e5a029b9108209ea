"""What `iccm import` reports: counts, the state of each session, and what is wrong with a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from iccm_assets.cli.console import pluralize, print_plain
from iccm_assets.errors import InputError, SkippedFilesError

if TYPE_CHECKING:
    from iccm_assets.capture.claude_code.importer import ImportResult, SessionPreview
    from iccm_assets.capture.claude_code.transcripts import Transcript
    from iccm_assets.cli.import_files import ImportFile, ImportFormat

_MAX_NAMED_FILES = 10
_NO_SUITE = {
    "origin": None,
    "status": "none",
    "reason": "no test file of the session imports the source; a suite is recorded later",
}
_COLLECTED_SUITE = {
    "origin": "collected",
    "status": "unmeasured",
    "reason": "the test files of the session; they are measured before the first score",
}
_ATTACHED_SUITE = {
    "origin": "attached",
    "status": "unmeasured",
    "reason": "the tests of the record; they are measured before the first score",
}
_SUITES: dict[str | None, dict[str, Any]]
_SUITES = {None: _NO_SUITE, "attached": _ATTACHED_SUITE, "collected": _COLLECTED_SUITE}


@dataclass
class ImportSummary:
    """Counts of the lines and sessions of all files. ``errors``: files of another kind, and why."""

    file_format: ImportFormat
    files: int = 0
    lines: int = 0
    messages: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    malformed: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    without_conversation: list[str] = field(default_factory=list)
    conversations: dict[str, ImportResult] = field(default_factory=dict)

    def add_file(self, file: ImportFile, transcript: Transcript) -> bool:
        """Count a file; return whether there is anything in it to import."""
        from iccm_assets.capture.file_kinds import OWN_FILES

        self.files += 1
        self.lines += transcript.lines
        self.messages += transcript.messages
        self.skipped += transcript.skipped
        self.malformed += transcript.malformed + transcript.foreign
        if not transcript.holds_conversation:
            # The programs themselves write files without a conversation: empty ones, titles, histories.
            own_kinds = OWN_FILES.get(self.file_format.name, frozenset())
            is_own = set(transcript.foreign) <= own_kinds and not transcript.malformed
            is_usual = is_own and not file.listed
            reasons = self.without_conversation if is_usual else self.errors
            reasons.append(f"{file.name} {explain_file(transcript, self.file_format)}")
        return transcript.holds_conversation

    def add_sessions(self, sessions: Iterable[ImportResult]) -> None:
        """Add results; of a session in several files the most informative one is kept."""
        for session in sessions:
            known = self.conversations.get(session.session_id)
            if known is None or known.state == "empty" or session.state in {"changed", "refused"}:
                extends_new = known is not None and known.state == "new" and session.state == "changed"
                self.conversations[session.session_id] = (
                    replace(session, state="new") if extends_new else session
                )

    def states(self) -> Counter[str]:
        """Count the sessions by their state."""
        return Counter(session.state for session in self.conversations.values())

    def forks(self) -> int:
        """Count the sessions that continue another one and add no requirements: they are no examples."""
        return sum(
            session.continues is not None and not session.requirements
            for session in self.conversations.values()
        )

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        counts = {name: value for name, value in vars(self).items() if name != "file_format"}
        return {
            **counts,
            "skipped": dict(sorted(self.skipped.items())),
            "malformed": dict(sorted(self.malformed.items())),
            "sessions": dict(sorted(self.states().items())),
            "forks_without_requirements": self.forks(),
            "conversations": [asdict(session) for session in self.conversations.values()],
        }

    def raise_errors(self, *, has_sessions: bool) -> None:
        """Raise ``InputError`` if a file is no transcript, or if none of them holds a conversation."""
        errors = self.errors or ([] if has_sessions else self.without_conversation)
        if errors:
            more = len(errors) - _MAX_NAMED_FILES
            names = [*errors[:_MAX_NAMED_FILES], *([f"and {more} more files"] if more > 0 else [])]
            kind = SkippedFilesError if has_sessions else InputError
            raise kind("; ".join(names), hint=self.file_format.hint)


def preview_to_json(session: SessionPreview) -> dict[str, Any]:
    """Return what an import would store of a session, as JSON values."""
    return {
        "session_id": session.session_id,
        "source_code": session.exchange.source,
        "requirements": session.exchange.requirements,
        "suite": _describe_suite(session),
        "reason": session.exchange.reason,
    }


def _describe_suite(session: SessionPreview) -> dict[str, Any]:
    suite = dict(_SUITES[session.suite_origin])
    if session.suite_placeholders:
        kinds = ", ".join(f"{kind} {count}" for kind, count in session.suite_placeholders.items())
        suite["reason"] += f"; redaction replaced values in it ({kinds}), so a test may fail"
    return suite


def preview_to_row(session: SessionPreview) -> dict[str, Any]:
    """Return a row of the table of a dry run."""
    return {
        "session": session.session_id,
        "source": _first_line(session.exchange.source),
        "requirements": _first_line(session.exchange.requirements),
        "reason": session.exchange.reason,
    }


def _first_line(text: str | None) -> str | None:
    lines = text.strip().splitlines() if text is not None else []
    hidden = len(lines) - 1
    more = f" (and {hidden} more {'line' if hidden == 1 else 'lines'})" if hidden else ""
    return f"{lines[0][:60]}{more}" if lines else None


def explain_file(transcript: Transcript, file_format: ImportFormat) -> str:
    """Say why a file holds no conversation."""
    from iccm_assets.capture.file_kinds import IMPORT_FORMATS, find_file_kind

    if not transcript.lines:
        return "is empty"
    foreign = transcript.foreign.most_common(1)
    counts = _format_counts(transcript.skipped + transcript.malformed)
    if not foreign and transcript.entries:
        return f"holds no conversation ({counts})"
    kind = foreign[0][0] if foreign else find_file_kind(transcript.head)
    command = IMPORT_FORMATS.get(kind)
    if command == file_format.name:
        return f"holds no {file_format.label} that can be read ({counts})"
    label = f"is not {add_article(file_format.label)}"
    if command is not None:
        return f"{label}: this is {add_article(kind)}; use `iccm import {command}`"
    return f"{label}: {kind}" if foreign else f"{label}: {kind} ({counts})"


def add_article(name: str) -> str:
    """Return a name with its indefinite article."""
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"


def _format_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in counts.most_common()) or "none"


def print_summary(summary: ImportSummary) -> None:
    """Print what was imported."""
    print_plain(
        f"{pluralize(summary.lines, 'line')} in {pluralize(summary.files, 'file')}:"
        f" {pluralize(summary.messages, 'message')};"
        f" skipped: {_format_counts(summary.skipped)}; malformed: {_format_counts(summary.malformed)}"
    )
    print_plain(f"{pluralize(len(summary.conversations), 'session')}: {_format_counts(summary.states())}")
    if forks := summary.forks():
        print_plain(f"{forks} of them continue another session without new requirements: no examples")
    for session in summary.conversations.values():
        if session.reason:
            print_plain(f"session {session.session_id}: {session.reason}")
    for line in summary.without_conversation:
        print_plain(line)
