"""What a client completes or rates, where the database must have its say (C2)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from iccm_assets.capture.conversations import Conversation, record
from iccm_assets.capture.extraction import source_of
from iccm_assets.errors import InputError, NotAllowed
from iccm_assets.gateway.delivery import lock_sessions
from iccm_assets.gateway.problems import Problem
from iccm_assets.gateway.schemas import Completion
from iccm_assets.settings import Settings
from iccm_assets.store.clock import now

# How far a client's clock may be ahead of the platform's.
AHEAD = timedelta(seconds=60)


_TESTS_FOR_ANSWERS = sa.text(
    """
    update iccm.requirements answer set test_suite = accepted.test_suite
    from iccm.requirements accepted
    where accepted.session_id = :session and accepted.kind = 'accepted' and accepted.test_suite is not null
        and answer.session_id = :session and answer.kind = 'model' and answer.test_suite is null
        and answer.source_sha256 = accepted.source_sha256
    """
)


def complete(engine: sa.Engine, given: Completion, settings: Settings) -> int:
    """Store a session as it ended; returns the conversation's id, a `Problem` says why not.

    Source and tests that are not given, nor to be found in the messages, are those of the session's last
    answer. Tests that come only now are those of the answers about the same source, too (R11).
    """
    messages = [one.model_dump() for one in given.messages]
    try:
        with engine.begin() as conn:
            moment = now(conn)
            if given.timestamp is not None and given.timestamp > moment + AHEAD:
                raise Problem(422, f"timestamp: later than now, which is {moment:%Y-%m-%dT%H:%M:%S%z}")
            lock_sessions(conn, [given.session_id])
            source, tests = given.source_code, given.tests
            if source is None and source_of(messages, given.metadata) is None:
                source = _known_source(conn, given.session_id)
            if tests is None:
                tests = _known_tests(conn, given.session_id)
            conversation = Conversation(
                session_id=given.session_id,
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
            stored = record(conn, conversation, settings=settings)
            conn.execute(_TESTS_FOR_ANSWERS, {"session": given.session_id})
            return stored
    except InputError as error:
        raise Problem(422, error.message) from None
    except NotAllowed as error:
        raise Problem(410, error.message) from None


def _known_source(conn: sa.Connection, session: str) -> str | None:
    found = conn.execute(
        sa.text("select metadata ->> 'source_code' from iccm.conversations where session_id = :session"),
        {"session": session},
    ).scalar_one_or_none()
    return None if found is None else str(found)


def _known_tests(conn: sa.Connection, session: str) -> Any:
    return conn.execute(
        sa.text(
            """
            select test_suite from iccm.requirements
            where session_id = :session and kind = 'model' order by created_at desc, id desc limit 1
            """
        ),
        {"session": session},
    ).scalar_one_or_none()


def session_of(engine: sa.Engine, request_id: str | None, session: str | None) -> str | None:
    """The session a request belongs to, or the session itself when there is one of that name."""
    if request_id is not None:
        query, key = "select session_id from iccm.requests where request_id = :key", request_id
    else:
        query = """
            select session_id from iccm.conversations where session_id = :key
            union all select session_id from iccm.requests where session_id = :key limit 1
        """
        key = str(session)
    with engine.connect() as conn:
        found = conn.execute(sa.text(query), {"key": key}).scalar_one_or_none()
    return None if found is None else str(found)
