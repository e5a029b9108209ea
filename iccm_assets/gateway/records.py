"""What is recorded of a request: a row of `requests`, and for an answer what a conversation is made of (C1).

Records are redacted here, before they reach the spool's file (C4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from iccm_assets.capture.cleaning import Cleaner
from iccm_assets.capture.conversations import source_digest
from iccm_assets.capture.redaction import redact_document, redactor, stored_user_id
from iccm_assets.settings import Settings


@dataclass(frozen=True)
class Outcome:
    """One row of `requests`."""

    request_id: str
    session_id: str
    user_id: str | None
    rollout_id: int | None
    assigned_arm: str
    arm: str | None
    model_version: str | None
    status: str
    error: str | None
    latency_ms: float
    output_tokens: int | None
    created_at: datetime


def outcome_record(outcome: Outcome, settings: Settings) -> dict[str, Any]:
    """A request that was not answered: who asked and why not, nothing of what was asked."""
    row = {**asdict(outcome), "created_at": outcome.created_at.isoformat()}
    return {"type": "request", "row": {**row, "user_id": stored_user_id(outcome.user_id, settings)}}


def answer_record(
    outcome: Outcome,
    settings: Settings,
    *,
    source: str,
    text: str,
    tests: object,
    metadata: Mapping[str, Any],
) -> dict[str, Any]:
    """An answered request, redacted as one document, so that source, answer and tests keep agreeing."""
    cleaner = Cleaner()
    told = {
        "source": cleaner.text(source),
        "text": cleaner.text(text),
        "tests": cleaner.suite(tests),
        "metadata": cleaner.document(metadata, "metadata"),
    }
    counts: dict[str, int] = {}
    if settings.capture.redact:
        told, counts = redact_document(told)
    said = {**told, "source_sha256": source_digest(told["source"]), "redacted": counts}
    return {**outcome_record(outcome, settings), "said": said}


def feedback_record(
    session_id: str,
    request_id: str | None,
    rating: int,
    comment: str | None,
    at: datetime,
    settings: Settings,
) -> dict[str, Any]:
    """A thumbs up or down."""
    comment = None if comment is None else redactor(settings)(comment)
    return {
        "type": "feedback",
        "row": {
            "session_id": session_id,
            "request_id": request_id,
            "rating": rating,
            "comment": comment,
            "created_at": at.isoformat(),
        },
    }
