"""The rules of the schema: each test tries to violate one."""

from __future__ import annotations

import numpy as np
import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t


def version(conn: sa.Connection, name: str, status: str = "candidate") -> str:
    conn.execute(
        t.model_versions.insert().values(version=name, status=status, digest=f"d-{name}", path=f"/m/{name}")
    )
    return name


def conversation(conn: sa.Connection, session: str = "s-1") -> int:
    values = {"session_id": session, "origin": "simulated"}
    return conn.execute(t.conversations.insert().values(values).returning(t.conversations.c.id)).scalar_one()


def assert_rejected(conn: sa.Connection, statement: sa.Executable, by: str) -> None:
    with pytest.raises(sa.exc.IntegrityError, match=by), conn.begin_nested():
        conn.execute(statement)


def test_a_second_production_version_is_rejected(engine):
    with engine.begin() as conn:
        version(conn, "v1", "production")
        version(conn, "v2", "retired")
        row = {"version": "v3", "status": "production", "digest": "d", "path": "p"}
        assert_rejected(conn, t.model_versions.insert().values(row), "model_versions_one_production")
        m = t.model_versions
        assert_rejected(
            conn, m.update().where(m.c.version == "v2").values(status="production"), "one_production"
        )
        # Demote, then promote, is the way.
        conn.execute(m.update().where(m.c.version == "v1").values(status="retired"))
        conn.execute(m.update().where(m.c.version == "v2").values(status="production"))


@pytest.mark.parametrize("state", ["ramping", "holding", "paused", "baking"])
def test_a_second_live_rollout_is_rejected_in_every_state(engine, state):
    with engine.begin() as conn:
        version(conn, "v1", "production")
        version(conn, "v2")
        done = {"candidate": "v2", "production": "v1", "state": "aborted"}
        conn.execute(t.rollouts.insert().values([done, done]))
        conn.execute(t.rollouts.insert().values(candidate="v2", production="v1", state="ramping"))
        assert_rejected(
            conn,
            t.rollouts.insert().values(candidate="v2", production="v1", state=state),
            "rollouts_one_live",
        )


def test_a_second_running_training_is_rejected(engine):
    runs = t.phase4_training_runs
    with engine.begin() as conn:
        conn.execute(runs.insert().values(trigger="manual", trigger_key="a", status="running"))
        conn.execute(runs.insert().values(trigger="manual", trigger_key="b", status="waiting"))
        assert_rejected(
            conn, runs.insert().values(trigger="manual", trigger_key="c", status="running"), "one_running"
        )
        assert_rejected(conn, runs.insert().values(trigger="manual", trigger_key="b"), "trigger_key")


def test_a_session_may_have_several_responses_but_one_accepted_text(engine):
    r = t.requirements
    with engine.begin() as conn:
        values = {"session_id": "s", "text": "It shall."}
        conn.execute(r.insert().values([{**values, "kind": "model", "request_id": n} for n in ("r1", "r2")]))
        conn.execute(r.insert().values(**values, kind="accepted"))
        assert_rejected(conn, r.insert().values(**values, kind="accepted"), "requirements_one_accepted")
        assert_rejected(conn, r.insert().values(**values, kind="model", request_id="r1"), "request_id")


@pytest.mark.parametrize(
    ("table", "values"),
    [
        (t.conversations, {"session_id": "s", "origin": "rumour"}),
        (t.requirements, {"session_id": "s", "kind": "guess", "text": ""}),
        (t.requirements, {"session_id": "s", "kind": "model", "text": "", "arm": "left"}),
        (t.requests, {"request_id": "r", "status": "fine"}),
        (t.feedback, {"session_id": "s", "rating": 0}),
        (t.model_versions, {"version": "v", "status": "great", "digest": "d", "path": "p"}),
        (t.phase4_training_runs, {"trigger": "whim", "trigger_key": "k"}),
        (t.phase4_training_runs, {"trigger": "manual", "trigger_key": "k", "status": "done"}),
        (t.phase4_training_runs, {"trigger": "manual", "trigger_key": "k", "verdict": "maybe"}),
        (t.alerts, {"key": "k", "severity": "bad", "title": "t"}),
    ],
)
def test_unknown_values_of_enumerated_columns_are_rejected(engine, table, values):
    with engine.begin() as conn:
        assert_rejected(conn, table.insert().values(values), "check")


@pytest.mark.parametrize("rate", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_pass_rate_outside_0_to_1_is_rejected(engine, rate):
    with engine.begin() as conn:
        values = {"session_id": "s", "kind": "model", "text": "", "scored_at": sa.text("iccm.now()")}
        assert_rejected(conn, t.requirements.insert().values(**values, test_pass_rate=rate), "test_pass_rate")


def test_a_score_requires_its_time_and_a_time_without_a_score_is_inconclusive(engine):
    values = {"session_id": "s", "kind": "model", "text": ""}
    with engine.begin() as conn:
        assert_rejected(conn, t.requirements.insert().values(**values, test_pass_rate=0.5), "scored")
        conn.execute(t.requirements.insert().values(**values, scored_at=sa.text("iccm.now()")))


def test_lineage_cannot_refer_to_an_unknown_conversation(engine):
    with engine.begin() as conn:
        run = t.phase4_training_runs.insert().values(trigger="manual", trigger_key="k")
        run_id = conn.execute(run.returning(t.phase4_training_runs.c.id)).scalar_one()
        row = {"training_run_id": run_id, "conversation_id": 404, "role": "new"}
        assert_rejected(conn, t.training_run_examples.insert().values(row), "conversation_id_fkey")


def test_deployment_events_are_append_only(engine):
    with engine.begin() as conn:
        conn.execute(t.deployment_events.insert().values(event_type="noted", actor="test"))
        assert_rejected(conn, t.deployment_events.update().values(notes="rewritten"), "append-only")
        assert_rejected(conn, t.deployment_events.delete(), "append-only")
        assert_rejected(conn, sa.text("truncate iccm.deployment_events cascade"), "append-only")


def test_a_stored_vector_keeps_its_float32_values(engine):
    vector = np.random.default_rng(3).standard_normal(t.EMBEDDING_DIMENSIONS).astype(np.float32)
    with engine.begin() as conn:
        row = {"content_sha256": "a" * 64, "embedder": "e", "embedding": vector}
        conn.execute(t.embeddings.insert().values(row))
        stored = conn.execute(sa.select(t.embeddings.c.embedding)).scalar_one()
    assert np.array_equal(np.asarray(stored, dtype=np.float32), vector)


def test_none_in_a_jsonb_column_is_null_not_json_null(engine):
    with engine.begin() as conn:
        values = {"session_id": "s", "kind": "model", "text": "", "test_suite": None}
        conn.execute(t.requirements.insert().values(values))
        assert conn.execute(sa.text("select test_suite is null from iccm.requirements")).scalar_one()


def test_reconstructions_are_deleted_with_their_requirements(engine):
    with engine.begin() as conn:
        row = {"session_id": "s", "kind": "accepted", "text": "", "conversation_id": conversation(conn)}
        requirement = conn.execute(
            t.requirements.insert().values(row).returning(t.requirements.c.id)
        ).scalar_one()
        conn.execute(
            t.reconstructions.insert().values(requirement_id=requirement, reconstructor="a", status="scored")
        )
        conn.execute(t.requirements.delete())
        assert conn.execute(sa.select(sa.func.count()).select_from(t.reconstructions)).scalar_one() == 0
