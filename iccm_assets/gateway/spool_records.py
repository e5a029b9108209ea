"""Build spool records: a row of `requests`, and for a response the content of its conversation (C1).

Records are redacted here, before they are written to the spool (C4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from iccm_assets.capture.conversations import sha256_of_source
from iccm_assets.capture.redaction.redact import make_redactor, pseudonymize_user_id, redact_document
from iccm_assets.capture.sanitizing import Sanitizer
from iccm_assets.capture.session_ownership import SessionOwner
from iccm_assets.settings import Settings


@dataclass(frozen=True)
class RequestOutcome:
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
    token_name: str | None = None
    finish_reason: str | None = None


def outcome_record(outcome: RequestOutcome, settings: Settings) -> dict[str, Any]:
    """Build the record of a failed request: its metadata and error, without its content."""
    user_id = pseudonymize_user_id(outcome.user_id, settings)
    row = {**vars(outcome), "user_id": user_id, "created_at": outcome.created_at.isoformat()}
    return {"type": "request", "row": row, "token_name": row.pop("token_name")}


def response_record(
    outcome: RequestOutcome,
    settings: Settings,
    *,
    source: str,
    text: str,
    tests: object,
    metadata: Mapping[str, Any],
) -> dict[str, Any]:
    """Build the record of a response, redacted as one document to keep source, text and tests consistent."""
    cleaner = Sanitizer()
    response = {
        "source": cleaner.clean_text(source),
        "text": cleaner.clean_text(text),
        "tests": cleaner.clean_suite(tests),
        "metadata": cleaner.clean_document(metadata, "metadata"),
    }
    response, redacted = redact_document(response) if settings.capture.redact else (response, {})
    response |= {"source_sha256": sha256_of_source(response["source"]), "redacted": redacted}
    return {**outcome_record(outcome, settings), "response": response}


def feedback_record(
    session_id: str,
    request_id: str | None,
    rating: int,
    comment: str | None,
    created_at: datetime,
    writer: SessionOwner,
    settings: Settings,
) -> dict[str, Any]:
    """Build the record of a thumbs up or down; the user id of its writer is a stored one."""
    row = {
        "session_id": session_id,
        "request_id": request_id,
        "rating": rating,
        "comment": None if comment is None else make_redactor(settings)(comment),
        "created_at": created_at.isoformat(),
    }
    return {"type": "feedback", "row": row, "user_id": writer.user_id, "token_name": writer.token_name}
