"""Gate replay: decide stored evidence with the current gate or another one; stores nothing (E5).

Every verdict is replayed with its own evidence and its own ``emergency``; the same gate gives the same bytes.
Evidence that cannot be read, damaged or of an older schema, is reported, never skipped.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from iccm_assets.db import tables as t
from iccm_assets.errors import InputError, UsageError, first_line
from iccm_assets.evaluation import quality_gate
from iccm_assets.evaluation.gate_evidence import GateEvidence, Verdict
from iccm_assets.settings import EvaluationSettings

MAX_GATE_BYTES = 1 << 20
_NUMBERS_HINT = f"The gate's numbers: {', '.join(sorted(quality_gate.THRESHOLD_FIELDS))}."


@dataclass(frozen=True)
class ReplayedVerdict:
    """A gate's verdict on stored evidence, with the stored status (``before``) and the new one (``after``).

    ``identical``: the new verdict is the stored one, byte for byte. ``reproduces``: with the gate recorded
    then it is; None if that gate cannot be read any more. ``gate_changed``: name -> (then, now).
    """

    verdict_id: int
    version: str
    production_version: str
    judged_at: datetime
    newest: bool
    before: str
    after: str
    identical: bool
    reproduces: bool | None
    gate_changed: dict[str, tuple[Any, Any]]
    verdict: Verdict

    @property
    def changed(self) -> bool:
        """Whether the new status differs from the stored one."""
        return self.before != self.after

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; ``verdict`` in its stored form."""
        return {**vars(self), "flipped": self.changed, "verdict": json.loads(self.verdict.to_json())}


@dataclass(frozen=True)
class UnreadableVerdict:
    """A stored verdict that cannot be replayed, with the reason."""

    verdict_id: int
    version: str
    reason: str


@dataclass(frozen=True)
class GateReplay:
    """All stored verdicts under one gate, oldest first."""

    gate: EvaluationSettings
    replayed: tuple[ReplayedVerdict, ...]
    unreadable: tuple[UnreadableVerdict, ...]

    @property
    def changed_verdicts(self) -> tuple[ReplayedVerdict, ...]:
        """The verdicts whose status differs under this gate."""
        return tuple(replayed for replayed in self.replayed if replayed.changed)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        fields = ("verdict_id", "version", "before", "after")
        return {
            "gate": self.gate.model_dump(include=set(quality_gate.THRESHOLD_FIELDS)),
            "verdicts": [replayed.to_dict() for replayed in self.replayed],
            "flips": [
                {name: getattr(replayed, name) for name in fields}
                | {"reasons": list(replayed.verdict.reasons)}
                for replayed in self.changed_verdicts
            ],
            "unreadable": [asdict(unreadable) for unreadable in self.unreadable],
        }


def replay_gate(
    engine: sa.Engine,
    settings: EvaluationSettings,
    version: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> GateReplay:
    """Replay every stored verdict, or those on one version, under the chosen gate; only reads."""
    gv = t.gate_verdicts.c
    newest = gv.id == sa.func.max(gv.id).over(partition_by=gv.version)
    query = sa.select(t.gate_verdicts, newest.label("newest")).order_by(gv.id)
    if version is not None:
        query = query.where(gv.version == version)
    replayed: list[ReplayedVerdict] = []
    unreadable: list[UnreadableVerdict] = []
    with engine.connect() as conn:
        conn.execute(sa.text("set transaction isolation level repeatable read, read only"))
        total = conn.execute(sa.select(sa.func.count()).select_from(query.subquery())).scalar_one()
        for done, row in enumerate(conn.execution_options(yield_per=50).execute(query), start=1):
            try:
                replayed.append(replay_verdict(row, settings))
            except InputError as error:
                unreadable.append(UnreadableVerdict(row.id, row.version, error.detail))
            progress(done, total)
    return GateReplay(settings, tuple(replayed), tuple(unreadable))


def replay_verdict(row: Any, settings: EvaluationSettings) -> ReplayedVerdict:
    """Decide a row of `gate_verdicts` (with ``newest``) under the chosen gate; InputError if damaged."""
    stored, evidence = Verdict.from_json(row.verdict), GateEvidence.from_json(row.evidence)
    if (evidence.candidate_version, stored.status) != (row.version, row.status):
        raise InputError(
            f"its evidence is about {evidence.candidate_version} and its verdict says {stored.status}, "
            f"the row is about {row.version} and says {row.status}"
        )
    verdict = quality_gate.evaluate_gate(evidence, settings, stored.emergency)
    recorded = _parse_recorded_gate(row.gate)
    return ReplayedVerdict(
        verdict_id=row.id,
        version=row.version,
        production_version=row.production_version,
        judged_at=row.created_at,
        newest=row.newest,
        before=stored.status,
        after=verdict.status,
        identical=verdict.to_json() == stored.to_json(),
        reproduces=(
            quality_gate.evaluate_gate(evidence, recorded, stored.emergency).to_json() == stored.to_json()
            if recorded
            else None
        ),
        gate_changed={
            name: (then, now)
            for name in quality_gate.THRESHOLD_FIELDS
            if recorded and (then := getattr(recorded, name)) != (now := getattr(settings, name))
        },
        verdict=verdict,
    )


def load_gate(base: EvaluationSettings, file: Path | None, assignments: Sequence[str]) -> EvaluationSettings:
    """Return ``base`` with the numbers of a file (TOML or JSON), then those of ``name=value`` assignments.

    The file holds the numbers themselves or a group ``evaluation`` of them, as a profile does. Raises
    ``InputError`` if it cannot be read, names no number of the gate, or has a value out of range.
    """
    numbers = _read_numbers(file) if file else {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"{assignment!r} is not name=value", hint=_NUMBERS_HINT)
        numbers[name.strip()] = value.strip()
    unknown = sorted(set(numbers) - set(quality_gate.THRESHOLD_FIELDS))
    if unknown:
        raise InputError(f"the gate has no number {', '.join(unknown)}", hint=_NUMBERS_HINT)
    try:
        return EvaluationSettings(**{**base.model_dump(), **numbers})
    except ValidationError as error:
        problems = "; ".join(f"{item['loc'][0]}={item['input']}: {item['msg']}" for item in error.errors())
        raise InputError(f"invalid numbers of the gate: {problems}") from None


def _read_numbers(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_GATE_BYTES + 1)
        if len(content) > MAX_GATE_BYTES:
            raise InputError(f"{path} is larger than 1 MiB: not a gate")
        parse = json.loads if path.suffix.lower() == ".json" else tomllib.loads
        numbers = parse(content.decode("utf-8"))
    except OSError as error:
        raise InputError(f"the gate {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, not TOML, or nested too deeply
        raise InputError(f"the gate {path}: {first_line(error)}") from None
    if isinstance(numbers, dict) and isinstance(numbers.get("evaluation"), dict):
        numbers = numbers["evaluation"]
    if not isinstance(numbers, dict):
        raise InputError(f"the gate {path} is not a table of numbers")
    # A recorded gate is the whole group of settings: those on how to measure are not the gate's.
    ignored = set(EvaluationSettings.model_fields) - set(quality_gate.THRESHOLD_FIELDS)
    return {name: value for name, value in numbers.items() if name not in ignored}


def _parse_recorded_gate(value: Any) -> EvaluationSettings | None:
    """Parse the gate recorded with a verdict; numbers that were added later get their defaults."""
    try:
        return EvaluationSettings(**value) if value else None
    except (ValidationError, TypeError):
        return None
