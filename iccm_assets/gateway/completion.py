"""Complete a session, and find the session of a request, where the database is needed (C2)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, text

from iccm_assets.capture.conversations import Conversation, StoredConversation, store_conversation
from iccm_assets.capture.extraction import extract_exchange, find_sources, sha256_of_text
from iccm_assets.capture.prepared_conversations import join_source_files
from iccm_assets.db.clock import now as platform_now
from iccm_assets.db.locks import Lock, acquire_lock
from iccm_assets.errors import InputError, OperationNotAllowedError, SessionOwnershipError
from iccm_assets.gateway.problem_details import ProblemDetail
from iccm_assets.gateway.request_sources import RecordedAnswer, choose_source, choose_suite, find_missing
from iccm_assets.gateway.schemas import CompleteSessionRequest, CompleteSessionResponse, SuiteStatus
from iccm_assets.settings import Settings
from iccm_assets.suites.test_suites import parse_suite

# How far a client's clock may be ahead of the platform clock.
MAX_CLOCK_SKEW = timedelta(seconds=60)

_CONVERSATION = "select content, metadata from iccm.conversations where session_id = :session"
_ANSWERS = """
    select text, source_sha256, test_suite, test_suite_origin from iccm.requirements
    where session_id = :session and kind = 'model' order by created_at desc, id desc
"""
_MEASURED = """
    select status, reason from iccm.test_suites
    where source_sha256 = :source and digest = :digest and environment is null
    order by created_at desc limit 1
"""
_ADD_TESTS_TO_RESPONSES = text(
    """
    update iccm.requirements response
    set test_suite = accepted.test_suite, test_suite_origin = accepted.test_suite_origin
    from iccm.requirements accepted
    where accepted.session_id = :session and accepted.kind = 'accepted' and accepted.test_suite is not null
        and response.session_id = :session and response.kind = 'model' and response.test_suite is null
        and response.source_sha256 = accepted.source_sha256
    """
)
_REQUEST_SESSION = "select session_id from iccm.requests where request_id = :request"
_SESSION = """
    select session_id from iccm.conversations where session_id = :session
    union all select session_id from iccm.requests where session_id = :session limit 1
"""


@dataclass(frozen=True)
class _Completion:
    """What a request completes a session with: also its source and tests, where the session has them."""

    source: str | None
    suite: object
    suite_origin: str
    missing_sources: list[str]


def complete_session(
    engine: Engine, request: CompleteSessionRequest, token_name: str | None, settings: Settings
) -> CompleteSessionResponse:
    """Store a session in its final state, and return what it holds; a `ProblemDetail` rejects it.

    Source and tests default to those in the messages, then to those of the session's responses. Tests
    that arrive only now are added to the responses about the same source (R11).
    """
    session = request.session_id
    messages = [message.model_dump() for message in request.messages]
    try:
        with engine.begin() as conn:
            now = platform_now(conn)
            if request.timestamp is not None and request.timestamp > now + MAX_CLOCK_SKEW:
                raise ProblemDetail(422, f"timestamp: later than now, which is {now:%Y-%m-%dT%H:%M:%S%z}")
            acquire_lock(conn, Lock.SESSION, session)
            completion = _complete(conn, request, messages)
            sources = completion.missing_sources
            conversation = Conversation(
                session_id=session,
                messages=messages,
                user_id=request.user_id,
                timestamp=request.timestamp,
                metadata={
                    **request.metadata,
                    "completed": True,
                    **({"request_sources": sources} if sources else {}),
                },
                origin="gateway",
                requirements=request.requirements,
                source_code=completion.source,
                test_suite=completion.suite,
                test_suite_origin=completion.suite_origin,
                rating=request.rating,
                token_name=token_name,
            )
            stored = store_conversation(conn, conversation, settings)
            conn.execute(_ADD_TESTS_TO_RESPONSES, {"session": session})
            return CompleteSessionResponse(
                conversation_id=stored.conversation_id,
                source_code=stored.exchange.source,
                requirements=stored.exchange.requirements,
                suite=_describe_suite(conn, stored, completion),
                reason=stored.exchange.reason,
            )
    except SessionOwnershipError as error:
        raise ProblemDetail(409, error.message) from None
    except InputError as error:
        raise ProblemDetail(422, error.message) from None
    except OperationNotAllowedError as error:
        raise ProblemDetail(410, error.message) from None


def _complete(conn: Connection, request: CompleteSessionRequest, messages: list[Any]) -> _Completion:
    """Add the source, the tests and the sources of earlier responses that the session already has."""
    answers, last_source = _load_answers(conn, request.session_id)
    source = request.source_code
    metadata = {
        **join_source_files(request.metadata),
        **({} if request.requirements is None else {"requirements": request.requirements}),
    }
    if source is None and not isinstance(metadata.get("source_code"), str):
        exchange = extract_exchange(messages, metadata, request.tests)
        source = choose_source(exchange, answers, request.tests)
        source = last_source if source is None and exchange.source is None else source
    metadata |= {} if source is None else {"source_code": source}
    suite, origin = request.tests, "attached"
    if suite is None:
        suite, origin = choose_suite(extract_exchange(messages, metadata).source, answers)
    return _Completion(source, suite, origin, find_missing(messages, metadata, answers))


def _load_answers(conn: Connection, session: str) -> tuple[list[RecordedAnswer], str | None]:
    """Load the session's responses with their sources, newest first, and the source of the last request."""
    row = conn.execute(text(_CONVERSATION), {"session": session}).one_or_none()
    content, metadata = (None, None) if row is None else row
    stored = conn.execute(text(_ANSWERS), {"session": session}).all()
    sources = find_sources(content, metadata, {answer.source_sha256 for answer in stored})
    answers = [
        RecordedAnswer(
            answer.text,
            sources.get(answer.source_sha256),
            answer.source_sha256,
            answer.test_suite,
            answer.test_suite_origin,
        )
        for answer in stored
    ]
    last_source = metadata.get("source_code") if isinstance(metadata, dict) else None
    return answers, last_source if isinstance(last_source, str) else None


def _describe_suite(conn: Connection, stored: StoredConversation, completion: _Completion) -> SuiteStatus:
    source = stored.exchange.source
    if completion.suite is None:
        return SuiteStatus(origin=None, status="none", reason="no tests came with the session")
    key = {"source": source and sha256_of_text(source), "digest": parse_suite(completion.suite).digest}
    measured = conn.execute(text(_MEASURED), key).one_or_none()
    reason = "it is measured before the first score" if measured is None else measured.reason or ""
    status = None if measured is None else measured.status
    return SuiteStatus(origin=completion.suite_origin, status=status, reason=reason)


def find_session(engine: Engine, request_id: str | None, session: str | None) -> str | None:
    """Find the session of a request, or the session itself if it exists."""
    query = _SESSION if request_id is None else _REQUEST_SESSION
    with engine.connect() as conn:
        result: str | None = _query_value(conn, query, request=request_id, session=session)
    return result


def _query_value(conn: Connection, query: str, **parameters: str | None) -> Any:
    return conn.execute(text(query), parameters).scalar_one_or_none()
