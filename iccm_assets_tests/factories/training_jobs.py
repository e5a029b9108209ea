"""A tiny base model, a tiny training set, and jobs that train the base on the set."""

from __future__ import annotations

from collections.abc import Callable
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


def tiny_job(home: Path, make: Callable[[Path], Path] = tiny_t5, **changes: Any) -> TrainingJob:
    """Build a job whose base is in the home's store; ``changes`` apply to its configuration or fields."""
    source = make(home / "source" / make.__name__)
    encoder, _ = load_encoder(source)
    base = ModelStore(home).import_model(str(source), encoder.prompt)
    dataset = DatasetStore(home).write(tiny_dataset())
    job_fields = {name: changes.pop(name) for name in list(changes) if name in TrainingJob.model_fields}
    values: dict[str, Any] = {
        "home": str(home),
        "base": str(base.path),
        "dataset": str(dataset),
        "run_id": "1",
    }
    return TrainingJob(**{**values, "config": TrainingSettings(**{**FAST, **changes}), **job_fields})
