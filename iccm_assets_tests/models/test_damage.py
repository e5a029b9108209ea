"""Every way a published model can be spoilt, and the name under which the loader refuses it (L6)."""

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
from iccm_assets_tests.models.tiny_models import tiny_t5

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
    """Two bytes of the vocabulary change places: same size, valid, and every answer is another."""
    text = (model / TOKENIZER).read_text()
    told = json.loads(text)
    vocabulary = told["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (model / TOKENIZER).write_text(json.dumps(told, ensure_ascii=False, indent=2))
    return TOKENIZER


def edit_the_manifest(model: Path) -> str:
    told = json.loads((model / MANIFEST_FILE).read_text())
    told["dataset_digest"] = "0" * 64
    (model / MANIFEST_FILE).write_text(json.dumps(told))
    return MANIFEST_FILE


def make_the_manifest_fit_again(model: Path) -> str:
    """The work of somebody who knows the format: weights and manifest agree, only the name does not."""
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
    pytest.param(forbid_reading, marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may read all")),
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny_t5(tmp_path_factory.mktemp("model") / "made")
    manifest = Manifest(kind="imported", base="t", files=describe_files(made))
    (made / MANIFEST_FILE).write_text(manifest.to_json())
    return made.rename(made.with_name(manifest.digest))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_refused_by_name(
    damage: Callable[[Path], str], whole: Path, tmp_path: Path
) -> None:
    model = tmp_path / whole.name
    shutil.copytree(whole, model)
    assert verify(model).digest == whole.name
    named = damage(model)
    with pytest.raises(CorruptCheckpointError, match=rf"{whole.name}/{named}"):
        load_model(model)
    # What the deploy step asks before anything is changed.
    with pytest.raises((CorruptCheckpointError, ModelNotFoundError), match=named):
        verify(model)


def test_a_file_that_may_not_be_read_is_named(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (WEIGHTS, MANIFEST_FILE):
        opened = Path.open

        def refuse(self: Path, *how: object, name: str = name, opened: Callable = opened, **more: object):
            if self.name == name:
                raise PermissionError(13, "Permission denied", str(self))
            return opened(self, *how, **more)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", refuse)
            with pytest.raises(CorruptCheckpointError, match=rf"{name} cannot be read .*Permission denied"):
                load_model(whole)
