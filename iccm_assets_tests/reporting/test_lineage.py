"""Lineage in both directions (V1), at a cost that depends on the size of the result."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.errors import InputError, VersionNotFoundError
from iccm_assets.reporting.lineage import (
    find_conversation,
    load_conversation_lineage,
    load_version_lineage,
)
from iccm_assets_tests.factories.platform_rows import NOW, conversation, training_run, version


@pytest.fixture
def three_generations(engine: sa.Engine) -> sa.Engine:
    """v1 (base) -> v2 trained on 1, 2 -> v3 (production) trained on 3, rehearsed 1; v4 failed the gate."""
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
        provenance = {"canary_set_digest": "c", "orchestra": "o", "judge_version": "j"}
        conn.execute(
            t.gate_verdicts.insert().values(
                **verdict, **provenance, verdict={"reasons": ["improvement: +0.03"]}
            )
        )
        event = {"event_type": "promoted", "version": "v3", "weight": 1.0, "actor": "controller"}
        conn.execute(t.deployment_events.insert().values(**event, timestamp=NOW))
    return engine


def test_version_lineage_has_conversations_ancestry_verdicts_and_traffic(
    three_generations: sa.Engine,
) -> None:
    with three_generations.connect() as conn:
        lineage = load_version_lineage(conn, "v3")
    assert [(ancestor.version, ancestor.generations, ancestor.examples) for ancestor in lineage.ancestry] == [
        ("v3", 0, 1),
        ("v2", 1, 2),
        ("v1", 2, 0),
    ]
    assert [(row.conversation_id, row.role) for row in lineage.conversations] == [
        (3, "new"),
        (1, "rehearsal"),
    ]
    assert lineage.roles == {"new": 1, "rehearsal": 1}
    assert lineage.run is not None and (lineage.run["base_version"], lineage.run["dataset_digest"]) == (
        "v2",
        "d2",
    )
    assert [(verdict["status"], verdict["verdict"]["reasons"]) for verdict in lineage.verdicts] == [
        ("pass", ["improvement: +0.03"])
    ]
    assert [(event["event_type"], event["weight"]) for event in lineage.traffic] == [("promoted", 1.0)]
    assert json.dumps(asdict(lineage), default=str)


def test_the_first_version_has_no_training_conversations(three_generations: sa.Engine) -> None:
    with three_generations.connect() as conn:
        lineage = load_version_lineage(conn, "v1")
    assert (lineage.run, lineage.conversations, lineage.parent_version) == (None, (), None)


def test_conversation_lineage_has_every_version_trained_on_it(three_generations: sa.Engine) -> None:
    with three_generations.connect() as conn:
        lineage = load_conversation_lineage(conn, 2)
    assert [(row.version, row.how, row.role, row.generations) for row in lineage.versions] == [
        ("v2", "directly", "validation", 0),
        ("v4", "directly", "rehearsal", 0),
        ("v3", "inherited", None, 1),
    ]
    assert [(use.training_run_id, use.role) for use in lineage.uses] == [(1, "validation"), (3, "rehearsal")]


def test_the_lineage_of_a_rejected_conversation_gives_stage_and_reason(three_generations: sa.Engine) -> None:
    with three_generations.connect() as conn:
        duplicate, unused = load_conversation_lineage(conn, 5), load_conversation_lineage(conn, 6)
    assert [(row.reason, row.duplicate_of, row.similarity) for row in duplicate.rejections] == [
        ("duplicate", 1, 0.97)
    ]
    assert (duplicate.filtered, duplicate.in_pool, duplicate.versions) == (True, False, ())
    assert (unused.filtered, unused.in_pool) == (False, True)


def test_a_conversation_is_found_by_its_session(three_generations: sa.Engine) -> None:
    with three_generations.connect() as conn:
        assert find_conversation(conn, "s3") == 3
        for unknown in ("s77", "", "s3' or true --", "s3\x00"):
            with pytest.raises(InputError, match="there is no session"):
                find_conversation(conn, unknown)


def test_a_version_is_found_by_its_role_or_the_start_of_its_digest(three_generations: sa.Engine) -> None:
    with three_generations.begin() as conn:
        assert load_version_lineage(conn, "production").version == "v3"
        assert load_version_lineage(conn, "digest-v4").version == "v4"
        with pytest.raises(VersionNotFoundError, match=r"more than one digest.*There are: v4, v3, v2, v1\."):
            load_version_lineage(conn, "digest-")


def test_unknown_names_are_reported(three_generations: sa.Engine) -> None:
    with three_generations.connect() as conn:
        for unknown in ("v9", "", "%", "_", "\x00"):
            with pytest.raises(VersionNotFoundError, match=r"There are: v4, v3, v2, v1\."):
                load_version_lineage(conn, unknown)
        for number in (77, -1, 2**63, -(2**80)):
            with pytest.raises(InputError, match=f"there is no conversation {number}"):
                load_conversation_lineage(conn, number)


def test_version_lineage_has_forced_deployments_rollbacks_and_serving_periods(
    three_generations: sa.Engine,
) -> None:
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
        lineage, restored = load_version_lineage(conn, "v4"), load_version_lineage(conn, "v3")
    assert [(event["forced"], event["actor"], event["notes"]) for event in lineage.traffic] == [
        (True, "ada", "forced by a person: outage")
    ]
    assert [(period.since, period.until, period.weight) for period in lineage.periods] == [
        (NOW + timedelta(hours=1), NOW + timedelta(hours=3), 1.0)
    ]
    for lineage_ in (lineage, restored):
        assert [rollback["reason"] for rollback in lineage_.rollbacks] == ["low_pass_rate"]
    assert [period.until for period in restored.periods] == [NOW + timedelta(hours=1), None]


MANY_ROWS = """
insert into iccm.conversations (id, session_id, "timestamp", origin)
select n, 's' || n, :now - n * interval '20 seconds', 'simulated' from generate_series(1, 100000) n;
insert into iccm.requirements (session_id, conversation_id, kind, text, test_pass_rate, scored_at)
select 's' || n, n, 'accepted', 'f shall return.', 1, :now from generate_series(1, 100000) n;
insert into iccm.filtered_conversations
select n, :now, 's' || n, null, 'def f(): ...', 'f shall return.', 1, 0, 1, false, n, 'cases', 'attached'
from generate_series(1, 40000) n;
insert into iccm.phase4_training_data
select n, :now, 's' || n, null, 'def f(): ...', 'f shall return.', 1, 0, 1, false, n,
       array_fill(0::real, array[384])::vector, true, true, 'cases', 'attached'
from generate_series(1, 20000) n;
insert into iccm.model_versions (version, parent_version, status, digest, path)
select 'v' || n, case when n > 1 then 'v' || n - 1 end,
       case when n = 40 then 'production' else 'retired' end, 'd' || n, '/models/' || n
from generate_series(1, 40) n;
insert into iccm.phase4_training_runs (id, trigger, trigger_key, status, candidate_version)
select n, 'manual', 'k' || n, 'gate_passed', 'v' || n from generate_series(1, 40) n;
insert into iccm.training_run_examples (training_run_id, conversation_id, role)
select run, 1 + (run * 500 + n) % 20000, case when n < 550 then 'new' else 'rehearsal' end
from generate_series(1, 40) run, generate_series(0, 649) n;
analyze
"""


@pytest.mark.slow
def test_lineage_queries_use_indexes_among_a_hundred_thousand_conversations(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        for statement in MANY_ROWS.split(";\n"):
            conn.execute(sa.text(statement), {"now": NOW} if ":now" in statement else {})
    queries: list[tuple[str, Any]] = []
    sa.event.listen(
        engine,
        "before_cursor_execute",
        lambda c, cursor, sql, parameters, *rest: queries.append((sql, parameters)),
    )
    with engine.connect() as conn:
        version_lineage = load_version_lineage(conn, "v40")
        conversation_lineage = load_conversation_lineage(conn, find_conversation(conn, "s600"))
        executed = list(queries)
        plans = [
            json.dumps(conn.exec_driver_sql(f"explain (format json) {sql}", parameters).scalar_one())
            for sql, parameters in executed
            if "iccm." in sql
        ]
    assert version_lineage.roles == {"new": 550, "rehearsal": 100}
    assert [ancestor.generations for ancestor in version_lineage.ancestry] == list(range(40))
    assert [row.how for row in conversation_lineage.versions].count("directly") == 2
    assert len(conversation_lineage.versions) == 40
    assert len(plans) == len(executed) > 10
    large = ("conversations", "requirements", "filtered_conversations", "phase4_training_data")
    for plan in plans:
        for node in _nodes(json.loads(plan)[0]["Plan"]):
            assert node["Node Type"] != "Seq Scan" or node["Relation Name"] not in large, plan


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for inner in plan.get("Plans", []) for node in _nodes(inner))]
