"""Lineage both ways (V1), at a cost that follows the answer and not the number of conversations."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from iccm_assets.errors import InputError, VersionNotFound
from iccm_assets.store import tables as t
from iccm_assets.store.lineage import conversation_lineage, conversation_of, version_lineage
from iccm_assets_tests.learning.rows import NOW, conversation, training_run, version


@pytest.fixture
def three_generations(engine: sa.Engine) -> sa.Engine:
    """v1 (base) -> v2 learned from 1, 2 -> v3 (production) learned from 3, rehearsed 1; v4 refused."""
    with engine.begin() as conn:
        for number in range(1, 7):
            conversation(conn, number, user=f"u{number}", pool=number != 5, filtered=number != 6)
        version(conn, "v1", status="retired")
        version(conn, "v2", "v1", status="retired")
        version(conn, "v3", "v2", status="production")
        version(conn, "v4", "v3", status="gate_failed")
        training_run(conn, 1, "v2", examples={1: "new", 2: "validation"})
        training_run(
            conn, 2, "v3", examples={3: "new", 1: "rehearsal"}, base_version="v2", dataset_digest="d2"
        )
        training_run(conn, 3, "v4", examples={4: "new", 2: "rehearsal"}, status="gate_failed")
        conn.execute(
            t.phase4_rejections.insert().values(
                conversation_id=5,
                stage="dedup",
                day=NOW.date(),
                reason="duplicate",
                duplicate_of=1,
                similarity=0.97,
            )
        )
        verdict = {"version": "v3", "production_version": "v2", "status": "pass", "improvement": 0.03}
        given = {"canary_set_digest": "c", "orchestra": "o", "judge_version": "j"}
        conn.execute(
            t.gate_verdicts.insert().values(**verdict, **given, verdict={"reasons": ["improvement: +0.03"]})
        )
        event = {"event_type": "promoted", "version": "v3", "weight": 1.0, "actor": "controller"}
        conn.execute(t.deployment_events.insert().values(**event, timestamp=NOW))
    return engine


def test_a_version_knows_its_conversations_descent_gate_and_traffic(three_generations: sa.Engine) -> None:
    with three_generations.connect() as conn:
        found = version_lineage(conn, "v3")
    assert [(one.version, one.generations, one.examples) for one in found.line] == [
        ("v3", 0, 1),
        ("v2", 1, 2),
        ("v1", 2, 0),
    ]
    assert [(one.conversation_id, one.role) for one in found.conversations] == [(3, "new"), (1, "rehearsal")]
    assert found.roles == {"new": 1, "rehearsal": 1}
    assert found.run is not None and (found.run.base_version, found.run.dataset_digest) == ("v2", "d2")
    assert [(one.status, one.verdict["reasons"]) for one in found.verdicts] == [
        ("pass", ["improvement: +0.03"])
    ]
    assert [(one.event_type, one.weight) for one in found.traffic] == [("promoted", 1.0)]
    assert json.dumps(asdict(found), default=str)


def test_the_first_version_came_from_no_conversation(three_generations: sa.Engine) -> None:
    with three_generations.connect() as conn:
        found = version_lineage(conn, "v1")
    assert (found.run, found.conversations, found.parent_version) == (None, (), None)


def test_a_conversation_knows_every_version_that_learned_from_it(three_generations: sa.Engine) -> None:
    with three_generations.connect() as conn:
        found = conversation_lineage(conn, 2)
    assert [(one.version, one.how, one.role, one.generations) for one in found.versions] == [
        ("v2", "directly", "validation", 0),
        ("v4", "directly", "rehearsal", 0),
        ("v3", "inherited", None, 1),
    ]
    assert [(use.training_run_id, use.role) for use in found.uses] == [(1, "validation"), (3, "rehearsal")]


def test_a_conversation_left_out_says_where_and_why(three_generations: sa.Engine) -> None:
    with three_generations.connect() as conn:
        duplicate, unused = conversation_lineage(conn, 5), conversation_lineage(conn, 6)
    assert [(one.reason, one.duplicate_of, one.similarity) for one in duplicate.left_out] == [
        ("duplicate", 1, 0.97)
    ]
    assert (duplicate.filtered, duplicate.in_pool, duplicate.versions) == (True, False, ())
    assert (unused.filtered, unused.in_pool) == (False, True)


def test_a_session_leads_to_its_conversation(three_generations: sa.Engine) -> None:
    with three_generations.connect() as conn:
        assert conversation_of(conn, "s3") == 3
        for unknown in ("s77", "", "s3' or true --", "s3\x00"):
            with pytest.raises(InputError, match="there is no session"):
                conversation_of(conn, unknown)


def test_a_version_is_found_by_its_role_or_the_start_of_its_digest(three_generations: sa.Engine) -> None:
    with three_generations.begin() as conn:
        assert version_lineage(conn, "production").version == "v3"
        assert version_lineage(conn, "digest-v4").version == "v4"
        with pytest.raises(VersionNotFound, match=r"more than one digest.*There are: v4, v3, v2, v1\."):
            version_lineage(conn, "digest-")


def test_unknown_names_are_said_to_be_unknown(three_generations: sa.Engine) -> None:
    with three_generations.connect() as conn:
        for unknown in ("v9", "", "%", "_", "\x00"):
            with pytest.raises(VersionNotFound, match=r"There are: v4, v3, v2, v1\."):
                version_lineage(conn, unknown)
        for number in (77, -1, 2**63, -(2**80)):
            with pytest.raises(InputError, match=f"there is no conversation {number}"):
                conversation_lineage(conn, number)


def test_forced_deployments_rollbacks_and_times_in_service_are_told(three_generations: sa.Engine) -> None:
    with three_generations.begin() as conn:
        for hour, event, name, weight, notes in (
            (1, "forced", "v4", 1.0, "forced by a person: outage"),
            (3, "rolled_back", "v3", 1.0, "low_pass_rate"),
        ):
            at = NOW + timedelta(hours=hour)
            values = {"event_type": event, "version": name, "weight": weight, "notes": notes, "actor": "ada"}
            conn.execute(t.deployment_events.insert().values(**values, timestamp=at))
        conn.execute(
            t.rollback_events.insert().values(
                timestamp=at, from_version="v4", to_version="v3", reason="low_pass_rate"
            )
        )
        found, kept = version_lineage(conn, "v4"), version_lineage(conn, "v3")
    assert [(one.forced, one.actor, one.notes) for one in found.traffic] == [
        (True, "ada", "forced by a person: outage")
    ]
    assert [(one.since, one.until, one.weight) for one in found.periods] == [
        (NOW + timedelta(hours=1), NOW + timedelta(hours=3), 1.0)
    ]
    assert (
        [one.reason for one in found.rollbacks] == ["low_pass_rate"] == [one.reason for one in kept.rollbacks]
    )
    assert [one.until for one in kept.periods] == [NOW + timedelta(hours=1), None]


CROWD = """
INSERT INTO iccm.conversations (id, session_id, "timestamp", origin)
SELECT n, 's' || n, :now - n * interval '20 seconds', 'simulated' FROM generate_series(1, 100000) n;
INSERT INTO iccm.requirements (session_id, conversation_id, kind, text, test_pass_rate, scored_at)
SELECT 's' || n, n, 'accepted', 'f shall return.', 1, :now FROM generate_series(1, 100000) n;
INSERT INTO iccm.filtered_conversations
SELECT n, :now, 's' || n, NULL, 'def f(): ...', 'f shall return.', 1, 0, 1, false, n
FROM generate_series(1, 40000) n;
INSERT INTO iccm.phase4_training_data
SELECT n, :now, 's' || n, NULL, 'def f(): ...', 'f shall return.', 1, 0, 1, false, n,
       array_fill(0::real, ARRAY[384])::vector, true, true
FROM generate_series(1, 20000) n;
INSERT INTO iccm.model_versions (version, parent_version, status, digest, path)
SELECT 'v' || n, CASE WHEN n > 1 THEN 'v' || n - 1 END,
       CASE WHEN n = 40 THEN 'production' ELSE 'retired' END, 'd' || n, '/models/' || n
FROM generate_series(1, 40) n;
INSERT INTO iccm.phase4_training_runs (id, trigger, trigger_key, status, candidate_version)
SELECT n, 'manual', 'k' || n, 'gate_passed', 'v' || n FROM generate_series(1, 40) n;
INSERT INTO iccm.training_run_examples (training_run_id, conversation_id, role)
SELECT run, 1 + (run * 500 + n) % 20000, CASE WHEN n < 550 THEN 'new' ELSE 'rehearsal' END
FROM generate_series(1, 40) run, generate_series(0, 649) n;
ANALYZE
"""


def test_both_ways_read_by_keys_among_a_hundred_thousand_conversations(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        for statement in CROWD.split(";\n"):
            conn.execute(sa.text(statement), {"now": NOW} if ":now" in statement else {})
    asked: list[tuple[str, Any]] = []
    sa.event.listen(
        engine, "before_cursor_execute", lambda c, cursor, sql, given, *rest: asked.append((sql, given))
    )
    with engine.connect() as conn:
        of_version = version_lineage(conn, "v40")
        of_conversation = conversation_lineage(conn, conversation_of(conn, "s600"))
        questions = list(asked)
        plans = [
            json.dumps(conn.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {sql}", given).scalar_one())
            for sql, given in questions
            if "iccm." in sql
        ]
    assert of_version.roles == {"new": 550, "rehearsal": 100}
    assert [one.generations for one in of_version.line] == list(range(40))
    assert [one.how for one in of_conversation.versions].count("directly") == 2
    assert len(of_conversation.versions) == 40
    assert len(plans) == len(questions) > 10
    large = ("conversations", "requirements", "filtered_conversations", "phase4_training_data")
    for plan in plans:
        for node in _nodes(json.loads(plan)[0]["Plan"]):
            assert node["Node Type"] != "Seq Scan" or node["Relation Name"] not in large, plan


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for inner in plan.get("Plans", []) for node in _nodes(inner))]
