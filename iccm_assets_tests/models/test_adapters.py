"""Versions that are LoRA adapters: their answers, and the base model that they share (L11)."""

from __future__ import annotations

import gc
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch.utils._python_dispatch import TorchDispatchMode

from iccm_assets.errors import CorruptCheckpointError, ModelError, ModelNotFoundError
from iccm_assets.models import generation
from iccm_assets.models.adapter_loading import AdaptedLinear
from iccm_assets.models.generation import LoadedModel, generate, load_model
from iccm_assets.models.shared_weights import count_parameter_bytes, list_shared_bases
from iccm_assets.registry.manifest import read_manifest
from iccm_assets.registry.model_store import ModelStore
from iccm_assets_tests.factories.adapters import publish_adapter, publish_base
from iccm_assets_tests.factories.architectures import ARCHITECTURES, SOURCES, bart, gpt2, qwen2, t5
from iccm_assets_tests.factories.tiny_models import tiny_llama


def texts(loaded: LoadedModel, sources: list[str], batch_size: int = 4) -> list[str]:
    answers = generate(loaded, sources, max_new_tokens=10, batch_size=batch_size)
    return [answer.text for answer in answers]


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path)


@pytest.mark.parametrize(
    "make",
    [
        make if make in (qwen2, gpt2, t5, bart) else pytest.param(make, marks=pytest.mark.slow)
        for make in ARCHITECTURES
    ],
)
def test_an_adapter_answers_as_its_merged_model_alone_in_batches_and_streamed(make, store) -> None:
    base = publish_base(store, make)
    adapter = publish_adapter(store, base, seed=1)
    merged = load_model(base.path, dtype=torch.float64)
    wrapped = PeftModel.from_pretrained(merged.model, str(adapter.path))
    merged = LoadedModel(wrapped.merge_and_unload(), merged.encoder, "", base.path)
    loaded = load_model(adapter.path, dtype=torch.float64, shared=True)
    expected = texts(merged, SOURCES[:8])
    assert texts(loaded, SOURCES[:8]) == expected
    assert texts(loaded, SOURCES[:8], batch_size=1) == expected
    pieces: list[str] = []
    [answer] = generate(
        loaded, SOURCES[:1], max_new_tokens=10, batch_size=1,
        listeners=[lambda text, tokens: pieces.append(text)],
    )  # fmt: skip
    assert "".join(pieces) == answer.text == expected[0]
    assert loaded.digest == adapter.digest
    assert expected != texts(load_model(base.path, dtype=torch.float64, shared=True), SOURCES[:8])


class CountOperations(TorchDispatchMode):
    """Counts the operations that compute something: views of a tensor are free."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += not operation.is_view
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [qwen2, t5])
def test_an_adapted_layer_takes_two_operations_more_than_its_base(make, store) -> None:
    """What an adapter costs a user beside its base is these operations, not the products' arithmetic."""
    base = publish_base(store, make)
    models = [load_model(base.path).model, load_model(publish_adapter(store, base, seed=1).path).model]
    layers = sum(isinstance(module, AdaptedLinear) for module in models[1].modules())
    inputs = {"input_ids": torch.ones((1, 4), dtype=torch.long)}
    if make is t5:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    counts = []
    for model in models:
        with torch.inference_mode(), CountOperations() as operations:
            model(**inputs)
        counts.append(operations.count)
    assert layers > 0
    assert counts[1] - counts[0] == 2 * layers


@pytest.mark.parametrize(
    ("make", "options", "dtype"),
    [
        (qwen2, {"lora_bias": True}, torch.float32),
        (qwen2, {"use_dora": True}, torch.float32),
        (qwen2, {}, torch.bfloat16),  # the adapter's weights are float32
        (gpt2, {}, torch.float32),  # its layers are not torch's linear ones
    ],
)
def test_an_adapter_that_two_operations_cannot_compute_answers_as_peft_does(
    make, options, dtype, store
) -> None:
    base = publish_base(store, make)
    adapter = publish_adapter(store, base, seed=1, **options)
    loaded, plain = (load_model(path, dtype=dtype) for path in (adapter.path, base.path))
    assert not any(isinstance(module, AdaptedLinear) for module in loaded.model.modules())
    wrapped = PeftModel.from_pretrained(plain.model, str(adapter.path)).eval()
    inputs = torch.arange(1, 9)[None]
    with torch.inference_mode():
        assert torch.equal(loaded.model(inputs).logits, wrapped(inputs).logits)


@pytest.mark.parametrize("make", [qwen2, t5])
def test_versions_of_one_base_have_its_parameters_once_and_free_them_with_the_last(make, store) -> None:
    base = publish_base(store, make)
    adapters = [publish_adapter(store, base, seed) for seed in (1, 2)]
    whole = load_model(base.path, shared=True)
    versions = [load_model(adapter.path, shared=True) for adapter in adapters]
    bytes_of_one = count_parameter_bytes([whole.model])
    added = sum((path.path / "adapter_model.safetensors").stat().st_size for path in adapters)
    total = count_parameter_bytes([whole.model, *(version.model for version in versions)])
    assert bytes_of_one < total <= bytes_of_one + added
    assert count_parameter_bytes([load_model(base.path).model, whole.model]) == 2 * bytes_of_one
    assert [key.digest for key in list_shared_bases()].count(base.digest) == 1
    del whole, versions[0]
    assert base.digest in {key.digest for key in list_shared_bases()}
    versions.clear()
    assert base.digest not in {key.digest for key in list_shared_bases()}


def read_resident_bytes() -> int:
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return sum(1024 * int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_both_arms_of_a_hundred_million_parameters_hold_them_once(store, record_property) -> None:
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    base = publish_base(store, partial(qwen2, **sizes))
    first, second = (publish_adapter(store, base, seed, r=16) for seed in (1, 2))
    before = read_resident_bytes()
    production = load_model(first.path, shared=True)
    with_one = read_resident_bytes()
    canary = load_model(second.path, shared=True)
    with_both = read_resident_bytes()
    parameters = sum(weight.numel() for weight in load_model(base.path).model.parameters())
    of_one = count_parameter_bytes([production.model])
    of_both = count_parameter_bytes([production.model, canary.model])
    record_property("parameters", parameters)
    record_property("bytes of both arms / bytes of one", of_both / (4 * parameters))
    record_property("resident bytes added by one arm", with_one - before)
    record_property("resident bytes added by the other", with_both - with_one)
    print(parameters, of_one, of_both, with_one - before, with_both - with_one)  # noqa: T201
    assert parameters >= 100e6
    assert of_both <= 1.15 * 4 * parameters
    assert with_both - with_one <= 0.15 * 4 * parameters
    assert texts(production, SOURCES[:2]) != texts(canary, SOURCES[:2])


def test_versions_of_one_base_answer_at_the_same_time_each_with_its_own_adapter(store) -> None:
    base = publish_base(store, qwen2)
    paths = [base.path, *(publish_adapter(store, base, seed).path for seed in range(3))]
    expected = [texts(load_model(path), SOURCES[:6]) for path in paths]
    assert len({tuple(answers) for answers in expected}) == len(paths)
    start = threading.Barrier(len(paths))

    def answer(path: Path) -> list[list[str]]:
        loaded = load_model(path, shared=True)
        start.wait()
        return [texts(loaded, SOURCES[:6]) for _ in range(8)]

    with ThreadPoolExecutor(len(paths)) as threads:
        for answers, right in zip(threads.map(answer, paths), expected, strict=True):
            assert answers == [right] * 8


def test_the_base_is_read_once_for_versions_that_start_at_once(store, monkeypatch) -> None:
    base = publish_base(store, tiny_llama)
    paths = [base.path, *(publish_adapter(store, base, seed).path for seed in range(3))]
    read: list[Path] = []
    load_weights = generation._load_weights

    def count(directory: Path, *rest):
        read.append(directory)
        return load_weights(directory, *rest)

    monkeypatch.setattr(generation, "_load_weights", count)
    with ThreadPoolExecutor(len(paths)) as threads:
        loaded = list(threads.map(lambda path: load_model(path, shared=True), paths))
    assert read == [base.path]
    assert len({id(version.base) for version in loaded}) == 1


def test_an_adapter_without_its_base_is_refused_with_what_is_missing(store) -> None:
    base = publish_base(store, tiny_llama)
    adapter = publish_adapter(store, base, seed=1)
    base.path.rename(store.root / "elsewhere")
    with pytest.raises(ModelNotFoundError, match=f"base {base.digest[:12]} of the adapter"):
        load_model(adapter.path)


def test_a_base_whose_weights_were_changed_is_refused(store) -> None:
    base = publish_base(store, tiny_llama)
    adapter = publish_adapter(store, base, seed=1)
    base.path.chmod(0o755)
    weights = base.path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors was changed"):
        load_model(adapter.path, shared=True)
    assert base.digest not in {key.digest for key in list_shared_bases()}


def republish(store: ModelStore, directory: Path, base_digest: str, change) -> Path:
    """Publish an adapter again with another config."""
    staging = store.create_staging("changed", 1, 1)
    for path in directory.iterdir():
        if path.name != "MANIFEST.json":
            shutil.copyfile(path, staging / path.name)
    config = json.loads((staging / "adapter_config.json").read_text())
    change(config)
    (staging / "adapter_config.json").write_text(json.dumps(config))
    manifest = read_manifest(directory).model_copy(update={"base_digest": base_digest})
    return store.publish(staging, manifest).path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "type IA3, not LORA"),
        ({"init_lora_weights": "pissa"}, "needs a changed base model"),
        ({"r": 8, "lora_alpha": 16}, "size mismatch"),
        ({"target_modules": ["q_proj"]}, "does not fit its base model"),
        ({"target_modules": ["nothing"]}, "cannot be loaded"),
    ],
)
def test_an_adapter_of_another_kind_or_shape_is_refused_and_changes_no_base(store, change, words) -> None:
    base = publish_base(store, tiny_llama)
    adapter = publish_adapter(store, base, seed=1)
    whole = load_model(base.path, shared=True)
    before = {name: weight.clone() for name, weight in whole.model.named_parameters()}
    other = republish(store, adapter.path, base.digest, lambda config: config.update(change))
    with pytest.raises(ModelError, match=words):
        load_model(other, shared=True)
    after = dict(whole.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_adapter_of_another_model_is_refused(store) -> None:
    llama, other = publish_base(store, tiny_llama), publish_base(store, qwen2)
    adapter = publish_adapter(store, llama, seed=1)
    swapped = republish(store, adapter.path, other.digest, lambda config: None)
    with pytest.raises(ModelError, match="does not fit its base model"):
        load_model(swapped)
