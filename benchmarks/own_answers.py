"""Measure what a week's candidate gains from its own verified answers: `sft` against `rft`.

    python -m benchmarks.own_answers --seeds 901 902 903

For each seed simulated developers talk to the packaged model for a week. What they accept is scored in the
sandbox, filtered and pooled as the platform does; then both objectives train from the same selection, `rft`
with the answers that were sampled, judged and chosen for it. All models answer the canary set, whose gate
says whether the candidate would serve (variance and latency are not measured), and the audit set, on which
nothing is chosen: what a candidate lost there is given whether or not the gate refuses it. A line of JSON
for each seed.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import sqlalchemy as sa

from benchmarks.recipes import judge_pass_rates, list_failures, measure, say
from iccm_assets.capture.conversations import Conversation, ModelResponse, upsert_conversation
from iccm_assets.curation.canary_set import load_canary_set
from iccm_assets.curation.filtering import filter_day
from iccm_assets.curation.training_pool import rebuild_pool
from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.db.database import connect
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets.models.embedding import Embedder
from iccm_assets.models.generation import LoadedModel, load_model, set_threads
from iccm_assets.registry import training_runs
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.retraining import pipeline, triggers
from iccm_assets.rollout.deployment import ensure_production
from iccm_assets.scoring.orchestra import load_orchestra_from_settings
from iccm_assets.scoring.scoring_pass import score_unscored
from iccm_assets.settings import (
    PACKAGED_AUDIT_SET,
    PACKAGED_CANARY_SET,
    PACKAGED_MODEL,
    Settings,
    load_settings,
)
from iccm_assets.simulation.developers.developers import finish_session, plan_conversations
from iccm_assets.simulation.developers.drift import make_weekly_drift
from iccm_assets.simulation.language.families import NEW_FAMILIES
from iccm_assets.simulation.language.generator import structural_signature
from iccm_assets.simulation.language.grammar import parse
from iccm_assets.training.dataset import Dataset
from iccm_assets.training.finetuning import fine_tune
from iccm_assets.training.sampling import SamplingReport
from iccm_assets.training.sampling_worker import run_sampling

SESSIONS = 200  # a week
Z90 = 1.6449


@dataclass(frozen=True)
class MeasuredSet:
    """Items, and the base model's pass rate of each."""

    rows: list[dict[str, Any]]
    base: list[float]

    @classmethod
    def measure(cls, path: Path, settings: Settings, limit: int = 0) -> MeasuredSet:
        """Read a set, or about ``limit`` of its items, and measure the base model on it."""
        rows = [vars(item) for item in load_canary_set(path).items]
        rows = rows[:: max(1, len(rows) // limit)] if limit else rows
        return cls(rows, measure(load_model(PACKAGED_MODEL, device="cpu"), rows, settings))


@contextmanager
def open_platform(sampling: dict[str, Any]) -> Iterator[tuple[sa.Engine, Settings]]:
    """A platform of its own, with the packaged model in production; it is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="own-answers-") as home:
        settings = load_settings(profile="local", home=Path(home), sampling=sampling)
        server = EmbeddedServer(Path(home), durable=False)
        server.ensure_running()
        try:
            engine = connect(settings)
            ensure_production(engine, ModelStore.open(settings), settings)
            yield engine, settings
            engine.dispose()
        finally:
            server.stop()


def talk(engine: sa.Engine, settings: Settings, seed: int, base: LoadedModel, excluded: set[str]) -> None:
    """Store a week of conversations with the base model, and score, filter and pool them."""
    from benchmarks.recipes import answer

    with engine.connect() as conn:
        last = now(conn).date() - timedelta(days=1)
    plan = plan_conversations(seed, n=SESSIONS, days=7, end=last, drift=make_weekly_drift(NEW_FAMILIES, 1))
    sessions = [s for s in plan if structural_signature(s.program.document) not in excluded]
    texts = answer(base, [session.source_code for session in sessions], settings)
    with engine.begin() as conn:
        for session, text in zip(sessions, texts, strict=True):
            done = finish_session(session, text)
            conversation = Conversation(
                session_id=done.session_id,
                user_id=done.user_id,
                timestamp=session.asked_at,
                messages=list(done.messages),
                metadata=done.metadata,
                requirements=None if done.is_open else done.requirements,
                source_code=done.source_code,
                test_suite=None if done.is_open else session.example.test_suite,
                origin="simulated",
                responses=(ModelResponse(f"{done.session_id}/1", text, model_version="v1"),),
                rating=done.rating,
            )
            upsert_conversation(conn, conversation, settings=settings)
    score_unscored(engine, load_orchestra_from_settings(settings), settings)
    embedder = Embedder.load(settings)
    days = [last - timedelta(days=back) for back in range(6, -1, -1)]
    for day in days:
        filter_day(engine, day, settings, embedder)
    rebuild_pool(engine, days, settings, embedder)


def compose(
    engine: sa.Engine, settings: Settings, objective: str
) -> tuple[Dataset, SamplingReport | None, dict[str, int]]:
    """Select as a retrain of this objective does, without training; and count what is new by family."""
    training = settings.training.model_copy(update={"objective": objective})
    settings = settings.model_copy(update={"training": training})
    with engine.begin() as conn:
        run = training_runs.create_run(conn, triggers.manual_trigger(objective))
    assert run is not None
    with pipeline.run_attempt(engine, run, objective) as claimed:
        assert not isinstance(claimed, pipeline.SkippedRun), claimed
        job = pipeline.plan_sampling(engine, settings, claimed)
        report = run_sampling(engine, job, settings, lambda line: None) if job else None
        plan = pipeline.prepare_training(engine, settings, claimed, job, report)
        assert not isinstance(plan, pipeline.SkippedRun), plan
        with engine.begin() as conn:
            training_runs.finish_run(conn, claimed.id, claimed.fence, "gate_failed")
            stored = t.conversations.c
            ids = [row.conversation_id for row in plan.dataset.with_roles("new", "self")]
            query = sa.select(stored.metadata["family"].astext).where(stored.id.in_(ids))
            families = Counter(conn.scalars(query))
    return plan.dataset, report, dict(sorted(families.items()))


def train(base: LoadedModel, dataset: Dataset, settings: Settings) -> LoadedModel:
    """Train the base on a set, as the trainer does."""
    config = settings.training
    with tempfile.TemporaryDirectory() as scratch:
        return fine_tune(
            base,
            dataset,
            config,
            epochs=config.epochs,
            scratch=Path(scratch),
            on_progress=lambda point: None,
        ).loaded


def interval(values: Sequence[float]) -> list[float]:
    """Mean with its 90 % interval."""
    mean, error = fmean(values), Z90 * stdev(values) / math.sqrt(len(values))
    return [round(number, 4) for number in (mean, mean - error, mean + error)]


def by_slice(rows: Sequence[dict[str, Any]], values: Sequence[float]) -> dict[str, float]:
    """The mean of each slice."""
    slices: defaultdict[str, list[float]] = defaultdict(list)
    for row, value in zip(rows, values, strict=True):
        slices[row["slice"]].append(value)
    return {name: round(fmean(items), 4) for name, items in sorted(slices.items())}


def run_seed(
    seed: int, canary: MeasuredSet, audit: MeasuredSet, excluded: set[str], sampling: dict[str, Any]
) -> dict[str, Any]:
    """Measure one seed: a week, both sets, both models."""
    started = time.process_time()
    with open_platform(sampling) as (engine, settings):
        talk(engine, settings, seed, load_model(PACKAGED_MODEL, device="cpu"), excluded)
        plain, _, families = compose(engine, settings, "sft")
        own, report, own_families = compose(engine, settings, "rft")
    assert report is not None
    result: dict[str, Any] = {
        "seed": seed,
        "sampling": pipeline.describe_sampling(report),
        "base": by_slice(audit.rows, audit.base),
    }
    scores: dict[str, list[float]] = {}
    for name, dataset, learned in (("sft", plain, families), ("rft", own, own_families)):
        if name == "rft" and dataset.digest == plain.digest:
            scores[name], result[name] = scores["sft"], result["sft"]  # the same training, the same weights
            continue
        model = train(load_model(PACKAGED_MODEL, device="cpu"), dataset, settings)
        scores[name] = measure(model, audit.rows, settings)
        gains = [after - was for was, after in zip(audit.base, scores[name], strict=True)]
        verdict = judge_pass_rates(canary.rows, canary.base, measure(model, canary.rows, settings), settings)
        result[name] = {
            "counts": dataset.counts,
            "families": learned,
            "mean": interval(scores[name]),
            "gain": interval(gains),
            "lost": list_failures(audit.rows, audit.base, scores[name], settings),
            "gate refuses": [rule.reason for rule in verdict if rule.outcome != "pass"],
            "slices": by_slice(audit.rows, scores[name]),
        }
    pairs = list(zip(scores["sft"], scores["rft"], strict=True))
    result["rft - sft"] = interval([after - was for was, after in pairs])
    result["rft lost against sft"] = list_failures(audit.rows, scores["sft"], scores["rft"], settings)
    return result | {"cpu_seconds": round(time.process_time() - started)}


def main() -> None:
    """Print a line of JSON for each seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[901, 902, 903], help="seeds of the simulation"
    )
    parser.add_argument("--items", type=int, default=0, help="items of the audit set; default: all")
    parser.add_argument("--samples", type=int, default=8, help="samples of a source; default: 8")
    arguments = parser.parse_args()
    set_threads(1)
    settings = load_settings(profile="local")
    canary = MeasuredSet.measure(PACKAGED_CANARY_SET, settings)
    audit = MeasuredSet.measure(PACKAGED_AUDIT_SET, settings, arguments.items)
    excluded = {structural_signature(parse(row["requirements"])) for row in audit.rows}
    say(json.dumps({"items": len(audit.rows), "base": interval(audit.base)}))
    for seed in arguments.seeds:
        say(json.dumps(run_seed(seed, canary, audit, excluded, {"samples": arguments.samples})))


if __name__ == "__main__":
    main()
