"""Judging stored evidence again with today's gate, or another one (E5). Measures nothing, changes nothing.

Every stored verdict is judged with its own evidence and its own ``emergency``; the same gate gives the same
bytes. Evidence that cannot be read, damaged or written by an older schema, is named, never passed over.
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

from iccm_assets.errors import InputError
from iccm_assets.judging import gate
from iccm_assets.judging.verdict import GateEvidence, Verdict
from iccm_assets.settings import Evaluation
from iccm_assets.store import tables as t

MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class StoredVerdict:
    """A row of `gate_verdicts`, as it was read."""

    verdict_id: int
    version: str
    production_version: str
    judged_at: datetime
    newest: bool
    status: str
    verdict: Any
    evidence: Any
    gate: Any


@dataclass(frozen=True)
class Rejudged:
    """What a gate makes of stored evidence, beside what was said then.

    ``identical``: the new verdict is the stored one, byte for byte. ``reproduces``: with the gate recorded
    then it is; None where that gate cannot be read any more. ``gate_changed``: name -> (then, now).
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
    def flipped(self) -> bool:
        return self.before != self.after

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        told = {name: value for name, value in vars(self).items() if name != "verdict"}
        return {**told, "flipped": self.flipped, "verdict": json.loads(self.verdict.to_json())}


@dataclass(frozen=True)
class Unreadable:
    """A stored verdict that cannot be judged again, and why."""

    verdict_id: int
    version: str
    reason: str


@dataclass(frozen=True)
class Rejudgement:
    """All stored verdicts under one gate, in the order they were given."""

    gate: Evaluation
    judged: tuple[Rejudged, ...]
    unreadable: tuple[Unreadable, ...]

    @property
    def flips(self) -> tuple[Rejudged, ...]:
        return tuple(one for one in self.judged if one.flipped)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; `verdict` is what the gate says now, in the form in which verdicts are stored."""
        return {
            "gate": {name: getattr(self.gate, name) for name in gate.NUMBERS},
            "verdicts": [one.to_dict() for one in self.judged],
            "flips": [
                {
                    "verdict_id": one.verdict_id,
                    "version": one.version,
                    "before": one.before,
                    "after": one.after,
                    "reasons": list(one.verdict.reasons),
                }
                for one in self.flips
            ],
            "unreadable": [asdict(one) for one in self.unreadable],
        }


def rejudge(
    engine: sa.Engine,
    chosen: Evaluation,
    version: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rejudgement:
    """Every stored verdict (or those on one version) under the chosen gate; the database is only read."""
    gv = t.gate_verdicts.c
    last = sa.func.max(gv.id).over(partition_by=gv.version)
    query = sa.select(
        *(gv.id, gv.version, gv.production_version, gv.created_at, (gv.id == last), gv.status),
        *(gv.verdict, gv.evidence, gv.gate),
    ).order_by(gv.id)
    if version is not None:
        query = query.where(gv.version == version)
    judged: list[Rejudged] = []
    unreadable: list[Unreadable] = []
    with engine.connect() as conn:
        conn.execute(sa.text("set transaction isolation level repeatable read, read only"))
        total = conn.execute(sa.select(sa.func.count()).select_from(query.subquery())).scalar_one()
        for done, row in enumerate(conn.execution_options(yield_per=50).execute(query), start=1):
            stored = StoredVerdict(*row)
            try:
                judged.append(judge_again(stored, chosen))
            except InputError as error:
                unreadable.append(Unreadable(stored.verdict_id, stored.version, error.detail))
            progress(done, total)
    return Rejudgement(chosen, tuple(judged), tuple(unreadable))


def judge_again(stored: StoredVerdict, chosen: Evaluation) -> Rejudged:
    """One stored verdict under the chosen gate. Pure; ``InputError`` names what cannot be read."""
    then = Verdict.from_json(stored.verdict)
    evidence = GateEvidence.from_json(stored.evidence)
    if (evidence.candidate_version, then.status) != (stored.version, stored.status):
        raise InputError(
            f"its evidence is about {evidence.candidate_version} and its verdict says {then.status}, "
            f"the row is about {stored.version} and says {stored.status}"
        )
    now = gate.decide(evidence, chosen, then.emergency)
    recorded = _recorded(stored.gate)
    again = recorded and gate.decide(evidence, recorded, then.emergency)
    return Rejudged(
        verdict_id=stored.verdict_id,
        version=stored.version,
        production_version=stored.production_version,
        judged_at=stored.judged_at,
        newest=stored.newest,
        before=then.status,
        after=now.status,
        identical=now.to_json() == _as_written(stored.verdict),
        reproduces=again.to_json() == _as_written(stored.verdict) if again else None,
        gate_changed=changes(recorded, chosen) if recorded else {},
        verdict=now,
    )


def changes(before: Evaluation, after: Evaluation) -> dict[str, tuple[Any, Any]]:
    """The gate's numbers that differ: name -> (before, after)."""
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in gate.NUMBERS}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def gate_from(base: Evaluation, file: Path | None, assignments: Sequence[str]) -> Evaluation:
    """``base`` with the numbers of a file (TOML or JSON), then those of ``name=value`` assignments.

    The file holds the numbers themselves or a group ``evaluation`` of them, as a profile does. Raises
    ``InputError`` for what cannot be read, is no number of the gate, or is impossible.
    """
    given = _file(file) if file else {}
    for one in assignments:
        name, equals, value = one.partition("=")
        if not equals:
            raise InputError(f"{one!r} is not name=value", hint=f"The gate's numbers: {_known()}.")
        given[name.strip()] = value.strip()
    unknown = sorted(set(given) - set(gate.NUMBERS))
    if unknown:
        raise InputError(f"the gate has no number {', '.join(unknown)}", hint=f"It has: {_known()}.")
    try:
        return Evaluation(**{**base.model_dump(), **given})
    except ValidationError as error:
        told = "; ".join(f"{one['loc'][0]}={one['input']}: {one['msg']}" for one in error.errors())
        raise InputError(f"an impossible gate, {told}") from None


def _file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as opened:
            raw = opened.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise InputError(f"{path} is larger than 1 MiB: not a gate")
        text = raw.decode("utf-8")
        found = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except OSError as error:
        raise InputError(f"the gate {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, not TOML, or nested without end
        raise InputError(f"the gate {path}: {str(error).splitlines()[0]}") from None
    if isinstance(found, dict) and isinstance(found.get("evaluation"), dict):
        found = found["evaluation"]
    if not isinstance(found, dict):
        raise InputError(f"the gate {path} is not a table of numbers")
    # What a stored verdict records is a whole group of settings: what is measured how is not the gate's.
    return {name: value for name, value in found.items() if name not in _measuring()}


def _recorded(value: Any) -> Evaluation | None:
    """The gate a verdict was given by; numbers that came later have their defaults."""
    try:
        return Evaluation(**value) if value else None
    except (ValidationError, TypeError):
        return None


def _as_written(value: Any) -> str:
    """The stored verdict in the canonical form it was written in."""
    return Verdict.from_json(value).to_json()


def _measuring() -> set[str]:
    return set(Evaluation.model_fields) - set(gate.NUMBERS)


def _known() -> str:
    return ", ".join(sorted(gate.NUMBERS))
