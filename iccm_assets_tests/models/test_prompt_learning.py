"""Learning with a model's own chat template, compared with learning without it (L8)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch

from iccm_assets.evaluation.confidence_bounds import confidence_above
from iccm_assets.models.generation import LoadedModel, load_model
from iccm_assets.models.tokenization import IGNORE_INDEX
from iccm_assets.settings import PromptSettings, TrainingSettings
from iccm_assets.training.dataset import Dataset, TrainingExample
from iccm_assets.training.finetuning import fine_tune
from iccm_assets_tests.factories.architectures import qwen2

NOUNS = ["value", "word", "item", "price", "count", "total", "weight", "score", "length", "speed", "amount"]
VERBS = ["add", "count", "sort", "merge", "keep", "find", "send"]
INSTRUCTED = {"+": "the sum of {} and {}", "-": "{} without {}", "//": "how often {} contains {}"}
LEARNED = {"*": "the product of {} and {}"}


def examples(operators: dict[str, str], nouns: list[str]) -> list[TrainingExample]:
    return [
        TrainingExample(
            None,
            f"def {verb}_{noun}({noun}):\n    return {noun} {operator} {number}\n",
            f"{verb}_{noun} shall return {text.format(noun, number)}.",
            "new",
            "pool",
        )
        for noun in nouns
        for number, verb in enumerate(VERBS, 2)
        for operator, text in operators.items()
    ]


def learn(
    loaded: LoadedModel, rows: list[TrainingExample], scratch: Path, rate: float, epochs: int
) -> LoadedModel:
    validation = [replace(row, role="validation") for row in rows[::10]]
    config = TrainingSettings(
        batch_size=8, gradient_accumulation_steps=1, weight_averaging_alpha=1.0, learning_rate=rate, threads=1
    )
    dataset = Dataset((*rows, *validation), seed=1)
    result = fine_tune(loaded, dataset, config, epochs=epochs, scratch=scratch, on_progress=lambda *_: None)
    return result.loaded


def accuracies(loaded: LoadedModel, rows: list[TrainingExample]) -> list[float]:
    """Return for each row the fraction of its answer's tokens that are the likeliest after those before.

    One wrong token changes a generated response to its end; which ones are wrong differs between machines.
    """
    results = []
    for row in rows:
        example = loaded.encoder.encode_example(row.source_code, row.requirements, 2048, 1024)
        assert example is not None
        with torch.inference_mode():
            likeliest = loaded.model(torch.tensor([example.input_ids])).logits[0, :-1].argmax(-1)
        labels = torch.tensor(example.labels[1:])
        answer = labels != IGNORE_INDEX
        results.append(float((likeliest == labels)[answer].float().mean()))
    return results


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_instruct_model_learns_a_new_operator_better_with_its_template(tmp_path: Path) -> None:
    random = load_model(qwen2(tmp_path / "random", hidden_size=64, intermediate_size=128))
    torch.manual_seed(0)  # the weights that training begins with are smaller than the factory's
    random = replace(random, model=type(random.model)(random.model.config))
    instructed = learn(random, examples(INSTRUCTED, NOUNS), tmp_path / "1", 3e-3, 20)
    directory = tmp_path / "instructed"
    instructed.model.save_pretrained(directory)
    instructed.tokenizer.save_pretrained(directory)
    known, held_out = examples(LEARNED, NOUNS[:6]), examples(LEARNED, NOUNS[6:])
    measured = []
    for number, prompt in enumerate((PromptSettings(), PromptSettings(template="{{ source }}"))):
        loaded = load_model(directory, prompt=prompt)
        assert loaded.encoder.prompt.format == ("chat", "template")[number]
        measured.append(accuracies(learn(loaded, known, tmp_path / f"2-{number}", 1e-3, 6), held_out))
    with_template, without = measured
    print(f"\ntokens right: {fmean(with_template):.3f} with the template, {fmean(without):.3f} without")  # noqa: T201
    differences = [a - b for a, b in zip(with_template, without, strict=True)]
    assert confidence_above(differences, 0.0, -1.0) >= 0.95, (fmean(with_template), fmean(without))
