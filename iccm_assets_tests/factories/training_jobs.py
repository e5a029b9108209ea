"""A tiny base model, a tiny training set, and jobs that train the base on the set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from iccm_assets.models.generation import load_encoder
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.settings import TrainingSettings
from iccm_assets.training.dataset import Dataset, DatasetStore, TrainingExample, compose_dataset
from iccm_assets.training.worker_protocol import TrainingJob
from iccm_assets_tests.factories.tiny_models import tiny_t5

FAST: dict[str, Any] = {"learning_rate": 2e-3, "epochs": 2, "batch_size": 4, "gradient_accumulation_steps": 2}


def tiny_dataset(count: int = 16) -> Dataset:
    """Build a dataset of ``count`` new and as many rehearsal examples of a line or two."""
    new = [
        TrainingExample(i, f"def f{i}(x):\n    return x + {i}", f"f{i} shall add {i}.", "new", "pool")
        for i in range(count)
    ]
    old = [
        TrainingExample(
            None, f"def g{i}(x):\n    return x - {i}", f"g{i} shall take {i}.", "rehearsal", "sample/a"
        )
        for i in range(count)
    ]
    return compose_dataset(new, old, [], rehearsal_fraction=0.5, validation_share=0.1, seed=3)


def tiny_pairs(count: int = 12) -> Dataset:
    """Build a set of pairs whose rejected answers say nothing of what the source does."""
    dataset = tiny_dataset(count)
    rows = (
        replace(row, rejected="It shall work.") for row in dataset.examples if row.conversation_id is not None
    )
    return Dataset(tuple(rows), dataset.seed)


def tiny_set_with_own_answers(count: int = 16) -> Dataset:
    """Build a set some of whose examples are answers of the model itself."""
    dataset = tiny_dataset(count)
    own = (
        TrainingExample(i, f"def h{i}(x):\n    return x * {i}", f"h{i} shall multiply.", "self", "sampled")
        for i in range(count, count + 4)
    )
    return Dataset((*dataset.examples, *own), dataset.seed)


_DATASETS = {"sft": tiny_dataset, "dpo": tiny_pairs, "rft": tiny_set_with_own_answers}


def tiny_job(home: Path, make: Callable[[Path], Path] = tiny_t5, **changes: Any) -> TrainingJob:
    """Build a job whose base is in the home's store; ``changes`` apply to its configuration or fields.

    The training set is one for the objective that ``changes`` names.
    """
    source = make(home / "source" / make.__name__)
    encoder, _ = load_encoder(source)
    base = ModelStore(home).import_model(str(source), encoder.prompt)
    make_dataset = _DATASETS[changes.get("objective", "sft")]
    dataset = DatasetStore(home).write(make_dataset())
    job_fields = {name: changes.pop(name) for name in list(changes) if name in TrainingJob.model_fields}
    values: dict[str, Any] = {
        "home": str(home),
        "base": str(base.path),
        "dataset": str(dataset),
        "run_id": "1",
    }
    return TrainingJob(**{**values, "config": TrainingSettings(**{**FAST, **changes}), **job_fields})
