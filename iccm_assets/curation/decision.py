"""Whether a conversation may teach the model: one pure decision, with its reason (F1, F3, M3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from iccm_assets.capture.extraction import messages_of, source_of
from iccm_assets.curation.holdout import is_held_out
from iccm_assets.curation.leaks import Leak
from iccm_assets.settings import Curation

Stage = Literal["filter", "policy"]


@dataclass(frozen=True)
class Candidate:
    """A conversation of the day as the database knows it.

    ``requirements`` and the scores are those of the accepted text, None where there is none;
    ``first_*`` those of CET-D's first answer.
    """

    conversation_id: int
    session_id: str
    user_id: str | None
    content: object
    metadata: object
    erased: bool = False
    negative_feedback: bool = False
    requirements: str | None = None
    has_test_suite: bool = False
    scored: bool = False
    test_pass_rate: float | None = None
    implementation_variance: float | None = None
    first_answer: str | None = None
    first_test_pass_rate: float | None = None


@dataclass(frozen=True)
class Keep:
    """A row of ``filtered_conversations``."""

    conversation_id: int
    session_id: str
    user_id: str | None
    source_code: str
    requirements: str
    test_pass_rate: float
    implementation_variance: float
    quality_score: float
    failed_first: bool


@dataclass(frozen=True)
class Reject:
    """A row of ``phase4_rejections``: ``reason`` is one word to count by, ``detail`` has the numbers."""

    conversation_id: int
    stage: Stage
    reason: str
    detail: str | None = None
    similarity: float | None = None


def decide(candidate: Candidate, curation: Curation) -> Keep | Reject:
    """Keep or reject one conversation; the first reason that holds is the one named.

    Overlap with the canary set is looked at afterwards, for the kept alone: see ``reject_leak``.
    """
    source = source_of(candidate.content, candidate.metadata)
    rejected = _policy(candidate, curation) or _content(candidate, source) or _evidence(candidate, curation)
    if rejected is not None:
        return rejected
    rate, variance = candidate.test_pass_rate, candidate.implementation_variance
    assert source is not None and candidate.requirements is not None
    assert rate is not None and variance is not None
    return Keep(
        conversation_id=candidate.conversation_id,
        session_id=candidate.session_id,
        user_id=candidate.user_id,
        source_code=source,
        requirements=candidate.requirements,
        test_pass_rate=rate,
        implementation_variance=variance,
        quality_score=rate - curation.variance_weight * variance,
        failed_first=_failed_first(candidate, curation),
    )


def reject_leak(kept: Keep, leak: Leak) -> Reject:
    """What becomes of a kept conversation that overlaps the canary set (F4)."""
    return Reject(kept.conversation_id, "policy", "canary_leak", leak.detail, leak.similarity)


def _policy(candidate: Candidate, curation: Curation) -> Reject | None:
    if candidate.erased:
        return Reject(candidate.conversation_id, "policy", "erased")
    if is_held_out(candidate.session_id, curation.held_out_share):
        return Reject(candidate.conversation_id, "policy", "held_out")
    return None


def _content(candidate: Candidate, source: str | None) -> Reject | None:
    missing = None
    if not messages_of(candidate.content):
        missing = "no_messages"
    elif candidate.requirements is None or not candidate.requirements.strip():
        missing = "no_requirements"
    elif source is None:
        missing = "no_source_code"
    return None if missing is None else Reject(candidate.conversation_id, "filter", missing)


def _evidence(candidate: Candidate, curation: Curation) -> Reject | None:
    """Bad, not measured and not measurable are three different things."""
    rate, variance = candidate.test_pass_rate, candidate.implementation_variance
    reason, detail = None, None
    if candidate.negative_feedback:
        reason = "negative_feedback"
    elif not candidate.scored:
        reason = "not_scored" if candidate.has_test_suite else "no_test_suite"
    elif rate is None or variance is None:
        reason = "inconclusive"
    elif not rate > curation.min_test_pass_rate:
        reason = "low_test_pass_rate"
        detail = f"{rate:.4f} is not above {curation.min_test_pass_rate:g}"
    elif not variance < curation.max_implementation_variance:
        reason = "high_implementation_variance"
        detail = f"{variance:.4f} is not below {curation.max_implementation_variance:g}"
    return None if reason is None else Reject(candidate.conversation_id, "filter", reason, detail)


def _failed_first(candidate: Candidate, curation: Curation) -> bool:
    """CET-D's first answer had not worked, and the developer ended with another text (T7)."""
    return (
        candidate.first_test_pass_rate is not None
        and candidate.first_test_pass_rate <= curation.min_test_pass_rate
        and candidate.first_answer != candidate.requirements
    )
