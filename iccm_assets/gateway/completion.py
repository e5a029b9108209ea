"""Complete a session, and find the session of a request, where the database is needed (C2)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, text

from iccm_assets.capture.conversations import Conversation, upsert_conversation
from iccm_assets.capture.extraction import extract_source
from iccm_assets.db.clock import now as platform_now
from iccm_assets.db.locks import Lock, acquire_lock
from iccm_assets.errors import InputError, OperationNotAllowedError, SessionOwnershipError
from iccm_assets.gateway.problem_details import ProblemDetail
from iccm_assets.gateway.schemas import CompleteSessionRequest
from iccm_assets.settings import Settings

# How far a client's clock may be ahead of the platform clock.
MAX_CLOCK_SKEW = timedelta(seconds=60)

_SOURCE = "select metadata ->> 'source_code' from iccm.conversations where session_id = :session"
_TESTS = """
    select test_suite from iccm.requirements
    where session_id = :session and kind = 'model' order by created_at desc, id desc limit 1
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


def complete_session(
    engine: Engine, request: CompleteSessionRequest, token_name: str | None, settings: Settings
) -> int:
    """Store a session in its final state, and return the conversation's id; a `ProblemDetail` rejects it.

    Source and tests default to those in the messages, then to those of the session's last response. Tests
    that arrive only now are added to the responses about the same source (R11).
    """
    session, source, tests = request.session_id, request.source_code, request.tests
    messages = [message.model_dump() for message in request.messages]
    try:
        with engine.begin() as conn:
            now = platform_now(conn)
            if request.timestamp is not None and request.timestamp > now + MAX_CLOCK_SKEW:
                raise ProblemDetail(422, f"timestamp: later than now, which is {now:%Y-%m-%dT%H:%M:%S%z}")
            acquire_lock(conn, Lock.SESSION, session)
            if source is None and extract_source(messages, request.metadata) is None:
                source = _query_value(conn, _SOURCE, session=session)
            if tests is None:
                tests = _query_value(conn, _TESTS, session=session)
            conversation = Conversation(
                session_id=session,
                messages=messages,
                user_id=request.user_id,
                timestamp=request.timestamp,
                metadata={**request.metadata, "completed": True},
                origin="gateway",
                requirements=request.requirements,
                source_code=source,
                test_suite=tests,
                rating=request.rating,
                token_name=token_name,
            )
            conversation_id = upsert_conversation(conn, conversation, settings=settings)
            conn.execute(_ADD_TESTS_TO_RESPONSES, {"session": session})
            return conversation_id
    except SessionOwnershipError as error:
        raise ProblemDetail(409, error.message) from None
    except InputError as error:
        raise ProblemDetail(422, error.message) from None
    except OperationNotAllowedError as error:
        raise ProblemDetail(410, error.message) from None


def find_session(engine: Engine, request_id: str | None, session: str | None) -> str | None:
    """Find the session of a request, or the session itself if it exists."""
    query = _SESSION if request_id is None else _REQUEST_SESSION
    with engine.connect() as conn:
        result: str | None = _query_value(conn, query, request=request_id, session=session)
    return result


def _query_value(conn: Connection, query: str, **parameters: str | None) -> Any:
    return conn.execute(text(query), parameters).scalar_one_or_none()
