"""Request and response schemas of the HTTP API (G1); their descriptions are its documentation."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from iccm_assets.capture.conversations import ERASED_PREFIX, MAX_ID_LENGTH
from iccm_assets.errors import TestSuiteError
from iccm_assets.gateway.routing import CanarySplit
from iccm_assets.sandbox.source_files import join_files
from iccm_assets.suites.test_suites import parse_suite

MIN_TIMESTAMP = datetime(2000, 1, 1, tzinfo=UTC)


def _validate_id(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError("an id consists of printable characters and is not blank")
    if value.startswith(ERASED_PREFIX):
        raise ValueError(f"an id may not begin with {ERASED_PREFIX}")
    return value


def _validate_suite(value: object) -> object:
    if value is not None:
        try:
            parse_suite(value)
        except TestSuiteError as error:
            raise ValueError(error.detail) from None
    return value


def _require_text(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("a timestamp is a text like 2026-03-01T12:00:00+00:00")
    return value


def _to_utc(value: datetime) -> datetime:
    try:
        timestamp = value.astimezone(UTC)
    except (OverflowError, ValueError):
        raise ValueError("outside the calendar") from None
    if timestamp < MIN_TIMESTAMP:
        raise ValueError(f"before {MIN_TIMESTAMP:%Y}")
    return timestamp


Identifier = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_ID_LENGTH), AfterValidator(_validate_id)
]
SuiteDocument = Annotated[
    dict[str, Any] | None,
    AfterValidator(_validate_suite),
    Field(description='A test suite for the judge: {"kind": "cases", "cases": [...]}.'),
]
PastTimestamp = Annotated[
    AwareDatetime, BeforeValidator(_require_text), AfterValidator(_to_utc), Field(strict=False)
]
Rating = Annotated[Literal[-1, 1], Field(description="-1: thumbs down, 1: thumbs up.")]
Metadata = Annotated[dict[str, Any], Field(description="Stored with the conversation.")]
SourceFiles = Annotated[
    dict[str, str],
    Field(description="The files of a program, by path; `source_code` is the one that matters most."),
]
SourceCode = Annotated[str, Field(min_length=1, description="The code to write requirements for.")]


def _join(files: dict[str, str], source: str | None) -> str:
    """Write the files of a program as one text (J6); a ValueError is reported as that of the body."""
    return join_files(files, source) if files else source or ""


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class ProbeRequest(_Request):
    """Source code for which production's requirements are measured."""

    source_code: SourceCode
    source_files: SourceFiles = {}

    @model_validator(mode="after")
    def _join_source_files(self) -> Self:
        self.source_code = _join(self.source_files, self.source_code)
        self.source_files = {}
        return self


class RequirementsRequest(ProbeRequest):
    """Source code to write requirements for."""

    session_id: Identifier | None = Field(
        None, description="Keeps a session in one arm; default: the request id."
    )
    user_id: Identifier | None = None
    request_id: Identifier | None = Field(
        None, description="Repeating a request under its id returns the same response; default: a new id."
    )
    tests: SuiteDocument = None
    metadata: Metadata = {}


class _Response(BaseModel):
    requirements: str
    model_version: str
    latency_ms: float = Field(ge=0)


class RequirementsResponse(_Response):
    """The requirements, and the model version and arm that wrote them."""

    request_id: str
    session_id: str
    arm: Literal["production", "canary"]


class ProbeResponse(_Response):
    """Production's requirements; nothing is recorded."""

    output_tokens: int | None
    finish_reason: Literal["stop", "length", "truncated"] = Field(
        description="`length`: they stopped at the token limit. `truncated`: the model did not read the"
        " source to its end."
    )


class ConversationMessage(BaseModel):
    """One message of a conversation; additional keys, such as tool calls, are kept."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: str = Field(
        min_length=1, max_length=64, description="user (or human), assistant (or ai, gpt), tool, system, ..."
    )
    content: str | list[dict[str, Any] | str] | None = Field(
        None,
        description="A text, null (with tool calls) or a list of parts: texts, files, tool calls, results.",
    )


class CompleteSessionRequest(_Request):
    """A session in its final state; posting it again replaces it."""

    session_id: Identifier
    user_id: Identifier | None = None
    messages: list[ConversationMessage] = Field(description="The messages, in order.")
    requirements: str | None = Field(
        None, description="The requirements the developer accepted; default: from the messages."
    )
    source_code: str | None = Field(None, description="Their source code; default: from the messages.")
    source_files: SourceFiles = {}
    tests: SuiteDocument = None
    rating: Rating | None = None
    timestamp: PastTimestamp | None = Field(
        None, description="When it was accepted; may be in the past for late delivery. Default: now."
    )
    metadata: Metadata = {}

    @model_validator(mode="after")
    def _join_source_files(self) -> Self:
        if self.source_files:
            self.source_code, self.source_files = _join(self.source_files, self.source_code), {}
        return self


class SuiteStatus(BaseModel):
    """The test suite of a session: where it comes from, and whether it tests the source."""

    origin: str | None = Field(description="attached, collected or recorded; null without tests.")
    status: str | None = Field(description="usable, weak, mismatch or none; null until it is measured.")
    reason: str


class CompleteSessionResponse(BaseModel):
    """The id of the stored conversation, and what was extracted from it."""

    conversation_id: int
    source_code: str | None = Field(description="The source that the accepted requirements answer.")
    requirements: str | None = Field(description="The accepted requirements.")
    suite: SuiteStatus
    reason: str = Field(description="What is missing, and why; empty if nothing is.")


class FeedbackRequest(_Request):
    """A rating of a session, or of one of its responses."""

    request_id: Identifier | None = None
    session_id: Identifier | None = None
    user_id: Identifier | None = Field(None, description="Has to be the user of the session, if it has one.")
    rating: Rating
    comment: str | None = Field(None, max_length=10_000)

    @model_validator(mode="after")
    def _require_id(self) -> FeedbackRequest:
        if self.request_id is None and self.session_id is None:
            raise ValueError("request_id or session_id is required")
        return self


class FeedbackResponse(BaseModel):
    """The ids under which the rating is recorded."""

    session_id: str | None = Field(description="Null if the client names neither the session nor its user.")
    request_id: str | None


class LeaseStatus(CanarySplit):
    """The live rollout, and the traffic its canary arm gets now."""

    effective_weight: float = Field(
        description="Traffic fraction in force: 0 without a lease, or while a replica is not ready."
    )
    reason: str
    lease_seconds_left: float | None


class RoutingResponse(BaseModel):
    """The model versions that serve traffic now, as this replica sees them."""

    replica: str
    now: str
    production: str
    weights: dict[str, float] = Field(description="Traffic fraction by version.")
    rollout: LeaseStatus | None
    ready_versions: list[str]
    failed_versions: dict[str, str]
    replicas: int
    database: bool


class HealthStatus(BaseModel):
    """Always ok; otherwise the response is a problem document."""

    status: str


class ReadyStatus(HealthStatus):
    """Ready, with or without the database: production keeps serving while it is away."""

    database: str


class ProblemDocument(BaseModel):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str | None = Field(None, description="Name of the reason, where the model gave no response.")
