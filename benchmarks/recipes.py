"""Measure what a recipe of the local profile teaches and forgets in simulated weeks.

    python -m benchmarks.recipes --weeks 3 --seeds 1 2 --recipe learning_rate=3e-4 rehearsal_fraction=0.9

Simulated developers talk to the model of the week before; what they accept and what scores at least 0.75 is
trained on, with the packaged rehearsal sample and the earlier weeks' examples. Everything happens in this
process, without gateway and database. Each week's model is compared with the base (`lost`), and by the
gate's rules with the week before (`failures`), on a set drawn for this benchmark alone: it has nothing in
common with canary set, audit set or what the base model was trained on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

from iccm_assets.evaluation.gate_evidence import GateEvidence, ItemEvidence, RuleResult
from iccm_assets.evaluation.quality_gate import evaluate_gate
from iccm_assets.settings import PACKAGED_MODEL, PACKAGED_REHEARSAL, Settings, TrainingSettings, load_settings
from iccm_assets.simulation.base_model.build import STEPS, draw_set_rows
from iccm_assets.simulation.base_model.pretraining import training_programs
from iccm_assets.simulation.developers.developers import finish_session, plan_conversations
from iccm_assets.simulation.developers.drift import make_weekly_drift
from iccm_assets.simulation.language.canary_split import CANARY_SEED, reserved_signatures
from iccm_assets.simulation.language.families import NEW_FAMILIES
from iccm_assets.simulation.language.generator import structural_signature
from iccm_assets.simulation.language.grammar import parse
from iccm_assets.simulation.language.quick_score import score_requirements
from iccm_assets.training.dataset import TrainingExample, compose_dataset, load_rehearsal
from iccm_assets.training.finetuning import fine_tune

SELECTION_SEED = 2027
SESSIONS = 200  # a week
MIN_PASS_RATE = 0.75


def answer(loaded: Any, sources: Sequence[str], settings: Settings) -> list[str]:
    """The model's responses."""
    from iccm_assets.models.generation import generate

    responses = generate(loaded, sources, max_new_tokens=settings.evaluation.max_new_tokens, batch_size=48)
    return [response.text for response in responses]


def measure(loaded: Any, rows: Sequence[dict[str, Any]], settings: Settings) -> list[float]:
    """The pass rate of each item."""
    texts = answer(loaded, [row["source_code"] for row in rows], settings)
    return [score_requirements(text, row["test_suite"])[0] for text, row in zip(texts, rows, strict=True)]


def run_weeks(
    seed: int, weeks: int, config: TrainingSettings, settings: Settings, excluded: set[str]
) -> Iterator[tuple[Any, dict[str, int]]]:
    """Train week by week; yield each week's model, and the size of its training set."""
    from iccm_assets.models.generation import load_model

    loaded = load_model(PACKAGED_MODEL, device="cpu")
    drift = make_weekly_drift(NEW_FAMILIES, weeks)
    plan = plan_conversations(seed, n=weeks * SESSIONS, days=weeks * 7, end=date(2026, 1, 25), drift=drift)
    first = min(session.asked_at for session in plan).date()
    sample, pinned = load_rehearsal(str(PACKAGED_REHEARSAL)), []
    for week in range(weeks):
        sessions = [
            session
            for session in plan
            if (session.asked_at.date() - first).days // 7 == week
            and structural_signature(session.program.document) not in excluded
        ]
        answers = answer(loaded, [session.source_code for session in sessions], settings)
        accepted: dict[str, TrainingExample] = {}
        for number, (session, text) in enumerate(zip(sessions, answers, strict=True)):
            done = finish_session(session, text)
            rate = score_requirements(done.requirements, session.example.test_suite)[0]
            if not done.is_open and rate >= MIN_PASS_RATE:
                example = TrainingExample(
                    1000 * week + number + 1, done.source_code, done.requirements, "new", "pool"
                )
                accepted.setdefault(structural_signature(session.program.document), example)
        new = list(accepted.values())
        dataset = compose_dataset(
            new,
            sample,
            pinned,
            rehearsal_fraction=config.rehearsal_fraction,
            validation_share=config.validation_share,
            seed=config.seed,
        )
        with tempfile.TemporaryDirectory() as scratch:
            result = fine_tune(
                loaded,
                dataset,
                config,
                epochs=config.epochs,
                scratch=Path(scratch),
                on_progress=lambda _point: None,
            )
        loaded = result.loaded
        pinned += new
        yield loaded, dataset.counts


def summarize(rows: Sequence[dict[str, Any]], before: list[float], after: list[float]) -> dict[str, Any]:
    """Gain, mean change of the old slices and of each new one, and the old slices that lost most."""
    changes: defaultdict[str, list[float]] = defaultdict(list)
    for row, was, now in zip(rows, before, after, strict=True):
        changes[row["slice"]].append(now - was)
    by_slice = {name: fmean(values) for name, values in changes.items()}
    worst = sorted((value, name) for name, value in by_slice.items() if name not in NEW_FAMILIES)[:3]
    return {
        "gain": round(fmean(after) - fmean(before), 4),
        "old": round(fmean(value for name, value in by_slice.items() if name not in NEW_FAMILIES), 4),
        "worst": [f"{name} {value:+.3f}" for value, name in worst],
        "new": {name: round(by_slice[name], 3) for name in NEW_FAMILIES},
    }


def list_failures(
    rows: Sequence[dict[str, Any]], before: list[float], after: list[float], settings: Settings
) -> list[str]:
    """The gate's rules about forgetting that a model fails, production being the model before."""
    rules = judge_pass_rates(rows, before, after, settings)
    return [rule.reason for rule in rules if "forgetting" in rule.name and rule.outcome == "fail"]


def judge_pass_rates(
    rows: Sequence[dict[str, Any]], before: list[float], after: list[float], settings: Settings
) -> list[RuleResult]:
    """The results of the gate's rules that pass rates decide, production being the model before."""
    items = [
        ItemEvidence(row["item"], row["slice"], now, was)
        for row, was, now in zip(rows, before, after, strict=True)
    ]
    evidence = GateEvidence("candidate", "before", tuple(items), len(items))
    rules = evaluate_gate(evidence, settings.evaluation).rules
    return [rule for rule in rules if rule.name not in ("variance_spike", "latency_regression")]


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Print a line of JSON for each recipe and seed."""
    from iccm_assets.models.generation import load_model, set_threads

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weeks", type=int, default=3, help="weeks of each seed (default: 3)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1], help="seeds of the simulation (default: 1)"
    )
    parser.add_argument(
        "--recipe",
        nargs="*",
        action="append",
        default=[],
        metavar="SETTING=VALUE",
        help="what differs from the local profile's [training]; repeat it for another recipe",
    )
    arguments = parser.parse_args()
    set_threads(1)
    settings = load_settings(profile="local")
    trained = {structural_signature(program.document) for program in training_programs(CANARY_SEED, STEPS)}
    rows = draw_set_rows("selection", SELECTION_SEED, reserved_signatures() | trained)
    own = {structural_signature(parse(row["requirements"])) for row in rows}
    base = measure(load_model(PACKAGED_MODEL, device="cpu"), rows, settings)
    say(json.dumps({"items": len(rows), "base": round(fmean(base), 4)}))
    for seed in arguments.seeds:
        for recipe in arguments.recipe or [[]]:
            changed = dict(item.split("=", 1) for item in recipe)
            config = TrainingSettings.model_validate({**settings.training.model_dump(), **changed})
            before, started = base, time.monotonic()
            models = run_weeks(seed, arguments.weeks, config, settings, own)
            for week, (loaded, counts) in enumerate(models, start=1):
                seconds = round(time.monotonic() - started)
                after = measure(loaded, rows, settings)
                run = {"recipe": changed, "seed": seed, "week": week, "seconds": seconds, "counts": counts}
                failures = list_failures(rows, before, after, settings)
                lost = list_failures(rows, base, after, settings)
                say(json.dumps(run | summarize(rows, base, after) | {"failures": failures, "lost": lost}))
                before, started = after, time.monotonic()


if __name__ == "__main__":
    main()
