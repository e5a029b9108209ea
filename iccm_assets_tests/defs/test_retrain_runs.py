"""How a Dagster run and its training run find each other: by tags, or by the Launchpad (T4)."""

from __future__ import annotations

from types import SimpleNamespace

import dagster as dg
import pytest
import sqlalchemy as sa

from iccm_assets.defs.automation.training_run_tags import (
    DISPATCH_TAG,
    TRAINING_RUN_TAG,
    RetrainConfig,
    get_dagster_run_statuses,
    get_training_run,
    run_request,
)
from iccm_assets.errors import IccmError
from iccm_assets.registry import training_runs
from iccm_assets.retraining import run_queue, triggers
from iccm_assets_tests.factories.platform_rows import version


@dg.job
def empty_job() -> None:
    pass


def context(instance: dg.DagsterInstance, tags: dict[str, str] | None = None) -> SimpleNamespace:
    run = instance.create_run_for_job(empty_job, tags=tags or {}, status=dg.DagsterRunStatus.STARTED)
    return SimpleNamespace(run=run, run_id=run.run_id, instance=instance)


def test_a_retrain_of_the_launchpad_has_a_row_with_what_was_asked_and_tags_that_name_it(
    engine: sa.Engine, instance: dg.DagsterInstance
) -> None:
    with engine.begin() as conn:
        version(conn, "v1", status="production")
        version(conn, "v0", status="retired")
    launched = context(instance)
    config = RetrainConfig(reason="a new domain", emergency=True, base="v0", window_days=14)
    run, claims = get_training_run(launched, engine, config)
    assert (run.trigger, run.emergency, run.notes) == ("manual", True, "a new domain")
    assert (run.requested_base, run.requested_window_days, run.dispatch) == ("v0", 14, 1)
    assert run.trigger_key == f"manual:{launched.run_id}" and claims is None
    assert instance.get_run_by_id(launched.run_id).tags[TRAINING_RUN_TAG] == str(run.id)
    assert get_dagster_run_statuses(instance, {run.id: 1})[run.id].run_id == launched.run_id
    assert get_training_run(launched, engine, config)[0].id == run.id


def test_a_base_nobody_knows_is_refused_by_name(engine: sa.Engine, instance: dg.DagsterInstance) -> None:
    with pytest.raises(IccmError, match="v9"):
        get_training_run(context(instance), engine, RetrainConfig(base="v9"))
    with engine.connect() as conn:
        assert conn.execute(sa.text("select count(*) from iccm.phase4_training_runs")).scalar_one() == 0


def test_a_dispatched_run_brings_its_row_and_its_dispatch(
    engine: sa.Engine, instance: dg.DagsterInstance
) -> None:
    with engine.begin() as conn:
        row = training_runs.create_run(conn, triggers.manual_trigger("k"))
        claimed = run_queue.claim_dispatch(conn, row.id, 0)
        assert run_queue.claim_dispatch(conn, row.id, 0) is None
    tags = dict(run_request(claimed).tags)
    assert tags[DISPATCH_TAG] == "1"
    run, claims = get_training_run(context(instance, tags), engine, RetrainConfig())
    assert (run.id, claims) == (row.id, 1)


def test_a_window_asked_for_by_hand_is_what_examples_are_taken_from(engine: sa.Engine) -> None:
    from datetime import timedelta

    from iccm_assets.retraining import example_queries
    from iccm_assets.settings import SelectionSettings
    from iccm_assets_tests.factories.platform_rows import NOW, conversation

    with engine.begin() as conn:
        version(conn, "v1", status="production")
        for number in range(1, 31):
            conversation(conn, number, user=f"u{number}", at=NOW - timedelta(days=number, hours=1))
        settings = SelectionSettings()
        assert len(example_queries.propose_selection(conn, NOW, settings.with_window(14)).selected) == 13
        assert len(example_queries.propose_selection(conn, NOW, settings.with_window(None)).selected) == 29
