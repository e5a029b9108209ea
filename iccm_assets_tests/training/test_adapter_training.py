"""Adapters are published without their base, continue one another, and are verified like any version."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoConfig, Qwen2Config

from iccm_assets.errors import (
    CorruptCheckpointError,
    ModelError,
    ModelNotFoundError,
    NoWeightsChangedError,
    SettingsError,
)
from iccm_assets.models.generation import load_model
from iccm_assets.registry.manifest import read_manifest
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.registry.versions import get_production_version, get_version, register_version
from iccm_assets.rollout.deployment import deploy
from iccm_assets.rollout.rollback import roll_back_production
from iccm_assets.settings import Settings, TrainingSettings
from iccm_assets.training.adapter_training import compute_adapter_size
from iccm_assets.training.checks import check_files
from iccm_assets.training.parent_model import merge_adapter
from iccm_assets.training.reproducibility import train_in_subprocess
from iccm_assets.training.trainer_worker import train
from iccm_assets.training.training_method import MAX_FULL_WEIGHTS, resolve_method
from iccm_assets.training.worker_protocol import TrainingJob
from iccm_assets_tests.factories.tiny_models import tiny_gpt2, tiny_llama, tiny_t5
from iccm_assets_tests.factories.training_jobs import tiny_job
from iccm_assets_tests.factories.training_platforms import TrainingPlatform, train_again

QWEN2 = {
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
             "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True,
             "vocab_size": 151936},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
           "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
           "vocab_size": 152064},
}  # fmt: skip


@pytest.fixture
def platform(engine: sa.Engine, settings: Settings) -> Iterator[TrainingPlatform]:
    settings.home.mkdir(parents=True)
    yield TrainingPlatform(engine, settings)


def lora_job(home: Path, make: Any = tiny_llama, **changes: Any) -> TrainingJob:
    return tiny_job(home, make, **{"method": "lora", "epochs": 1, "lora_r": 4, "lora_alpha": 8, **changes})


def after(job: TrainingJob, parent: str | Path, run_id: str, **changes: Any) -> TrainingJob:
    config = job.config.model_copy(update=changes)
    return job.model_copy(update={"base": str(parent), "run_id": run_id, "config": config})


@torch.inference_mode()
def get_logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([[7, 21, 9, 64, 5]])
    extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    logits: torch.Tensor = model(input_ids=ids, **extra).logits
    return logits


def read_weight_bytes(path: Path) -> int:
    """Return the size of a safetensors file without its header."""
    with path.open("rb") as stream:
        (header,) = struct.unpack("<Q", stream.read(8))
    return path.stat().st_size - 8 - int(header)


@pytest.mark.parametrize("name", QWEN2)
def test_an_adapter_has_at_most_three_percent_of_the_bytes_of_a_bfloat16_base(name: str) -> None:
    size = compute_adapter_size(Qwen2Config(**QWEN2[name]), TrainingSettings().lora_r)
    assert size.base_weights > MAX_FULL_WEIGHTS
    hidden, wide = QWEN2[name]["hidden_size"], QWEN2[name]["intermediate_size"]
    keys = hidden // QWEN2[name]["num_attention_heads"] * QWEN2[name]["num_key_value_heads"]
    layers = [(hidden, hidden)] * 2 + [(hidden, keys)] * 2 + [(hidden, wide)] * 3
    assert size.weights == 28 * 16 * sum(rows + columns for rows, columns in layers)
    assert size.weight_bytes == 4 * size.weights
    assert size.weight_bytes <= 0.03 * 2 * size.base_weights


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_t5])
def test_a_version_holds_the_adapter_alone_in_the_bytes_of_its_rank_and_names_no_directory(
    make: Any, tmp_path: Path
) -> None:
    outcome = train(lora_job(tmp_path / "home", make))
    directory = Path(outcome.path)
    manifest = read_manifest(directory)
    base = ModelStore(tmp_path / "home").locate_base(directory)
    assert (outcome.method, outcome.base_digest) == ("lora", base.name)
    assert manifest.base_digest == outcome.parent_digest == base.name
    assert sorted(manifest.files) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "training_history.json",
    ]  # fmt: skip
    size = compute_adapter_size(AutoConfig.from_pretrained(base), r=4)
    assert read_weight_bytes(directory / "adapter_model.safetensors") == size.weight_bytes
    weights = load_file(directory / "adapter_model.safetensors")
    assert all(".lora_A." in name or ".lora_B." in name for name in weights)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    for path in directory.iterdir():
        assert str(tmp_path) not in path.read_text(encoding="utf-8", errors="replace"), path
    config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == base.name
    assert config["target_modules"] == sorted(config["target_modules"])
    assert base.name in (directory / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_three_weekly_adapters_continue_one_another_are_reproduced_and_rolled_back(
    platform: TrainingPlatform,
) -> None:
    home, engine = platform.settings.home, platform.engine
    job = lora_job(home)
    with engine.begin() as conn:
        base = register_version(
            conn, digest=Path(job.base).name, path=job.base, parent=None, status="candidate"
        )
    deploy(engine, base.version, actor="test", force_reason="first")
    versions, losses = [base], []
    for week in range(1, 4):
        version = platform.version(
            after(job, versions[-1].path, str(week), seed=week), parent=versions[-1].version
        )
        history = json.loads((Path(version.path) / "training_history.json").read_text(encoding="utf-8"))
        losses.append([point["validation_loss"] for point in history if "validation_loss" in point])
        deploy(engine, version.version, actor="test", force_reason="next week")
        versions.append(version)
    manifests = [read_manifest(Path(version.path)) for version in versions]
    assert [manifest.parent_digest for manifest in manifests[1:]] == [v.digest for v in versions[:3]]
    assert {manifest.base_digest for manifest in manifests[1:]} == {base.digest}
    for earlier, later in pairwise(losses):
        assert later[0] == pytest.approx(earlier[-1], rel=1e-4)  # it starts where its parent ended
        assert later[-1] < later[0]
    before = platform.state()
    # The last one in another process, where sets of strings have another order.
    for version, train_function in zip(
        versions[1:], (train_again, train_again, train_in_subprocess), strict=True
    ):
        report = platform.verify(version, train=train_function, on_line=lambda line: None)
        assert (report.outcome, report.same_digest) == ("reproduced", True), report
    assert platform.state() == before
    answers = [get_logits(load_model(version.path, device="cpu").model) for version in versions]
    for expected in (versions[2], versions[1], versions[0]):
        roll_back_production(engine, actor="test")
        with engine.connect() as conn:
            serving = get_production_version(conn)
            assert get_version(conn, expected.version).digest == expected.digest
        assert serving is not None and serving.version == expected.version
        served = get_logits(load_model(serving.path, device="cpu").model)
        assert torch.equal(served, answers[versions.index(expected)])


def test_the_method_may_change_between_generations(tmp_path: Path) -> None:
    job = lora_job(tmp_path / "home")
    adapter = train(job)
    whole = train(after(job, adapter.path, "2", method="full"))
    assert (whole.method, whole.base_digest, whole.parent_digest) == ("full", None, adapter.digest)
    assert not list(Path(whole.path).glob("adapter*"))
    # It begins with the adapter merged into its base, of which a run of no length would be the result.
    assert whole.initial_validation_loss == pytest.approx(adapter.best_validation_loss, rel=1e-4)
    assert 0 < whole.weight_change.relative < 1
    nearly = train(after(job, adapter.path, "3", method="full", learning_rate=1e-9))
    merged = merge_adapter(Path(adapter.path), Path(job.base), device="cpu").model
    served = load_model(adapter.path, device="cpu").model
    for model in (merged, load_model(nearly.path, device="cpu").model):
        assert torch.allclose(get_logits(model), get_logits(served), atol=1e-5)
    second = train(after(job, whole.path, "4"))
    assert (second.method, second.base_digest) == ("lora", whole.digest)
    assert second.initial_validation_loss == pytest.approx(whole.best_validation_loss, rel=1e-4)


def test_an_adapter_that_did_not_move_from_its_parents_weights_is_not_published(tmp_path: Path) -> None:
    job = lora_job(tmp_path / "home")
    adapter = train(job)
    with pytest.raises(NoWeightsChangedError):
        train(after(job, adapter.path, "2", learning_rate=1e-30))
    assert ModelStore(tmp_path / "home").list_digests() == sorted([Path(job.base).name, adapter.digest])


def test_the_weight_change_is_that_of_the_weights_which_the_adapter_gives(tmp_path: Path) -> None:
    """Recomputed here from the merged models of both generations."""
    job = lora_job(tmp_path / "home", tiny_gpt2)  # whose layers have transposed weights
    first = train(job)
    second = train(after(job, first.path, "2"))
    before, now = (
        merge_adapter(Path(outcome.path), Path(job.base), device="cpu").model for outcome in (first, second)
    )
    pairs = [
        (old.detach().double(), new.detach().double())
        for old, new in zip(before.parameters(), now.parameters(), strict=True)
    ]
    change = sum(float((new - old).square().sum()) for old, new in pairs) ** 0.5
    norm = sum(float(old.square().sum()) for old, _ in pairs) ** 0.5
    assert second.weight_change.relative == pytest.approx(change / norm, rel=1e-3)
    largest = max(float((new - old).abs().max()) for old, new in pairs)
    assert second.weight_change.largest == pytest.approx(largest, rel=1e-2)


def test_what_an_adapter_cannot_do_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="two adapters of rank 16 has rank 32"):
        TrainingSettings(method="lora", weight_averaging_alpha=0.5)
    averaged = TrainingSettings(weight_averaging_alpha=0.5)
    with pytest.raises(SettingsError, match=r"WEIGHT_AVERAGING_ALPHA is 0\.5"):
        resolve_method(averaged, MAX_FULL_WEIGHTS + 1)
    assert resolve_method(averaged, MAX_FULL_WEIGHTS).method == "full"
    job = lora_job(tmp_path / "home")
    with pytest.raises(ModelError, match="is not in the model store"):
        train(after(job, tiny_llama(tmp_path / "elsewhere"), "1"))
    adapter = train(job)
    with pytest.raises(SettingsError, match=r"are 8 and 8, but the adapter .* has 4 and 8"):
        train(after(job, adapter.path, "2", lora_r=8))


@pytest.mark.parametrize(
    ("method", "weights", "chosen"),
    [
        ("auto", MAX_FULL_WEIGHTS, "full"),
        ("auto", MAX_FULL_WEIGHTS + 1, "lora"),
        ("full", 10 * MAX_FULL_WEIGHTS, "full"),
        ("lora", 1, "lora"),
    ],
)
def test_the_size_of_the_model_decides_unless_the_method_is_set(
    method: Any, weights: int, chosen: str
) -> None:
    assert resolve_method(TrainingSettings(method=method), weights).method == chosen


def test_a_small_model_is_trained_whole_by_default_and_the_manifest_says_so(tmp_path: Path) -> None:
    outcome = train(lora_job(tmp_path / "home", method="auto"))
    assert read_manifest(Path(outcome.path)).config["method"] == outcome.method == "full"


def test_a_damaged_adapter_or_base_is_refused_by_name(tmp_path: Path) -> None:
    job = lora_job(tmp_path / "home")
    adapter = train(job)
    assert check_files(adapter.path).damage == ""
    weights = Path(job.base) / "model.safetensors"
    intact = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(intact[:-4] + b"\0\0\1\0")
    assert "model.safetensors was changed" in check_files(adapter.path).damage
    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors was changed"):
        train(after(job, adapter.path, "2"))
    weights.write_bytes(intact)
    damaged = Path(adapter.path) / "adapter_model.safetensors"
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"\0\0\1\0")
    assert "adapter_model.safetensors was changed" in check_files(adapter.path).damage
    with pytest.raises(CorruptCheckpointError, match=r"adapter_model\.safetensors was changed"):
        train(after(job, adapter.path, "2"))


def test_an_adapter_without_its_base_is_not_trained_on(tmp_path: Path) -> None:
    job = lora_job(tmp_path / "home")
    adapter = train(job)
    Path(job.base).rename(tmp_path / "elsewhere")
    with pytest.raises(ModelNotFoundError, match=f"the base {Path(job.base).name[:12]} of the adapter"):
        train(after(job, adapter.path, "2"))


def test_a_version_that_an_earlier_release_published_merged_cannot_be_compared_and_says_so(
    platform: TrainingPlatform,
) -> None:
    store = ModelStore(platform.settings.home)
    job = lora_job(platform.settings.home)
    version = platform.version(job)
    manifest = read_manifest(Path(version.path))
    staging = store.create_staging("old", 1, 1)
    merge_adapter(Path(version.path), Path(job.base), device="cpu").model.save_pretrained(staging)
    merged = store.publish(staging, manifest.model_copy(update={"base_digest": None}))
    old = replace(version, digest=merged.digest, path=str(merged.path))
    report = platform.verify(old)
    assert report.outcome == "impossible" and "published merged by an earlier version" in report.reason
