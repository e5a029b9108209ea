"""Each request and each session of a rollout is counted exactly once, however late it arrives (R11)."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.rollout import controller
from iccm_assets.rollout.observation import Observation, ReplayPair
from iccm_assets.rollout.observer import ObservationBatch, collect_observation
from iccm_assets.rollout.watermark import Watermark, advance
from iccm_assets_tests.factories.rollouts import World, short


@pytest.fixture
def rolled(world: World) -> World:
    """A rollout at 10 % whose weight does not change."""
    world.open()
    world.beat()
    world.tick()
    controller.execute_command(world.engine, world.settings, "pause", actor="test")
    return world


def look(world: World) -> ObservationBatch:
    with world.engine.connect() as conn:
        return collect_observation(conn, world.state(), world.settings, now(conn), seconds=60)


def observe(world: World) -> Observation:
    return look(world).observation


def rates(world: World, arm: str = "canary") -> list[float]:
    return [session.pass_rate for session in observe(world).sessions if session.arm == arm]


def count_exclusions(world: World) -> dict[str, int]:
    query = "select coalesce(exclusion_reason, 'counted'), count(*) from iccm.rollout_samples group by 1"
    return {row[0]: row[1] for row in world.rows(query)}


def test_a_session_counts_once_by_its_first_scored_response(rolled: World) -> None:
    rolled.ask("a", arm="canary", rate=0.5)
    rolled.ask("a", arm="canary", rate=0.9)
    assert rates(rolled) == [0.5]
    rolled.tick()
    rolled.ask("a", arm="canary", rate=1.0)
    assert rates(rolled) == []
    rolled.tick()
    assert rolled.state().evidence.canary_total.sessions == 1
    assert count_exclusions(rolled) == {"counted": 1, "later_answer": 2}


def test_a_response_waits_for_an_earlier_one_of_its_session(rolled: World) -> None:
    first = rolled.ask("a", arm="canary", rate=None)
    rolled.ask("a", arm="canary", rate=0.9)
    assert rates(rolled) == []
    assert first is not None
    rolled.score(first, 0.4)
    assert rates(rolled) == [0.4]


def test_after_an_inconclusive_first_response_the_next_one_counts(rolled: World) -> None:
    first = rolled.ask("a", arm="canary", rate=None, attempted=True)
    assert rates(rolled) == []
    rolled.ask("a", arm="canary", rate=0.9)
    assert rates(rolled) == [0.9]
    rolled.tick()
    assert first is not None
    rolled.score(first, 0.4)  # tried again: the session has its score
    assert rates(rolled) == []


def test_an_empty_response_is_evidence_only_where_its_suite_is(rolled: World) -> None:
    rolled.ask("a", arm="canary", rate=0.0, text=" \n")
    rolled.ask("b", arm="canary", rate=None, attempted=True, text=" \n")
    assert rates(rolled) == [0.0]


def test_without_tests_nothing_is_scored_and_nothing_waits(rolled: World) -> None:
    rolled.ask("a", arm="canary", tests=False)
    observation = observe(rolled)
    assert observation.sessions == () and observation.canary.requests == 1
    assert observation.fresh_at is not None and rolled.now() - observation.fresh_at < timedelta(seconds=30)


@pytest.mark.parametrize("order", ["canary first", "production first"])
def test_a_session_on_both_arms_counts_in_errors_and_not_in_quality(rolled: World, order: str) -> None:
    arms = ["canary", "production"] if order == "canary first" else ["production", "canary"]
    for arm in arms:
        rolled.ask("mixed", arm=arm, rate=0.1)
    rolled.ask("fell", arm="canary", status="fallback", rate=0.1)
    observation = observe(rolled)
    assert observation.sessions == ()
    assert (observation.canary.requests, observation.canary.errors, observation.production.requests) == (
        2,
        1,
        1,
    )
    rolled.tick()
    assert count_exclusions(rolled) == {"both_arms": 3}


def test_a_session_with_requests_outside_the_rollout_is_excluded_from_both_arms(rolled: World) -> None:
    """Before the opening, or during a lapsed lease, production served these sessions."""
    rolled.ask("old", arm="production", rollout_id=None, rate=0.1)
    rolled.ask("old", arm="production", rate=0.1)
    rolled.ask("lapsed", arm="canary", rate=0.1)
    rolled.ask("lapsed", arm="production", rollout_id=None, rate=0.1)
    assert observe(rolled).sessions == ()
    rolled.tick()
    assert count_exclusions(rolled) == {"elsewhere": 1, "both_arms": 1}


def test_failures_are_counted_by_the_arm_they_were_assigned_to(rolled: World) -> None:
    for status in ("ok", "error", "timeout", "fallback", "rejected"):
        for arm in ("canary", "production"):
            rolled.ask(arm=arm, status=status, tests=False)
    observation = observe(rolled)
    assert (observation.canary.requests, observation.canary.errors) == (4, 3)
    assert (observation.production.requests, observation.production.errors) == (4, 3)
    rolled.tick()
    assert observe(rolled).canary.requests == 0


def test_slow_requests_are_counted_by_limits_known_before(rolled: World) -> None:
    """Production's p95 times the allowed ratio for the canary arm, and the p95 itself for production."""
    for _ in range(20):
        rolled.ask(arm="production", latency=100.0, tokens=10, tests=False)
    assert observe(rolled).production.timed == 0
    rolled.tick()
    assert rolled.state().evidence.slow_threshold_ms == pytest.approx(12.0)
    for per_token in (11.0, 13.0, 9.0):
        rolled.ask(arm="canary", latency=per_token * 10, tokens=10, tests=False)
        rolled.ask(arm="production", latency=per_token * 10, tokens=10, tests=False)
    rolled.ask(arm="canary", latency=900.0, tokens=0, tests=False)  # no tokens, no pace
    rolled.ask(arm="canary", latency=900.0, status="timeout")
    rolled.ask(arm="canary", latency=900.0, status="fallback", tests=False)  # production's pace
    observation = observe(rolled)
    assert (observation.canary.timed, observation.canary.slow) == (3, 1)
    assert (observation.production.timed, observation.production.slow) == (3, 2)


def test_the_health_window_covers_the_last_hour_including_counted_rows(rolled: World) -> None:
    policy = rolled.state().policy
    rolled.ask(
        "old", arm="canary", rate=0.2, at=rolled.now() - timedelta(seconds=policy.health_window_seconds + 60)
    )
    rolled.ask("first", arm="canary", rate=0.4)
    rolled.tick()
    rolled.ask("second", arm="canary", rate=0.8)
    rolled.ask("third", arm="canary", status="error")
    window = observe(rolled).canary_window
    assert (window.sessions, window.requests, window.errors) == (2, 3, 1)
    assert window.pass_rate == pytest.approx(0.6) and window.variance == pytest.approx(0.01)


def test_the_latency_of_the_health_window_is_the_p95_of_what_the_arm_served_itself(rolled: World) -> None:
    for number in range(1, 22):
        rolled.ask(arm="canary", latency=number * 10.0, tokens=10, tests=False)
    rolled.ask(arm="canary", latency=900.0, status="fallback", tests=False)
    rolled.ask(arm="canary", latency=900.0, status="rejected", tests=False)
    rolled.ask(arm="production", latency=70.0, tokens=10, tests=False)
    observation = observe(rolled)
    window = observation.canary_window
    assert (window.requests, window.errors, window.timed) == (22, 1, 21)
    assert window.latency_p95 == pytest.approx(20.0)
    assert observation.production_window.latency_p95 == pytest.approx(7.0)


def test_an_excluded_response_is_no_part_of_the_health_window(rolled: World) -> None:
    rolled.ask("a", arm="canary", rate=0.4)
    rolled.ask("a", arm="canary", rate=1.0)
    rolled.tick()
    window = observe(rolled).canary_window
    assert (window.sessions, window.pass_rate) == (1, 0.4)


def test_an_unscored_response_outside_the_rollout_does_not_make_the_data_old(rolled: World) -> None:
    rolled.ask("other", arm="production", rate=None, rollout_id=None)
    rolled.wait(3600)
    fresh = observe(rolled).fresh_at
    assert fresh is not None and rolled.now() - fresh < timedelta(minutes=10)


def test_only_scored_responses_of_the_last_day_are_traffic_enough_to_replay_nothing(rolled: World) -> None:
    rolled.settings = short(rolled.settings, replay_threshold_sessions=2)
    for version in (rolled.candidate, rolled.production):
        measured(rolled, version, "conversation:1", [0.5, 0.5])
    rolled.ask("a", arm="production")
    rolled.ask("a", arm="production")  # a session counts once
    rolled.ask("b", arm="production", rate=None, attempted=True)  # no score
    assert len(observe(rolled).replay) == 1
    rolled.ask("b", arm="production")
    assert observe(rolled).replay == ()


def test_versions_are_compared_by_the_same_members_and_by_the_newest_measurement(rolled: World) -> None:
    rolled.settings = short(rolled.settings, replay_threshold_sessions=200)
    measured(rolled, rolled.candidate, "conversation:1", [0.9, 0.9])
    measured(rolled, rolled.production, "conversation:1", [0.9, 0.9, 0.9])  # a third member
    for judge, rate in (("1", 0.4), ("2", 0.6)):
        for version in (rolled.candidate, rolled.production):
            measured(rolled, version, "conversation:2", [rate, rate], judge_version=judge)
    assert observe(rolled).replay == (ReplayPair(0.6, 0.6),)


def test_late_rows_of_a_spool_are_counted_when_they_arrive(rolled: World) -> None:
    for number in range(3):
        rolled.ask(f"s{number}", arm="canary")
    rolled.tick()
    rolled.wait(7200)
    rolled.beat()
    rolled.ask("recent", arm="canary")
    rolled.tick()
    late = rolled.ask("late", arm="canary", rate=None, at=rolled.now() - timedelta(hours=2))
    assert late is not None
    rolled.score(late, 0.25)
    assert rates(rolled) == [0.25] and observe(rolled).canary.requests == 1
    rolled.tick()
    assert rolled.state().evidence.canary_total.sessions == 5
    assert rolled.state().evidence.canary_total.requests == 5


def test_what_a_transaction_stores_that_ends_after_the_tick_is_neither_lost_nor_counted_twice(
    rolled: World,
) -> None:
    """Its id is below those of rows already counted: a watermark of ids would skip it."""
    with rolled.engine.connect() as slow, slow.begin():
        rolled.ask("slow", arm="canary", conn=slow)
        rolled.ask("quick", arm="canary")
        rolled.tick()
        total = rolled.state().evidence.canary_total
        assert (total.sessions, total.requests) == (1, 0)  # not even the quick one's request, yet
    rolled.tick()
    rolled.tick()
    total = rolled.state().evidence.canary_total
    assert (total.sessions, total.requests) == (2, 2)


def test_data_is_as_old_as_the_oldest_unscored_response(rolled: World) -> None:
    fresh = observe(rolled).fresh_at
    assert fresh is not None and rolled.now() - fresh < timedelta(seconds=30)
    came = rolled.now()
    waiting = rolled.ask("a", arm="canary", rate=None)
    rolled.wait(3600)
    rolled.ask("b", arm="canary", rate=0.8)
    fresh = observe(rolled).fresh_at
    assert fresh is not None and timedelta(0) <= fresh - came < timedelta(seconds=30)
    assert waiting is not None
    rolled.score(waiting, None)  # tried: somebody measures, though this one is not known
    fresh = observe(rolled).fresh_at
    assert fresh is not None and rolled.now() - fresh < timedelta(seconds=30)


def test_late_tests_do_not_make_the_data_old(rolled: World) -> None:
    answer = rolled.ask("a", arm="canary", tests=False, at=rolled.now() - timedelta(hours=3))
    with rolled.engine.begin() as conn:
        made = conn.execute(
            t.conversations.insert()
            .values(session_id="a", origin="gateway")
            .returning(t.conversations.c.id, t.conversations.c.updated_at)
        ).one()
        r = t.requirements
        conn.execute(
            r.update().where(r.c.id == answer).values(conversation_id=made.id, test_suite={"kind": "cases"})
        )
    assert observe(rolled).fresh_at == made.updated_at


def test_a_transaction_that_never_ends_makes_the_data_old(rolled: World) -> None:
    rolled.tick()
    with rolled.engine.connect() as stuck, stuck.begin():
        stuck.execute(sa.text("select pg_current_xact_id()"))
        rolled.ask("a", arm="canary", status="error")
        since = rolled.now()
        for _ in range(3):
            rolled.wait(1800)
            rolled.beat()
            rolled.tick()
        observation = observe(rolled)
        assert observation.fresh_at is not None and observation.fresh_at - since < timedelta(minutes=31)
        assert "minutes old" in rolled.state().reason
    rolled.tick()
    assert rolled.state().evidence.canary_total.errors == 1


def test_only_live_replicas_count_as_ready(rolled: World) -> None:
    rolled.beat(3)
    assert (observe(rolled).replicas, observe(rolled).ready) == (3, 3)
    with rolled.engine.begin() as conn:
        conn.execute(
            t.gateway_replicas.insert().values(replica="loading", ready_versions=[rolled.production])
        )
        conn.execute(
            t.gateway_replicas.insert().values(
                replica="dead", heartbeat_at=sa.text("iccm.now() - interval '1 minute'")
            )
        )
    assert (observe(rolled).replicas, observe(rolled).ready) == (4, 3)


def measured(world: World, version: str, item: str, rates: list[float | None], **more: Any) -> None:
    """Store an evaluated production-holdout item: a row per member of the orchestra."""
    with world.engine.begin() as conn:
        digest = conn.execute(
            sa.select(t.model_versions.c.digest).where(t.model_versions.c.version == version)
        ).scalar_one()
        for number, rate in enumerate(rates):
            values = {
                "version": version, "model_digest": digest, "set": "production_holdout",
                "canary_set_digest": f"holdout:{item}", "item": item, "slice": "production_holdout",
                "reconstructor": f"m{number}", "orchestra": "o", "judge_version": "1", "decoding": "greedy",
                "requirements": "…", "test_pass_rate": rate,
                "status": "scored" if rate is not None else "suspect",
            }  # fmt: skip
            conn.execute(t.canary_results.insert().values({**values, **more}))


def test_replayed_pairs_count_once_and_only_with_scores_of_both_versions(rolled: World) -> None:
    rolled.settings = short(rolled.settings, replay_threshold_sessions=200)
    both = (rolled.candidate, rolled.production)
    for version, item_rates in zip(both, ([1.0, 0.5], [0.5, 0.5]), strict=True):
        measured(rolled, version, "conversation:1", item_rates)
    for version in both:
        measured(rolled, version, "conversation:2", [0.9, None])  # a doubtful member
        measured(rolled, version, "conversation:3", [0.9])  # no quorum
        measured(rolled, version, "conversation:5", [0.9, 0.9], set="canary_set")
    measured(rolled, rolled.candidate, "conversation:4", [0.9, 0.9])  # production was never asked
    assert observe(rolled).replay == (ReplayPair(0.75, 0.5),)
    rolled.tick()
    assert rolled.state().evidence.pairs == 1 and observe(rolled).replay == ()
    for version in both:  # the same item by another orchestra is no new evidence
        measured(rolled, version, "conversation:1", [0.1, 0.1], orchestra="other")
        measured(rolled, version, "conversation:6", [0.6, 0.6])
    assert observe(rolled).replay == (ReplayPair(0.6, 0.6),)


def test_with_enough_traffic_nothing_is_replayed(rolled: World) -> None:
    rolled.settings = short(rolled.settings, replay_threshold_sessions=3)
    for version in (rolled.candidate, rolled.production):
        measured(rolled, version, "conversation:1", [0.5, 0.5])
    rolled.ask("a", arm="production")
    rolled.ask("b", arm="production")
    assert len(observe(rolled).replay) == 1
    rolled.ask("c", arm="production")
    assert observe(rolled).replay == ()
    rolled.wait(86_400 + 60)
    assert len(observe(rolled).replay) == 1


def test_an_impossible_variance_is_excluded_and_blocks_nothing(rolled: World) -> None:
    rolled.ask("a", arm="canary", rate=0.5, variance=0.6)
    rolled.ask("b", arm="canary", rate=0.7)
    rolled.tick()
    assert rolled.state().evidence.canary_total.sessions == 1
    assert count_exclusions(rolled) == {"counted": 1, "impossible": 1}


def test_sessions_belong_to_the_stage_they_were_served_in(world: World) -> None:
    world.open()
    world.stage(1)
    late = world.ask("late", arm="canary", rate=None)
    world.stage(2)
    assert late is not None
    world.score(late, 0.5)
    world.ask("now", arm="canary", rate=0.9)
    assert [(session.stage, session.pass_rate) for session in observe(world).sessions] == [(1, 0.5), (2, 0.9)]


def test_a_damaged_watermark_is_a_fault_and_counts_nothing(rolled: World) -> None:
    rolled.ask("a", arm="canary")
    with rolled.engine.begin() as conn:
        conn.execute(
            sa.text("update iccm.rollouts set evidence = jsonb_set(evidence, '{watermark}', '\"nonsense\"')")
        )
    decision = rolled.tick()
    assert "nonsense" in decision.reason and rolled.rows("select 1 from iccm.rollout_samples") == []


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_counted_twice_or_lost_in_any_order_of_storing_scoring_and_ticking(
    rolled: World, seed: int
) -> None:
    """Transactions that end at random, late dates, late scores, invalid and repeated observations."""
    rng = random.Random(seed)
    opened: list[tuple[sa.Connection, sa.Transaction, list[int]]] = []
    unscored: list[int] = []
    requests = {"canary": 0, "production": 0}
    sessions = {"canary": 0, "production": 0}
    for _ in range(70):
        act = rng.random()
        if act < 0.45:
            if len(opened) < 4 and rng.random() < 0.5:
                conn = rolled.engine.connect()
                opened.append((conn, conn.begin(), []))
            arm = rng.choice(["canary", "production"])
            requests[arm] += 1
            scorable = rng.random() < 0.7
            at = rolled.now() - timedelta(seconds=rng.choice([0, 0, 5, 4000]))
            conn, _, answers = rng.choice(opened) if opened and rng.random() < 0.7 else (None, None, unscored)
            answer = rolled.ask(arm=arm, rate=None, tests=scorable, at=at, conn=conn)
            if scorable:
                sessions[arm] += 1
                assert answer is not None
                answers.append(answer)
        elif act < 0.6 and opened:
            conn, transaction, answers = opened.pop(rng.randrange(len(opened)))
            transaction.commit()
            conn.close()
            unscored += answers
        elif act < 0.75 and unscored:
            rolled.score(unscored.pop(rng.randrange(len(unscored))), 0.8)
        elif act < 0.8:
            rolled.wait(rng.choice([1, 30, 400]))
        else:
            rolled.beat(ready=rng.choice([None, None, [rolled.production]]))
            look(rolled)  # one that nobody decides on
            rolled.tick()
    for conn, transaction, answers in opened:
        transaction.commit()
        conn.close()
        unscored += answers
    for answer in unscored:
        rolled.score(answer, 0.8)
    rolled.tick()
    rolled.tick()
    evidence = rolled.state().evidence
    assert {arm: getattr(evidence, f"{arm}_total").requests for arm in requests} == requests
    assert {arm: getattr(evidence, f"{arm}_total").sessions for arm in sessions} == sessions


def test_the_watermark_never_goes_back() -> None:
    from datetime import UTC, datetime

    at = datetime(2026, 3, 1, tzinfo=UTC)
    minute = timedelta(minutes=1)
    start = advance(None, first=7, until=100, oldest=100, newest=100, now=at)
    assert (start.first_requirement_id, start.next_xid, start.settled_at) == (7, 100, at)
    busy = advance(start, first=9, until=103, oldest=103, newest=110, now=at + minute)
    assert (busy.first_requirement_id, busy.next_xid, busy.settled_at, busy.high_watermark) == (
        7,
        103,
        at,
        110,
    )
    stuck = advance(busy, first=9, until=103, oldest=103, newest=150, now=at + 9 * minute)
    assert (stuck.next_xid, stuck.settled_at) == (103, at)
    freed = advance(stuck, first=9, until=140, oldest=140, newest=160, now=at + 10 * minute)
    assert (freed.next_xid, freed.settled_at) == (140, at + minute)
    full = advance(start, first=9, until=101, oldest=200, newest=200, now=at + minute)
    assert (full.next_xid, full.settled_at) == (101, at)
    assert Watermark.parse(str(freed)) == freed and Watermark.parse("") is None
