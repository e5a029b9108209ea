"""Every kind of damage to a published model, and the file name in the loader's error (L6)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from iccm_assets.errors import CorruptCheckpointError, ModelNotFoundError
from iccm_assets.models.generation import load_model
from iccm_assets.registry.manifest import MANIFEST_FILE, Manifest, describe_files, verify
from iccm_assets_tests.factories.tiny_models import tiny_t5

WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"


def flip_a_bit(model: Path) -> str:
    content = bytearray((model / WEIGHTS).read_bytes())
    content[-100] ^= 1
    (model / WEIGHTS).write_bytes(content)
    return WEIGHTS


def truncate(model: Path) -> str:
    os.truncate(model / WEIGHTS, 1000)
    return WEIGHTS


def empty(model: Path) -> str:
    os.truncate(model / "config.json", 0)
    return "config.json"


def remove(model: Path) -> str:
    (model / TOKENIZER).unlink()
    return TOKENIZER


def add(model: Path) -> str:
    (model / "added_tokens.json").write_text("{}")
    return "added_tokens.json"


def swap_the_tokenizer(model: Path) -> str:
    """Swap two tokens of the vocabulary: the file keeps its size and stays valid, but responses change."""
    text = (model / TOKENIZER).read_text()
    tokenizer = json.loads(text)
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (model / TOKENIZER).write_text(json.dumps(tokenizer, ensure_ascii=False, indent=2))
    return TOKENIZER


def edit_the_manifest(model: Path) -> str:
    manifest = json.loads((model / MANIFEST_FILE).read_text())
    manifest["dataset_digest"] = "0" * 64
    (model / MANIFEST_FILE).write_text(json.dumps(manifest))
    return MANIFEST_FILE


def make_the_manifest_fit_again(model: Path) -> str:
    """Make weights and manifest agree again: only the directory name shows the change."""
    flip_a_bit(model)
    (model / MANIFEST_FILE).unlink()
    (model / MANIFEST_FILE).write_text(
        Manifest(kind="imported", base="t", files=describe_files(model)).to_json()
    )
    return MANIFEST_FILE


def remove_the_manifest(model: Path) -> str:
    (model / MANIFEST_FILE).unlink()
    return MANIFEST_FILE


def empty_the_manifest(model: Path) -> str:
    os.truncate(model / MANIFEST_FILE, 0)
    return MANIFEST_FILE


def link_outside(model: Path) -> str:
    outside = model.parent / "outside"
    shutil.move(model / WEIGHTS, outside)
    (model / WEIGHTS).symlink_to(outside)
    return WEIGHTS


def put_a_folder_in_place(model: Path) -> str:
    (model / WEIGHTS).unlink()
    (model / WEIGHTS).mkdir()
    return WEIGHTS


def put_a_pipe_in_place(model: Path) -> str:
    (model / WEIGHTS).unlink()
    os.mkfifo(model / WEIGHTS)
    return WEIGHTS


def forbid_reading(model: Path) -> str:
    (model / WEIGHTS).chmod(0)
    return WEIGHTS


DAMAGES = [
    flip_a_bit, truncate, empty, remove, add, swap_the_tokenizer, edit_the_manifest,
    make_the_manifest_fit_again, remove_the_manifest, empty_the_manifest, link_outside,
    put_a_folder_in_place, put_a_pipe_in_place,
    pytest.param(forbid_reading, marks=pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")),
]  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_t5(tmp_path_factory.mktemp("model") / "made")
    manifest = Manifest(kind="imported", base="t", files=describe_files(model))
    (model / MANIFEST_FILE).write_text(manifest.to_json())
    return model.rename(model.with_name(manifest.digest))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_rejected_by_file_name(
    damage: Callable[[Path], str], published: Path, tmp_path: Path
) -> None:
    model = tmp_path / published.name
    shutil.copytree(published, model)
    assert verify(model).digest == published.name
    file_name = damage(model)
    with pytest.raises(CorruptCheckpointError, match=rf"{published.name}/{file_name}"):
        load_model(model)
    # The check of the deploy step before it changes anything.
    with pytest.raises((CorruptCheckpointError, ModelNotFoundError), match=file_name):
        verify(model)


def test_an_unreadable_file_is_named(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (WEIGHTS, MANIFEST_FILE):
        opened = Path.open

        def refuse(self: Path, *how: object, name: str = name, opened: Callable = opened, **more: object):
            if self.name == name:
                raise PermissionError(13, "Permission denied", str(self))
            return opened(self, *how, **more)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", refuse)
            with pytest.raises(CorruptCheckpointError, match=rf"{name} cannot be read .*Permission denied"):
                load_model(published)
