"""The requests and answers of the HTTP interface (G1); their descriptions are its documentation."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

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

from iccm_assets.capture.conversations import ERASED, MAX_NAME
from iccm_assets.errors import SuiteError
from iccm_assets.judging.suites import load_suite

EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)


def _a_name(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError("a name has characters that can be printed")
    if value.startswith(ERASED):
        raise ValueError(f"a name may not begin with {ERASED}")
    return value


def _a_suite(value: object) -> object:
    if value is not None:
        try:
            load_suite(value)
        except SuiteError as error:
            raise ValueError(error.detail) from None
    return value


def _a_text(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("a moment is a text like 2026-03-01T12:00:00+00:00")
    return value


def _not_ancient(value: datetime) -> datetime:
    try:
        moment = value.astimezone(UTC)
    except (OverflowError, ValueError):
        raise ValueError("no moment of this calendar") from None
    if moment < EARLIEST:
        raise ValueError(f"before {EARLIEST:%Y}")
    return moment


Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME), AfterValidator(_a_name)]
Suite = Annotated[
    dict[str, Any] | None,
    AfterValidator(_a_suite),
    Field(description='A test suite of the judge: {"kind": "cases", "cases": [...]}.'),
]
Moment = Annotated[AwareDatetime, BeforeValidator(_a_text), AfterValidator(_not_ancient), Field(strict=False)]
Rating = Annotated[Literal[-1, 1], Field(description="-1: thumbs down, 1: thumbs up.")]
Metadata = Annotated[dict[str, Any], Field(description="Kept with the conversation.")]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class Ask(_In):
    """Source code to write requirements for."""

    source_code: str = Field(min_length=1, description="What the requirements are to be written for.")
    session_id: Name | None = Field(None, description="Keeps the session's arm; default: the request's id.")
    user_id: Name | None = None
    request_id: Name | None = Field(
        None, description="Asking again under the same id gets the same answer; default: a new one."
    )
    tests: Suite = None
    metadata: Metadata = {}


class Answered(BaseModel):
    """The requirements, and who wrote them."""

    request_id: str
    session_id: str
    requirements: str
    model_version: str
    arm: Literal["production", "canary"]
    latency_ms: float = Field(ge=0)


class Probe(_In):
    """Source code to answer for the sake of measuring."""

    source_code: str = Field(min_length=1, description="What the requirements are to be written for.")


class Probed(BaseModel):
    """Production's answer; nothing of it is recorded."""

    requirements: str
    model_version: str
    output_tokens: int | None
    latency_ms: float = Field(ge=0)


class Message(BaseModel):
    """One thing said; other keys are kept."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: str = Field(min_length=1, max_length=64)
    content: str


class Completion(_In):
    """A whole session, as it ended; posting it again replaces it."""

    session_id: Name
    user_id: Name | None = None
    messages: list[Message] = Field(description="What was said, in order.")
    requirements: str | None = Field(
        None, description="What the developer ended with; default: from messages."
    )
    source_code: str | None = Field(None, description="What it was about; default: from messages.")
    tests: Suite = None
    rating: Rating | None = None
    timestamp: Moment | None = Field(
        None, description="When it was accepted: past moments for late delivery."
    )
    metadata: Metadata = {}


class Completed(BaseModel):
    """Where the conversation is stored."""

    conversation_id: int


class Thumb(_In):
    """A rating of a session, or of one of its answers."""

    request_id: Name | None = None
    session_id: Name | None = None
    rating: Rating
    comment: str | None = Field(None, max_length=10_000)

    @model_validator(mode="after")
    def _one_of_them(self) -> Thumb:
        if self.request_id is None and self.session_id is None:
            raise ValueError("request_id or session_id is needed")
        return self


class Thanks(BaseModel):
    """The rating is recorded."""

    session_id: str
    request_id: str | None


class Lease(BaseModel):
    """The live rollout, and what its canary arm gets at this moment."""

    rollout_id: int
    state: str
    stage: int
    candidate: str
    former: str
    weight: float = Field(description="As the controller set it.")
    effective_weight: float = Field(description="Now: 0 without a lease, or while a replica is not ready.")
    reason: str
    lease_until: str | None
    lease_seconds_left: float | None


class RoutingShown(BaseModel):
    """Who answers at this moment, as this replica sees it."""

    replica: str
    now: str
    production: str
    weights: dict[str, float] = Field(description="Share of the traffic by version.")
    rollout: Lease | None
    ready_versions: list[str]
    failed_versions: dict[str, str]
    replicas: int
    database: bool


class Status(BaseModel):
    """ok, or what is missing."""

    status: str


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
