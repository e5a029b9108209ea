"""Adapters are exported, retained, erased and backed up like any version, and their bases with them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
import torch

from iccm_assets.db import tables as t
from iccm_assets.db.clock import set_clock
from iccm_assets.db.database import connect
from iccm_assets.errors import CorruptCheckpointError, InputError
from iccm_assets.governance.backup import create_backup
from iccm_assets.governance.dataset_erasure import delete_unregistered_models, rewrite_datasets
from iccm_assets.governance.maintenance import apply_retention
from iccm_assets.governance.model_export import export_version
from iccm_assets.governance.replacement_queries import load_replacement_plan
from iccm_assets.governance.restore import restore_backup
from iccm_assets.models.generation import load_model
from iccm_assets.registry import versions
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.registry.versions import ModelVersion
from iccm_assets.settings import Settings, get_settings
from iccm_assets.simulation.base_model.degraded import register_degraded_model
from iccm_assets.training.trainer_worker import train
from iccm_assets_tests.factories.platform_rows import conversation, training_run
from iccm_assets_tests.factories.tiny_models import tiny_llama
from iccm_assets_tests.factories.training_jobs import tiny_job

IDS = torch.tensor([[7, 21, 9, 64, 5]])


@dataclass(frozen=True)
class AdapterWorld:
    """A base, and two weekly adapters of it, of which the second is in production."""

    engine: sa.Engine
    settings: Settings
    base: ModelVersion
    first: ModelVersion
    second: ModelVersion


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    """A home with a base and two adapters, the second trained on from the first; and their digests."""
    job = tiny_job(
        tmp_path_factory.mktemp("adapters"), tiny_llama, method="lora", epochs=1, lora_r=4, lora_alpha=8
    )
    first = train(job)
    second = train(job.model_copy(update={"base": first.path, "run_id": "2"}))
    return Path(job.home), (Path(job.base).name, first.digest, second.digest)


@pytest.fixture
def world(
    engine: sa.Engine,
    settings: Settings,
    trained: tuple[Path, tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[AdapterWorld]:
    home, digests = trained
    shutil.copytree(home, settings.home)
    monkeypatch.setenv("ICCM_HOME", str(settings.home))
    get_settings.cache_clear()
    made: list[ModelVersion] = []
    with engine.begin() as conn:
        for number, status in enumerate(("gate_failed", "rolled_back", "production")):
            path, parent = str(settings.home / "models" / digests[number]), made[-1].version if made else None
            values = {"path": path, "parent": parent, "status": status}
            made.append(versions.register_version(conn, digest=digests[number], **values))
            if parent is not None:
                conversation(conn, number, pool=False, filtered=False)
                training_run(conn, number, made[-1].version, examples={number: "new"})
    yield AdapterWorld(engine, settings, *made)
    get_settings.cache_clear()


@torch.inference_mode()
def get_logits(model: torch.nn.Module) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=IDS).logits
    return logits


@pytest.fixture
def served(world: AdapterWorld) -> Iterator[torch.Tensor]:
    """The logits of the version in production as the platform loads it."""
    yield get_logits(load_model(world.second.path, device="cpu").model)


def test_an_adapter_is_exported_merged_or_as_it_is_and_gives_the_logits_that_the_platform_serves(
    world: AdapterWorld, served: torch.Tensor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with world.engine.connect() as conn:
        export_version(conn, "production", str(tmp_path / "merged"), merged=True)
        export_version(conn, "production", str(tmp_path / "adapter"))
    assert capfd.readouterr().err == ""  # neither a progress bar nor a warning of a library
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert {weight.dtype for weight in whole.parameters()} == {torch.float32}
    assert torch.allclose(get_logits(whole.eval()), served, atol=1e-5)
    assert not list((tmp_path / "merged").glob("adapter*"))
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "merged").glob("*.safetensors")} == {0o644}
    base = AutoModelForCausalLM.from_pretrained(world.base.path)
    untrained = get_logits(base.eval())
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.allclose(get_logits(adapted), served, atol=1e-5)
    assert not torch.allclose(untrained, served, atol=1e-3)
    cards = [(tmp_path / name / "README.md").read_text() for name in ("merged", "adapter")]
    assert "library_name: transformers" in cards[0] and "library_name: peft" in cards[1]
    assert ["which is not in this" in card for card in cards] == [False, True]
    for name, card in zip(("merged", "adapter"), cards, strict=True):
        assert f"`tiny_llama`, digest `{world.base.digest}`" in card
        assert AutoTokenizer.from_pretrained(tmp_path / name)("def f(): pass").input_ids
        evidence = json.loads((tmp_path / name / "evidence.json").read_text())
        assert evidence["manifest"]["base_digest"] == world.base.digest
    assert not list((tmp_path / "adapter").glob("model*.safetensors"))


def test_a_whole_model_cannot_be_merged_and_a_damaged_base_is_not_exported(
    world: AdapterWorld, tmp_path: Path
) -> None:
    with world.engine.connect() as conn:
        with pytest.raises(InputError, match="is a whole model"):
            export_version(conn, world.base.version, str(tmp_path / "out"), merged=True)
        weights = Path(world.base.path) / "model.safetensors"
        weights.chmod(0o644)
        weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
        with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors was changed"):
            export_version(conn, "production", str(tmp_path / "out"), merged=True)
    assert list(tmp_path.glob("*out*")) == []


def test_retention_keeps_the_base_of_every_adapter_that_it_keeps(world: AdapterWorld) -> None:
    """The base has failed a gate long ago, and no version that is kept was trained from it directly."""
    with world.engine.begin() as conn:
        first = t.model_versions.c.version == world.first.version
        conn.execute(t.model_versions.update().where(first).values(parent_version=None))
        set_clock(conn, shift=timedelta(days=400))
    report = apply_retention(world.engine, world.settings)
    assert report.deleted == []
    [kept] = [decision for decision in report.decisions if decision.name == world.base.digest]
    assert kept.reason.startswith("it is the base of the adapter ")
    load_model(world.second.path, device="cpu")
    with world.engine.begin() as conn:
        conn.execute(t.model_versions.update().values(status="gate_failed"))
    deleted = apply_retention(world.engine, world.settings).deleted
    digests = {world.base.digest, world.first.digest, world.second.digest}
    assert {decision.name for decision in deleted} == digests  # together with their base
    assert ModelStore(world.settings.home).list_digests() == []


def test_retention_keeps_the_base_of_an_adapter_that_no_version_names_yet(
    world: AdapterWorld,
) -> None:
    with world.engine.begin() as conn:
        conn.execute(t.training_run_examples.delete())
        conn.execute(t.phase4_training_runs.delete())
        conn.execute(t.model_versions.delete())
    old = Path(world.base.path)
    os.utime(old, (time.time() - 30 * 86400,) * 2)
    assert world.base.digest not in {d.name for d in apply_retention(world.engine, world.settings).deleted}
    assert old.is_dir()


def test_an_erasure_finds_every_adapter_that_continued_one_and_the_base_to_start_from_again(
    world: AdapterWorld,
) -> None:
    erased = t.conversations.update().values(erased_at=sa.func.now())
    with world.engine.connect() as conn:
        conn.execute(erased.where(t.conversations.c.id == 2))
        own = load_replacement_plan(conn, [2], None)
        conn.execute(erased)
        inherited = load_replacement_plan(conn, [1], None)
    assert [version.version for version in inherited.versions] == [world.first.version, world.second.version]
    assert [replacement.base for replacement in inherited.replacements] == [world.base.version]
    assert [version.version for version in own.versions] == [world.second.version]
    assert [replacement.base for replacement in own.replacements] == [world.first.version]  # an adapter


def test_an_erasure_deletes_an_unregistered_adapter_and_no_base_of_another(world: AdapterWorld) -> None:
    home, digests = world.settings.home, {world.base.digest, world.first.digest, world.second.digest}
    rewrite_datasets(home, set(range(100)))
    assert delete_unregistered_models(home, {world.second.digest}) == [world.first.digest]
    assert set(ModelStore(home).list_digests()) == digests - {world.first.digest}


def test_a_restored_adapter_has_its_base_and_a_backup_without_one_says_so(
    world: AdapterWorld, served: torch.Tensor, new_database: object, tmp_path: Path
) -> None:
    backups = tmp_path / "backups"
    assert create_backup(world.engine, world.settings, backups).manifest.missing == {}
    weights = Path(world.base.path) / "model.safetensors"
    intact = weights.read_bytes()
    weights.chmod(0o644)
    weights.unlink()
    without = create_backup(world.engine, world.settings, tmp_path / "others").manifest
    assert set(without.missing) == {f"models/{world.base.digest}"}
    weights.write_bytes(intact)
    shutil.rmtree(world.settings.home / "models")
    empty = world.settings.model_copy(
        update={"home": tmp_path / "restored", "database_url": new_database(empty=True)}  # type: ignore[operator]
    )
    restore_backup(empty, backups)
    engine = connect(empty)
    with engine.connect() as conn:
        production = versions.get_production_version(conn)
    engine.dispose()
    assert production is not None and production.digest == world.second.digest
    restored = load_model(ModelStore(empty.home).get_path(production.digest), device="cpu").model
    assert torch.equal(get_logits(restored), served)


def test_a_degraded_adapter_is_a_candidate_on_the_same_base(
    world: AdapterWorld, served: torch.Tensor
) -> None:
    store = ModelStore(world.settings.home)
    degraded = register_degraded_model(world.engine, store, noise=2.0)
    assert store.locate_base(Path(degraded.path)) == Path(world.base.path)
    assert not torch.allclose(get_logits(load_model(degraded.path, device="cpu").model), served, atol=1e-3)
