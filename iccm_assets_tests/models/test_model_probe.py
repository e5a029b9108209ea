"""A model has to load and to answer before anything depends on it (V5)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from iccm_assets.errors import ModelError
from iccm_assets.models import model_probe
from iccm_assets.models.generation import check_answers, load_model
from iccm_assets.models.model_probe import import_probed_model, load_and_answer, probe_model
from iccm_assets.models.tokenization import CHAT_SYSTEM
from iccm_assets.registry.manifest import Prompt
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.settings import load_settings
from iccm_assets_tests.factories.architectures import qwen2
from iccm_assets_tests.factories.tiny_models import tiny_gpt2, tiny_llama, tiny_t5
from iccm_assets_tests.factories.unusual_models import fill_with_nan


@pytest.mark.parametrize("make", [tiny_t5, tiny_gpt2, tiny_llama])
def test_weights_of_nan_are_refused_with_the_fix(make: object, tmp_path: Path) -> None:
    loaded = load_model(fill_with_nan(make(tmp_path)))  # type: ignore[operator]
    with pytest.raises(ModelError, match=r"computes NaN or infinity.*copy or convert them again"):
        check_answers(loaded, 32)


def test_an_operation_that_fails_is_refused_with_the_fix(tmp_path: Path) -> None:
    loaded = load_model(tiny_llama(tmp_path))
    loaded.model.lm_head.half()
    with pytest.raises(ModelError, match=r"cannot answer.*without quantization"):
        check_answers(loaded, 32)


def test_a_context_without_room_for_a_source_is_refused_with_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"512 tokens.*Lower ICCM_EVALUATION__MAX_NEW_TOKENS"):
        check_answers(load_model(tiny_llama(tmp_path)), 512)


def test_a_refusal_crosses_the_process_with_its_fix(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        probe_model(fill_with_nan(tiny_t5(tmp_path)), load_settings())
    assert str(tmp_path) in caught.value.detail and "convert them again" in caught.value.hint


def test_an_imported_model_has_the_prompt_of_the_settings_or_its_chat_template_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(prompt={"template": "# {{ system }}\n{{ source }}\n", "system": "Code"})
    own = Prompt(format="template", system="Code", template="# {{ system }}\n{{ source }}\n")
    stored = import_probed_model(ModelStore(tmp_path), str(qwen2(tmp_path / "model")), settings)
    assert stored.manifest.prompt == load_model(stored.path).encoder.prompt == own
    # The others need no process of their own, which takes seconds to start.
    monkeypatch.setattr(
        model_probe,
        "probe_model",
        lambda path, chosen: load_and_answer(path, chosen.prompt, chosen.evaluation.max_new_tokens),
    )
    chat = import_probed_model(ModelStore(tmp_path), str(tmp_path / "model"), load_settings())
    assert chat.manifest.prompt == Prompt(format="chat", system=CHAT_SYSTEM)
    assert chat.digest != stored.digest
    again = import_probed_model(ModelStore(tmp_path / "other"), str(stored.path), load_settings())
    assert (again.digest, again.manifest.prompt) == (stored.digest, own)
    broken = load_settings(prompt={"template": "{{ source }"})
    with pytest.raises(ModelError, match="no Jinja template"):
        import_probed_model(ModelStore(tmp_path), str(tmp_path / "model"), broken)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("kill -9 $$", "ended by SIGKILL.*more memory"),
        ("echo lost >&2; exit 3", r"cannot be loaded \(lost\)"),
    ],
)
def test_a_process_that_ends_without_a_result_is_a_refusal(
    script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(ModelError, match=words):
        probe_model(tmp_path, load_settings())
