"""Which of a model's own answers become examples, and what follows them (L12)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from iccm_assets.governance.erasure import DataSubject, erase
from iccm_assets.registry import training_runs, versions
from iccm_assets.retraining import example_queries, pipeline, self_examples, triggers
from iccm_assets.retraining.example_selection import TimeWindow
from iccm_assets.retraining.self_examples import (
    SelfExample,
    apply_caps,
    choose_best,
    choose_self_examples,
)
from iccm_assets.settings import SelectionSettings, Settings
from iccm_assets.suites.test_suites import parse_suite
from iccm_assets.training.dataset import DatasetStore, TrainingExample
from iccm_assets.training.sampling import SampledAnswer, SamplingJob, SamplingReport
from iccm_assets.training.sampling_sources import AnsweredSource
from iccm_assets_tests.factories.erasure_worlds import DAY, EMBEDDER, World, populated, small_world
from iccm_assets_tests.factories.sampled_answers import put_answers
from iccm_assets_tests.factories.scorable_rows import SUITE
from iccm_assets_tests.factories.training_pools import HELD_OUT, HashEmbedder, write_canary_set


def source(number: int, user: str | None = None) -> AnsweredSource:
    code = f"def f{number}(x):\n    return x + {number}\n"
    return AnsweredSource(number, user, None, True, code, f"sha{number}", parse_suite(SUITE), "s")


def answer(number: int, sample: int, rate: float | None, **changes: Any) -> SampledAnswer:
    text = changes.pop("text", f"w{number}x{sample} shall add.")
    variance = changes.pop("variance", 0.0)
    return SampledAnswer(
        100 * number + sample, number, sample, text, rate, variance, changes.get("rejection")
    )


def example(number: int, user: str | None = None, text: str = "") -> SelfExample:
    return SelfExample(answer(number, 1, 1.0, text=text or f"w{number} shall add."), source(number, user))


def new(number: int, text: str) -> TrainingExample:
    return TrainingExample(1000 + number, f"def g{number}(): ...", text, "new", "pool")


@pytest.mark.parametrize(
    ("answers", "chosen"),
    [
        ([answer(1, 0, 0.5), answer(1, 1, 0.94), answer(1, 2, 0.95)], 2),
        ([answer(1, 0, 0.5), answer(1, 1, 0.96), answer(1, 2, 1.0)], 2),
        ([answer(1, 0, 0.5), answer(1, 1, 1.0, variance=0.02), answer(1, 2, 1.0)], 2),
        ([answer(1, 0, 0.5), answer(1, 1, 1.0), answer(1, 2, 1.0)], 1),
        ([answer(1, 0, 0.5), answer(1, 1, 1.0, variance=0.04)], None),
        ([answer(1, 0, 0.5), answer(1, 1, 1.0, rejection="suspect")], None),
        ([answer(1, 0, 0.95), answer(1, 1, 1.0)], None),
        ([answer(1, 0, None), answer(1, 1, 1.0)], None),
        ([answer(1, 1, 1.0)], None),
        ([answer(1, 0, 0.5)], None),
        ([], None),
    ],
)
def test_the_best_right_answer_of_a_source_that_is_wrong_greedily_is_chosen(
    answers: list[SampledAnswer], chosen: int | None
) -> None:
    best = choose_best([source(1)], {1: answers}, 0.04)
    assert [picked.answer.sample for picked in best] == ([] if chosen is None else [chosen])


def test_at_most_thirty_percent_are_the_models_own_and_no_user_has_more_than_a_share() -> None:
    settings = SelectionSettings()
    many = [example(number, f"user{number}") for number in range(60)]
    for count in (0, 1, 7, 70, 100):
        chosen = apply_caps(many, count, settings)
        assert len(chosen) <= 0.3 * (count + len(chosen)) + 1e-9
    assert len(apply_caps(many, 70, settings)) == 30
    assert [picked.source.conversation_id for picked in apply_caps(many, 70, settings)[:3]] == [0, 1, 2]
    greedy = [example(number, "one" if number < 40 else f"user{number}") for number in range(60)]
    by_one = [picked for picked in apply_caps(greedy, 70, settings) if picked.owner == "user:one"]
    assert len(by_one) <= 3


@pytest.fixture
def curated(settings: Settings, tmp_path: Path) -> Settings:
    item = {
        "item": "c1",
        "source_code": "def c(x):\n    return x * 7\n",
        "requirements": "canary shall sing.",
    }
    return settings.model_copy(update={"canary_set": write_canary_set(tmp_path / "canary.jsonl", [item])})


def test_what_overlaps_an_evaluation_set_or_a_held_out_session_is_left_out(
    engine: sa.Engine, curated: Settings
) -> None:
    with engine.begin() as conn:
        conn.execute(
            sa.text(
                "insert into iccm.conversations (id, session_id, origin, timestamp)"
                " values (1, :session, 'simulated', iccm.now())"
            ),
            {"session": HELD_OUT},
        )
        conn.execute(
            sa.text(
                "insert into iccm.requirements (session_id, conversation_id, kind, text, test_pass_rate,"
                " scored_at) values (:session, 1, 'accepted', 'heldout shall stay.', 1, iccm.now())"
            ),
            {"session": HELD_OUT},
        )
    copied = AnsweredSource(
        9, None, None, True, "def other(y):\n    return y * 7\n", "h", parse_suite(SUITE), "s"
    )
    examples = [
        example(1, "a", "canary shall sing."),
        example(2, "b", "canary shall warble."),
        example(3, "c", "heldout shall remain."),
        SelfExample(answer(9, 1, 1.0), copied),
        example(5, "d", "fine shall add."),
    ]
    news = [new(number, f"n{number} shall be.") for number in range(20)]
    choice = choose_self_examples(engine, examples, news, curated, HashEmbedder(disturbance=0.1))
    assert [picked.source.conversation_id for picked in choice.chosen] == [5]
    assert choice.excluded == {"contaminated": 4, "duplicates": 0, "over a cap": 0}
    assert choice.reason == "1 sampled answers are examples (4 contaminated)"


def test_the_audit_set_of_the_packaged_canary_set_counts_as_well(
    engine: sa.Engine, settings: Settings, curated: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    item = {"item": "a1", "source_code": "def a(x):\n    return x * 9\n", "requirements": "audit shall sing."}
    monkeypatch.setattr(self_examples, "PACKAGED_CANARY_SET", curated.canary_set)
    monkeypatch.setattr(
        self_examples, "PACKAGED_AUDIT_SET", write_canary_set(tmp_path / "audit.jsonl", [item])
    )
    news = [new(number, f"n{number} shall be.") for number in range(20)]
    choice = choose_self_examples(
        engine, [example(1, text="audit shall sing.")], news, curated, HashEmbedder(disturbance=0.1)
    )
    assert choice.chosen == () and choice.excluded["contaminated"] == 1


def test_near_duplicates_of_new_examples_and_of_one_another_are_left_out(
    engine: sa.Engine, curated: Settings
) -> None:
    news = [new(number, f"n{number} shall be.") for number in range(20)]
    examples = [
        example(1, "a", "n3 shall remain."),
        example(2, "b", "twin shall add."),
        example(3, "c", "twin shall sum."),
        example(4, "d", "single shall add."),
    ]
    choice = choose_self_examples(engine, examples, news, curated, HashEmbedder(disturbance=0.1))
    assert [picked.source.conversation_id for picked in choice.chosen] == [2, 4]
    assert choice.excluded["duplicates"] == 2


@pytest.fixture
def world(
    new_database: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    with small_world(tmp_path / "home", new_database()) as world:
        monkeypatch.setattr(self_examples.Embedder, "load", lambda settings: EMBEDDER)
        training = world.settings.training.model_copy(update={"objective": "rft", "rehearsal_fraction": 0.0})
        yield World(world.home, world.engine, world.settings.model_copy(update={"training": training}))


def start(world: World, key: str, **changes: Any) -> training_runs.TrainingRun:
    with world.engine.begin() as conn:
        run = training_runs.create_run(
            conn, triggers.manual_trigger(key, emergency=changes.pop("emergency", False))
        )
    assert run is not None
    return run


def compose(world: World, key: str) -> tuple[pipeline.TrainingPlan, SamplingJob]:
    run = start(world, key)
    with pipeline.run_attempt(world.engine, run, key) as claimed:
        assert not isinstance(claimed, pipeline.SkippedRun)
        job = pipeline.plan_sampling(world.engine, world.settings, claimed)
        assert job is not None
        plan = pipeline.prepare_training(world.engine, world.settings, claimed, job, SamplingReport())
        assert isinstance(plan, pipeline.TrainingPlan)
        with world.engine.begin() as conn:
            training_runs.finish_run(conn, claimed.id, claimed.fence, "gate_failed")
    return plan, job


def answered(world: World, words: str = "zqown") -> tuple[dict[str, list[int]], int]:
    """A world where the model found a right answer of its own to a source of mallory."""
    ids = populated(world, "w")
    with world.engine.connect() as conn:
        base = versions.get_version(conn, versions.PRODUCTION)
    own = ids["mallory"][0]
    answers = [(f"{words} greedy shall fail.", 0.2), (f"{words} shall hold {words}.", 1.0)]
    put_answers(world.engine, world.settings, own, answers, made_by=base)
    return ids, own


def test_an_own_answer_is_trained_on_with_its_lineage(world: World) -> None:
    ids, own = answered(world)
    plan, job = compose(world, "first")
    assert set(job.conversation_ids) == {*ids["mallory"], *ids["others"]} and job.version == plan.base.version
    [trained] = plan.dataset.with_roles("self")
    assert (trained.conversation_id, trained.requirements) == (own, "zqown shall hold zqown.")
    assert plan.dataset.counts["self"] == 1 and "1 sampled answers are examples" in plan.reason
    with world.engine.connect() as conn:
        [row] = conn.execute(
            sa.text(
                """
                select e.conversation_id, a.model_version, a.sample, a.seed, a.test_pass_rate
                from iccm.training_run_examples e join iccm.sampled_answers a on a.id = e.sampled_answer_id
                where e.role = 'self'
                """
            )
        ).all()
    assert (row.conversation_id, row.model_version, row.sample) == (own, plan.base.version, 1)
    assert row.seed > 0 and row.test_pass_rate == 1.0
    assert DatasetStore.open(world.settings).load(plan.dataset.digest) == plan.dataset
    assert compose(world, "second")[0].dataset.digest == plan.dataset.digest


def test_an_erased_source_takes_its_own_answer_with_it(world: World) -> None:
    _, own = answered(world)
    plan, _ = compose(world, "before")
    assert len(plan.dataset.with_roles("self")) == 1
    with world.engine.begin() as conn:
        [session] = conn.execute(
            sa.text("select session_id from iccm.conversations where id = :id"), {"id": own}
        ).scalars()
    erase(world.engine, DataSubject("session", session), actor="a")
    with world.engine.connect() as conn:
        texts = conn.execute(sa.text("select text, rejection from iccm.sampled_answers")).all()
    assert [tuple(row) for row in texts] == [(None, None)] * 2
    after, job = compose(world, "after")
    assert own not in job.conversation_ids and after.dataset.with_roles("self") == []


def test_an_answer_to_a_source_that_the_pool_excludes_since_is_no_example(world: World) -> None:
    _, own = answered(world)
    assert compose(world, "before")[0].dataset.with_roles("self")
    with world.engine.begin() as conn:
        conn.execute(
            sa.text(
                "insert into iccm.phase4_rejections (conversation_id, stage, day, reason)"
                " values (:id, 'policy', :day, 'canary_leak')"
            ),
            {"id": own, "day": DAY},
        )
    plan, job = compose(world, "after")
    assert own not in job.conversation_ids and plan.dataset.with_roles("self") == []


@pytest.mark.parametrize(
    ("change", "is_source"),
    [
        ("select 1", True),
        ("update iccm.phase4_rejections set stage = 'dedup'", False),
        ("delete from iccm.filtered_conversations", False),
        (
            "delete from iccm.filtered_conversations; insert into iccm.phase4_rejections"
            " (conversation_id, stage, day, reason) select id, 'filter', current_date, 'low_test_pass_rate'"
            " from iccm.conversations",
            True,
        ),
        (
            "delete from iccm.filtered_conversations; insert into iccm.phase4_rejections"
            " (conversation_id, stage, day, reason) select id, 'filter', current_date, 'weak_suite'"
            " from iccm.conversations",
            False,
        ),
        ("update iccm.feedback set rating = -1", False),
        ("update iccm.conversations set erased_at = iccm.now()", False),
    ],
)
def test_recent_sources_are_those_with_nothing_against_them_but_their_text(
    world: World, change: str, is_source: bool
) -> None:
    populated(world, "w")
    with world.engine.begin() as conn:
        if "dedup" in change:
            conn.execute(
                sa.text(
                    "insert into iccm.phase4_rejections (conversation_id, stage, day, reason)"
                    " select id, 'dedup', current_date, 'near_duplicate' from iccm.conversations"
                )
            )
        for statement in change.split(";"):
            conn.execute(sa.text(statement))
        [start, end] = conn.execute(
            sa.text("select iccm.now() - interval '9 days', iccm.now() + interval '1 day'")
        ).one()
        sources = example_queries.find_recent_sources(conn, TimeWindow(start, end), None, 100)
        assert bool(sources) is is_source
        assert len(example_queries.find_recent_sources(conn, TimeWindow(start, end), None, 1)) == is_source


def test_an_emergency_and_the_objective_sft_sample_nothing(world: World) -> None:
    populated(world, "w")
    plain = world.settings.training.model_copy(update={"objective": "sft"})
    run = start(world, "plain")
    assert (
        pipeline.plan_sampling(world.engine, world.settings.model_copy(update={"training": plain}), run)
        is None
    )
    assert pipeline.plan_sampling(world.engine, world.settings, run) is not None
    urgent = start(world, "urgent", emergency=True)
    assert pipeline.plan_sampling(world.engine, world.settings, urgent) is None
