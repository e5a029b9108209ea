"""Measure fine-tuning against a plain ``Trainer`` script with the same examples, seed and recipe.

    python -m benchmarks.training [--rounds 5] [--epochs 1] [--new 100]

Cold processes train the packaged model, alternating: the trainer's command, and ``plain_trainer.py``. Printed
are CPU seconds of the process and of its training, from the first evaluation to the last, useful tokens
(those of the training examples, without padding) per CPU second of training, and the validation loss,
computed here for both models; in the end medians and their ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import psutil

from iccm_assets.models.generation import LoadedModel, load_model
from iccm_assets.models.tokenization import EncodedExample
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.settings import PACKAGED_MODEL, PACKAGED_REHEARSAL, TrainingSettings, load_settings
from iccm_assets.simulation.language.families import NEW_FAMILIES
from iccm_assets.simulation.language.generator import draw_program
from iccm_assets.training.dataset import (
    Dataset,
    DatasetStore,
    TrainingExample,
    compose_dataset,
    load_rehearsal,
)
from iccm_assets.training.micro_batch_trainer import collate, token_loss
from iccm_assets.training.worker_protocol import TrainingJob

PLAIN, PRODUCT = "plain Trainer", "product"
SCRIPT = Path(__file__).with_name("plain_trainer.py")


@dataclass(frozen=True)
class Measurement:
    """CPU seconds of a process and of its training, and the mean loss of the validation examples' tokens."""

    process: float
    training: float
    loss: float


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run_process(command: list[str]) -> tuple[float, float, str]:
    """Run a trainer; return CPU seconds of the process and between its evaluations, and its last line."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    evaluations: list[float] = []
    line = ""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "validation loss" in line or "eval_loss" in line:
                times = psutil.Process(process.pid).cpu_times()
                evaluations.append(times.user + times.system)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {line}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, evaluations[-1] - evaluations[0], line


def compose(new: int, config: TrainingSettings) -> Dataset:
    """Compose a training set of new programs and packaged rehearsal."""
    draws = [draw_program(NEW_FAMILIES[n % len(NEW_FAMILIES)], Random(f"training {n}")) for n in range(new)]
    return compose_dataset(
        [
            TrainingExample(n, draw.source_code, draw.requirements, "new", "pool")
            for n, draw in enumerate(draws)
        ],
        load_rehearsal(str(PACKAGED_REHEARSAL)),
        [],
        rehearsal_fraction=config.rehearsal_fraction,
        validation_share=config.validation_share,
        seed=config.seed,
    )


def train_plainly(directory: Path, base: LoadedModel, dataset: Dataset, config: TrainingSettings) -> Any:
    """Train with the plain script."""
    texts = {
        name: [(row.source_code, row.requirements) for row in dataset.with_roles(*roles)]
        for name, roles in (("train", ("new", "rehearsal")), ("validation", ("validation",)))
    }
    recipe = (
        "learning_rate",
        "weight_decay",
        "warmup_steps",
        "max_grad_norm",
        "seed",
        "gradient_accumulation_steps",
    )
    arguments = {name: getattr(config, name) for name in recipe} | {
        "output_dir": str(directory / "scratch"),
        "per_device_train_batch_size": config.batch_size,
        "num_train_epochs": config.epochs,
    }
    output = directory / "output"
    job = {"base": str(base.path), "output": str(output), "arguments": arguments, **texts}
    (directory / "job.json").write_text(json.dumps(job), encoding="utf-8")
    process, training, _ = run_process([sys.executable, "-u", str(SCRIPT), str(directory / "job.json")])
    return process, training, output


def train_with_product(directory: Path, base: LoadedModel, dataset: Dataset, config: TrainingSettings) -> Any:
    """Train with the trainer's command."""
    job = TrainingJob(
        home=str(directory),
        base=str(base.path),
        dataset=str(DatasetStore(directory).write(dataset)),
        config=config,
        run_id="benchmark",
    )
    (directory / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "iccm_assets.training.trainer_worker", str(directory / "job.json")]
    process, training, reply = run_process(command)
    return process, training, Path(json.loads(reply)["outcome"]["path"])


def encode(base: LoadedModel, dataset: Dataset, *roles: Any) -> list[EncodedExample]:
    """Tokenize the examples of these roles."""
    rows = (
        base.encoder.encode_example(row.source_code, row.requirements, 2048, 1024)
        for row in dataset.with_roles(*roles)
    )
    return [row for row in rows if row is not None]


def measure_loss(model: Path, base: LoadedModel, examples: list[EncodedExample]) -> float:
    """Return the mean loss of the examples' target tokens."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    trained = AutoModelForSeq2SeqLM.from_pretrained(model).eval()
    batch = collate(base, examples)
    labels = batch.pop("labels")
    with torch.inference_mode():
        return float(token_loss(base.kind, trained(**batch), labels))


def main() -> None:
    """Run the rounds and print medians and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--new", type=int, default=100, help="new examples, to which rehearsal is added")
    options = parser.parse_args()
    config = load_settings(profile="local").training.model_copy(update={"epochs": options.epochs})
    dataset = compose(options.new, config)
    runs: defaultdict[str, list[Measurement]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as home:
        base = load_model(PACKAGED_MODEL, device="cpu")
        base = load_model(ModelStore(Path(home)).import_model(str(PACKAGED_MODEL), base.encoder.prompt).path)
        train, validation = encode(base, dataset, "new", "rehearsal"), encode(base, dataset, "validation")
        tokens = options.epochs * sum(len(row.input_ids) + len(row.labels) for row in train)
        say(f"{len(train)} examples, {len(validation)} to validate with, {tokens} useful tokens")
        for number in range(options.rounds):
            for name, runner in ((PLAIN, train_plainly), (PRODUCT, train_with_product)):
                directory = Path(home) / f"{number} {name}"
                directory.mkdir()
                process, training, model = runner(directory, base, dataset, config)
                runs[name].append(Measurement(process, training, measure_loss(model, base, validation)))
                say(
                    f"{name:14} process {process:6.2f} s  training {training:6.2f} s"
                    f"  loss {runs[name][-1].loss:.5f}"
                )
    medians = {
        name: (
            statistics.median(run.process for run in values),
            statistics.median(run.training for run in values),
        )
        for name, values in runs.items()
    }
    for name, (process, training) in medians.items():
        say(
            f"{name:14} process {process:6.2f} s  training {training:6.2f} s"
            f"  {tokens / training:,.0f} tokens/s"
        )
    ratios = [medians[PRODUCT][0] / medians[PLAIN][0], medians[PLAIN][1] / medians[PRODUCT][1]]
    say(
        f"product: {ratios[0]:.2f} of the CPU seconds of the process,"
        f" {ratios[1]:.2f} times the tokens per CPU second"
    )


if __name__ == "__main__":
    main()
