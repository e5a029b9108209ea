"""Every constraint of the schema, by rows that violate only it and by rows just inside it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import psycopg
import sqlalchemy as sa

from iccm_assets.db import tables as t

NOW, DAY = datetime(2026, 3, 1, tzinfo=UTC), date(2026, 3, 1)
NAN, MISSING = float("nan"), 404
Row = dict[str, Any]

EXAMPLE: Row = {
    "conversation_id": 101, "day": DAY, "session_id": "s", "source_code": "", "requirements": "",
    "test_pass_rate": 1.0, "implementation_variance": 0.0, "quality_score": 1.0, "content_sha256": "a",
    "evidence": "cases", "test_suite_origin": "attached",
}  # fmt: skip

# A row of each table that the platform of `insert_platform` accepts.
ROWS: dict[str, Row] = {
    "alerts": {"key": "new", "severity": "info", "title": "t"},
    "alert_deliveries": {"key": "a", "channel": "mail", "attempts": 0},
    "canary_results": {
        "version": "v1", "model_digest": "d", "canary_set_digest": "s", "item": "i", "slice": "x",
        "reconstructor": "r", "orchestra": "o", "judge_version": "j", "decoding": "g", "requirements": "",
        "status": "scored",
    },
    "conversations": {"session_id": "new", "origin": "gateway"},
    "deployment_events": {"event_type": "started", "actor": "a", "rollout_id": 101, "seq": 7},
    "erasures": {"subject": "user", "subject_sha256": "d", "conversations": [101], "actor": "a"},
    "feedback": {"session_id": "s", "rating": 1},
    "filtered_conversations": EXAMPLE,
    "filtered_days": {"day": DAY, "filtered_at": NOW, "kept": 0, "rejected": 0},
    "gate_verdicts": {
        "version": "v2", "production_version": "v1", "status": "pass", "canary_set_digest": "s",
        "orchestra": "o", "judge_version": "j",
    },
    "gateway_tokens": {"name": "ci", "hash": "0" * 64, "scopes": ["feedback"]},
    "model_versions": {"version": "new", "status": "candidate", "digest": "d", "path": "p"},
    "phase4_rejections": {"conversation_id": 101, "stage": "filter", "day": DAY, "reason": "r"},
    "phase4_training_data": {**EXAMPLE, "embedding": np.zeros(384, dtype=np.float32)},
    "phase4_training_runs": {"trigger": "manual", "trigger_key": "new", "attempt": 0, "fence": 0},
    "pool_days": {"day": DAY, "rebuilt_at": NOW, "kept": 0, "removed": 0, "fingerprint": "f"},
    "quality_measurements": {"version": "v1", "set": "canary_set", "n": 0, "judge_version": "j"},
    "reconstructions": {"requirement_id": 101, "reconstructor": "r", "status": "scored"},
    "registry_events": {"verdict_id": 101},
    "requests": {"request_id": "new", "status": "ok"},
    "requirements": {"session_id": "s", "kind": "model", "text": ""},
    "rollback_events": {"reason": "r"},
    "rollout_pairs": {"rollout_id": 101, "item": "i", "canary": 0.0, "production": 0.0, "revision": 0},
    "rollout_samples": {
        "rollout_id": 101, "requirement_id": 101, "session_key": "k", "arm": "canary", "stage": 1,
        "pass_rate": 0.0, "served_at": NOW, "revision": 0,
    },
    "rollouts": {"candidate": "v2", "production": "v1", "state": "ramping"},
    "sampled_answers": {
        "conversation_id": 101, "model_version": "v1", "model_digest": "d", "source_sha256": "a",
        "suite_sha256": "s", "decoding": "g", "sample": 0, "content_sha256": "c", "orchestra": "o",
        "judge_version": "j",
    },
    "test_suites": {
        "source_sha256": "a", "origin": "attached", "digest": "d", "generator_version": "g",
        "status": "usable",
    },
    "training_run_examples": {"training_run_id": 101, "conversation_id": 101, "role": "new"},
}  # fmt: skip

# Columns from 0 to 1; a constraint is named after its column.
FRACTIONS = {
    "canary_results": ("api_compatibility", "test_pass_rate"),
    "deployment_events": ("weight",),
    "filtered_conversations": ("implementation_variance", "test_pass_rate"),
    "phase4_training_data": ("implementation_variance", "test_pass_rate"),
    "quality_measurements": ("baseline_mean", "mean"),
    "reconstructions": ("test_pass_rate",),
    "requirements": ("api_compatibility", "implementation_variance", "test_pass_rate"),
    "rollout_pairs": ("canary", "production"),
    "rollout_samples": ("pass_rate",),
    "rollouts": ("weight",),
    "sampled_answers": ("implementation_variance", "test_pass_rate"),
    "test_suites": ("branch_coverage", "strength"),
}
# What such a column needs besides its value.
TOGETHER: dict[tuple[str, str], Row] = {
    ("deployment_events", "weight"): {"version": "v2"},
    ("requirements", "test_pass_rate"): {"scored_at": NOW},
}

STATUSES = "scored unreadable missing suspect inconclusive"
VALUES = {
    "alerts": {"severity": "info warning critical"},
    "canary_results": {"set": "canary_set production_holdout audit_set", "status": STATUSES},
    "conversations": {"origin": "gateway claude-code simulated import codex openai"},
    "erasures": {"subject": "conversation session user"},
    "filtered_conversations": {
        "evidence": "cases pytest", "test_suite_origin": "attached collected recorded",
    },
    "gate_verdicts": {"status": "pass fail inconclusive"},
    "model_versions": {"status": "candidate gate_failed inconclusive canary retired rolled_back"},
    "phase4_rejections": {"stage": "filter policy dedup"},
    "phase4_training_data": {
        "evidence": "cases pytest", "test_suite_origin": "attached collected recorded",
    },
    "phase4_training_runs": {
        "status": "requested waiting gate_passed gate_failed inconclusive skipped failed",
        "trigger": "weekly degradation data_threshold manual", "verdict": "pass fail inconclusive",
    },
    "quality_measurements": {"set": "canary_set production_holdout"},
    "reconstructions": {"evidence": "cases pytest", "status": STATUSES},
    "requests": {
        "arm": "production canary", "assigned_arm": "production canary",
        "finish_reason": "stop length truncated", "status": "ok fallback error timeout rejected",
    },
    "requirements": {
        "arm": "production canary", "kind": "model accepted",
        "test_suite_origin": "attached collected recorded",
    },
    "rollout_samples": {"arm": "production canary"},
    "rollouts": {"state": "ramping holding paused baking completed rolled_back aborted"},
    "test_suites": {"origin": "attached collected recorded", "status": "usable weak mismatch none"},
    "training_run_examples": {"role": "new rehearsal validation"},
}  # fmt: skip

REFERENCES = {
    "alert_deliveries": ("key",),
    "deployment_events": ("rollout_id", "version"),
    "filtered_conversations": ("conversation_id",),
    "gate_verdicts": ("production_version", "training_run_id", "version"),
    "model_versions": ("parent_version",),
    "phase4_rejections": ("conversation_id", "duplicate_of"),
    "phase4_training_data": ("conversation_id",),
    "phase4_training_runs": ("base_version", "candidate_version", "requested_base"),
    "quality_measurements": ("version",),
    "reconstructions": ("requirement_id",),
    "registry_events": ("deployment_event_id", "verdict_id"),
    "requirements": ("conversation_id",),
    "rollback_events": ("rollout_id",),
    "rollout_pairs": ("rollout_id",),
    "rollout_samples": ("rollout_id",),
    "rollouts": ("candidate", "production", "training_run_id"),
    "sampled_answers": ("conversation_id", "model_version"),
    "training_run_examples": ("conversation_id", "sampled_answer_id", "training_run_id"),
}

# Constraint -> table, changes that violate it, changes just inside it.
OTHERS: dict[str, tuple[str, list[Row], list[Row]]] = {
    "alert_deliveries_attempts_check": ("alert_deliveries", [{"attempts": -1}], []),
    "deployment_events_order_check": (
        "deployment_events",
        [{"seq": None}, {"rollout_id": None}],
        [{"rollout_id": None, "seq": None}],
    ),
    "deployment_events_traffic_check": (
        "deployment_events",
        [{"version": "v2"}, {"weight": 0.1}],
        [{"version": "v2", "weight": 0.1}],
    ),
    "feedback_rating_check": ("feedback", [{"rating": 0}, {"rating": 2}], [{"rating": -1}]),
    "filtered_days_counts_check": ("filtered_days", [{"kept": -1}, {"rejected": -1}], []),
    "gateway_tokens_hash_check": (
        "gateway_tokens",
        [{"hash": "0" * 63}, {"hash": "g" * 64}],
        [{"hash": "f" * 64}],
    ),
    "gateway_tokens_name_check": (
        "gateway_tokens",
        [{"name": ""}, {"name": "a b"}, {"name": "-a"}, {"name": "x" * 61}],
        [{"name": "x" * 60}, {"name": "a.b_c-1"}],
    ),
    "gateway_tokens_scopes_check": (
        "gateway_tokens",
        [{"scopes": []}, {"scopes": ["root"]}, {"scopes": ["feedback", "root"]}],
        [{"scopes": ["requirements", "conversations", "feedback", "metrics", "review", "admin"]}],
    ),
    "phase4_training_runs_counts_check": ("phase4_training_runs", [{"attempt": -1}, {"fence": -1}], []),
    "phase4_training_runs_dispatch_check": (
        "phase4_training_runs",
        [{"dispatch": -1}],
        [{"dispatch": 0}],
    ),
    "phase4_training_runs_requested_window_days_check": (
        "phase4_training_runs",
        [{"requested_window_days": 0}],
        [{"requested_window_days": 1}],
    ),
    "pool_days_counts_check": ("pool_days", [{"kept": -1}, {"removed": -1}], []),
    "quality_measurements_counts_check": (
        "quality_measurements",
        [{"n": -1}, {"standard_error": -0.01}],
        [{"standard_error": 0.0}],
    ),
    "registry_events_attempts_check": ("registry_events", [{"attempts": -1}], [{"attempts": 0}]),
    "registry_events_decision_check": (
        "registry_events",
        [{"verdict_id": None}, {"deployment_event_id": 101}],
        [{"verdict_id": None, "deployment_event_id": 101}],
    ),
    "requests_counts_check": (
        "requests",
        [{"latency_ms": -0.1, "output_tokens": 0}, {"latency_ms": 0.0, "output_tokens": -1}],
        [{"latency_ms": 0.0, "output_tokens": 0}],
    ),
    "requirements_scored_check": (
        "requirements",
        [{"test_pass_rate": 0.5}],
        [{"test_pass_rate": 0.5, "scored_at": NOW}, {"scored_at": NOW}],
    ),
    "rollouts_counts_check": (
        "rollouts",
        [{"stage": -1}, {"revision": -1}, {"healthy_seconds": -0.1}],
        [{"stage": 0, "revision": 0, "healthy_seconds": 0.0}],
    ),
    "model_versions_kind_check": (
        "model_versions",
        [{"kind": "other"}],
        [{"kind": "full"}, {"kind": "adapter", "base_digest": "b"}],
    ),
    "model_versions_base_digest_check": ("model_versions", [{"kind": "adapter"}, {"base_digest": "b"}], []),
    "rollouts_different_versions_check": ("rollouts", [{"candidate": "v1"}], []),
    "sampled_answers_counts_check": ("sampled_answers", [{"sample": -1}, {"seed": -1}], [{"seed": 0}]),
    "training_run_examples_sampled_answer_check": (
        "training_run_examples",
        [{"role": "self"}, {"sampled_answer_id": 101}],
        [{"role": "self", "sampled_answer_id": 101}],
    ),
    "test_suites_counts_check": (
        "test_suites",
        [
            {"counted_mutants": -1, "undecided_mutants": 0},
            {"counted_mutants": 0, "undecided_mutants": -1},
        ],
        [{"counted_mutants": 0, "undecided_mutants": 0}],
    ),
}

CACHE_KEY = "model_digest canary_set_digest item reconstructor orchestra judge_version decoding"
SAMPLING_KEY = "source_sha256 suite_sha256 model_digest decoding orchestra judge_version"
# Unique key -> table, rows that are refused after the first, rows that are not.
KEYS: dict[str, tuple[str, Row, list[Row], list[Row]]] = {
    "canary_results_cache_key": (
        "canary_results",
        {},
        [{"version": "v2", "set": "production_holdout", "status": "missing"}],
        [
            {name: "other"}
            for name in CACHE_KEY.split()
        ],
    ),
    "conversations_session_id_key": ("conversations", {}, [{"origin": "import"}], [{"session_id": "b"}]),
    "deployment_events_rollout_id_seq_key": (
        "deployment_events",
        {},
        [{"event_type": "held"}],
        [{"seq": 8}, {"rollout_id": 102}, {"rollout_id": None, "seq": None}],
    ),
    "gateway_tokens_hash_key": ("gateway_tokens", {}, [{"name": "b"}], [{"name": "b", "hash": "1" * 64}]),
    "phase4_training_runs_trigger_key_key": (
        "phase4_training_runs",
        {},
        [{"trigger": "weekly", "status": "failed"}],
        [{"trigger_key": "b"}],
    ),
    "reconstructions_requirement_id_reconstructor_key": (
        "reconstructions",
        {},
        [{"status": "missing"}],
        [{"reconstructor": "b"}, {"requirement_id": 102}],
    ),
    "registry_events_deployment_event_id_key": (
        "registry_events",
        {"verdict_id": None, "deployment_event_id": 101},
        [{}],
        [{"deployment_event_id": 102}],
    ),
    "registry_events_verdict_id_key": ("registry_events", {}, [{"attempts": 1}], [{"verdict_id": 102}]),
    "requirements_request_id_key": (
        "requirements",
        {"request_id": "r"},
        [{"request_id": "r", "session_id": "b"}],
        [{"request_id": "b"}, {"request_id": None}],
    ),
    "test_suites_measured_once": (
        "test_suites",
        {},
        [{"status": "weak"}],
        [
            {name: "other"}
            for name in ("source_sha256", "digest", "generator_version", "environment")
        ] + [{"origin": "recorded"}],
    ),
    "sampled_answers_cache_key": (
        "sampled_answers",
        {},
        [{"model_version": "v2", "text": "t"}],
        [{name: "other"} for name in SAMPLING_KEY.split()]
        + [{"conversation_id": 102}, {"sample": 1}, {"seed": 1}],
    ),
    "requirements_one_accepted": (
        "requirements",
        {"kind": "accepted"},
        [{"kind": "accepted", "text": "b"}],
        [{"kind": "model"}, {"kind": "accepted", "session_id": "b"}],
    ),
    "rollouts_one_live": (
        "rollouts",
        {},
        [{"state": state, "candidate": "v3"} for state in ("ramping", "holding", "paused", "baking")],
        [{"state": state} for state in ("completed", "rolled_back", "aborted")],
    ),
    "phase4_training_runs_one_running": (
        "phase4_training_runs",
        {"status": "running"},
        [{"trigger_key": "b", "status": "running"}],
        [{"trigger_key": "b", "status": "waiting"}],
    ),
    "model_versions_one_production": (
        "model_versions",
        {},
        [{"version": "b", "status": "production"}],
        [{"version": "b", "status": "retired"}],
    ),
    "rollout_samples_one_per_session": (
        "rollout_samples",
        {},
        [{"requirement_id": 102, "arm": "production"}],
        [
            {"requirement_id": 102, "exclusion_reason": "later_answer"},
            {"requirement_id": 102, "session_key": "b"},
            {"rollout_id": 102},
        ],
    ),
}  # fmt: skip


def insert_platform(conn: sa.Connection) -> None:
    """What the rows refer to: versions, conversations, requirements, a run, two rollouts, an alert."""
    for version, status in (("v1", "production"), ("v2", "candidate"), ("v3", "candidate")):
        row = {"version": version, "status": status, "digest": "d", "path": "p"}
        conn.execute(t.model_versions.insert().values(row))
    for number in (101, 102):
        row = {"id": number, "session_id": f"s{number}", "origin": "simulated"}
        conn.execute(t.conversations.insert().values(row))
        row = {"id": number, "session_id": f"s{number}", "kind": "model", "text": ""}
        conn.execute(t.requirements.insert().values(row))
        row = {"id": number, "candidate": "v2", "production": "v1", "state": "aborted"}
        conn.execute(t.rollouts.insert().values(row))
        row = {"version": "v2", "production_version": "v1", "status": "fail", "canary_set_digest": "s"}
        conn.execute(t.gate_verdicts.insert().values(**row, id=number, orchestra="o", judge_version="j"))
        row = {"event_type": "opened", "actor": "a"}
        conn.execute(t.deployment_events.insert().values(**row, id=number))
    conn.execute(t.phase4_training_runs.insert().values(id=101, trigger="manual", trigger_key="a"))
    row = {**ROWS["sampled_answers"], "id": 101, "decoding": "first"}
    conn.execute(t.sampled_answers.insert().values(row))
    conn.execute(t.alerts.insert().values(key="a", severity="info", title="t"))
    conn.execute(sa.text("set constraints all immediate"))  # as at the end of a transaction


# What else a row needs, so that it is the reference that refuses it.
BESIDE_REFERENCE: dict[tuple[str, str], Row] = {
    ("training_run_examples", "sampled_answer_id"): {"role": "self"},
    ("deployment_events", "version"): {"weight": 0.1},
    ("registry_events", "deployment_event_id"): {"verdict_id": None},
}


def violations() -> Iterator[tuple[str, str, Row]]:
    """Constraint, table and changes of a row that it refuses."""
    for table, columns in FRACTIONS.items():
        for column in columns:
            for value in (-0.01, 1.01, NAN):
                more = TOGETHER.get((table, column), {})
                yield f"{table}_{column}_check", table, {**more, column: value}
    for table, columns in VALUES.items():
        for column in columns:
            yield f"{table}_{column}_check", table, {column: "other"}
    for table, references in REFERENCES.items():
        for column in references:
            is_number = isinstance(ROWS[table].get(column), int) or column.endswith(("_id", "_of"))
            missing = {column: MISSING if is_number else "missing"}
            changes = {**missing, **BESIDE_REFERENCE.get((table, column), {})}
            yield f"{table}_{column}_fkey", table, changes
    for constraint, (table, refused, _) in OTHERS.items():
        for changes in refused:
            yield constraint, table, changes


def accepted() -> Iterator[tuple[str, Row]]:
    """Table and changes of a row just inside its constraints."""
    yield from ((table, {}) for table in ROWS)
    for table, columns in FRACTIONS.items():
        for column in columns:
            more = TOGETHER.get((table, column), {})
            yield from ((table, {**more, column: value}) for value in (0.0, 1.0))
    for table, values in VALUES.items():
        for column, names in values.items():
            yield from ((table, {column: name}) for name in names.split())
    for table, _, inside in OTHERS.values():
        yield from ((table, changes) for changes in inside)


def refusal(conn: sa.Connection, table: str, *rows: Row) -> str | None:
    """Insert rows one after the other, and take them back; return what refuses the last, if anything."""
    savepoint = conn.begin_nested()
    try:
        for row in rows:
            conn.execute(t.metadata.tables[f"iccm.{table}"].insert().values(row))
    except sa.exc.IntegrityError as error:
        assert isinstance(error.orig, psycopg.Error)
        return error.orig.diag.constraint_name
    finally:
        savepoint.rollback()
    return None


def test_every_constraint_refuses_what_violates_it_and_nothing_else(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        insert_platform(conn)
        for table, changes in accepted():
            assert refusal(conn, table, {**ROWS[table], **changes}) is None, (table, changes)
        for constraint, table, changes in violations():
            assert refusal(conn, table, {**ROWS[table], **changes}) == constraint, (table, changes)
        for key, (table, changes, refused, others) in KEYS.items():
            first = {**ROWS[table], **changes}
            before = [] if table == "model_versions" else [first]  # which has a production version already
            for more in refused:
                assert refusal(conn, table, *before, {**first, **more}) == key, (table, more)
            for more in others:
                assert refusal(conn, table, *before, {**first, **more}) is None, (table, more)


def test_no_constraint_is_without_a_row_that_violates_it(engine: sa.Engine) -> None:
    """A new constraint needs a row here."""
    query = """
        select con.conname from pg_constraint con
        where con.connamespace = 'iccm'::regnamespace and con.contype in ('c', 'u', 'f', 'x')
        union all
        select i.relname from pg_index x join pg_class i on i.oid = x.indexrelid
        where i.relnamespace = 'iccm'::regnamespace and x.indisunique and not x.indisprimary
          and not exists (select from pg_constraint con where con.conindid = i.oid)
    """
    with engine.connect() as conn:
        names = set(conn.execute(sa.text(query)).scalars())
    assert names == {constraint for constraint, _, _ in violations()} | set(KEYS)
