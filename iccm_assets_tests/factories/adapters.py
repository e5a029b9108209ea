"""LoRA adapters of random weights on a base model in a store, as a training publishes them (L11)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig

from iccm_assets.models.generation import load_model
from iccm_assets.registry.manifest import Manifest
from iccm_assets.registry.model_store import ModelStore, StoredModel
from iccm_assets_tests.factories.architectures import make_tokenizer


def publish_base(store: ModelStore, make: Callable[[Path], Path]) -> StoredModel:
    """Import a model that a factory makes, with its own prompt."""
    directory = make(store.root.parent / f"made-{len(store.list_digests())}")
    return store.import_model(str(directory), load_model(directory).encoder.prompt)


def publish_adapter(
    store: ModelStore, base: StoredModel, seed: int, *, r: int = 4, **options: Any
) -> StoredModel:
    """Publish an adapter of a base model; each seed answers in a way of its own."""
    config = AutoConfig.from_pretrained(base.path)
    factory = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    torch.manual_seed(seed)
    adapted = get_peft_model(
        factory.from_pretrained(base.path, dtype=torch.float32),
        LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear", **options),
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


def printable_llama(directory: Path) -> Path:
    """A Llama of one layer that writes letters and digits only, and no token that ends its answer."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=4, max_position_embeddings=512, pad_token_id=None, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    unwritten = [number for number, text in enumerate(texts) if not (text.isascii() and text.isalnum())]
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.2)
        model.lm_head.weight[unwritten] = 0.0
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
