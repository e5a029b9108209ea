"""Filter policy: whether a conversation may be trained on, with the reason; pure functions (F1, F3, M3)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from iccm_assets.capture.extraction import find_source
from iccm_assets.capture.messages import parse_messages
from iccm_assets.curation.decontamination import Contamination
from iccm_assets.settings import CurationSettings

RejectionStage = Literal["filter", "policy"]


@dataclass(frozen=True)
class ScoredConversation:
    """A conversation of the day with its scores.

    ``requirements``, the hash of their source, the scores and the suite's kind (``evidence``), origin and
    status belong to the accepted text, None without one; ``suite_problem`` is the reason of a status that is
    not usable. ``first_*`` belong to CET-D's first response. ``builtin_only``: no other member than those of
    `builtin` gave it a score.
    """

    conversation_id: int
    session_id: str
    user_id: str | None
    content: object
    metadata: object
    simulated: bool = False
    erased: bool = False
    negative_feedback: bool = False
    requirements: str | None = None
    source_sha256: str | None = None
    has_test_suite: bool = False
    scored: bool = False
    test_pass_rate: float | None = None
    implementation_variance: float | None = None
    builtin_only: bool = False
    first_response: str | None = None
    first_test_pass_rate: float | None = None
    evidence: str | None = None
    test_suite_origin: str | None = None
    suite_status: str | None = None
    suite_problem: str | None = None


@dataclass(frozen=True)
class Kept:
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
    evidence: str
    test_suite_origin: str


@dataclass(frozen=True)
class Rejected:
    """A row of ``phase4_rejections``: ``reason`` is a code to count by, ``detail`` has the numbers."""

    conversation_id: int
    stage: RejectionStage
    reason: str
    detail: str | None = None
    similarity: float | None = None


# Stage, reason and detail of a rejection.
RejectionReason = tuple[RejectionStage, str, str | None]


def apply_filter(conversation: ScoredConversation, curation: CurationSettings) -> Kept | Rejected:
    """Keep or reject one conversation; reports the first reason that applies.

    Overlap with the canary set is checked later, for kept conversations only: see ``reject_contaminated``.
    """
    # The source that was scored, not just any of the session.
    source = find_source(conversation.content, conversation.metadata, conversation.source_sha256)
    rejection = (
        _policy_rejection(conversation, curation)
        or _content_rejection(conversation, source)
        or _score_rejection(conversation, curation)
    )
    if rejection is not None:
        return Rejected(conversation.conversation_id, *rejection)
    rate, variance = conversation.test_pass_rate, conversation.implementation_variance
    evidence, origin = conversation.evidence, conversation.test_suite_origin
    assert source is not None and conversation.requirements is not None
    assert rate is not None and variance is not None and evidence is not None and origin is not None
    return Kept(
        conversation_id=conversation.conversation_id,
        session_id=conversation.session_id,
        user_id=conversation.user_id,
        source_code=source,
        requirements=conversation.requirements,
        test_pass_rate=rate,
        implementation_variance=variance,
        quality_score=rate - curation.variance_weight * variance,
        # CET-D's first response had failed, and the developer accepted another text (T7).
        failed_first=conversation.first_test_pass_rate is not None
        and conversation.first_test_pass_rate <= curation.min_test_pass_rate
        and conversation.first_response != conversation.requirements,
        evidence=evidence,
        test_suite_origin=origin,
    )


def reject_contaminated(kept: Kept, contamination: Contamination) -> Rejected:
    """Reject a kept conversation that overlaps the canary set (F4)."""
    return Rejected(
        kept.conversation_id, "policy", "canary_leak", contamination.description, contamination.similarity
    )


def _policy_rejection(conversation: ScoredConversation, curation: CurationSettings) -> RejectionReason | None:
    if conversation.erased:
        return "policy", "erased", None
    held_out = is_in_holdout(conversation.session_id, curation.holdout_fraction)
    return ("policy", "held_out", None) if held_out else None


def _content_rejection(conversation: ScoredConversation, source: str | None) -> RejectionReason | None:
    if not parse_messages(conversation.content):
        return "filter", "no_messages", None
    if conversation.requirements is None or not conversation.requirements.strip():
        return "filter", "no_requirements", None
    return ("filter", "no_source_code", None) if source is None else None


# Rejection reason by the status of a suite that is no evidence.
_SUITE_REJECTIONS = {
    "weak": "weak_suite",
    "mismatch": "suite_mismatch",
    "none": "unmeasured_suite",
    "invalid": "invalid_suite",
}


def _score_rejection(conversation: ScoredConversation, curation: CurationSettings) -> RejectionReason | None:
    """Distinguish missing scores, scores that cannot be measured, and bad scores."""
    rate, variance = conversation.test_pass_rate, conversation.implementation_variance
    if conversation.negative_feedback:
        return "filter", "negative_feedback", None
    if not conversation.scored:
        return "filter", "not_scored" if conversation.has_test_suite else "no_test_suite", None
    if rate is None or variance is None:
        reason = _SUITE_REJECTIONS.get(conversation.suite_status or "")
        return "filter", reason or "inconclusive", conversation.suite_problem if reason else None
    return _evidence_rejection(conversation, curation) or _measured_rejection(rate, variance, curation)


def _evidence_rejection(
    conversation: ScoredConversation, curation: CurationSettings
) -> RejectionReason | None:
    if conversation.evidence not in curation.allowed_evidence:
        return "policy", "evidence_kind", f"{conversation.evidence} is not in {curation.evidence}"
    if conversation.test_suite_origin not in curation.allowed_suite_origins:
        return (
            "policy",
            "suite_origin",
            f"{conversation.test_suite_origin} is not in {curation.suite_origins}",
        )
    if conversation.builtin_only and not conversation.simulated:
        return "filter", "builtin_only", "`builtin` reads its reference language only; set ICCM_ORCHESTRA"
    return None


def _measured_rejection(rate: float, variance: float, curation: CurationSettings) -> RejectionReason | None:
    if not rate > curation.min_test_pass_rate:
        return "filter", "low_test_pass_rate", f"{rate:.4f} is not above {curation.min_test_pass_rate:g}"
    if not variance < curation.max_implementation_variance:
        return (
            "filter",
            "high_implementation_variance",
            f"{variance:.4f} is not below {curation.max_implementation_variance:g}",
        )
    return None


def is_in_holdout(session_id: str, fraction: float) -> bool:
    """Return whether a session is in the holdout: a fixed ``fraction`` of sessions, by a hash of the id.

    The result depends on nothing else, so a session held out once is never trained on; a larger fraction only
    adds sessions.
    """
    digest = hashlib.blake2b(session_id.encode("utf-8"), digest_size=8, person=b"iccm-held-out").digest()
    return int.from_bytes(digest, "big") < fraction * 2**64
