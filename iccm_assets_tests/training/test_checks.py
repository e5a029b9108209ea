"""Checks of manifests, weight change and lineage (U4, L2, L6)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from iccm_assets.registry.model_store import ModelStore
from iccm_assets.settings import Settings
from iccm_assets.training import checks


def test_a_model_is_intact_until_one_byte_changes(settings: Settings) -> None:
    published = ModelStore(settings.home).import_model(settings.base_model)
    assert checks.check_files(str(published.path)) == checks.IntegrityResult("", True)
    weights = published.path / "model.safetensors"
    weights.chmod(0o644)
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    result = checks.check_files(str(published.path))
    assert "model.safetensors was changed" in result.damage
    assert not checks.check_integrity("v1", result.damage, result.hashed).passed


def test_changed_sizes_and_missing_files_of_a_large_model_are_detected(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = ModelStore(settings.home).import_model(settings.base_model)
    monkeypatch.setattr(checks, "MAX_HASHED_BYTES", 10)
    assert checks.check_files(str(published.path)) == checks.IntegrityResult("", False)
    weights = published.path / "model.safetensors"
    weights.chmod(0o644)
    with weights.open("ab") as stream:
        stream.write(b"x")
    assert "bytes" in checks.check_files(str(published.path)).damage
    published.path.chmod(0o755)
    weights.unlink()
    assert "missing" in checks.check_files(str(published.path)).damage


def test_a_missing_directory_is_damage(tmp_path: Path) -> None:
    assert checks.check_files(str(tmp_path / "none")).damage


@pytest.mark.parametrize(
    ("relative", "passed"), [(1e-4, True), (0.0, False), (math.nan, False), (math.inf, False), (0.7, False)]
)
def test_weights_must_change_but_not_too_much(relative: float, passed: bool) -> None:
    assert checks.check_weight_change("v2", {"relative": relative, "changed_share": 0.5}).passed is passed


def test_a_version_trained_elsewhere_has_no_weight_change_to_check() -> None:
    assert checks.check_weight_change("v2", None).passed


def test_lineage_is_complete_or_the_check_names_the_gap() -> None:
    recorded = {"new": 18, "validation": 2}
    assert checks.check_lineage("v2", recorded, {"new": 18, "validation": 2, "rehearsal": 9}, []).passed
    erased = checks.check_lineage("v2", recorded, recorded, [7])
    assert not erased.passed and erased.severity == "warning" and erased.sample_ids == ("7",)
    assert not checks.check_lineage("v2", recorded, {"new": 17, "validation": 2}, []).passed
    assert not checks.check_lineage("v2", {}, {"new": 17}, []).passed
