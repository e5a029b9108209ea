"""What a retrain finds before it trains: unreadable files, and a training that is known already (L3, E1)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from iccm_assets.errors import InputError
from iccm_assets.registry import training_runs, versions
from iccm_assets.retraining import pipeline, run_queue, triggers
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.erasure_worlds import World, learn, populated, small_world


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rehearsal", None, r"the rehearsal sample .*: No such file.*Correct ICCM_REHEARSAL"),
        ("rehearsal", "source_code,requirements\n", r"the rehearsal sample .*, line 1: not JSON"),
        ("rehearsal", "\n", r"the rehearsal sample .* is empty"),
        ("canary_set", None, r"the canary set .*: No such file.*ICCM_CANARY_SET"),
        ("accelerate_config", None, r"cannot be read \(No such file.*ICCM_TRAINING__ACCELERATE_CONFIG"),
        ("accelerate_config", "{num_processes: 2}", r"distributed_type: Field required"),
    ],
)
def test_a_file_that_cannot_be_read_ends_the_retrain_before_it_selects(
    engine: sa.Engine,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: str | None,
    words: str,
) -> None:
    path = tmp_path / "input.jsonl"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(versions, "get_version", lambda *_: pytest.fail("the files are read first"))
    broken = settings.model_copy(update={name: str(path)})
    if name == "accelerate_config":
        training = settings.training.model_copy(update={name: str(path)})
        broken = settings.model_copy(update={"training": training})
    with engine.begin() as conn:
        run = training_runs.create_run(conn, triggers.manual_trigger("k"))
    assert run is not None
    with pytest.raises(InputError, match=words), pipeline.run_attempt(engine, run, "d1") as claimed:
        assert not isinstance(claimed, pipeline.SkippedRun)
        pipeline.prepare_training(engine, broken, claimed)
    with engine.connect() as conn:
        failed = training_runs.get_run(conn, run.id)
        assert failed.status == "failed" and str(path) in (failed.error or "")
        assert run_queue.load_queue_state(conn, settings.triggers).queued_runs == ()
        alerted = run_queue.find_exhausted_runs(conn, settings.triggers)
    assert [exhausted.id for exhausted in alerted] == [run.id]


def test_a_training_whose_result_was_rolled_back_is_not_repeated_until_something_differs(
    new_database: Callable[..., str], tmp_path: Path
) -> None:
    with small_world(tmp_path / "home", new_database()) as world:
        populated(world, "w")
        version = learn(world, name="deployed")
        assert isinstance(prepare(world, "again"), pipeline.TrainingPlan)
        with world.engine.begin() as conn:
            rolled_back = sa.text(
                "update iccm.model_versions set status = 'rolled_back' where version = :version"
            )
            conn.execute(rolled_back, {"version": version})
        skipped = prepare(world, "after the rollback")
        assert isinstance(skipped, pipeline.SkippedRun)
        assert f"gave {version}, which was rolled back" in skipped.reason
        with world.engine.connect() as conn:
            [status] = conn.execute(
                sa.text("select status from iccm.phase4_training_runs order by id desc limit 1")
            ).scalars()
        assert status == "skipped"
        training = world.settings.training.model_copy(update={"seed": 12_345})
        other = world.settings.model_copy(update={"training": training})
        assert isinstance(prepare(world, "another seed", other), pipeline.TrainingPlan)


def prepare(
    world: World, key: str, settings: Settings | None = None
) -> pipeline.TrainingPlan | pipeline.SkippedRun:
    with world.engine.begin() as conn:
        run = training_runs.create_run(conn, triggers.manual_trigger(key))
    assert run is not None
    with pipeline.run_attempt(world.engine, run, key) as claimed:
        assert not isinstance(claimed, pipeline.SkippedRun)
        plan = pipeline.prepare_training(world.engine, settings or world.settings, claimed)
        if isinstance(plan, pipeline.TrainingPlan):
            with world.engine.begin() as conn:
                training_runs.finish_run(conn, claimed.id, claimed.fence, "gate_failed")
    return plan
