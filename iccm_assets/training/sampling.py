"""Sample a model's own answers to recent sources and score them like any requirements text (L12).

A source is answered greedily first; only where that answer is not right are answers sampled. Each answer is
rebuilt by the orchestra and tested in the sandbox. What was scored once is stored in ``sampled_answers`` and
not paid for again. Which answers become examples is decided later: ``retraining.self_examples``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict
from sqlalchemy.dialects.postgresql import insert

from iccm_assets.capture.redaction.redact import redact
from iccm_assets.capture.requirement_statements import find_requirements
from iccm_assets.curation.code_fingerprints import content_sha256
from iccm_assets.db import tables as t
from iccm_assets.errors import IccmError, TrainingError
from iccm_assets.registry.manifest import sha256_json
from iccm_assets.registry.versions import ModelVersion
from iccm_assets.scoring.orchestra import Orchestra
from iccm_assets.scoring.scoring import (
    LENGTH_STOPPED,
    SOURCE_TRUNCATED,
    Score,
    ScoringTask,
    score_texts,
)
from iccm_assets.settings import Settings
from iccm_assets.suites.suite_runner import get_judge_version
from iccm_assets.training.sampling_sources import AnsweredSource, load_sources

if TYPE_CHECKING:
    from iccm_assets.models.generation import GeneratedResponse

# A greedy answer of at least this score is right: nothing is sampled, and no worse sample is an example.
MIN_RIGHT_PASS_RATE = 0.95
GREEDY = 0  # number of the greedy answer; samples count from 1
MAX_ANSWERS_IN_BATCH = 64
MAX_COPIED_LINES = 2
_MAX_SEED = 2**62

AnswerFn = Callable[[Sequence[str], Sequence[int]], "Sequence[GeneratedResponse]"]
"""(sources, seeds) -> one answer per source, in order; greedy ones without seeds."""


class SamplingJob(BaseModel):
    """The version to answer with, and the conversations whose sources it answers, in this order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    conversation_ids: tuple[int, ...]
    seed: int


class SamplingReport(BaseModel):
    """Counts of one pass, in sources and in answers; ``judge_seconds`` is the time of scoring.

    ``tried`` sources were answered greedily and scored: ``right`` ones scored at least 0.95, and
    ``inconclusive`` ones have no score. The others were ``sampled``, unless the time was used up before
    (``postponed``); ``accepted`` sources have a sample that can be an example. ``reused_answers`` were scored
    before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: int = 0
    tried: int = 0
    right: int = 0
    inconclusive: int = 0
    sampled: int = 0
    accepted: int = 0
    postponed: int = 0
    reused_answers: int = 0
    scored_answers: int = 0
    judge_seconds: float = 0.0

    @property
    def accepted_share(self) -> float | None:
        """Share of the sampled sources with a sample that can be an example."""
        return self.accepted / self.sampled if self.sampled else None

    @property
    def wrong_greedy_share(self) -> float | None:
        """Share of the scored sources that are not right greedily already."""
        scored = self.tried - self.inconclusive
        return (scored - self.right) / scored if scored else None

    def to_log_line(self) -> str:
        """The counts in one line."""
        wrong = self.tried - self.right - self.inconclusive
        return (
            f"{self.tried} of {self.sources} sources answered greedily: {self.right} right, {wrong} not,"
            f" {self.inconclusive} inconclusive; {self.sampled} sampled, {self.accepted} with an answer to"
            f" learn from, {self.postponed} left for lack of time; {self.scored_answers} answers scored in"
            f" {self.judge_seconds:.1f} s, {self.reused_answers} were scored before"
        )


def parse_reply(messages: Sequence[Any]) -> SamplingReport:
    """Return the report among a sampling process's messages; raises the error that it replied with."""
    reply: dict[str, Any] = next(iter(messages), {})
    if "metadata" not in reply:
        missing = TrainingError("the sampling process ended without a reply").to_dict()
        raise IccmError.from_dict(reply.get("error") or missing)
    return SamplingReport.model_validate(reply["metadata"])


@dataclass(frozen=True)
class SampledAnswer:
    """A stored answer with its score; ``rejection`` says why it can be no example, whatever its score."""

    id: int
    conversation_id: int
    sample: int
    text: str
    test_pass_rate: float | None
    implementation_variance: float | None
    rejection: str | None

    @property
    def is_right(self) -> bool:
        """Whether its score is that of a right answer."""
        return self.test_pass_rate is not None and self.test_pass_rate >= MIN_RIGHT_PASS_RATE

    def can_teach(self, max_variance: float) -> bool:
        """Whether it can be an example: right, read alike by the whole orchestra, and nothing against it."""
        variance = self.implementation_variance
        return self.is_right and variance is not None and variance < max_variance and not self.rejection


def derive_seed(job_seed: int, source: AnsweredSource, model_digest: str, sample: int) -> int:
    """Return the seed of one sample: another for each source, model and sample."""
    parts = [job_seed, source.source_sha256, model_digest, sample]
    return int(sha256_json(parts), 16) % _MAX_SEED


def find_rejection(response: GeneratedResponse, score: Score, source: AnsweredSource) -> str | None:
    """Return why an answer can be no example whatever its score; None if nothing is against it.

    A model that learns from its own rewarded answers learns what the reward overlooks, too: so this is
    stricter than the filter of what developers accepted.
    """
    if response.is_truncated:
        return SOURCE_TRUNCATED
    if not response.is_complete:
        return LENGTH_STOPPED
    if doubtful := [m.reconstructor for m in score.members if m.status in ("suspect", "inconclusive")]:
        return f"a reconstruction is no evidence ({', '.join(doubtful)})"
    if score.test_pass_rate is None:
        return score.reason
    scored_by = [m.reconstructor for m in score.members if m.test_pass_rate is not None]
    if not source.is_simulated and all(name.startswith("builtin/") for name in scored_by):
        return "only `builtin` scored it, which reads its reference language only"
    return _find_text_problem(response.text, source.source_code)


def _find_text_problem(text: str, source_code: str) -> str | None:
    match = find_requirements(text)
    if match.text is None:
        return f"it states no requirements: {match.reason}"
    if copies_source(text, source_code):
        return "it copies lines of the source"
    return None if redact(text) == text else "it contains a secret or personal data"


def copies_source(text: str, source_code: str) -> bool:
    """Whether a text shows consecutive lines of the source: the code can be copied from it, not rebuilt."""
    lines = [" ".join(line.split()) for line in source_code.splitlines() if line.strip()]
    size = min(MAX_COPIED_LINES + 1, len(lines))
    shown = "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())
    return size > 0 and any(
        "\n".join(lines[start : start + size]) in shown for start in range(len(lines) - size + 1)
    )


def load_answers(
    conn: sa.Connection,
    conversation_ids: Sequence[int],
    model_digest: str,
    settings: Settings,
    seed: int,
    orchestra: Orchestra,
) -> dict[int, list[SampledAnswer]]:
    """Load the stored answers that this sampling would give, by conversation; the greedy one is first.

    Those of a source or a suite that the conversation no longer has are left out.
    """
    sources = {
        source.conversation_id: source for source in load_sources(conn, conversation_ids, settings.curation)
    }
    a = t.sampled_answers.c
    rows = conn.execute(
        sa.select(t.sampled_answers)
        .where(
            a.conversation_id.in_(sources),
            a.model_digest == model_digest,
            a.decoding.in_([_name_decoding(settings, number) for number in (GREEDY, 1)]),
            a.judge_version == get_judge_version(settings),
            a.orchestra == orchestra.digest,
            a.sample <= settings.sampling.samples,
            a.text.is_not(None),
        )
        .order_by(a.conversation_id, a.sample, a.id)
    )
    answers: dict[int, list[SampledAnswer]] = {}
    for row in rows:
        source = sources[row.conversation_id]
        expected = derive_seed(seed, source, model_digest, row.sample) if row.sample else 0
        current = (source.source_sha256, source.suite_sha256, expected)
        if (row.source_sha256, row.suite_sha256, row.seed) == current:
            answers.setdefault(row.conversation_id, []).append(_to_answer(row))
    return answers


def sample_answers(
    engine: sa.Engine,
    job: SamplingJob,
    version: ModelVersion,
    answer: AnswerFn,
    orchestra: Orchestra,
    settings: Settings,
    log: Callable[[str], None] = lambda message: None,
) -> SamplingReport:
    """Answer the job's sources, score and store the answers, and return the counts.

    However it ends, what was scored until then is stored, and the next call goes on from there.
    """
    with engine.connect() as conn:
        sources = load_sources(conn, job.conversation_ids, settings.curation)
    sampling = _Sampling(engine, job, version, answer, orchestra, settings)
    ids = [source.conversation_id for source in sources]
    sampling.reuse(ids)
    for batch in _batches(sources, MAX_ANSWERS_IN_BATCH):
        sampling.answer_greedily(batch)
        log(f"{sampling.count(GREEDY)} of {len(sources)} sources answered greedily and scored")
    wrong = [source for source in sources if sampling.is_wrong(source)]
    for batch in _batches(wrong, max(1, MAX_ANSWERS_IN_BATCH // settings.sampling.samples)):
        sampling.sample(batch)
        log(f"{sampling.count(1)} of {len(wrong)} sources that are not right sampled and scored")
    return sampling.report(sources)


@dataclass(frozen=True)
class _Request:
    source: AnsweredSource
    number: int
    seed: int


class _Sampling:
    """The answers of one pass, by conversation and number."""

    def __init__(
        self,
        engine: sa.Engine,
        job: SamplingJob,
        version: ModelVersion,
        answer: AnswerFn,
        orchestra: Orchestra,
        settings: Settings,
    ) -> None:
        self._engine, self._job, self._version, self._answer = engine, job, version, answer
        self._orchestra, self._settings = orchestra, settings
        self._answers: dict[tuple[int, int], SampledAnswer] = {}
        self._reused = self._scored = 0
        self._judge_seconds = 0.0

    def reuse(self, conversation_ids: Sequence[int]) -> None:
        """Load what earlier calls scored."""
        with self._engine.connect() as conn:
            stored = load_answers(
                conn,
                conversation_ids,
                self._version.digest,
                self._settings,
                self._job.seed,
                self._orchestra,
            )
        for answer in (answer for answers in stored.values() for answer in answers):
            self._answers[answer.conversation_id, answer.sample] = answer
        self._reused = len(self._answers)

    def answer_greedily(self, sources: Sequence[AnsweredSource]) -> None:
        """Answer and score the sources that have no greedy answer yet."""
        self._complete([_Request(source, GREEDY, 0) for source in sources])

    def sample(self, sources: Sequence[AnsweredSource]) -> None:
        """Sample and score the answers that the sources lack."""
        self._complete(
            [
                _Request(source, number, derive_seed(self._job.seed, source, self._version.digest, number))
                for source in sources
                for number in range(1, self._settings.sampling.samples + 1)
            ]
        )

    def is_wrong(self, source: AnsweredSource) -> bool:
        """Whether the greedy answer has a score, and it is not that of a right one."""
        greedy = self._answers.get((source.conversation_id, GREEDY))
        return greedy is not None and greedy.test_pass_rate is not None and not greedy.is_right

    def count(self, number: int) -> int:
        """Number of sources that have this answer."""
        return sum(sample == number for _, sample in self._answers)

    def report(self, sources: Sequence[AnsweredSource]) -> SamplingReport:
        """Count the sources and answers."""
        greedy = [answer for (_, number), answer in self._answers.items() if number == GREEDY]
        wrong = [source.conversation_id for source in sources if self.is_wrong(source)]
        sampled = [number for number in wrong if (number, 1) in self._answers]
        max_variance = self._settings.curation.max_implementation_variance
        accepted = {
            answer.conversation_id
            for (_, number), answer in self._answers.items()
            if number != GREEDY and answer.can_teach(max_variance)
        }
        return SamplingReport(
            sources=len(sources),
            tried=len(greedy),
            right=sum(answer.is_right for answer in greedy),
            inconclusive=sum(answer.test_pass_rate is None for answer in greedy),
            sampled=len(sampled),
            accepted=len(accepted.intersection(sampled)),
            postponed=len(sources) - len(greedy) + len(wrong) - len(sampled),
            reused_answers=self._reused,
            scored_answers=self._scored,
            judge_seconds=round(self._judge_seconds, 3),
        )

    def _complete(self, requests: Sequence[_Request]) -> None:
        """Generate, score and store the answers that are missing, unless the time is used up."""
        missing = [
            request
            for request in requests
            if (request.source.conversation_id, request.number) not in self._answers
        ]
        if not missing or self._judge_seconds >= self._settings.sampling.max_judge_seconds:
            return
        seeds = [request.seed for request in missing if request.number != GREEDY]
        responses = self._answer([request.source.source_code for request in missing], seeds)
        started = time.monotonic()
        scores = self._score(missing, responses)
        self._judge_seconds += time.monotonic() - started
        rows = [
            self._build_row(request, response, score)
            for request, response, score in zip(missing, responses, scores, strict=True)
        ]
        for row in _store(self._engine, rows):
            self._answers[row.conversation_id, row.sample] = _to_answer(row)
        self._scored += len(rows)

    def _score(self, requests: Sequence[_Request], responses: Sequence[GeneratedResponse]) -> Iterator[Score]:
        """Score each distinct text of a source once."""
        tasks: dict[tuple[int, str, bool], ScoringTask] = {}
        keys = []
        for request, response in zip(requests, responses, strict=True):
            source, is_whole = request.source, response.is_complete and not response.is_truncated
            keys.append((source.conversation_id, response.text, is_whole))
            rejection = "" if is_whole else LENGTH_STOPPED
            tasks.setdefault(
                keys[-1], ScoringTask(response.text, source.suite, source.source_code, rejection=rejection)
            )
        scored = score_texts(tasks.values(), self._orchestra, self._settings)
        scores = dict(zip(tasks, list(scored), strict=True))
        return (scores[key] for key in keys)

    def _build_row(self, request: _Request, response: GeneratedResponse, score: Score) -> dict[str, Any]:
        text = response.text.replace("\x00", "\ufffd")  # PostgreSQL stores no NUL
        return {
            "conversation_id": request.source.conversation_id,
            "model_version": self._version.version,
            "model_digest": self._version.digest,
            "source_sha256": request.source.source_sha256,
            "suite_sha256": request.source.suite_sha256,
            "decoding": _name_decoding(self._settings, request.number),
            "sample": request.number,
            "seed": request.seed,
            "text": text,
            "content_sha256": content_sha256(text),
            # An answer to a part of a source says nothing about the model.
            "test_pass_rate": None if response.is_truncated else score.test_pass_rate,
            "implementation_variance": None if response.is_truncated else score.implementation_variance,
            "rejection": find_rejection(response, score, request.source),
            "orchestra": self._orchestra.digest,
            "judge_version": get_judge_version(self._settings),
        }


def _store(engine: sa.Engine, rows: Sequence[Mapping[str, Any]]) -> list[sa.Row[Any]]:
    """Store answers, but none of a conversation that was erased meanwhile; return the stored rows."""
    c, a = t.conversations.c, t.sampled_answers
    with engine.begin() as conn:
        live = set(
            conn.execute(
                sa.select(c.id)
                .where(c.id.in_({row["conversation_id"] for row in rows}), c.erased_at.is_(None))
                .order_by(c.id)
                .with_for_update(read=True)
            ).scalars()
        )
        stored: list[sa.Row[Any]] = []
        for row in rows:
            if row["conversation_id"] in live:
                # Another process may have stored the same answer: its score counts.
                statement = insert(a).values(**row)
                statement = statement.on_conflict_do_update(
                    constraint="sampled_answers_cache_key", set_={"text": statement.excluded.text}
                )
                stored.append(conn.execute(statement.returning(a)).one())
    return stored


def _to_answer(row: Any) -> SampledAnswer:
    names = (
        "id",
        "conversation_id",
        "sample",
        "text",
        "test_pass_rate",
        "implementation_variance",
        "rejection",
    )
    return SampledAnswer(*(getattr(row, name) for name in names))


def _name_decoding(settings: Settings, number: int) -> str:
    kind = f"temperature {settings.sampling.temperature:g}" if number else "argmax"
    limits = (settings.evaluation.max_new_tokens, settings.training.max_source_tokens)
    return f"{kind}/{limits[0]} of {limits[1]}"


def _batches(sources: Sequence[AnsweredSource], size: int) -> Iterator[Sequence[AnsweredSource]]:
    """Yield the sources in batches of their order, so that a smaller budget answers the same ones first."""
    for start in range(0, len(sources), size):
        yield sources[start : start + size]
