"""Complete a session, and find the session of a request, where the database is needed (C2)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, text

from iccm_assets.capture.conversations import Conversation, record
from iccm_assets.capture.extraction import source_of
from iccm_assets.errors import InputError, NotAllowed
from iccm_assets.gateway.problems import Problem
from iccm_assets.gateway.schemas import Completion
from iccm_assets.settings import Settings
from iccm_assets.store.clock import now as platform_now
from iccm_assets.store.locks import Lock, acquire_lock

# How far a client's clock may be ahead of the platform clock.
AHEAD = timedelta(seconds=60)

_SOURCE = "select metadata ->> 'source_code' from iccm.conversations where session_id = :session"
_TESTS = """
    select test_suite from iccm.requirements
    where session_id = :session and kind = 'model' order by created_at desc, id desc limit 1
"""
_ADD_TESTS_TO_RESPONSES = text(
    """
    update iccm.requirements response set test_suite = accepted.test_suite
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


def complete(engine: Engine, given: Completion, settings: Settings) -> int:
    """Store a session in its final state, and return the conversation's id; a `ProblemDetail` rejects it.

    Source and tests default to those in the messages, then to those of the session's last response. Tests
    that arrive only now are added to the responses about the same source (R11).
    """
    session, source, tests = given.session_id, given.source_code, given.tests
    messages = [message.model_dump() for message in given.messages]
    try:
        with engine.begin() as conn:
            now = platform_now(conn)
            if given.timestamp is not None and given.timestamp > now + AHEAD:
                raise Problem(422, f"timestamp: later than now, which is {now:%Y-%m-%dT%H:%M:%S%z}")
            acquire_lock(conn, Lock.SESSION, session)
            if source is None and source_of(messages, given.metadata) is None:
                source = _query_value(conn, _SOURCE, session=session)
            if tests is None:
                tests = _query_value(conn, _TESTS, session=session)
            conversation = Conversation(
                session_id=session,
                messages=messages,
                user_id=given.user_id,
                timestamp=given.timestamp,
                metadata={**given.metadata, "completed": True},
                origin="gateway",
                requirements=given.requirements,
                source_code=source,
                test_suite=tests,
                rating=given.rating,
            )
            conversation_id = record(conn, conversation, settings=settings)
            conn.execute(_ADD_TESTS_TO_RESPONSES, {"session": session})
            return conversation_id
    except (InputError, NotAllowed) as error:
        raise Problem(422 if isinstance(error, InputError) else 410, error.message) from None


def session_of(engine: Engine, request_id: str | None, session: str | None) -> str | None:
    """Find the session of a request, or the session itself if it exists."""
    query = _SESSION if request_id is None else _REQUEST_SESSION
    with engine.connect() as conn:
        result: str | None = _query_value(conn, query, request=request_id, session=session)
    return result


def _query_value(conn: Connection, query: str, **parameters: str | None) -> Any:
    return conn.execute(text(query), parameters).scalar_one_or_none()
