"""A model's own answers: what is sampled, scored, stored and paid for, and what may teach (L12)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.errors import ModelError
from iccm_assets.models.generation import GeneratedResponse
from iccm_assets.registry.versions import register_version
from iccm_assets.scoring.scoring import LENGTH_STOPPED, SOURCE_TRUNCATED, ReconstructionScore, Score
from iccm_assets.settings import Settings
from iccm_assets.suites.test_suites import parse_suite
from iccm_assets.training.sampling import (
    SamplingJob,
    SamplingReport,
    copies_source,
    derive_seed,
    find_rejection,
    parse_reply,
    sample_answers,
)
from iccm_assets.training.sampling_sources import AnsweredSource, load_sources
from iccm_assets.training.sampling_worker import run_sampling
from iccm_assets_tests.factories.implementations import HOSTILE
from iccm_assets_tests.factories.implementations import SUITE as HOSTILE_SUITE
from iccm_assets_tests.factories.sampled_answers import (
    RIGHT,
    SEED,
    make_orchestra,
    put_source,
    put_version,
    read_marked,
    response,
)
from iccm_assets_tests.factories.scorable_rows import SOURCE, SUITE
from iccm_assets_tests.factories.tiny_models import tiny_gpt2

WRONG_TEXT = "The function `f` shall return three times its argument."
RIGHT_TEXT = "The function `f` shall return twice its argument."


class Model:
    """Answers greedily with one text, and with those of ``samples`` in turn; records what it is asked."""

    def __init__(self, greedy: str, samples: Sequence[str] = ()) -> None:
        self.greedy, self.samples = greedy, samples
        self.seeds: list[int] = []
        self.calls = 0

    def __call__(self, sources: Sequence[str], seeds: Sequence[int]) -> list[GeneratedResponse]:
        self.calls += 1
        self.seeds += seeds
        texts = [self.greedy] * len(sources)
        if seeds:
            texts = [self.samples[n % len(self.samples)] for n in range(len(sources))]
        return [response(text) for text in texts]


def sample(
    engine: sa.Engine, settings: Settings, model: Any, ids: Sequence[int], **orchestra: Any
) -> SamplingReport:
    with engine.connect() as conn:
        row = conn.execute(sa.select(t.model_versions.c.version)).scalar_one_or_none()
    version = put_version(engine) if row is None else stored_version(engine, row)
    job = SamplingJob(version=version.version, conversation_ids=tuple(ids), seed=SEED)
    members = orchestra.get("members", make_orchestra(read_marked, read_marked))
    return sample_answers(engine, job, version, model, members, settings)


def stored_version(engine: sa.Engine, name: str) -> Any:
    from iccm_assets.registry.versions import get_version

    with engine.connect() as conn:
        return get_version(conn, name)


def with_samples(settings: Settings, samples: int, **changes: Any) -> Settings:
    sampling = settings.sampling.model_copy(update={"samples": samples, **changes})
    return settings.model_copy(update={"sampling": sampling})


def test_only_sources_that_are_not_right_greedily_are_sampled_and_a_second_pass_pays_for_nothing(
    engine: sa.Engine, settings: Settings
) -> None:
    settings = with_samples(settings, 3)
    ids = [put_source(engine, settings, 0), put_source(engine, settings, 1, source=SOURCE + "\n# two\n")]
    model = Model(WRONG_TEXT, [WRONG_TEXT, RIGHT_TEXT, RIGHT_TEXT])
    report = sample(engine, settings, model, ids)
    assert (report.tried, report.right, report.sampled, report.accepted) == (2, 0, 2, 2)
    assert (report.wrong_greedy_share, report.accepted_share) == (1.0, 1.0)
    assert report.scored_answers == 2 + 2 * 3
    assert len(set(model.seeds)) == 6 and model.calls == 2
    again = sample(engine, settings, Model("never"), ids)
    assert (again.reused_answers, again.scored_answers, again.accepted) == (8, 0, 2)
    with engine.connect() as conn:
        rows = conn.execute(sa.select(t.sampled_answers).order_by(t.sampled_answers.c.id)).all()
    assert [row.sample for row in rows if row.conversation_id == ids[0]] == [0, 1, 2, 3]
    assert {row.model_version for row in rows} == {"v1"} and not any(row.rejection for row in rows)
    assert [row.test_pass_rate > 0.95 for row in rows if row.conversation_id == ids[0]] == [
        False, False, True, True,
    ]  # fmt: skip


def test_a_source_that_is_right_greedily_is_not_sampled(engine: sa.Engine, settings: Settings) -> None:
    model = Model(RIGHT_TEXT)
    report = sample(engine, settings, model, [put_source(engine, settings, 0)])
    assert (report.tried, report.right, report.sampled) == (1, 1, 0)
    assert model.seeds == [] and report.accepted_share is None


def test_each_text_of_a_source_is_judged_once(engine: sa.Engine, settings: Settings) -> None:
    judged: list[str] = []

    def read(text: str) -> str:
        judged.append(text)
        return read_marked(text)

    settings = with_samples(settings, 6)
    number = put_source(engine, settings, 0)
    model = Model(WRONG_TEXT, [RIGHT_TEXT, WRONG_TEXT + " And more."])
    sample(engine, settings, model, [number], members=make_orchestra(read, read))
    assert sorted(judged) == sorted(2 * [WRONG_TEXT, RIGHT_TEXT, WRONG_TEXT + " And more."])


def test_nothing_is_scored_after_the_time_of_the_judge_is_used_up(
    engine: sa.Engine, settings: Settings
) -> None:
    settings = with_samples(settings, 2, max_judge_seconds=1e-9)
    report = sample(engine, settings, Model(WRONG_TEXT, [RIGHT_TEXT]), [put_source(engine, settings, 0)])
    assert (report.tried, report.sampled, report.postponed) == (1, 0, 1)


def test_an_interrupted_pass_keeps_what_it_scored(engine: sa.Engine, settings: Settings) -> None:
    number = put_source(engine, settings, 0)

    def fails_to_sample(sources: Sequence[str], seeds: Sequence[int]) -> list[GeneratedResponse]:
        if seeds:
            raise ModelError("out of memory")
        return [response(WRONG_TEXT) for _ in sources]

    with pytest.raises(ModelError):
        sample(engine, settings, fails_to_sample, [number])
    report = sample(engine, with_samples(settings, 2), Model("never", [RIGHT_TEXT]), [number])
    assert (report.reused_answers, report.scored_answers, report.accepted) == (1, 2, 1)


def test_an_answer_to_a_conversation_that_is_erased_meanwhile_is_not_stored(
    engine: sa.Engine, settings: Settings
) -> None:
    number = put_source(engine, settings, 0)

    def erased(sources: Sequence[str], seeds: Sequence[int]) -> list[GeneratedResponse]:
        with engine.begin() as conn:
            conn.execute(sa.text("update iccm.conversations set erased_at = iccm.now()"))
        return [response(WRONG_TEXT) for _ in sources]

    report = sample(engine, settings, erased, [number])
    with engine.connect() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(t.sampled_answers)).scalar_one() == 0
    assert report.tried == 0


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ("update iccm.conversations set erased_at = iccm.now()", 0),
        ("update iccm.requirements set test_pass_rate = null", 0),
        ("update iccm.requirements set test_suite_origin = 'recorded'", 1),
        ("update iccm.requirements set test_suite = test_suite || jsonb_build_object('kind', 'pytest')", 0),
        ("update iccm.requirements set source_sha256 = 'another'", 0),
    ],
)
def test_what_may_not_teach_gives_no_sources(
    engine: sa.Engine, settings: Settings, change: str, left: int
) -> None:
    curation = settings.curation.model_copy(update={"evidence": "cases"})
    number = put_source(engine, settings, 0)
    with engine.begin() as conn:
        assert len(load_sources(conn, [number], curation)) == 1
        conn.execute(sa.text(change))
        assert len(load_sources(conn, [number], curation)) == left
        none = curation.model_copy(update={"suite_origins": "attached"})
        assert len(load_sources(conn, [number], none)) == 0


def test_a_held_out_session_gives_no_sources(engine: sa.Engine, settings: Settings) -> None:
    number = put_source(engine, settings, 0)
    held_out = settings.curation.model_copy(update={"holdout_fraction": 1.0})
    with engine.connect() as conn:
        assert load_sources(conn, [number], held_out) == []


SIMULATED = AnsweredSource(1, None, None, True, SOURCE, "a", parse_suite(SUITE), "b")
REAL = AnsweredSource(1, None, None, False, SOURCE, "a", parse_suite(SUITE), "b")


def score(*members: tuple[str, str]) -> Score:
    rated = tuple(
        ReconstructionScore(name, status, RIGHT, 1.0 if status == "scored" else None, (), None, 1.0)
        for name, status in members
    )
    return Score(1.0, 0.0, None, rated)


@pytest.mark.parametrize(
    ("answer", "given", "source", "reason"),
    [
        (response(RIGHT_TEXT), score(("a", "scored"), ("b", "scored")), REAL, None),
        (response(RIGHT_TEXT), score(("a", "scored"), ("b", "missing")), REAL, None),
        (response(RIGHT_TEXT, is_complete=False), score(("a", "scored")), REAL, LENGTH_STOPPED),
        (response(RIGHT_TEXT, is_truncated=True), score(("a", "scored")), REAL, SOURCE_TRUNCATED),
        (response(RIGHT_TEXT), score(("a", "scored"), ("b", "suspect")), REAL, "no evidence (b)"),
        (response(RIGHT_TEXT), score(("a", "scored"), ("b", "inconclusive")), REAL, "no evidence (b)"),
        (response(RIGHT_TEXT), score(("builtin/strict", "scored")), REAL, "only `builtin`"),
        (response(RIGHT_TEXT), score(("builtin/strict", "scored")), SIMULATED, None),
        (response(SOURCE), score(("a", "scored")), REAL, "states no requirements"),
        (response(f"{RIGHT_TEXT}\n\n```python\n{SOURCE}```"), score(("a", "scored")), REAL, "copies lines"),
        (
            response(RIGHT_TEXT + " It shall mail jane.doe@example.org then."),
            score(("a", "scored")),
            REAL,
            "secret or personal",
        ),
    ],
)
def test_an_answer_is_no_example_for_these_reasons_whatever_its_score(
    answer: GeneratedResponse, given: Score, source: AnsweredSource, reason: str | None
) -> None:
    rejection = find_rejection(answer, given, source)
    assert rejection is None if reason is None else rejection is not None and reason in rejection


def test_lines_of_the_source_are_found_however_they_are_indented() -> None:
    source = "def f(x):\n    y = x + 1\n    return y\n\ndef g():\n    pass\n"
    assert copies_source("shall:\n  def f(x):\n\n   y = x  + 1\n return y", source)
    assert not copies_source("f(x) shall return x + 1:\n y = x + 1\n", source)
    assert not copies_source("It shall do nothing.", "")


def test_a_seed_differs_by_source_model_and_sample() -> None:
    other = AnsweredSource(1, None, None, True, SOURCE, "another", parse_suite(SUITE), "b")
    seeds = {
        derive_seed(SEED, source, model, number)
        for source in (REAL, other)
        for model in ("d1", "d2")
        for number in (1, 2)
    }
    assert len(seeds) == 8 and derive_seed(SEED, REAL, "d1", 1) == derive_seed(SEED, SIMULATED, "d1", 1)


def test_a_process_that_ends_without_a_reply_is_an_error() -> None:
    with pytest.raises(Exception, match="without a reply"):
        parse_reply([])
    assert parse_reply([{"metadata": SamplingReport(tried=3).model_dump()}]).tried == 3
    with pytest.raises(ModelError, match="NaN"):
        parse_reply([{"error": ModelError("NaN").to_dict()}])


# As in the tests of the sandbox: these end by a limit of time or space, in seconds each.
LONG = {
    "sleeps for ever", "two gigabytes in children", "two gigabytes bit by bit",
    "catastrophic regular expression", "an endless loop at import", "an endless loop in many processes",
    "ignores signals and loops in a thread", "a hundred thousand files", "an endless loop",
}  # fmt: skip


@pytest.mark.slow
def test_no_hostile_implementation_makes_its_text_an_example(engine: sa.Engine, settings: Settings) -> None:
    """Whatever the orchestra writes to pass the suite, the text that led to it teaches nothing."""
    hostile = {f"The function `add` shall be number {n}.": kind for n, kind in enumerate(HOSTILE)}
    tried = [text for text, kind in hostile.items() if kind.name not in LONG]

    def write(text: str) -> str:
        return hostile[text].source if text in hostile else WRONG_TEXT

    source = "def add(a, b):\n    return a + b\n\n\ndef label(n):\n    return f'item-{n}'\n"
    number = put_source(engine, settings, 0, suite=HOSTILE_SUITE, source=source)
    settings = with_samples(settings, len(tried))
    report = sample(engine, settings, Model("Wrong.", tried), [number], members=make_orchestra(write))
    assert (report.sampled, report.accepted) == (1, 0)
    assert report.scored_answers == 1 + len(tried) and len(tried) > 40


def test_the_worker_answers_with_the_weights_of_the_version(
    engine: sa.Engine, settings: Settings, tmp_path: Path
) -> None:
    model = tiny_gpt2(tmp_path / "m")
    evaluation = settings.evaluation.model_copy(update={"max_new_tokens": 8})
    settings = with_samples(settings, 2).model_copy(update={"evaluation": evaluation})
    number = put_source(engine, settings, 0)
    with engine.begin() as conn:
        made = register_version(conn, digest="d" * 64, path=str(model), parent=None, status="production")
    job = SamplingJob(version=made.version, conversation_ids=(number,), seed=SEED)
    report = run_sampling(engine, job, settings, lambda line: None)
    # Random weights write nothing that can be rebuilt, and do not end in time.
    assert (report.tried, report.right, report.sampled, report.accepted) == (1, 0, 1, 0)
    with engine.connect() as conn:
        rows = conn.execute(sa.select(t.sampled_answers).order_by(t.sampled_answers.c.sample)).all()
    assert len({row.text for row in rows}) == 3 and {row.rejection for row in rows} == {LENGTH_STOPPED}
    assert run_sampling(engine, job, settings, lambda line: None).scored_answers == 0
