"""Pairs of accepted requirements and worse-scored answers, as a retrain finds them (L12)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from iccm_assets.errors import SettingsError
from iccm_assets.registry import training_runs, versions
from iccm_assets.retraining import pipeline, triggers
from iccm_assets_tests.factories.erasure_worlds import World, populated, small_world
from iccm_assets_tests.factories.sampled_answers import put_answers


@pytest.fixture
def world(new_database: Callable[..., str], tmp_path: Path) -> Iterator[World]:
    with small_world(tmp_path / "home", new_database()) as world:
        training = world.settings.training.model_copy(update={"objective": "dpo"})
        yield World(world.home, world.engine, world.settings.model_copy(update={"training": training}))


def prepare(world: World, key: str) -> pipeline.TrainingPlan | pipeline.SkippedRun:
    with world.engine.begin() as conn:
        run = training_runs.create_run(conn, triggers.manual_trigger(key))
    assert run is not None
    with pipeline.run_attempt(world.engine, run, key) as claimed:
        assert not isinstance(claimed, pipeline.SkippedRun)
        plan = pipeline.prepare_training(world.engine, world.settings, claimed)
        if isinstance(plan, pipeline.TrainingPlan):
            with world.engine.begin() as conn:
                training_runs.finish_run(conn, claimed.id, claimed.fence, "gate_failed")
    return plan


def execute(world: World, statement: str, **values: object) -> None:
    with world.engine.begin() as conn:
        conn.execute(sa.text(statement), values)


def test_the_worst_answer_of_the_same_conversation_is_what_the_accepted_text_is_preferred_to(
    world: World,
) -> None:
    ids = populated(world, "w")
    served, close, sampled = ids["others"][:3]
    score = (
        "update iccm.requirements set test_pass_rate = :rate where kind = 'model' and conversation_id = :id"
    )
    execute(world, score, rate=0.5, id=served)
    execute(world, score, rate=0.96, id=close)  # within the gap
    with world.engine.connect() as conn:
        base = versions.get_version(conn, versions.PRODUCTION)
    put_answers(world.engine, world.settings, served, [("Worse.", 0.1), ("Better.", 0.4)], made_by=base)
    put_answers(world.engine, world.settings, sampled, [("Sampled.", 0.3)], made_by=base)
    put_answers(
        world.engine, world.settings, ids["others"][3], [("Cut.", 0.0)], made_by=base, rejection="stopped"
    )
    plan = prepare(world, "pairs")
    assert isinstance(plan, pipeline.TrainingPlan), plan
    assert {row.conversation_id: row.rejected for row in plan.dataset.examples} == {
        served: "Worse.",
        sampled: "Sampled.",
    }
    assert plan.dataset.counts["rehearsal"] == 0 and plan.dataset.counts["validation"] == 1
    assert prepare(world, "again").dataset.digest == plan.dataset.digest  # type: ignore[union-attr]


def test_without_enough_pairs_nothing_trains_and_the_reason_has_numbers(world: World) -> None:
    populated(world, "w")
    skipped = prepare(world, "none")
    assert isinstance(skipped, pipeline.SkippedRun)
    assert "0 selected conversations have an answer that scored worse" in skipped.reason


def test_a_seq2seq_model_is_refused_before_anything_is_sampled(world: World) -> None:
    populated(world, "w")
    with world.engine.begin() as conn:
        run = training_runs.create_run(conn, triggers.manual_trigger("seq2seq"))
        production = versions.get_version(conn, versions.PRODUCTION)
    assert run is not None
    assert pipeline.plan_sampling(world.engine, world.settings, run) is not None
    (Path(production.path) / "config.json").write_text('{"is_encoder_decoder": true}', encoding="utf-8")
    with pytest.raises(SettingsError, match=r"the base is a seq2seq model.*OBJECTIVE to sft or rft"):
        pipeline.plan_sampling(world.engine, world.settings, run)


def test_a_sampling_for_preferences_answers_the_selected_sources_only(world: World) -> None:
    ids = populated(world, "w")
    execute(world, "delete from iccm.phase4_training_data where conversation_id = :id", id=ids["others"][0])
    with world.engine.begin() as conn:
        run = training_runs.create_run(conn, triggers.manual_trigger("selected"))
    assert run is not None
    job = pipeline.plan_sampling(world.engine, world.settings, run)
    assert job is not None
    assert set(job.conversation_ids) == {*ids["mallory"], *ids["others"][1:]}
