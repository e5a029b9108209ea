from __future__ import annotations

from pathlib import Path

import pytest

from iccm_assets.errors import ModelError, ModelNotFoundError
from iccm_assets.registry import hub
from iccm_assets.registry.hub import check_loadable, is_local_path, resolve


@pytest.mark.parametrize(
    "name",
    [
        "/no/such/model",
        "./model",
        "../model",
        "~/model",
        "a/b/c",
        "C:\\model",
        "",
        "with space",
        "~nobody-there/x",
        "/" + "x" * 5000,
        "a\0b",
    ],
)
def test_a_path_that_does_not_exist_fails_immediately_without_the_network(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_from_hub", lambda name: pytest.fail("asked the hub"))
    with pytest.raises(ModelNotFoundError):
        resolve(name)


@pytest.mark.parametrize("name", ["google/flan-t5-small", "gpt2", "Org_1/model.v2-x"])
def test_hub_ids_are_distinguished_from_paths(name: str) -> None:
    assert not is_local_path(name)


def test_an_existing_directory_takes_precedence_over_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("gpt2") == tmp_path / "gpt2"


def test_offline_a_hub_id_outside_the_cache_is_not_found_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waited {seconds} s"))
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE"):
        resolve("nobody/has-this-model")


def test_a_cached_hub_model_is_used_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--org--tiny" / "refs").mkdir()
    (tmp_path / "models--org--tiny" / "refs" / "main").write_text("c0ffee")
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("org/tiny") == snapshot


def test_pickled_weights_are_rejected_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
        check_loadable(tmp_path)


def test_a_directory_without_config_or_weights_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        check_loadable(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelNotFoundError, match="safetensors"):
        check_loadable(tmp_path)
