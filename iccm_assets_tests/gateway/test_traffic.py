"""Live traffic between two arms on real processes: shares, agreement, failures nobody sees (G2-G4, R7)."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from iccm_assets.gateway.routing import assign_arm
from iccm_assets_tests.gateway.factories import eventually, gateway, rollout, rows, set_weight, version


def url_of(engine):
    return engine.url.set(drivername="postgresql").render_as_string(hide_password=False)


def effective(running) -> float:
    shown = running.routing()["rollout"]
    return shown["effective_weight"] if shown else 0.0


def test_two_processes_agree_on_every_session_and_follow_every_change_of_weight(fresh, tmp_path):
    sessions = [f"s-{number}" for number in range(150)]
    with gateway(url_of(fresh), tmp_path) as one, gateway(url_of(fresh), tmp_path) as two:
        with fresh.begin() as conn:
            found = rollout(conn, 0.1)
        seen = {}
        for weight in (0.1, 0.5):
            if weight != 0.1:
                set_weight(fresh, weight)
            both = (one, two)
            for running in both:
                eventually(lambda running=running, weight=weight: effective(running) == weight)
            with ThreadPoolExecutor(8) as pool:
                arms = [
                    list(pool.map(lambda name, r=running: r.ask(name).json()["arm"], sessions))
                    for running in both
                ]
            assert arms[0] == arms[1] == [assign_arm(found, name, weight) for name in sessions]
            seen[weight] = {name for name, arm in zip(sessions, arms[0], strict=True) if arm == "canary"}
        assert seen[0.1] < seen[0.5]
        # Taken back by one write to the database: everybody is back within seconds, without the candidate.
        set_weight(fresh, 0.0, state="rolled_back")
        begun = time.monotonic()
        for running in (one, two):
            eventually(lambda running=running: running.routing()["rollout"] is None)
        assert time.monotonic() - begun < 5
        assert {running.ask(name).json()["arm"] for running in (one, two) for name in sessions[:20]} == {
            "production"
        }
        stored = "select assigned_arm, arm, count(*) from iccm.requests group by 1, 2"
        counts = eventually(lambda: _when_all_are_there(rows(fresh, stored), 4 * len(sessions) + 40))
        canary = 2 * sum(map(len, seen.values()))
        assert counts == {("canary", "canary"): canary, ("production", "production"): 640 - canary}


def _when_all_are_there(found, count):
    return {(one[0], one[1]): one[2] for one in found} if sum(one[2] for one in found) == count else None


def test_a_candidate_one_replica_cannot_load_gets_no_traffic_anywhere(fresh, tmp_path):
    with (
        gateway(url_of(fresh), tmp_path) as good,
        gateway(url_of(fresh), tmp_path, faults={"v2": "unloadable"}) as bad,
    ):
        with fresh.begin() as conn:
            rollout(conn, 1.0)
        eventually(lambda: "v2" in bad.routing()["failed_versions"])
        eventually(
            lambda: "not loaded on all 2 replicas" in (good.routing()["rollout"] or {"reason": ""})["reason"]
        )
        assert good.ask("s").json()["arm"] == bad.ask("s").json()["arm"] == "production"
        assert bad.client.get("/readyz").status_code == 200
        eventually(lambda: rows(fresh, "select from iccm.gateway_replicas where failed_versions ? 'v2'"))
        # Once it is gone for good, the candidate is loaded on every replica there is.
        assert bad.end() == 0
        eventually(lambda: effective(good) == 1.0)
        assert good.ask("s").json()["arm"] == "canary"


FAULTS = {
    "error": "RuntimeError: the stub fails",
    "hang": "timeout",
    "empty": "invalid response: empty",
    "binary": "invalid response: 3 of 3 characters are not printable",
    "huge": "invalid response: 600000 characters",
}


def test_a_canary_that_fails_costs_no_user_an_error_and_every_failure_is_booked(fresh, tmp_path):
    few = {"ICCM_GATEWAY__CANARY_TIMEOUT_SECONDS": "4", "ICCM_GATEWAY__SPOOL_FLUSH_INTERVAL_MS": "20"}
    with gateway(url_of(fresh), tmp_path, faults={f"v2-{name}": name for name in FAULTS}, **few) as running:
        for fault, told in FAULTS.items():
            with fresh.begin() as conn:
                version(conn, f"v2-{fault}", "canary")
                found = rollout(conn, 0.5, candidate=f"v2-{fault}")
            eventually(lambda found=found: _split_by(running, found))
            names = [f"{fault}-{number}" for number in range(60)]
            with ThreadPoolExecutor(16) as pool:
                answers = list(pool.map(running.ask, names))
            assert {(one.status_code, one.json()["arm"]) for one in answers} == {(200, "production")}
            query = "select * from iccm.requests where session_id like :names"
            stored = eventually(lambda q=query, f=fault: _all(rows(fresh, q, names=f"{f}-%"), 60))
            expected = {name: assign_arm(found, name, 0.5) for name in names}
            assert {one.session_id: one.assigned_arm for one in stored} == expected
            for one in stored:
                assert (one.arm, one.model_version, one.rollout_id) == ("production", "v1", found)
                assert one.status == ("ok" if one.assigned_arm == "production" else "fallback")
                assert (one.error is None) if one.status == "ok" else (told in one.error), one.error
            set_weight(fresh, 0.0, state="rolled_back")
        assert 'status="fallback",version="v1"' in running.client.get("/metrics").text


def _split_by(running, rollout_id: int) -> bool:
    shown = running.routing()["rollout"]
    return bool(shown) and shown["rollout_id"] == rollout_id and shown["effective_weight"] == 0.5


def _all(found, count):
    return found if len(found) == count else None


def test_a_lease_nobody_renews_ends_by_itself(fresh, tmp_path):
    with gateway(url_of(fresh), tmp_path) as running:
        with fresh.begin() as conn:
            rollout(conn, 1.0)
        eventually(lambda: running.ask("s").json()["arm"] == "canary")
        set_weight(fresh, 1.0, lease=1.5)
        eventually(lambda: running.ask("s").json()["arm"] == "production", 10)
        assert "ended" in running.routing()["rollout"]["reason"]


def test_a_promotion_and_its_rollback_are_in_force_within_seconds(fresh, tmp_path):
    swap = "update iccm.model_versions set status = %s, deployed_at = iccm.now() where version = %s"
    with gateway(url_of(fresh), tmp_path) as running:
        for new, old in (("v2", "v1"), ("v1", "v2")):
            with fresh.begin() as conn:
                conn.exec_driver_sql(swap, ("retired", old))
                conn.exec_driver_sql(swap, ("production", new))
            begun = time.monotonic()
            eventually(lambda new=new: running.ask().json()["model_version"] == new)
            assert time.monotonic() - begun < 5
