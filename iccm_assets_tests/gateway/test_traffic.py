"""Traffic between two arms on real processes: fractions, agreement, hidden failures (G2-G4, R7)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from iccm_assets.gateway.routing import assign_arm
from iccm_assets_tests.factories.gateways import (
    database_url,
    eventually,
    gateway,
    rollout,
    rows,
    set_weight,
    version,
)


def test_two_processes_agree_on_every_session_and_follow_every_change_of_weight(fresh, tmp_path):
    sessions = [f"s-{number}" for number in range(150)]
    with gateway(database_url(fresh), tmp_path) as first, gateway(database_url(fresh), tmp_path) as second:
        with fresh.begin() as conn:
            rollout_id = rollout(conn, 0.1)
        canary_sessions = {}
        for weight in (0.1, 0.5):
            if weight != 0.1:
                set_weight(fresh, weight)
            both = (first, second)
            for running in both:
                eventually(lambda running=running, weight=weight: running.effective_weight() == weight)
            with ThreadPoolExecutor(8) as pool:
                arms = [
                    list(pool.map(lambda name, r=running: r.request(name).json()["arm"], sessions))
                    for running in both
                ]
            assert arms[0] == arms[1] == [assign_arm(rollout_id, name, weight) for name in sessions]
            canary_sessions[weight] = {
                name for name, arm in zip(sessions, arms[0], strict=True) if arm == "canary"
            }
        assert canary_sessions[0.1] < canary_sessions[0.5]
        # One write to the database rolls back: within seconds no session is served by the candidate.
        set_weight(fresh, 0.0, state="rolled_back")
        for running in (first, second):
            eventually(lambda running=running: running.routing()["rollout"] is None)
        assert {
            running.request(name).json()["arm"] for running in (first, second) for name in sessions[:20]
        } == {"production"}
        stored = "select assigned_arm, arm, count(*) from iccm.requests group by 1, 2"
        counts = eventually(lambda: _counts_when_complete(rows(fresh, stored), 4 * len(sessions) + 40))
        canary = 2 * sum(map(len, canary_sessions.values()))
        assert counts == {("canary", "canary"): canary, ("production", "production"): 640 - canary}


def _counts_when_complete(counted, total):
    counts = {tuple(arms): count for *arms, count in counted}
    return counts if sum(counts.values()) == total else None


def test_a_candidate_one_replica_cannot_load_gets_no_traffic_anywhere(fresh, tmp_path):
    with (
        gateway(database_url(fresh), tmp_path) as good,
        gateway(database_url(fresh), tmp_path, faults={"v2": "unloadable"}) as bad,
    ):
        with fresh.begin() as conn:
            rollout(conn, 1.0)
        eventually(lambda: "v2" in bad.routing()["failed_versions"])
        eventually(
            lambda: "not loaded on all 2 replicas" in (good.routing()["rollout"] or {"reason": ""})["reason"]
        )
        assert good.request("s").json()["arm"] == bad.request("s").json()["arm"] == "production"
        assert bad.client.get("/readyz").status_code == 200
        eventually(lambda: rows(fresh, "select from iccm.gateway_replicas where failed_versions ? 'v2'"))
        # Once it is gone for good, the candidate is loaded on every replica there is.
        assert bad.terminate() == 0
        eventually(lambda: good.effective_weight() == 1.0)
        assert good.request("s").json()["arm"] == "canary"


FAULTS = {
    "error": "RuntimeError: the stub fails",
    "hang": "timeout",
    "empty": "invalid response: empty",
    "binary": "invalid response: 3 of 3 characters are not printable",
    "huge": "invalid response: 600000 characters",
}


def test_a_failing_canary_causes_no_user_error_and_every_failure_is_recorded(fresh, tmp_path):
    few = {"ICCM_GATEWAY__CANARY_TIMEOUT_SECONDS": "4", "ICCM_GATEWAY__SPOOL_FLUSH_INTERVAL_MS": "20"}
    with gateway(
        database_url(fresh), tmp_path, faults={f"v2-{name}": name for name in FAULTS}, **few
    ) as running:
        for fault, reason in FAULTS.items():
            with fresh.begin() as conn:
                version(conn, f"v2-{fault}", "canary")
                rollout_id = rollout(conn, 0.5, candidate=f"v2-{fault}")
            eventually(lambda rollout_id=rollout_id: _is_split_by(running, rollout_id))
            names = [f"{fault}-{number}" for number in range(60)]
            with ThreadPoolExecutor(16) as pool:
                responses = list(pool.map(running.request, names))
            assert {(response.status_code, response.json()["arm"]) for response in responses} == {
                (200, "production")
            }
            query = "select * from iccm.requests where session_id like :names"
            stored = eventually(lambda q=query, f=fault: _when_complete(rows(fresh, q, names=f"{f}-%"), 60))
            expected = {name: assign_arm(rollout_id, name, 0.5) for name in names}
            assert {row.session_id: row.assigned_arm for row in stored} == expected
            for row in stored:
                assert (row.arm, row.model_version, row.rollout_id) == ("production", "v1", rollout_id)
                assert row.status == ("ok" if row.assigned_arm == "production" else "fallback")
                assert (row.error is None) if row.status == "ok" else (reason in row.error), row.error
            set_weight(fresh, 0.0, state="rolled_back")
        assert 'status="fallback",version="v1"' in running.client.get("/metrics").text


def _is_split_by(running, rollout_id: int) -> bool:
    rollout = running.routing()["rollout"]
    return bool(rollout) and rollout["rollout_id"] == rollout_id and rollout["effective_weight"] == 0.5


def _when_complete(stored, count):
    return stored if len(stored) == count else None


def test_a_lease_that_is_not_renewed_expires(fresh, tmp_path):
    with gateway(database_url(fresh), tmp_path) as running:
        with fresh.begin() as conn:
            rollout(conn, 1.0)
        eventually(lambda: running.request("s").json()["arm"] == "canary")
        set_weight(fresh, 1.0, lease=1.5)
        eventually(lambda: running.request("s").json()["arm"] == "production")
        assert "ended" in running.routing()["rollout"]["reason"]


def test_a_promotion_and_its_rollback_take_effect_within_seconds(fresh, tmp_path):
    swap = "update iccm.model_versions set status = %s, deployed_at = iccm.now() where version = %s"
    with gateway(database_url(fresh), tmp_path) as running:
        for new, old in (("v2", "v1"), ("v1", "v2")):
            with fresh.begin() as conn:
                conn.exec_driver_sql(swap, ("retired", old))
                conn.exec_driver_sql(swap, ("production", new))
            eventually(lambda new=new: running.request().json()["model_version"] == new)
