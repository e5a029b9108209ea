"""An orchestra of two local members, and rows that a scoring pass selects."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from iccm_assets.capture.conversations import Conversation, upsert_conversation
from iccm_assets.db import tables as t
from iccm_assets.gateway.spool_records import RequestOutcome, outcome_record, response_record
from iccm_assets.scoring.orchestra import LocalReconstructor, Orchestra
from iccm_assets.settings import Settings

TEXT = "The function `f` shall return twice its argument."
SOURCE = "def f(x):\n    return 2 * x\n"
# Strong: no stub and no mutant of the source passes it.
SUITE = {
    "kind": "cases",
    "cases": [{"call": "f", "args": [n], "expect": 2 * n} for n in (3, 0, -4, 7, 2.5, 1000001)],
}
# Tests nothing: an empty file passes it.
VACUOUS_PYTEST = {"kind": "pytest", "files": {"test_x.py": "def test_ok():\n    assert True\n"}}
NOW = datetime.now(UTC)


def make_text(number: object) -> str:
    return f"The function `f` shall return twice its argument. It shall be number {number}."


def make_orchestra(on_read: Callable[[str], Any] = lambda text: None) -> Orchestra:
    def read(text: str) -> str:
        on_read(text)
        return "def f(x):\n    return 2 * x\n"

    return Orchestra((LocalReconstructor("a", read), LocalReconstructor("b", read)), quorum=2)


def put_conversation(
    engine: sa.Engine,
    settings: Settings,
    session: str,
    day: int = 1,
    suite: Any = SUITE,
    text: str = TEXT,
    source: str = SOURCE,
) -> int:
    conversation = Conversation(
        session_id=session,
        messages=[{"role": "user", "content": "?"}],
        timestamp=datetime(2026, 3, day, 12, tzinfo=UTC),
        requirements=text,
        source_code=source,
        test_suite=suite,
        origin="simulated",
    )
    with engine.begin() as conn:
        return upsert_conversation(conn, conversation, settings=settings)


def serve_request(engine: sa.Engine, settings: Settings, request: str, session: str, **values: Any) -> None:
    """Store a request as the gateway does."""
    from iccm_assets.gateway.persistence import store_records

    with engine.begin() as conn:
        store_records(conn, [make_record(settings, request, session, **values)], settings)


def make_record(
    settings: Settings,
    request: str,
    session: str,
    *,
    text: str | None = None,
    tests: object = SUITE,
    rollout: int | None = None,
    arm: str = "production",
    status: str = "ok",
    minutes_ago: float = 10,
    at: datetime | None = None,
    finish_reason: str | None = "stop",
) -> dict[str, Any]:
    """The record that the gateway spools of a request."""
    arm_served = None if status in ("error", "timeout") else "production" if status == "fallback" else arm
    outcome = RequestOutcome(
        request_id=request,
        session_id=session,
        user_id=None,
        rollout_id=rollout,
        assigned_arm=arm,
        arm=arm_served,
        model_version="v2" if arm_served == "canary" else "v1",
        status=status,
        error=None,
        latency_ms=100.0,
        output_tokens=10,
        created_at=at or NOW - timedelta(minutes=minutes_ago),
        finish_reason=finish_reason,
    )
    if arm_served is None:
        return outcome_record(outcome, settings)
    text = make_text(request) if text is None else text
    return response_record(outcome, settings, source=SOURCE, text=text, tests=tests, metadata={})


def load_model_rows(engine: sa.Engine) -> dict[str, Any]:
    r = t.requirements.c
    with engine.connect() as conn:
        rows = conn.execute(sa.select(t.requirements).where(r.kind == "model"))
        return {row.request_id: row for row in rows}
