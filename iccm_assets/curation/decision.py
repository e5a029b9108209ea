"""Filter policy: whether a conversation may be trained on, with the reason; pure functions (F1, F3, M3)."""

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
    """A conversation of the day with its scores.

    ``requirements`` and the scores belong to the accepted text, None without one; ``first_*`` belong to
    CET-D's first response.
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
    first_response: str | None = None
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
    """A row of ``phase4_rejections``: ``reason`` is a code to count by, ``detail`` has the numbers."""

    conversation_id: int
    stage: Stage
    reason: str
    detail: str | None = None
    similarity: float | None = None


# Stage, reason and detail of a rejection.
Rejection = tuple[Stage, str, str | None]


def decide(candidate: Candidate, curation: Curation) -> Keep | Reject:
    """Keep or reject one conversation; reports the first reason that applies.

    Overlap with the canary set is checked later, for kept conversations only: see ``reject_leak``.
    """
    source = source_of(candidate.content, candidate.metadata)
    rejection = _policy(candidate, curation) or _content(candidate, source) or _evidence(candidate, curation)
    if rejection is not None:
        return Reject(candidate.conversation_id, *rejection)
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
        # CET-D's first response had failed, and the developer accepted another text (T7).
        failed_first=candidate.first_test_pass_rate is not None
        and candidate.first_test_pass_rate <= curation.min_test_pass_rate
        and candidate.first_response != candidate.requirements,
    )


def reject_leak(kept: Keep, leak: Leak) -> Reject:
    """Reject a kept conversation that overlaps the canary set (F4)."""
    return Reject(kept.conversation_id, "policy", "canary_leak", leak.detail, leak.similarity)


def _policy(candidate: Candidate, curation: Curation) -> Rejection | None:
    if candidate.erased:
        return "policy", "erased", None
    held_out = is_held_out(candidate.session_id, curation.held_out_share)
    return ("policy", "held_out", None) if held_out else None


def _content(candidate: Candidate, source: str | None) -> Rejection | None:
    if not messages_of(candidate.content):
        return "filter", "no_messages", None
    if candidate.requirements is None or not candidate.requirements.strip():
        return "filter", "no_requirements", None
    return ("filter", "no_source_code", None) if source is None else None


def _evidence(candidate: Candidate, curation: Curation) -> Rejection | None:
    """Distinguish bad scores, missing scores and scores that cannot be measured."""
    rate, variance = candidate.test_pass_rate, candidate.implementation_variance
    if candidate.negative_feedback:
        return "filter", "negative_feedback", None
    if not candidate.scored:
        return "filter", "not_scored" if candidate.has_test_suite else "no_test_suite", None
    if rate is None or variance is None:
        return "filter", "inconclusive", None
    if not rate > curation.min_test_pass_rate:
        return "filter", "low_test_pass_rate", f"{rate:.4f} is not above {curation.min_test_pass_rate:g}"
    if not variance < curation.max_implementation_variance:
        return (
            "filter",
            "high_implementation_variance",
            f"{variance:.4f} is not below {curation.max_implementation_variance:g}",
        )
    return None
