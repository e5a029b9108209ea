from __future__ import annotations

import json
from pathlib import Path

import pytest

from iccm_assets.errors import CorruptCheckpointError, ModelNotFoundError
from iccm_assets.registry.manifest import MANIFEST_FILE, Manifest, describe_files, read_manifest, verify


@pytest.fixture
def published(tmp_path: Path) -> Path:
    (tmp_path / "nested").mkdir()
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "nested" / "vocabulary.txt").write_text("a\nb\n")
    manifest = Manifest(kind="imported", base="some/model", files=describe_files(tmp_path), seed=3)
    (tmp_path / MANIFEST_FILE).write_text(manifest.to_json())
    return tmp_path


def test_an_unchanged_directory_verifies_and_returns_its_manifest(published: Path) -> None:
    manifest = verify(published)
    assert set(manifest.files) == {"config.json", "model.safetensors", "nested/vocabulary.txt"}
    assert manifest == read_manifest(published)
    assert manifest.size == 20 + 1024 + 4


def test_one_flipped_bit_in_any_byte_of_any_file_is_named(published: Path) -> None:
    for name in ("config.json", "model.safetensors", "nested/vocabulary.txt"):
        content = (published / name).read_bytes()
        for position in {0, len(content) // 2, len(content) - 1}:
            damaged = bytearray(content)
            damaged[position] ^= 1
            (published / name).write_bytes(damaged)
            with pytest.raises(CorruptCheckpointError, match=name):
                verify(published)
        (published / name).write_bytes(content)
    verify(published)


def test_every_changed_byte_of_the_manifest_is_detected(published: Path) -> None:
    content = (published / MANIFEST_FILE).read_bytes()
    digest = verify(published).digest
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 1
        (published / MANIFEST_FILE).write_bytes(damaged)
        try:
            # White space may differ without a different meaning; anything else must not pass.
            assert verify(published).digest == digest
        except CorruptCheckpointError:
            continue
        assert json.loads(damaged) == json.loads(content)


def test_missing_added_truncated_and_linked_files_are_named(published: Path) -> None:
    (published / "extra.json").write_text("{}")
    with pytest.raises(CorruptCheckpointError, match=r"extra\.json is not listed"):
        verify(published)
    (published / "extra.json").unlink()
    (published / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors has 5 bytes, 1024"):
        verify(published)
    (published / "model.safetensors").unlink()
    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors is missing"):
        verify(published)
    (published / "model.safetensors").symlink_to(published / "config.json")
    with pytest.raises(CorruptCheckpointError, match="is a link"):
        verify(published)


def test_a_manifest_in_another_models_directory_is_rejected(published: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path.parent / ("0" * 64)
    published.rename(elsewhere)
    with pytest.raises(CorruptCheckpointError, match="not of this directory"):
        verify(elsewhere)


def test_a_directory_without_manifest_is_no_published_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=MANIFEST_FILE):
        verify(tmp_path)


def test_the_digest_follows_every_field_and_the_weights_digest_only_the_weights(published: Path) -> None:
    manifest = verify(published)
    assert manifest.model_copy(update={"seed": 4}).digest != manifest.digest
    assert manifest.model_copy(update={"parent_digest": "x"}).digest != manifest.digest
    assert manifest.model_copy(update={"seed": 4}).weights_digest == manifest.weights_digest
    other = {**manifest.files, "model.safetensors": manifest.files["config.json"]}
    assert manifest.model_copy(update={"files": other}).weights_digest != manifest.weights_digest
