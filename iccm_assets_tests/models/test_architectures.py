"""Twelve architectures: one prompt everywhere (L8), and a response is the argmax of each step (L9)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from iccm_assets.models.generation import (
    LoadedModel,
    decoder_start_token_id,
    generate,
    load_encoder,
    load_model,
)
from iccm_assets.models.token_streaming import decode
from iccm_assets.settings import TrainingSettings
from iccm_assets.training.finetuning import _encode
from iccm_assets.training.trainer_worker import train
from iccm_assets_tests.factories.architectures import ARCHITECTURES, SOURCES
from iccm_assets_tests.factories.training_jobs import tiny_dataset, tiny_job

NEW_TOKENS = 16
# Where the two likeliest tokens are closer, the order of a sum decides.
MIN_GAP = 1e-4


@pytest.fixture(params=ARCHITECTURES, ids=lambda make: make.__name__)
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make: Callable[[Path], Path] = request.param
    return make(tmp_path / "model")


def argmax_steps(loaded: LoadedModel, source: str) -> tuple[list[int], float]:
    """Decode without ``generate``: the likeliest token of each step, and the smallest gap to the second."""
    ids = loaded.encoder.encode_source(source, 2048).token_ids
    seq2seq = loaded.kind == "seq2seq"
    written = [decoder_start_token_id(loaded.model)] if seq2seq else list(ids)
    ends = {loaded.encoder.end_token_id}
    ends |= set(torch.tensor(loaded.model.generation_config.eos_token_id).reshape(-1).tolist())
    tokens: list[int] = []
    gap = float("inf")
    while len(tokens) < NEW_TOKENS and not (tokens and tokens[-1] in ends):
        inputs = {"input_ids": torch.tensor([ids if seq2seq else written])}
        if seq2seq:
            inputs["decoder_input_ids"] = torch.tensor([written])
        with torch.inference_mode():
            (first, second), (token, _) = (
                row.tolist() for row in loaded.model(**inputs).logits[0, -1].topk(2)
            )
        gap = min(gap, first - second)
        tokens.append(token)
        written.append(token)
    return tokens, gap


def compare(loaded: LoadedModel, sources: list[str]) -> Iterator[tuple[str, list[str], float]]:
    single = generate(loaded, sources, max_new_tokens=NEW_TOKENS, batch_size=1)
    batched = generate(loaded, sources, max_new_tokens=NEW_TOKENS, batch_size=5)
    for source, alone, together in zip(sources, single, batched, strict=True):
        tokens, gap = argmax_steps(loaded, source)
        yield decode(loaded.tokenizer, tokens), [alone.text, together.text], gap


def test_a_response_is_the_argmax_of_each_step_whatever_the_batch(directory: Path) -> None:
    loaded = load_model(directory)
    close = 0
    for expected, texts, gap in compare(loaded, SOURCES[::5]):
        if texts != [expected, expected]:
            assert gap < MIN_GAP, (expected, texts, gap)
            close += 1
    assert close <= 1


def test_a_response_that_has_ended_is_no_longer_computed(directory: Path) -> None:
    loaded = load_model(directory, dtype=torch.float64)
    sources = SOURCES[::5]
    responses = [argmax_steps(loaded, source)[0] for source in sources]
    # Random weights seldom end: the token that ends the responses at the most different steps ends them.
    places = {
        token: {row.index(token) for row in responses if token in row}
        for token in {token for row in responses for token in row}
    }
    end = max(sorted(places), key=lambda token: len(places[token]))
    ends = torch.tensor(loaded.model.generation_config.eos_token_id).reshape(-1).tolist()
    loaded.model.generation_config.eos_token_id = [*ends, end]
    single = generate(loaded, sources, max_new_tokens=NEW_TOKENS, batch_size=1)
    computed = 0

    def count(module: object, inputs: object, output: Any) -> None:
        nonlocal computed
        computed += len(output.logits)

    with loaded.model.register_forward_hook(count):
        batched = generate(loaded, sources, max_new_tokens=NEW_TOKENS, batch_size=len(sources))
    assert [(response.text, response.output_tokens, response.is_complete) for response in batched] == [
        (response.text, response.output_tokens, response.is_complete) for response in single
    ]
    assert computed == sum(response.output_tokens for response in batched)
    # A T5 with small random weights repeats one token, and all its responses end at once.
    assert len(places[end]) == 1 or len({response.output_tokens for response in batched}) > 1


@pytest.mark.slow
def test_fifty_responses_are_the_argmax_of_each_step_without_exception_in_float64(directory: Path) -> None:
    loaded = load_model(directory, dtype=torch.float64)
    for expected, texts, _ in compare(loaded, SOURCES):
        assert texts == [expected, expected]


def test_training_evaluation_and_a_tokenizer_without_weights_make_the_same_token_ids(directory: Path) -> None:
    loaded, dataset = load_model(directory), tiny_dataset()
    alone, context = load_encoder(directory)
    train_rows, _, counts = _encode(loaded, dataset, TrainingSettings())
    rows = dataset.with_roles("new", "rehearsal")
    assert counts["too_long"] == 0 and context in (None, 512)
    for row, example in zip(rows, train_rows, strict=True):
        ids = loaded.encoder.encode_source(row.source_code, 2048).token_ids
        assert ids == alone.encode_source(row.source_code, 2048).token_ids == example.input_ids[: len(ids)]
        assert example.labels[-1] == loaded.encoder.end_token_id
        decoded = decode(loaded.tokenizer, [token for token in example.labels if token != -100])
        assert decoded.split() == row.requirements.split()


@pytest.mark.slow
def test_it_is_trained_and_its_checkpoint_has_the_same_prompt(directory: Path, tmp_path: Path) -> None:
    outcome = train(tiny_job(tmp_path, lambda _: directory, epochs=1))
    before, after = load_model(directory), load_model(outcome.path)
    assert outcome.best_validation_loss < outcome.initial_validation_loss
    assert after.encoder.prompt == before.encoder.prompt
    for source in SOURCES[:5]:
        assert before.encoder.encode_source(source, 999) == after.encoder.encode_source(source, 999)
    assert generate(after, SOURCES[:2], max_new_tokens=5, batch_size=2)
