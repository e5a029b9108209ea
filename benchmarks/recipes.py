"""Measure what a recipe of the local profile teaches and forgets in three simulated weeks (X3, L3).

    python -m benchmarks.recipes --seeds 1 2 --recipe learning_rate=3e-4 rehearsal_fraction=0.9

Simulated developers talk to the model of the week before; what they accept and what scores at least 0.75 is
trained on, with the packaged rehearsal sample and the earlier weeks' examples. Everything happens in this
process, without gate, gateway and database. The last model is measured on a set drawn for this benchmark
alone: it has nothing in common with canary set, audit set or what the base model was trained on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

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
WEEKS, SESSIONS = 3, 200
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
    seed: int, config: TrainingSettings, settings: Settings, excluded: set[str]
) -> tuple[Any, list[dict[str, int]]]:
    """Train week by week and return the last model, with the sizes of the training sets."""
    from iccm_assets.models.generation import load_model

    loaded = load_model(PACKAGED_MODEL, device="cpu")
    drift = make_weekly_drift(NEW_FAMILIES, WEEKS)
    plan = plan_conversations(seed, n=WEEKS * SESSIONS, days=WEEKS * 7, end=date(2026, 1, 25), drift=drift)
    first = min(session.asked_at for session in plan).date()
    sample, pinned, counts = load_rehearsal(str(PACKAGED_REHEARSAL)), [], []
    for week in range(WEEKS):
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
        counts.append(dataset.counts)
    return loaded, counts


def summarize(rows: Sequence[dict[str, Any]], before: list[float], after: list[float]) -> dict[str, Any]:
    """Gain, mean change of the old slices and of each new one, and the old slices that lost most."""
    changes: defaultdict[str, list[float]] = defaultdict(list)
    for row, was, now in zip(rows, before, after, strict=True):
        changes[row["slice"]].append(now - was)
    by_slice = {name: sum(values) / len(values) for name, values in changes.items()}
    old = [value for name, values in changes.items() if name not in NEW_FAMILIES for value in values]
    worst = sorted((value, name) for name, value in by_slice.items() if name not in NEW_FAMILIES)[:3]
    return {
        "gain": round(sum(after) / len(after) - sum(before) / len(before), 4),
        "old": round(sum(old) / len(old), 4),
        "worst": [f"{name} {value:+.3f}" for value, name in worst],
        "new": {name: round(by_slice[name], 3) for name in NEW_FAMILIES},
    }


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Print a line of JSON for each recipe and seed."""
    from iccm_assets.models.generation import load_model, set_threads

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--recipe", nargs="*", action="append", default=[], metavar="SETTING=VALUE")
    arguments = parser.parse_args()
    set_threads(1)
    settings = load_settings(profile="local")
    trained = {structural_signature(program.document) for program in training_programs(CANARY_SEED, STEPS)}
    rows = draw_set_rows("selection", SELECTION_SEED, reserved_signatures() | trained)
    own = {structural_signature(parse(row["requirements"])) for row in rows}
    before = measure(load_model(PACKAGED_MODEL, device="cpu"), rows, settings)
    say(json.dumps({"items": len(rows), "base": round(sum(before) / len(before), 4)}))
    for seed in arguments.seeds:
        for recipe in arguments.recipe or [[]]:
            changed = dict(item.split("=", 1) for item in recipe)
            config = TrainingSettings.model_validate({**settings.training.model_dump(), **changed})
            started = time.monotonic()
            loaded, counts = run_weeks(seed, config, settings, own)
            seconds = time.monotonic() - started
            figures = summarize(rows, before, measure(loaded, rows, settings))
            run = {"recipe": changed, "seed": seed, "seconds": round(seconds), "counts": counts}
            say(json.dumps(run | figures))


if __name__ == "__main__":
    main()
