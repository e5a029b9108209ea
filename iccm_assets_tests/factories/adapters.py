"""LoRA adapters of random weights on a base model in a store, as a training publishes them (L11)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from iccm_assets.models.generation import load_model
from iccm_assets.registry.manifest import Manifest
from iccm_assets.registry.model_store import ModelStore, StoredModel


def publish_base(store: ModelStore, make: Callable[[Path], Path]) -> StoredModel:
    """Import a model that a factory makes, with its own prompt."""
    directory = make(store.root.parent / f"made-{make.__name__}")
    return store.import_model(str(directory), load_model(directory).encoder.prompt)


def publish_adapter(store: ModelStore, base: StoredModel, seed: int, *, r: int = 4) -> StoredModel:
    """Publish an adapter of a base model; each seed answers in a way of its own."""
    config = AutoConfig.from_pretrained(base.path)
    factory = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    torch.manual_seed(seed)
    adapted = get_peft_model(
        factory.from_pretrained(base.path, dtype=torch.float32),
        LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear"),
    )
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.3)
    staging = store.create_staging(f"adapter{seed}", 1, 1)
    adapted.save_pretrained(staging)
    (staging / "README.md").unlink(missing_ok=True)
    for path in base.path.glob("*token*"):
        shutil.copyfile(path, staging / path.name)
        (staging / path.name).chmod(0o644)
    for name in ("chat_template.jinja", "special_tokens_map.json", "spiece.model"):
        if (base.path / name).is_file() and not (staging / name).exists():
            shutil.copyfile(base.path / name, staging / name)
    manifest = Manifest(
        kind="fine-tuned",
        base=base.manifest.base,
        files={},
        parent_digest=base.digest,
        base_digest=base.digest,
        seed=seed,
        prompt=base.manifest.prompt,
    )
    return store.publish(staging, manifest)
