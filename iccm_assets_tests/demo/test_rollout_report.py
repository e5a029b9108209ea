"""The pure parts of the demo's rollouts: clock rate, progress display, acceptance checks."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
import sqlalchemy as sa
from rich.console import Console

from iccm_assets.db import tables as t
from iccm_assets.demo import rollout_progress, rollout_report
from iccm_assets.demo.acceptance_checks import (
    RolloutRecord,
    TrafficSplit,
    check_responses,
    check_retrain,
    check_rollback,
    check_rollout,
    load_rollout_record,
)
from iccm_assets.demo.rollout_driver import (
    MAX_CLOCK_RATE,
    MIN_CLOCK_RATE,
    BackgroundLoop,
    compute_clock_rate,
)
from iccm_assets.demo.rollout_progress import RolloutSnapshot
from iccm_assets.demo.rollout_scenario import (
    MAX_DEGRADED_CLOCK_RATE,
    MAX_DEVELOPERS,
    MAX_RESPONSE_SECONDS,
    MAX_UNSCORED,
    MIN_DEGRADED_CLOCK_RATE,
    MIN_DEVELOPERS,
    ScenarioContext,
    adjust_clock_limit,
    adjust_developers,
    compute_degraded_clock_rate,
)
from iccm_assets.errors import InputError
from iccm_assets.gateway.routing import session_bucket
from iccm_assets.rollout.policy import Policy
from iccm_assets.rollout.sequential_evidence import TESTS
from iccm_assets.rollout.state import State
from iccm_assets.settings import EvaluationSettings, RolloutSettings
from iccm_assets.simulation.developers.http_sessions import ResponseStats
from iccm_assets.simulation.developers.live_sessions import draw_live_sessions, make_code_base
from iccm_assets_tests.factories.gateways import version

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
TEN = TrafficSplit(0.1, 1640, 165, 1640, 165, 0, 0, 0, 48)
FIFTY = TrafficSplit(0.5, 905, 450, 905, 450, 0, 0, 0, 130)
ALL = TrafficSplit(1.0, 150, 150, 150, 150, 0, 0, 0, 40)


def event(kind: str, minute: float, weight: float, actor: str = "controller") -> dict[str, Any]:
    return {
        "timestamp": NOON + timedelta(minutes=minute), "event_type": kind, "to_state": kind, "version": "v2",
        "weight": weight, "notes": f"{kind}, [numbers]", "actor": actor,
    }  # fmt: skip


GOOD = RolloutRecord(
    rollout_id=1, candidate="v2", previous="v1", state="completed", stage=3, weight=1.0, opened_at=NOON,
    closed_at=NOON + timedelta(minutes=9), splits=(TEN, FIFTY, ALL),
    events=(event("opened", 0, 0.0, "dagster run 1"), event("started", 1, 0.1), event("completed", 9, 1.0)),
    rollbacks=(), alerts=(), production="v2", statuses={"v2": "production", "v1": "retired"}, archived=True,
    sessions=2695, canary_sessions=765, scored_canary=218, canary_pass_rate=0.81,
)  # fmt: skip
ROLLED_BACK = replace(
    GOOD, state="rolled_back", stage=1, weight=0.0, splits=(replace(TEN, requests=200, canary_requests=20),),
    closed_at=NOON + timedelta(minutes=24), production="v1", sessions=160, canary_sessions=16,
    statuses={"v2": "rolled_back", "v1": "production"},
    events=(event("started", 1, 0.1), event("rolled_back", 24, 0.0)),
    rollbacks=({"timestamp": NOON, "reason": "low_pass_rate", "new_model_path": "/m/v2", "notes": "bad"},),
    alerts=({"key": "a", "severity": "warning", "title": "Model Rollback", "body": "[v2] rolled back"},),
)  # fmt: skip


def failed_checks(checks) -> list[str]:
    return [check.name for check in checks if not check.ok]


def test_the_clock_rate_ends_time_and_sessions_of_a_stage_together() -> None:
    assert compute_clock_rate(180, 1800, 20) == pytest.approx(2.0)  # 90 s of traffic for 180 s of stage
    assert compute_clock_rate(180, 1800, 5) == pytest.approx(0.5)
    assert compute_clock_rate(180, 1800, 0) == MIN_CLOCK_RATE == compute_clock_rate(1, 5000, 1)
    assert compute_clock_rate(180, 0, 20) == MAX_CLOCK_RATE == compute_clock_rate(7200, 10, 50)
    assert compute_clock_rate(0, 0, 20) == 1.0


def test_fewer_developers_come_where_responses_are_slow() -> None:
    assert (
        adjust_developers(10, MAX_RESPONSE_SECONDS / 2) > 10 > adjust_developers(10, 2 * MAX_RESPONSE_SECONDS)
    )
    assert adjust_developers(MAX_DEVELOPERS, 0.0) == MAX_DEVELOPERS
    assert adjust_developers(MIN_DEVELOPERS, 30.0) == MIN_DEVELOPERS
    assert adjust_developers(MIN_DEVELOPERS, 0.0) > MIN_DEVELOPERS


def test_the_clock_rate_makes_the_traffic_400_sessions_an_hour() -> None:
    assert compute_degraded_clock_rate(100, 90.0, 40.0) == pytest.approx(10.0)
    assert compute_degraded_clock_rate(0, 60.0, 40.0) == 1.0
    assert compute_degraded_clock_rate(10_000, 60.0, 40.0) == 40.0


def test_the_clock_is_slower_while_many_responses_wait_for_their_scores() -> None:
    assert adjust_clock_limit(20.0, MAX_UNSCORED + 1) < 20.0 < adjust_clock_limit(20.0, MAX_UNSCORED)
    assert adjust_clock_limit(MAX_DEGRADED_CLOCK_RATE, 0) == MAX_DEGRADED_CLOCK_RATE
    assert adjust_clock_limit(MIN_DEGRADED_CLOCK_RATE, 10_000) == MIN_DEGRADED_CLOCK_RATE


def test_a_background_loop_retries_database_errors_and_raises_others() -> None:
    calls: list[int] = []

    def hiccup() -> float:
        calls.append(1)
        if len(calls) == 1:
            raise sa.exc.OperationalError("select 1", {}, Exception("gone"))
        if len(calls) == 3:
            raise InputError("the row is damaged")
        return 0.0

    helper = BackgroundLoop("controller", hiccup)
    for _ in range(600):
        if len(calls) == 3 and helper.errors == 2:
            break
        time.sleep(0.05)
    helper.stop()
    assert (len(calls), helper.errors) == (3, 2)
    with pytest.raises(InputError, match="the row is damaged"):
        helper.raise_error()


def test_acceptance_checks_pass_on_good_records_and_name_what_failed() -> None:
    assert failed_checks(check_rollout(GOOD)) == []
    assert failed_checks(check_rollback(ROLLED_BACK, "v1")) == []
    assert failed_checks(check_retrain("gate_passed", 0.03)) == []
    assert failed_checks(check_retrain("gate_failed", -0.01)) == [
        "quality gate passed",
        "better on the canary set",
    ]
    assert failed_checks(check_retrain(None, None)) == ["quality gate passed", "better on the canary set"]


@pytest.mark.parametrize(
    ("splits", "name"),
    [
        ((replace(TEN, canary_requests=131), FIFTY, ALL), "10 % of the traffic"),
        ((replace(TEN, canary_requests=197), FIFTY, ALL), "10 % of the traffic"),
        ((replace(TEN, sessions=1499), FIFTY, ALL), "10 % of the traffic"),
        ((TEN, replace(FIFTY, canary_requests=416), ALL), "50 % of the traffic"),
        ((TEN, replace(FIFTY, requests=0, canary_requests=0), ALL), "50 % of the traffic"),
        ((TEN, ALL), "50 % of the traffic"),
        ((TEN, replace(FIFTY, both_arms=1), ALL), "no session changed its arm within a stage"),
        ((TEN, FIFTY, replace(ALL, failed=1)), "no request failed"),
    ],
)
def test_a_wrong_traffic_split_fails_its_check(splits: tuple[TrafficSplit, ...], name: str) -> None:
    assert failed_checks(check_rollout(replace(GOOD, splits=splits))) == [name]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"closed_at": NOON + timedelta(minutes=61)}, ["within 1 hour of the platform's clock"]),
        ({"weight": 0.1}, ["weight 0"]),
        ({"production": "v3"}, ["production unchanged"]),
        ({"archived": False}, ["archived"]),
        ({"rollbacks": ()}, ["rollback event written"]),
        ({"alerts": ()}, ["alert written"]),
        ({"events": (event("rolled_back", 24, 0.0, "somebody"),)}, ["rolled back automatically"]),
        (
            {"state": "ramping", "closed_at": None},
            ["rolled back automatically", "within 1 hour of the platform's clock"],
        ),
    ],
)
def test_an_incomplete_rollback_fails_its_check(change, names: list[str]) -> None:
    assert failed_checks(check_rollback(replace(ROLLED_BACK, **change), "v1")) == names


def test_developers_without_a_response_fail_the_check() -> None:
    good = ResponseStats({"production": 9, "canary": 1}, {"200": 10}, 0, ())
    assert check_responses([good]).ok
    bad = check_responses([good, replace(good, failures=("503, tried 5 times",))])
    assert not bad.ok and bad.detail == "20 sessions were answered, 1 were not: 503, tried 5 times"


def test_the_report_names_splits_reason_and_alerts_and_is_json() -> None:
    checks = [*check_rollout(GOOD), *check_rollback(ROLLED_BACK, "v1")]
    report = rollout_report.RolloutReport(checks, GOOD, ROLLED_BACK, {}, {"rollout": 100.0})
    console = Console(file=StringIO(), width=200)
    rollout_report.print_rollout_report(report, console)
    text = console.file.getvalue()
    for part in ("1640", "165", "10.1%", "49.7%", "low_pass_rate", "24 minutes", "[v2] rolled back", "yes"):
        assert part in text, text
    assert report.failures == []
    document = report.to_json()
    assert document["rollout"]["splits"][0]["share"] == 0.1006
    assert document["rollback"]["duration_seconds"] == 24 * 60
    assert document["rollback"]["sessions_per_hour"] == pytest.approx(400)


def test_a_lower_mean_without_evidence_is_explained() -> None:
    record = replace(
        GOOD, canary_pass_rate=0.755, scored_production=640, production_pass_rate=0.774,
        tests=(("drop_first", 0.91, 133.0), ("latency", 0.2, 1333.0)),
    )  # fmt: skip
    explanation = rollout_report.explain_evidence(record)
    assert "Pass rate 0.755 on 218 scored sessions, production 0.774 on 640" in explanation
    assert "pass rate below production at 10 %, e-value 0.91" in explanation
    assert "violated from 133 on (not significant" in explanation
    violated = replace(record, tests=(("errors", 2000.0, 1333.0), *record.tests))
    assert "error rate above the health limit, e-value 2e+03" in rollout_report.explain_evidence(violated)
    assert rollout_report.explain_evidence(violated).endswith("(violated).")
    assert set(rollout_progress.TEST_LABELS) == set(TESTS)


def test_each_demo_draws_its_own_arms() -> None:
    modules = make_code_base(1, NOON.date())[:1]

    def draw_arms(nonce: str) -> list[bool]:
        stream = draw_live_sessions(modules, f"rollout-1-{nonce}", test_fraction=0.3, seed=1)
        return [session_bucket(1, next(stream).session_id) < 0.1 for _ in range(300)]

    contexts = [ScenarioContext(None, None, "", "", modules, 1) for _ in range(2)]  # type: ignore[arg-type]
    first, second = (draw_arms(context.nonce) for context in contexts)
    assert first != second and first == draw_arms(contexts[0].nonce)


def test_a_snapshot_is_rendered_as_a_panel_and_as_a_line() -> None:
    policy = Policy.from_settings(RolloutSettings(), EvaluationSettings())
    state = State(7, "v2", "v1", policy, NOON, NOON)
    waiting = RolloutSnapshot(state, NOON, 1.0, {}, 0, 0)
    assert "begins when every gateway replica is ready" in rollout_progress.format_line(waiting)
    ramping = replace(state, weight=0.1, lease_until=NOON + timedelta(seconds=60))
    snapshot = RolloutSnapshot(ramping, NOON, 2.5, {"production": 90, "canary": 10}, 1, 4)
    rows = dict(rollout_progress.describe_snapshot(snapshot))
    assert "100 in this stage, 10 of them on the canary arm (10.0%), 1 not ok" in rows["sessions"]
    assert "lease expires in 60 s" in rows["time"] and "x 2.5" in rows["time"]
    assert "canary 0 of 30" in rows["scored"] and "4 wait" in rows["scored"]
    assert rows["strongest evidence"].count("e-value 1.00, violated at ") == 2
    console = Console(file=StringIO(), width=120)
    console.print(rollout_progress.render_panel(snapshot))
    assert "strongest evidence" in console.file.getvalue()


def test_live_sessions_are_distinct_and_a_fraction_includes_tests() -> None:
    modules = make_code_base(1, NOON.date())
    assert len({session.source_code for session in modules}) == len(modules) >= 200
    stream = draw_live_sessions(modules, "x", test_fraction=0.3, seed=1)
    drawn = [next(stream) for _ in range(1000)]
    assert len({session.session_id for session in drawn}) == 1000
    assert 240 < sum(session.includes_tests for session in drawn) < 360
    again = draw_live_sessions(modules, "x", test_fraction=0.3, seed=1)
    assert [next(again) for _ in range(1000)] == drawn


def test_the_record_is_loaded_from_the_tables(engine: sa.Engine) -> None:
    policy = asdict(Policy.from_settings(RolloutSettings(), EvaluationSettings()))
    with engine.begin() as conn:
        version(conn, "v1", "production")
        version(conn, "v2", "rolled_back")
        rollout = conn.execute(
            t.rollouts.insert()
            .values(candidate="v2", production="v1", state="rolled_back", policy=policy, opened_at=NOON,
                    stage_entered_at=NOON, closed_at=NOON + timedelta(minutes=30), reason="x")
            .returning(t.rollouts.c.id)
        ).scalar_one()  # fmt: skip
        steps = [("opened", 0, 0.0), ("started", 5, 0.1), ("advanced", 20, 0.5), ("rolled_back", 30, 0.0)]
        for seq, (kind, minute, weight) in enumerate(steps):
            conn.execute(
                t.deployment_events.insert().values(
                    rollout_id=rollout, seq=seq, event_type=kind, version="v2", weight=weight,
                    timestamp=NOON + timedelta(minutes=minute), actor="controller", to_state="ramping",
                )
            )  # fmt: skip
        minutes = {
            2: "production",
            6: "production",
            7: "canary",
            8: "production",
            21: "canary",
            22: "production",
        }
        for minute, arm in minutes.items():
            conn.execute(
                t.requests.insert().values(
                    request_id=f"r{minute}", session_id=f"s{minute}", rollout_id=rollout, assigned_arm=arm,
                    arm="production", status="fallback" if minute == 7 else "ok", model_version="v1",
                    created_at=NOON + timedelta(minutes=minute),
                )
            )  # fmt: skip
        conn.execute(
            t.rollback_events.insert().values(
                rollout_id=rollout, reason="low_pass_rate", new_model_path="/m/v2"
            )
        )
        for key, minute in (
            ("during", 12),
            (f"rollout-{rollout}-ended", 31),
            (f"rollout-{rollout}0-other", 31),
        ):
            conn.execute(
                t.alerts.insert().values(
                    key=key, severity="warning", title="Model Rollback", body="b",
                    created_at=NOON + timedelta(minutes=minute),
                )
            )  # fmt: skip
    with engine.connect() as conn:
        record = load_rollout_record(conn, rollout)
    first, second = record.splits
    assert (first.weight, first.requests, first.canary_requests, first.fallbacks) == (0.1, 3, 1, 1)
    assert (second.weight, second.requests, second.canary_requests) == (0.5, 2, 1)
    assert [row["event_type"] for row in record.events] == [kind for kind, _, _ in steps]
    assert [row["key"] for row in record.alerts] == ["during", f"rollout-{rollout}-ended"]
    assert (record.production, record.sessions, record.archived) == ("v1", 6, False)
    assert record.duration == timedelta(minutes=30) and record.rollbacks[0]["reason"] == "low_pass_rate"
