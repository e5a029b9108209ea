"""Conversations whose sources a model answers, its answers by source and seed, and stored answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

from iccm_assets.curation.code_fingerprints import content_sha256
from iccm_assets.curation.filter_policy import is_in_holdout
from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.models.generation import GeneratedResponse
from iccm_assets.registry.versions import ModelVersion, get_version
from iccm_assets.scoring.orchestra import Orchestra, load_orchestra_from_settings
from iccm_assets.scoring.reconstruction import LocalReconstructor
from iccm_assets.settings import Settings
from iccm_assets.suites.suite_runner import get_judge_version
from iccm_assets.training.sampling import _name_decoding, derive_seed
from iccm_assets.training.sampling_sources import load_sources
from iccm_assets_tests.factories.platform_rows import version
from iccm_assets_tests.factories.scorable_rows import SOURCE, SUITE, put_conversation

RIGHT = "def f(x):\n    return 2 * x\n"
WRONG = "def f(x):\n    return 3 * x\n"
SEED = 17


def trained_session(number: int) -> str:
    """The name of a session that is not held out."""
    return [f"s{n}" for n in range(60 * (number + 2)) if not is_in_holdout(f"s{n}", 0.15)][number]


def put_source(
    engine: sa.Engine,
    settings: Settings,
    number: int,
    *,
    rate: float = 0.5,
    suite: Any = SUITE,
    source: str = SOURCE,
) -> int:
    """Store a conversation whose accepted text has this score; return its id."""
    number = put_conversation(
        engine, settings, trained_session(number), text=f"Text {number} of it.", suite=suite, source=source
    )
    with engine.begin() as conn:
        values = {"test_pass_rate": rate, "implementation_variance": 0.0, "scored_at": now(conn)}
        of_conversation = t.requirements.c.conversation_id == number
        conn.execute(t.requirements.update().where(of_conversation).values(values))
    return number


def put_version(engine: sa.Engine) -> ModelVersion:
    """Store a version in production."""
    with engine.begin() as conn:
        return get_version(conn, version(conn, "v1", status="production"))


def response(text: str, **changes: Any) -> GeneratedResponse:
    return GeneratedResponse(text, 10, 1.0, **changes)


def make_orchestra(*implementations: Callable[[str], str]) -> Orchestra:
    """An orchestra of these members."""
    members = tuple(LocalReconstructor(f"m{n}", read) for n, read in enumerate(implementations))
    return Orchestra(members, quorum=min(2, len(members)))


def read_marked(text: str) -> str:
    """Rebuild the right program from a text that says twice, a wrong one from any other."""
    return RIGHT if "twice" in text else WRONG


def put_answers(
    engine: sa.Engine,
    settings: Settings,
    conversation: int,
    answers: Sequence[tuple[str, float]],
    *,
    made_by: ModelVersion,
    rejection: str | None = None,
) -> list[int]:
    """Store the greedy answer and the samples of a conversation, with their scores; return their ids."""
    with engine.begin() as conn:
        [source] = load_sources(conn, [conversation], settings.curation)
        ids = []
        for number, (text, rate) in enumerate(answers):
            seed = settings.training.seed
            values = {
                "conversation_id": conversation,
                "model_version": made_by.version,
                "model_digest": made_by.digest,
                "source_sha256": source.source_sha256,
                "suite_sha256": source.suite_sha256,
                "decoding": _name_decoding(settings, number),
                "sample": number,
                "seed": derive_seed(seed, source, made_by.digest, number) if number else 0,
                "text": text,
                "content_sha256": content_sha256(text),
                "test_pass_rate": rate,
                "implementation_variance": 0.0,
                "rejection": rejection,
                "orchestra": load_orchestra_from_settings(settings).digest,
                "judge_version": get_judge_version(settings),
            }
            statement = t.sampled_answers.insert().values(values).returning(t.sampled_answers.c.id)
            ids.append(conn.execute(statement).scalar_one())
    return ids


def own_answer(conn: sa.Connection, run_id: int, conversation: int, *, made_by: str, sample: int = 1) -> int:
    """Store an answer that a training run learned from, with its lineage; return its id."""
    answer = put_plain_answer(conn, conversation, made_by=made_by, sample=sample)
    values = {"conversation_id": conversation, "role": "self", "sampled_answer_id": answer}
    conn.execute(t.training_run_examples.insert().values(training_run_id=run_id, **values))
    return answer


def put_plain_answer(conn: sa.Connection, conversation: int, *, made_by: str, sample: int) -> int:
    """Store an answer to a conversation whose source and suite do not matter; return its id."""
    texts = ("model_digest", "source_sha256", "suite_sha256", "decoding", "text", "content_sha256")
    values = dict.fromkeys((*texts, "orchestra", "judge_version"), "x")
    statement = t.sampled_answers.insert().values(
        **values, conversation_id=conversation, model_version=made_by, sample=sample, seed=sample
    )
    return int(conn.execute(statement.returning(t.sampled_answers.c.id)).scalar_one())
