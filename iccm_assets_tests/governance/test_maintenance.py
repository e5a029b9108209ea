"""Maintenance on real files and rows: what is deleted, what is kept, and a second run (V3)."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.db.clock import set_clock
from iccm_assets.governance.maintenance import apply_retention
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.platform_rows import conversation, training_run, version
from iccm_assets_tests.factories.sampled_answers import own_answer, put_plain_answer


def model(settings: Settings, name: str) -> Path:
    """A directory of the store, as old as the tests need."""
    directory = settings.home / "models" / f"digest-{name}"
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(b"x" * 100)
    (directory / "model.safetensors").chmod(0o444)
    directory.chmod(0o555)
    return directory


def dataset(settings: Settings, name: str) -> Path:
    directory = settings.home / "datasets" / name
    directory.mkdir(parents=True)
    (directory / "examples.parquet").write_bytes(b"y" * 10)
    os.utime(directory, (time.time() - 10 * 86400,) * 2)
    return directory


@pytest.fixture
def lived(engine: sa.Engine, settings: Settings) -> Settings:
    """v1 (retired) -> v2 (production), v3 failed the gate, v4 is a candidate, v5 rolled back; 40 days ago."""
    with engine.begin() as conn:
        version(conn, "v1", status="retired")
        version(conn, "v2", "v1", status="production")
        version(conn, "v3", "v2", status="gate_failed")
        version(conn, "v4", "v2", status="candidate")
        version(conn, "v5", "v2", status="rolled_back")
        conn.execute(t.rollback_events.insert().values(from_version="v5", to_version="v2", reason="low"))
        for number, name in enumerate(("v2", "v3", "v4"), start=1):
            training_run(conn, number, name, dataset_digest=f"set-{name}")
    for name in ("v1", "v2", "v3", "v4", "v5"):
        model(settings, name)
    for name in ("v2", "v3", "v4"):
        dataset(settings, f"set-{name}")
    return settings


def passed(conn: sa.Connection, name: str, against: str) -> None:
    conn.execute(
        t.gate_verdicts.insert().values(
            version=name, production_version=against, status="pass", canary_set_digest="c", orchestra="o",
            judge_version="1",
        )
    )  # fmt: skip


def left(settings: Settings, what: str) -> set[str]:
    return {path.name.rsplit("-", 1)[-1] for path in (settings.home / what).iterdir() if path.name[0] != "."}


def later(engine: sa.Engine, days: int) -> None:
    with engine.begin() as conn:
        set_clock(conn, shift=timedelta(days=days))


def test_gate_failures_expire_after_a_week_rollbacks_after_a_month_and_the_rest_is_kept(
    engine, lived
) -> None:
    assert apply_retention(engine, lived).deleted == []
    later(engine, 8)
    report = apply_retention(engine, lived)
    assert left(lived, "models") == {"v1", "v2", "v5"}
    assert left(lived, "datasets") == {"v2"}
    assert report.freed_bytes == 220
    later(engine, 23)
    apply_retention(engine, lived)
    assert left(lived, "models") == {"v1", "v2"}
    with engine.connect() as conn:
        metrics = conn.execute(
            sa.select(t.model_versions.c.metrics).where(t.model_versions.c.version == "v3")
        ).scalar_one()
    assert "v3 is gate_failed" in metrics["removed"]["reason"]
    assert apply_retention(engine, lived).deleted == []


def test_a_live_rollout_and_a_waiting_training_run_keep_what_they_need(engine, lived) -> None:
    with engine.begin() as conn:
        conn.execute(t.rollouts.insert().values(candidate="v4", production="v2"))
        training_run(conn, 10, status="waiting", requested_base="v3")
    later(engine, 40)
    apply_retention(engine, lived)
    assert left(lived, "models") == {"v1", "v2", "v3", "v4"}
    assert left(lived, "datasets") == {"v2", "v3", "v4"}


def test_a_candidate_that_has_passed_outlives_the_rollout_it_waits_for_by_a_week(engine, lived) -> None:
    with engine.begin() as conn:
        version(conn, "v6", "v2", status="canary")
        passed(conn, "v4", against="v2")
        conn.execute(t.rollouts.insert().values(candidate="v6", production="v2"))
    later(engine, 40)
    report = apply_retention(engine, lived)
    assert "v4" in left(lived, "models") and "v4" in left(lived, "datasets")
    assert "v4: it has passed and waits for rollout 1 to end" in [
        decision.reason for decision in report.decisions
    ]
    with engine.begin() as conn:
        conn.execute(sa.text("update iccm.rollouts set state = 'rolled_back', closed_at = iccm.now()"))
        conn.execute(sa.text("update iccm.model_versions set status = 'rolled_back' where version = 'v6'"))
    later(engine, 6)
    apply_retention(engine, lived)
    assert "v4" in left(lived, "models")
    later(engine, 2)
    apply_retention(engine, lived)
    assert "v4" not in left(lived, "models")


@pytest.mark.parametrize("against", ["v1", None])
def test_a_rollout_that_a_candidate_does_not_wait_for_keeps_nothing(engine, lived, against) -> None:
    with engine.begin() as conn:
        version(conn, "v6", "v2", status="canary")
        if against:
            passed(conn, "v4", against=against)
        conn.execute(t.rollouts.insert().values(candidate="v6", production="v2"))
    later(engine, 8)
    apply_retention(engine, lived)
    assert "v4" not in left(lived, "models")


def test_history_older_than_a_year_is_deleted_except_for_a_live_rollout_the_baseline_and_lineage(
    engine, lived
) -> None:
    result = {
        "set": "canary_set", "canary_set_digest": "c", "slice": "s", "reconstructor": "r", "orchestra": "o",
        "judge_version": "1", "decoding": "greedy", "requirements": "", "status": "scored",
        "test_pass_rate": 1.0, "item": "i",
    }  # fmt: skip
    with engine.begin() as conn:
        rollout = conn.execute(
            t.rollouts.insert().values(candidate="v4", production="v2").returning(t.rollouts.c.id)
        ).scalar_one()
        conversation(conn, 1)
        requirement = conn.execute(
            t.requirements.insert()
            .values(session_id="s1", conversation_id=1, kind="accepted", text="f shall return.")
            .returning(t.requirements.c.id)
        ).scalar_one()
        conn.execute(
            t.reconstructions.insert().values(
                requirement_id=requirement, reconstructor="r", status="scored", test_pass_rate=1.0
            )
        )
        for name, of in (("plain", None), ("live", rollout)):
            conn.execute(t.requests.insert().values(request_id=name, rollout_id=of, status="ok"))
        for name in ("v2", "v3"):
            conn.execute(
                t.canary_results.insert().values(**result, version=name, model_digest=f"digest-{name}")
            )
        training_run(conn, 99)
        learned = own_answer(conn, 99, 1, made_by="v2", sample=1)
        for number in (0, 2):
            put_plain_answer(conn, 1, made_by="v2", sample=number)
    assert set(apply_retention(engine, lived).rows.values()) == {0}
    later(engine, 366)
    report = apply_retention(engine, lived)
    assert report.rows == {"requests": 1, "reconstructions": 1, "canary_results": 1, "sampled_answers": 2}
    with engine.connect() as conn:
        assert conn.execute(sa.select(t.requests.c.request_id)).scalars().all() == ["live"]
        assert conn.execute(sa.select(t.canary_results.c.version)).scalars().all() == ["v2"]
        assert conn.execute(sa.select(t.sampled_answers.c.id)).scalars().all() == [learned]
        assert conn.execute(sa.select(sa.func.count()).select_from(t.requirements)).scalar_one() == 1


def test_the_job_reports_what_was_deleted_and_why(engine, lived, monkeypatch: pytest.MonkeyPatch) -> None:
    from iccm_assets.defs import resources
    from iccm_assets.defs.automation.jobs import maintenance_job

    monkeypatch.setattr(resources.PlatformResource, "engine", property(lambda self: engine))
    monkeypatch.setattr(resources.PlatformResource, "settings", property(lambda self: lived))
    later(engine, 8)
    with dg.DagsterInstance.ephemeral() as instance:
        done = maintenance_job.execute_in_process(
            instance=instance, resources={"platform": resources.PlatformResource()}
        )
    assert done.success
    [output] = [event for event in done.all_events if event.is_successful_output]
    metadata = output.event_specific_data.metadata
    assert metadata["deleted"].value == 4
    reasons = [record.data["reason"] for record in metadata["retention_decisions"].value.records]
    assert "v1: it is the parent of v2, which is production" in reasons
