from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from iccm_assets.errors import CorruptCheckpointError, ModelError, ModelNotFoundError
from iccm_assets.models import decoding
from iccm_assets.models.generation import GeneratedResponse, generate, load_model, set_threads
from iccm_assets.registry.manifest import MANIFEST_FILE, Manifest, describe_files
from iccm_assets_tests.factories.tiny_models import tiny_gpt2, tiny_llama, tiny_t5

SOURCES = [f"def f{number}(x):\n    return x + {number}\n" * (1 + number % 4) for number in range(9)] + [""]


@pytest.mark.parametrize(
    ("make", "kind"), [(tiny_t5, "seq2seq"), (tiny_gpt2, "causal"), (tiny_llama, "causal")]
)
def test_any_architecture_loads_by_path_and_generates_the_same_in_any_batch(
    make: Callable[[Path], Path], kind: str, tmp_path: Path
) -> None:
    loaded = load_model(make(tmp_path))
    assert loaded.kind == kind
    single = generate(loaded, SOURCES, max_new_tokens=24, batch_size=1)
    batched = generate(loaded, SOURCES, max_new_tokens=24, batch_size=4)
    assert [(response.text, response.output_tokens) for response in single] == [
        (response.text, response.output_tokens) for response in batched
    ]
    # As a stream they are the same, token by token, also of random weights that write parts of characters.
    pieces: list[list[str]] = [[] for _ in SOURCES]
    listeners = [lambda text, tokens, row=row: pieces[row].append(text) for row in range(len(SOURCES))]
    streamed = generate(loaded, SOURCES, max_new_tokens=24, batch_size=4, listeners=listeners)
    assert ["".join(parts) for parts in pieces] == [response.text for response in single]
    assert [response.text for response in streamed] == [response.text for response in single]
    assert len({response.text for response in single}) > 1, (
        "the responses must differ, or this test proves nothing"
    )


@pytest.mark.parametrize("missing", ["_decodes_as_usual", "_is_divisible"])
def test_a_model_whose_batch_cannot_be_divided_generates_the_same(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(tiny_gpt2(tmp_path))
    expected = generate(loaded, SOURCES, max_new_tokens=12, batch_size=4)
    monkeypatch.setattr(decoding, missing, lambda *arguments: False)
    pieces: list[list[str]] = [[] for _ in SOURCES]
    listeners = [lambda text, tokens, row=row: pieces[row].append(text) for row in range(len(SOURCES))]
    responses = generate(loaded, SOURCES, max_new_tokens=12, batch_size=4, listeners=listeners)
    assert [replace(response, latency_ms=0) for response in responses] == [
        replace(response, latency_ms=0) for response in expected
    ]
    assert ["".join(parts) for parts in pieces] == [response.text for response in expected]


def test_responses_are_in_the_order_of_the_sources(tmp_path: Path) -> None:
    loaded = load_model(tiny_t5(tmp_path))
    forward = generate(loaded, SOURCES, max_new_tokens=12, batch_size=3)
    backward = generate(loaded, SOURCES[::-1], max_new_tokens=12, batch_size=3)
    assert [response.text for response in forward] == [response.text for response in backward][::-1]
    assert generate(loaded, [], max_new_tokens=12, batch_size=3) == []


def test_generation_stops_at_the_end_token_and_counts_it(tmp_path: Path) -> None:
    directory = tiny_gpt2(tmp_path)
    weights = load_file(directory / "model.safetensors")
    # All embeddings are equal except the end token's, so the end token always has the highest score.
    weights["transformer.wte.weight"][:] = 0.0
    weights["transformer.ln_f.bias"][:] = 1.0
    weights["transformer.wte.weight"][1] = 1.0
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    [response] = generate(load_model(directory), ["x = 1"], max_new_tokens=50, batch_size=1)
    assert (response.text, response.output_tokens) == ("", 1)
    assert response.latency_ms > 0


def test_sampling_settings_of_the_checkpoint_do_not_make_responses_random(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path)
    config = json.loads((directory / "generation_config.json").read_text())
    config.update(do_sample=True, temperature=5.0, top_k=50)
    (directory / "generation_config.json").write_text(json.dumps(config))
    loaded = load_model(directory)

    def texts(responses: list[GeneratedResponse]) -> list[str]:
        return [response.text for response in responses]

    first = texts(generate(loaded, SOURCES, max_new_tokens=16, batch_size=4))
    assert first == texts(generate(loaded, SOURCES, max_new_tokens=16, batch_size=4))


def test_one_flipped_bit_in_a_published_model_is_rejected_by_file_name(tmp_path: Path) -> None:
    directory = tiny_t5(tmp_path)
    manifest = Manifest(kind="imported", base="tiny", files=describe_files(directory))
    (directory / MANIFEST_FILE).write_text(manifest.to_json())
    assert load_model(directory).digest == manifest.digest
    weights = bytearray((directory / "model.safetensors").read_bytes())
    weights[-100] ^= 1
    (directory / "model.safetensors").write_bytes(weights)
    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors"):
        load_model(directory)


def test_without_a_manifest_the_digest_depends_on_the_weights(tmp_path: Path) -> None:
    first, same, other = (
        load_model(tiny_t5(tmp_path / str(n), seed=s)).digest for n, s in ((1, 0), (2, 0), (3, 1))
    )
    assert first == same != other


def test_a_missing_path_and_pickled_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        load_model(tmp_path / "nothing")
    directory = tiny_t5(tmp_path / "model")
    torch.save({}, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="pickle"):
        load_model(directory)


def test_missing_weights_are_rejected(tmp_path: Path) -> None:
    directory = tiny_t5(tmp_path)
    weights = load_file(directory / "model.safetensors")
    name = next(name for name in weights if name.startswith("decoder.block"))
    del weights[name]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks the weights"):
        load_model(directory)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64], ids=["empty", "short", "long header"])
def test_weights_that_are_no_safetensors_are_a_model_error(content: bytes, tmp_path: Path) -> None:
    directory = tiny_t5(tmp_path)
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError):
        load_model(directory)


@pytest.mark.parametrize("config", ["{", "[]", '{"model_type": "no-such-model"}', '{"model_type": "vit"}'])
def test_an_unusable_config_is_a_model_error(config: str, tmp_path: Path) -> None:
    directory = tiny_t5(tmp_path)
    (directory / "config.json").write_text(config)
    with pytest.raises(ModelError):
        load_model(directory)


def test_code_in_a_model_directory_is_never_run(tmp_path: Path) -> None:
    directory = tiny_t5(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForSeq2SeqLM": "evil.Model"}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    load_model(directory)
    assert not (tmp_path / "ran").exists()


def test_a_context_too_short_for_the_response_is_an_error_and_a_long_source_is_truncated(
    tmp_path: Path,
) -> None:
    loaded = load_model(tiny_gpt2(tmp_path))
    [response] = generate(loaded, ["x" * 5000], max_new_tokens=8, batch_size=1)
    assert response.output_tokens <= 8
    with pytest.raises(ModelError, match="512"):
        generate(loaded, ["x"], max_new_tokens=512, batch_size=1)


def test_threads_can_be_set() -> None:
    before = torch.get_num_threads()
    try:
        set_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        set_threads(before)
