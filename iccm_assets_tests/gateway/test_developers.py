"""Simulated developers on a real gateway with a stub model: what they send is what is stored (X4)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, date, datetime, timedelta

import pytest
import sqlalchemy as sa

from iccm_assets.demo.reset import (
    count_real_conversations,
    count_real_responses,
    list_live_gateways,
    reset_platform,
)
from iccm_assets.errors import GatewayError, IccmError, OperationNotAllowedError
from iccm_assets.settings import load_settings
from iccm_assets.simulation.developers import http_sessions
from iccm_assets.simulation.developers.developers import PlannedSession, plan_conversations
from iccm_assets.simulation.developers.gateway_client import GatewayClient
from iccm_assets_tests.gateway.factories import eventually, gateway, rows
from iccm_assets_tests.gateway.test_traffic import url_of

LAST = date(2026, 3, 1)
OVER = datetime(2026, 3, 20, tzinfo=UTC)
STORED = """
    select c.session_id, c.xmin::text, c.timestamp, c.user_id, c.metadata, r.id, r.kind, r.text, r.test_suite,
        r.created_at
    from iccm.conversations c join iccm.requirements r on r.conversation_id = c.id
    where c.session_id like :name order by 1, r.kind
"""


def planned(name: str, n: int = 40) -> list[PlannedSession]:
    return plan_conversations(3, n=n, days=7, users=12, end=LAST, name=name)


def held(url: str, plan: Sequence[PlannedSession], by: datetime = OVER, **more):
    with closing(GatewayClient(url, **more)) as wire:
        return http_sessions.run_sessions(wire, plan, as_of=by, workers=8)


def answered(engine: sa.Engine, name: str) -> int:
    query = "select count(*) from iccm.requirements where kind = 'model' and session_id like :name"
    return int(rows(engine, query, name=f"sim-{name}-%")[0][0])


def test_a_week_over_http_is_stored_on_its_past_days_and_held_again_changes_nothing(served, engine):
    plan = planned("week")
    traffic, pending, replies = held(served.url, plan)
    assert (traffic.conversations, traffic.version, pending) == (40, "v1", [])
    assert traffic.accepted_as_is + traffic.corrected + traffic.open == 40
    assert replies.arms == {"production": 40} and not replies.failures
    eventually(lambda: answered(engine, "week") == 40)
    stored = rows(engine, STORED, name="sim-week-%")
    by_session = {one.session_id: one for one in plan}
    accepted = {row.session_id: row for row in stored if row.kind == "accepted"}
    for row in accepted.values():
        one = by_session[row.session_id]
        expected = one.asked_at if one.habit == "abandons" else one.accepted_at
        assert (row.timestamp, row.metadata["simulated"]) == (expected, True)
        nothing_to_test = one.habit == "abandons" or "untested" in one.traits
        assert row.test_suite == (None if nothing_to_test else one.example.test_suite)
    tested = {row.session_id for row in stored if row.kind == "model" and row.test_suite is not None}
    assert tested == {one.session_id for one in plan if http_sessions.includes_tests(one)}
    assert len({one.user_id for one in plan}) == traffic.users == 12
    again, _, _ = held(served.url, plan)
    assert again == traffic
    assert rows(engine, STORED, name="sim-week-%") == stored
    assert len(rows(engine, "select from iccm.requests where session_id like 'sim-week-%'")) == 40


def test_a_week_begins_when_the_gateway_has_heard_of_the_new_time(fresh, tmp_path):
    """A gateway that still lived in the week before took this week's sessions for future ones: all of them
    were stored as of now, a whole week of days stayed empty and nothing was learned from it."""
    from iccm_assets.demo.weekly_cycle import _set_clock, wait_for_clock

    last = date(2026, 3, 8)
    before, moment = datetime(2026, 3, 2, 2, tzinfo=UTC), datetime(2026, 3, 9, 2, tzinfo=UTC)
    plan = plan_conversations(3, n=20, days=7, users=5, end=last, name="lag")
    _set_clock(fresh, before)
    with gateway(url_of(fresh), tmp_path, ICCM_GATEWAY__POLL_INTERVAL_SECONDS="2") as running:
        _set_clock(fresh, moment)
        with closing(GatewayClient(running.url)) as wire:
            assert datetime.fromisoformat(wire.get("/v1/routing")["now"]) < moment  # it does lag
            wait_for_clock(wire, moment)
        held(running.url, plan, by=moment)
        days = {row.day for row in rows(fresh, "select timestamp::date as day from iccm.conversations")}
        assert max(days) <= last and len(days) > 1
        with pytest.raises(IccmError, match="clock says"), closing(GatewayClient(running.url)) as wire:
            wait_for_clock(wire, moment + timedelta(days=1), timeout_seconds=0.5)


def test_a_session_heard_of_late_is_open_first_and_completed_when_it_arrives(served, engine):
    plan = planned("late", 120)
    late = [one for one in plan if "late" in one.traits and one.habit != "abandons"][:3]
    traffic, pending, _ = held(served.url, late, by=min(one.delivered_at for one in late) - timedelta(1))
    assert traffic.open == len(pending) == len(late) == 3
    query = "select session_id, timestamp from iccm.conversations where session_id like 'sim-late-%'"
    assert dict(rows(engine, query)) == {one.session_id: one.asked_at for one in late}
    with closing(GatewayClient(served.url)) as wire:
        still, replies = http_sessions.finish_pending(wire, pending, as_of=OVER)
    assert still == [] and not replies.failures
    assert dict(rows(engine, query)) == {one.session_id: one.accepted_at for one in late}


def test_what_has_not_happened_yet_is_said_to_be_now(served, engine):
    today = datetime.now(UTC).date()
    plan = plan_conversations(4, n=12, days=1, users=3, end=today + timedelta(days=1), name="early")
    _, _, replies = held(served.url, plan, by=OVER + timedelta(days=36500))
    assert not replies.failures
    query = "select count(*) from iccm.conversations where session_id like :name and timestamp <= iccm.now()"
    assert rows(engine, query, name="sim-early-%")[0][0] == 12


def test_a_busy_gateway_is_asked_again_and_nobody_is_lost(fresh, tmp_path):
    few = {"ICCM_GATEWAY__QUEUE_SIZE": "1", "ICCM_GATEWAY__BATCH_SIZE": "1"}
    with gateway(url_of(fresh), tmp_path, seconds=0.05, **few) as one:
        traffic, _, replies = held(one.url, planned("busy"))
    assert replies.statuses["503"] > 0 and replies.retried >= replies.statuses["503"]
    assert traffic.conversations == 40 and not replies.failures


def test_a_gateway_that_stays_away_is_a_failure_of_each_session_with_its_reason(fresh, tmp_path):
    with gateway(url_of(fresh), tmp_path, faults={"v1": "error"}) as one:
        traffic, _, replies = held(one.url, planned("broken", 12), timeout_seconds=0.5)
        assert traffic.conversations == 0 and len(replies.failures) == 12
        assert "the model failed on this request (tried" in replies.failures[0]
        one.kill()
        with (
            pytest.raises(GatewayError, match="no reply"),
            closing(GatewayClient(one.url, timeout_seconds=0.3)) as wire,
        ):
            wire.get("/v1/routing")


def test_a_token_is_carried_and_a_wrong_one_is_told(fresh, tmp_path):
    token = "a-token-of-many-letters"
    with gateway(url_of(fresh), tmp_path, ICCM_GATEWAY__TOKENS=token) as one:
        assert held(one.url, planned("token", 12), token=token)[0].conversations == 12
        with pytest.raises(GatewayError, match="401"):
            held(one.url, planned("wrong", 12), token="another")


def test_ratings_reach_their_answers(served, engine):
    [session] = planned("rated", 12)[:1]
    with closing(GatewayClient(served.url)) as wire:
        http_sessions.send_feedback(wire, http_sessions.request_requirements(wire, session), -1)
        with pytest.raises(GatewayError, match="404"):
            nobody = http_sessions.GatewayResponse("nobody/1", "", "v1", "production")
            http_sessions.send_feedback(GatewayClient(served.url, timeout_seconds=0.3), nobody, 1)
    query = "select rating from iccm.feedback where request_id = :id"
    assert eventually(lambda: rows(engine, query, id=f"{session.session_id}/1")) == [(-1,)]


def test_a_demo_may_delete_what_is_marked_and_nothing_else(fresh, tmp_path):
    """Not a real conversation, not a real answer that is still in a spool, not under a running gateway."""
    url = url_of(fresh)
    settings = load_settings(home=tmp_path, database_url=url)
    with gateway(url, tmp_path) as one:
        held(one.url, planned("mine", 12))
        eventually(lambda: answered(fresh, "mine") == 12)
        assert count_real_conversations(fresh) == 0
        eventually(
            lambda: list_live_gateways(fresh) == [one.url]
        )  # its first heartbeat may come after its first answer
        with pytest.raises(OperationNotAllowedError, match="1 gateways serve"):
            reset_platform(settings)
        one.end()
    with gateway(url, tmp_path, ICCM_GATEWAY__SPOOL_FLUSH_INTERVAL_MS="60000") as one:
        held(one.url, planned("other", 12))
        assert count_real_responses(tmp_path / "spool") == 0
        one.ask("real", metadata={"simulated": "yes, true"})
        one.kill()
    assert count_real_responses(tmp_path / "spool") == 1
    with pytest.raises(OperationNotAllowedError, match="1 responses of a gateway"):
        reset_platform(settings)
    with gateway(url, tmp_path) as one:
        eventually(lambda: count_real_conversations(fresh) == 1)
        one.end()
    with pytest.raises(OperationNotAllowedError, match="1 conversations that were not simulated"):
        reset_platform(settings)
