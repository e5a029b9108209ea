"""Lineage both ways (V1), and fast where there are many conversations."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from datetime import timedelta

import pytest
import sqlalchemy as sa

from iccm_assets.errors import InputError
from iccm_assets.store import tables as t
from iccm_assets.store.lineage import conversation_lineage, version_lineage
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
    assert [(one.version, one.generations) for one in found.versions] == [("v2", 0), ("v4", 0), ("v3", 1)]
    assert [(use.training_run_id, use.role) for use in found.uses] == [(1, "validation"), (3, "rehearsal")]


def test_a_conversation_left_out_says_where_and_why(three_generations: sa.Engine) -> None:
    with three_generations.connect() as conn:
        duplicate, unused = conversation_lineage(conn, 5), conversation_lineage(conn, 6)
    assert [(one.reason, one.duplicate_of, one.similarity) for one in duplicate.left_out] == [
        ("duplicate", 1, 0.97)
    ]
    assert (duplicate.filtered, duplicate.in_pool, duplicate.versions) == (True, False, ())
    assert (unused.filtered, unused.in_pool) == (False, True)


def test_unknown_names_are_said_to_be_unknown(three_generations: sa.Engine) -> None:
    with three_generations.connect() as conn:
        with pytest.raises(InputError, match="there is no version v9"):
            version_lineage(conn, "v9")
        with pytest.raises(InputError, match="there is no conversation 77"):
            conversation_lineage(conn, 77)


def test_both_ways_answer_at_once_among_a_hundred_thousand_conversations(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        conn.execute(
            sa.text(
                """
                INSERT INTO iccm.conversations (id, session_id, "timestamp", origin)
                SELECT n, 's' || n, :now - n * interval '20 seconds', 'simulated'
                FROM generate_series(1, 100000) n
                """
            ),
            {"now": NOW},
        )
        parent = None
        for generation in range(20):
            name = version(
                conn, f"v{generation}", parent, status="production" if generation == 19 else "retired"
            )
            training_run(conn, generation + 1, name, trained_at=NOW + timedelta(days=generation))
            parent = name
        conn.execute(
            sa.text(
                """
                INSERT INTO iccm.training_run_examples (training_run_id, conversation_id, role)
                SELECT run, run * 5000 - n, CASE WHEN n % 10 = 0 THEN 'validation' ELSE 'new' END
                FROM generate_series(1, 20) run, generate_series(0, 199) n
                """
            )
        )
    with engine.connect() as conn:
        for ask in (lambda: version_lineage(conn, "v19"), lambda: conversation_lineage(conn, 5000)):
            started = time.perf_counter()
            found = ask()
            assert time.perf_counter() - started < 1.0
        assert len(version_lineage(conn, "v19").conversations) == 200
        assert len(found.versions) == 20
