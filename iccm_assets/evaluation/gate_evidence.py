"""Evidence and verdict of the quality gate, as plain values that can be stored (E3, E5).

Both are stored as canonical JSON: sorted keys, no spaces, numbers of the verdict rounded to nine decimals.
Evidence that is read back equals the evidence written, so a replayed verdict has the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError

from iccm_assets.errors import InputError

Outcome = Literal["pass", "fail", "inconclusive"]


class _StoredValue:
    """Base of the stored values; ``_derived`` names properties that are written and ignored when read."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    _derived: ClassVar[tuple[str, ...]] = ()

    def to_json(self) -> str:
        """Serialize to canonical JSON: equal values give the same bytes."""
        value = {**vars(self), **{name: getattr(self, name) for name in self._derived}}
        return json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=asdict
        )

    @classmethod
    def from_json(cls, stored: str | Mapping[str, Any]) -> Self:
        """Parse a stored value, as text or as the object of a jsonb column.

        Raises ``InputError``, which names the first field that is missing, of a wrong type or unknown.
        """
        value_name = cls.__name__.removeprefix("Gate").lower()
        try:
            value = json.loads(stored) if isinstance(stored, str) else stored
            if isinstance(value, dict):
                value = {name: value[name] for name in value if name not in cls._derived}
            # Strict: a text is not a number, and an unknown field means another schema.
            return TypeAdapter(cls).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            field_name = ".".join(map(str, first["loc"])) or "value"
            more = f" and {error.error_count() - 1} more" if error.error_count() > 1 else ""
            raise InputError(f"stored gate {value_name}: {field_name}: {first['msg']}{more}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"stored gate {value_name}: {error}") from None


@dataclass(frozen=True)
class ItemEvidence(_StoredValue):
    """The scores of one canary item for both versions: means over the orchestra, None where inconclusive.

    ``unreliable_reason`` says why the judge does not trust these numbers; empty when it does. ``is_blank``:
    the candidate's response has no visible character.
    """

    item: str
    slice: str
    candidate: float | None
    production: float | None
    candidate_variance: float | None = None
    production_variance: float | None = None
    unreliable_reason: str = ""
    is_blank: bool = False

    @property
    def reliable(self) -> bool:
        """Whether both versions have a score that the judge trusts."""
        return self.candidate is not None and self.production is not None and not self.unreliable_reason

    @property
    def difference(self) -> float:
        """Candidate's pass rate minus production's; only for a reliable item."""
        return self.rate(of_candidate=True) - self.rate(of_candidate=False)

    def rate(self, *, of_candidate: bool) -> float:
        """Return one version's pass rate; only for a reliable item."""
        value = self.candidate if of_candidate else self.production
        if value is None:
            raise ValueError(f"{self.item} has no score")
        return value


@dataclass(frozen=True)
class GateEvidence(_StoredValue):
    """The evidence that the gate decides on.

    ``expected_items`` is the size of the canary set; with fewer ``items``, some were not measured. Latencies
    are milliseconds per output token at batch 1, one per response of at least one token.
    """

    candidate_version: str
    production_version: str
    items: tuple[ItemEvidence, ...]
    expected_items: int
    candidate_latency: tuple[float, ...] = ()
    production_latency: tuple[float, ...] = ()
    missing_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Reject values that no measurement can produce, by name."""
        if len({item.item for item in self.items}) != len(self.items):
            raise InputError("the gate's evidence names an item twice")
        for item in self.items:
            rates = (item.candidate, item.production, item.candidate_variance, item.production_variance)
            if not all(rate is None or 0.0 <= rate <= 1.0 for rate in rates):
                raise InputError(f"the gate's evidence for item {item.item} is outside 0..1: {rates}")
        for latency in (*self.candidate_latency, *self.production_latency):
            if not (math.isfinite(latency) and latency > 0):
                raise InputError(f"the gate's evidence has a latency of {latency} ms per token")


@dataclass(frozen=True)
class RuleResult(_StoredValue):
    """The outcome of one rule, its reason, and the numbers of the reason."""

    name: str
    outcome: Outcome
    reason: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict(_StoredValue):
    """The gate's verdict; ``improvement`` is None when nothing could be compared."""

    _derived: ClassVar[tuple[str, ...]] = ("reasons",)

    status: Outcome
    improvement: float | None
    emergency: bool
    rules: tuple[RuleResult, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Name and reason of the rules that decided the status."""
        return tuple(f"{rule.name}: {rule.reason}" for rule in self.rules if rule.outcome == self.status)

    def rule(self, name: str) -> RuleResult:
        """Return a rule's result by its name."""
        return next(rule for rule in self.rules if rule.name == name)
