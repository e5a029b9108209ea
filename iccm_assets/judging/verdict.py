"""What the gate is given and what it says, as plain values that survive being stored (E3, E5).

Both are written as canonical JSON: sorted keys, no spaces, numbers of the verdict rounded to nine decimals.
The evidence read back is equal to the evidence written, so a verdict judged again is the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from iccm_assets.errors import InputError

Outcome = Literal["pass", "fail", "inconclusive"]
T = TypeVar("T")


@dataclass(frozen=True)
class ItemEvidence:
    """One canary item, scored for both versions: means over the orchestra, ``None`` where inconclusive.

    ``doubt`` says why the judge does not stand by these numbers; empty when it does.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    item: str
    slice: str
    candidate: float | None
    production: float | None
    candidate_variance: float | None = None
    production_variance: float | None = None
    doubt: str = ""

    @property
    def reliable(self) -> bool:
        """Whether both versions have a score the judge stands by."""
        return self.candidate is not None and self.production is not None and not self.doubt

    @property
    def difference(self) -> float:
        """Candidate's pass rate minus production's; only for a reliable item."""
        return self.rate(of_candidate=True) - self.rate(of_candidate=False)

    def rate(self, *, of_candidate: bool) -> float:
        """One version's pass rate; only for a reliable item."""
        value = self.candidate if of_candidate else self.production
        if value is None:
            raise ValueError(f"{self.item} has no score")
        return value


@dataclass(frozen=True)
class GateEvidence:
    """All the gate looks at.

    ``expected_items`` is the size of the canary set; fewer ``items`` means some were not measured. Latencies
    are milliseconds per output token at batch 1, one per answer of at least one token.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    candidate_version: str
    production_version: str
    items: tuple[ItemEvidence, ...]
    expected_items: int
    candidate_latency: tuple[float, ...] = ()
    production_latency: tuple[float, ...] = ()
    missing_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no measurement can produce, naming it."""
        names = [item.item for item in self.items]
        if len(set(names)) != len(names):
            raise InputError("the gate's evidence names an item twice")
        for item in self.items:
            rates = (item.candidate, item.production, item.candidate_variance, item.production_variance)
            if not all(rate is None or 0.0 <= rate <= 1.0 for rate in rates):
                raise InputError(f"the gate's evidence for item {item.item} is outside 0..1: {rates}")
        for latency in (*self.candidate_latency, *self.production_latency):
            if not (math.isfinite(latency) and latency > 0):
                raise InputError(f"the gate's evidence has a latency of {latency} ms per token")

    def to_json(self) -> str:
        """Canonical JSON; ``from_json`` gives an equal value back."""
        return _canonical(asdict(self))

    @classmethod
    def from_json(cls, value: str | Mapping[str, Any]) -> GateEvidence:
        """Read stored evidence, as text or as the object a jsonb column gives; ``InputError`` when broken."""
        return _read(cls, "evidence", value)


@dataclass(frozen=True)
class RuleResult:
    """One rule's outcome, its reason in words, and the numbers the reason came from."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    outcome: Outcome
    reason: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What the gate says. ``improvement`` is ``None`` when nothing could be compared."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    status: Outcome
    improvement: float | None
    emergency: bool
    rules: tuple[RuleResult, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the status is what it is: the rules with that outcome."""
        return tuple(f"{rule.name}: {rule.reason}" for rule in self.rules if rule.outcome == self.status)

    @property
    def failed_rules(self) -> tuple[str, ...]:
        """The names of the rules that failed."""
        return tuple(rule.name for rule in self.rules if rule.outcome == "fail")

    def rule(self, name: str) -> RuleResult:
        """One rule's result by its name."""
        return next(rule for rule in self.rules if rule.name == name)

    def to_json(self) -> str:
        """Canonical JSON, ``reasons`` included; the same verdict is always the same bytes."""
        return _canonical({**asdict(self), "reasons": list(self.reasons)})

    @classmethod
    def from_json(cls, value: str | Mapping[str, Any]) -> Verdict:
        """Read a stored verdict; ``InputError`` when broken."""
        data = _object("verdict", value)
        # Written for those who read the row; they follow from the rules.
        return _read(cls, "verdict", {name: data[name] for name in data if name != "reasons"})


def _read(kind: type[T], what: str, value: str | Mapping[str, Any]) -> T:
    """A stored value; ``InputError`` names the field that is missing, of a wrong type, or not known."""
    try:
        # Strict: a text is no number, and what has another field was written by another schema.
        return TypeAdapter(kind).validate_json(json.dumps(_object(what, value)), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        more = f" and {error.error_count() - 1} more" if error.error_count() > 1 else ""
        raise InputError(f"stored gate {what}: {where}: {first['msg']}{more}") from None


def _object(what: str, value: str | Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise InputError(f"stored gate {what}: {error}") from None
    if not isinstance(found, Mapping):
        raise InputError(f"stored gate {what}: not an object")
    return found


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
