"""Low-rank adapters (peft): make or continue one, measure, write and merge it (L2, L11).

An adapter changes each linear layer's weight by ``scaling * B @ A``. The whole model that it changes, its
base, stays as it is: frozen while it trains, and left out of the adapter's directory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from iccm_assets.errors import TrainingDivergedError
from iccm_assets.registry.hub import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from iccm_assets.settings import TrainingSettings
from iccm_assets.training.whole_model import has_bf16
from iccm_assets.training.worker_protocol import WeightChange

_NAME = "default"  # peft's name of the only adapter
_TASKS = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}
AdapterWeights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class AdapterSize:
    """What an adapter of a model has: ``weight_bytes`` are those of its file without the header."""

    weights: int
    weight_bytes: int
    base_weights: int


def compute_adapter_size(config: Any, r: int, dtype: torch.dtype = torch.float32) -> AdapterSize:
    """Compute the size of an adapter of rank ``r`` from a model's config, without any weights."""
    factory = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = factory.from_config(config)
        base_weights = sum(weight.numel() for weight in model.parameters())
        adapted = get_peft_model(model, LoraConfig(r=r, target_modules="all-linear"))
    weights = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    return AdapterSize(weights, weights * dtype.itemsize, base_weights)


class AdapterTraining:
    """An adapter of a frozen base: a new one, or trained on from the one of a directory."""

    def __init__(self, parent: Path | None) -> None:
        self._parent = parent
        self._before: AdapterWeights = {}

    def begin(self, model: Any, config: TrainingSettings) -> Any:
        """Return the model to train; its base is in half precision where the device computes in it."""
        frozen = model.to(torch.bfloat16) if has_bf16() else model.float()
        adapted = make_trainable(frozen, self._parent, config)
        self._before = copy_weights(adapted)
        return adapted

    def finish(self, model: Any, config: TrainingSettings) -> WeightChange:
        """Return how far the weights that the adapter gives moved from those of its parent.

        Raises ``TrainingDivergedError`` if a weight is not finite.
        """
        return measure_change(model, self._before)


def make_trainable(model: Any, adapter: Path | None, config: TrainingSettings) -> Any:
    """Put an adapter on a model, which is frozen: a new one, or the one of a directory to train it on.

    The trainable weights are float32 even on a base in half precision.
    """
    if adapter is None:
        lora = LoraConfig(r=config.lora_r, lora_alpha=config.lora_alpha, target_modules="all-linear")
        return get_peft_model(model, lora)
    adapted = PeftModel.from_pretrained(
        model, str(adapter), adapter_name=_NAME, is_trainable=True, torch_device=str(model.device)
    )
    # The Trainer's checkpoints would look for this name, a digest, on the hub.
    adapted.peft_config[_NAME].base_model_name_or_path = str(model.name_or_path)
    return adapted


def copy_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return a float32 copy of an adapter's weights, by the names that its file gives them."""
    weights = get_peft_model_state_dict(model, adapter_name=_NAME, save_embedding_layers=False)
    return {
        name: weight.detach().to("cpu", torch.float32, copy=True).contiguous()
        for name, weight in weights.items()
    }


def save_adapter(model: Any, directory: Path, base_digest: str, kind: str) -> None:
    """Write an adapter's weights and config, which names its base by digest and no directory."""
    weights = copy_weights(model)
    save_file(weights, directory / ADAPTER_WEIGHTS_FILE, metadata={"format": "pt"})
    (directory / ADAPTER_WEIGHTS_FILE).chmod(0o644)
    config = {
        **model.peft_config[_NAME].to_dict(),
        "base_model_name_or_path": base_digest,
        "task_type": _TASKS[kind],
        "inference_mode": True,
    }
    text = json.dumps(config, indent=1, sort_keys=True, default=_to_json)
    (directory / ADAPTER_CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


@torch.no_grad()
def measure_change(model: Any, before: AdapterWeights) -> WeightChange:
    """Compare the weights that an adapter gives with those that its earlier self gave, in double precision.

    Raises ``TrainingDivergedError`` if a weight is not finite.
    """
    after = copy_weights(model)
    for name, weight in after.items():
        if not torch.isfinite(weight).all():
            raise TrainingDivergedError(f"weight {name} is not finite")
    base, scope = model.get_base_model(), "base_model.model."
    change_squared = parent_squared = largest = 0.0
    changed = total = 0
    for name, weight in base.named_parameters():
        if "lora_" in name:
            continue
        total += weight.numel()
        values = weight.detach().cpu().double()
        layer = name.removesuffix(".base_layer.weight")
        if layer != name:  # one layer at a time: all of them in double precision would fill the memory
            module = base.get_submodule(layer)
            earlier = _compute_delta(module, before, f"{scope}{layer}")
            difference = _compute_delta(module, after, f"{scope}{layer}") - earlier
            change_squared += float(difference.square().sum())
            largest = max(largest, float(difference.abs().max()))
            changed += int(difference.count_nonzero())
            values = values + earlier
        parent_squared += float(values.square().sum())
    return WeightChange(math.sqrt(change_squared / (parent_squared or 1.0)), largest, changed / max(1, total))


def _compute_delta(layer: Any, weights: AdapterWeights, name: str) -> torch.Tensor:
    """Return what an adapter adds to the weight of a layer, in its shape."""
    a, b = (weights[f"{name}.lora_{side}.weight"].double() for side in "AB")
    delta: torch.Tensor = (b @ a) * layer.scaling[_NAME]
    return delta.T if layer.fan_in_fan_out else delta


def merge(model: Any, adapter: Path) -> Any:
    """Return a model with the adapter of a directory merged into its weights, which are changed in place."""
    device = str(model.device)
    merged = PeftModel.from_pretrained(model, str(adapter), adapter_name=_NAME, torch_device=device)
    return merged.merge_and_unload().requires_grad_(True)


def _to_json(value: Any) -> Any:
    """Return a set as a sorted list: the order of its strings differs between processes."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
