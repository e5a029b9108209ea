"""Simulated developers on a real gateway with a stub model: their sessions are stored as sent (X4)."""

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
from iccm_assets_tests.factories.gateways import database_url, eventually, gateway, rows

LAST = date(2026, 3, 1)
OVER = datetime(2026, 3, 20, tzinfo=UTC)
STORED = """
    select c.session_id, c.xmin::text, c.timestamp, c.user_id, c.metadata, r.id, r.kind, r.text, r.test_suite,
        r.created_at
    from iccm.conversations c join iccm.requirements r on r.conversation_id = c.id
    where c.session_id like :name order by 1, r.kind
"""


def make_plan(name: str, n: int = 40) -> list[PlannedSession]:
    return plan_conversations(3, n=n, days=7, users=12, end=LAST, name=name)


def run_plan(url: str, plan: Sequence[PlannedSession], as_of: datetime = OVER, **more):
    with closing(GatewayClient(url, **more)) as client:
        return http_sessions.run_sessions(client, plan, as_of=as_of, workers=8)


def count_responses(engine: sa.Engine, name: str) -> int:
    query = "select count(*) from iccm.requirements where kind = 'model' and session_id like :name"
    return int(rows(engine, query, name=f"sim-{name}-%")[0][0])


def test_a_simulated_week_is_stored_on_its_past_days_and_repeating_it_changes_nothing(served, engine):
    plan = make_plan("week")
    traffic, pending, stats = run_plan(served.url, plan)
    assert (traffic.conversations, traffic.version, pending) == (40, "v1", [])
    assert traffic.accepted_as_is + traffic.corrected + traffic.open == 40
    assert stats.arms == {"production": 40} and not stats.failures
    eventually(lambda: count_responses(engine, "week") == 40)
    stored = rows(engine, STORED, name="sim-week-%")
    by_session = {session.session_id: session for session in plan}
    accepted = {row.session_id: row for row in stored if row.kind == "accepted"}
    for row in accepted.values():
        session = by_session[row.session_id]
        expected = session.asked_at if session.habit == "abandons" else session.accepted_at
        assert (row.timestamp, row.metadata["simulated"]) == (expected, True)
        nothing_to_test = session.habit == "abandons" or "untested" in session.traits
        assert row.test_suite == (None if nothing_to_test else session.example.test_suite)
    tested = {row.session_id for row in stored if row.kind == "model" and row.test_suite is not None}
    assert tested == {session.session_id for session in plan if http_sessions.includes_tests(session)}
    assert len({session.user_id for session in plan}) == traffic.users == 12
    again, _, _ = run_plan(served.url, plan)
    assert again == traffic
    assert rows(engine, STORED, name="sim-week-%") == stored
    assert len(rows(engine, "select from iccm.requests where session_id like 'sim-week-%'")) == 40


def test_a_week_starts_once_the_gateway_has_read_the_new_time(fresh, tmp_path):
    """A gateway with the time of the week before stored all sessions of this week as of now, and its days
    stayed empty."""
    from iccm_assets.demo.weekly_cycle import set_platform_clock, wait_for_clock

    last = date(2026, 3, 8)
    before, week_end = datetime(2026, 3, 2, 2, tzinfo=UTC), datetime(2026, 3, 9, 2, tzinfo=UTC)
    plan = plan_conversations(3, n=20, days=7, users=5, end=last, name="lag")
    set_platform_clock(fresh, before)
    with gateway(database_url(fresh), tmp_path, ICCM_GATEWAY__POLL_INTERVAL_SECONDS="2") as running:
        set_platform_clock(fresh, week_end)
        with closing(GatewayClient(running.url)) as client:
            assert datetime.fromisoformat(client.get("/v1/routing")["now"]) < week_end  # not read yet
            wait_for_clock(client, week_end)
        run_plan(running.url, plan, as_of=week_end)
        days = {row.day for row in rows(fresh, "select timestamp::date as day from iccm.conversations")}
        assert max(days) <= last and len(days) > 1
        with pytest.raises(IccmError, match="clock says"), closing(GatewayClient(running.url)) as client:
            wait_for_clock(client, week_end + timedelta(days=1), timeout_seconds=0.5)


def test_a_session_delivered_late_is_open_first_and_completed_on_delivery(served, engine):
    plan = make_plan("late", 120)
    late = [session for session in plan if "late" in session.traits and session.habit != "abandons"][:3]
    traffic, pending, _ = run_plan(
        served.url, late, as_of=min(session.delivered_at for session in late) - timedelta(1)
    )
    assert traffic.open == len(pending) == len(late) == 3
    query = "select session_id, timestamp from iccm.conversations where session_id like 'sim-late-%'"
    assert dict(rows(engine, query)) == {session.session_id: session.asked_at for session in late}
    with closing(GatewayClient(served.url)) as client:
        still, stats = http_sessions.finish_pending(client, pending, as_of=OVER)
    assert still == [] and not stats.failures
    assert dict(rows(engine, query)) == {session.session_id: session.accepted_at for session in late}


def test_sessions_in_the_future_are_dated_now(served, engine):
    today = datetime.now(UTC).date()
    plan = plan_conversations(4, n=12, days=1, users=3, end=today + timedelta(days=1), name="early")
    _, _, stats = run_plan(served.url, plan, as_of=OVER + timedelta(days=36500))
    assert not stats.failures
    query = "select count(*) from iccm.conversations where session_id like :name and timestamp <= iccm.now()"
    assert rows(engine, query, name="sim-early-%")[0][0] == 12


@pytest.mark.slow
def test_requests_to_a_busy_gateway_are_retried_and_none_is_lost(fresh, tmp_path):
    few = {"ICCM_GATEWAY__QUEUE_SIZE": "1", "ICCM_GATEWAY__BATCH_SIZE": "1"}
    with gateway(database_url(fresh), tmp_path, seconds=0.05, **few) as running:
        traffic, _, stats = run_plan(running.url, make_plan("busy"))
    assert stats.statuses["503"] > 0 and stats.retried >= stats.statuses["503"]
    assert traffic.conversations == 40 and not stats.failures


def test_if_the_gateway_stays_unavailable_every_session_fails_with_the_reason(fresh, tmp_path):
    with gateway(database_url(fresh), tmp_path, faults={"v1": "error"}) as running:
        traffic, _, stats = run_plan(running.url, make_plan("broken", 12), timeout_seconds=0.5)
        assert traffic.conversations == 0 and len(stats.failures) == 12
        assert "the model failed on this request (tried" in stats.failures[0]
        running.kill()
        with (
            pytest.raises(GatewayError, match="no reply"),
            closing(GatewayClient(running.url, timeout_seconds=0.3)) as client,
        ):
            client.get("/v1/routing")


def test_the_token_is_sent_and_a_wrong_token_is_reported(fresh, tmp_path):
    token = "a-token-of-many-letters"
    with gateway(database_url(fresh), tmp_path, ICCM_GATEWAY__TOKENS=token) as running:
        assert run_plan(running.url, make_plan("token", 12), token=token)[0].conversations == 12
        with pytest.raises(GatewayError, match="401"):
            run_plan(running.url, make_plan("wrong", 12), token="another")


def test_ratings_are_stored_with_their_responses(served, engine):
    [session] = make_plan("rated", 12)[:1]
    with closing(GatewayClient(served.url)) as client:
        http_sessions.send_feedback(client, http_sessions.request_requirements(client, session), -1)
        with pytest.raises(GatewayError, match="404"):
            nobody = http_sessions.GatewayResponse("nobody/1", "", "v1", "production")
            http_sessions.send_feedback(GatewayClient(served.url, timeout_seconds=0.3), nobody, 1)
    query = "select rating from iccm.feedback where request_id = :id"
    assert eventually(lambda: rows(engine, query, id=f"{session.session_id}/1")) == [(-1,)]


@pytest.mark.slow
def test_a_demo_deletes_simulated_data_only(fresh, tmp_path):
    """It deletes no real conversation, no real response in a spool, and nothing under a running gateway."""
    url = database_url(fresh)
    settings = load_settings(home=tmp_path, database_url=url)
    with gateway(url, tmp_path) as running:
        run_plan(running.url, make_plan("mine", 12))
        eventually(lambda: count_responses(fresh, "mine") == 12)
        assert count_real_conversations(fresh) == 0
        # The first heartbeat may come after the first response.
        eventually(lambda: list_live_gateways(fresh) == [running.url])
        with pytest.raises(OperationNotAllowedError, match="1 gateways serve"):
            reset_platform(settings)
        running.terminate()
    with gateway(url, tmp_path, ICCM_GATEWAY__SPOOL_FLUSH_INTERVAL_MS="60000") as running:
        run_plan(running.url, make_plan("other", 12))
        assert count_real_responses(tmp_path / "spool") == 0
        running.request("real", metadata={"simulated": "yes, true"})
        running.kill()
    assert count_real_responses(tmp_path / "spool") == 1
    with pytest.raises(OperationNotAllowedError, match="1 responses of a gateway"):
        reset_platform(settings)
    with gateway(url, tmp_path) as running:
        eventually(lambda: count_real_conversations(fresh) == 1)
        running.terminate()
    with pytest.raises(OperationNotAllowedError, match="1 conversations that were not simulated"):
        reset_platform(settings)
