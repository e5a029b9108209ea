"""Put the LoRA adapter of a version on its base model (L11)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from iccm_assets.errors import ModelError
from iccm_assets.registry.hub import ADAPTER_WEIGHTS_FILE

# Other initializations also change the weights of the base, which is shared by all its versions.
_HARMLESS_INITIALIZATIONS = (True, False, "gaussian")


class AdaptedLinear(nn.Linear):
    """A linear layer and its low-rank change ``x @ down @ up``; its weight and bias are those of the base.

    It computes what the layer of `peft` computes and cannot be trained, merged or switched off. That layer
    takes five operations more than the base's and the bookkeeping of several adapters, this one two: in a
    small model, or one that answers a single request, such overhead is what an adapter costs.
    """

    def __init__(self, base: nn.Linear, a: torch.Tensor, b: torch.Tensor, scaling: float) -> None:
        # Not that of nn.Linear, which would draw weights of its own.
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        dtype = base.weight.dtype
        self.down = nn.Parameter(a.detach().to(dtype).t(), requires_grad=False)
        self.up = nn.Parameter((b.detach().to(dtype) * scaling).t(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output for ``x`` of shape (…, in_features)."""
        rows = x.reshape(-1, self.in_features)
        result = nn.functional.linear(rows, self.weight, self.bias).addmm_(rows @ self.down, self.up)
        return result.view(*x.shape[:-1], self.out_features)


def apply_adapter(model: Any, directory: Path) -> Any:
    """Add the adapter's layers to a model in place and return the model, which only answers from now on.

    Raises ``ModelError`` for an adapter of another kind, or one that does not fit; what `peft` raises for a
    config that it cannot read.
    """
    from peft import PeftConfig, PeftModel
    from peft.utils import get_peft_model_state_dict
    from safetensors import safe_open

    config = PeftConfig.from_pretrained(str(directory))
    if config.peft_type != "LORA":
        raise ModelError(f"{directory} is an adapter of the type {config.peft_type.value}, not LORA")
    if config.init_lora_weights not in _HARMLESS_INITIALIZATIONS:
        raise ModelError(
            f"{directory} needs a changed base model (init_lora_weights {config.init_lora_weights})",
            hint="Convert it with peft: save_pretrained(…, path_initial_model_for_weight_conversion=…).",
        )
    # New layers are drawn at random before they get their weights: no seed of the process depends on it.
    try:
        with torch.random.fork_rng(devices=[]):
            adapted = PeftModel.from_pretrained(
                model, str(directory), config=config, torch_device=str(model.device)
            )
    except RuntimeError as error:
        shapes = " ".join(str(error).split())
        raise ModelError(f"{directory} does not fit its base model: {shapes[:300]}") from error
    with safe_open(directory / ADAPTER_WEIGHTS_FILE, "pt") as stored:
        differing = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys() ^ set(
            stored.keys()
        )
    if differing:
        raise ModelError(f"{directory} does not fit its base model: {', '.join(sorted(differing)[:5])}")
    # The model itself has the layers now; the wrapper around it would decode in a way of its own.
    return _simplify(adapted.get_base_model())


def _simplify(model: Any) -> Any:
    """Replace the layers of `peft` by those that compute the same in fewer operations, where there is one."""
    from peft.tuners.lora.layer import Linear

    for name, layer in list(model.named_modules()):
        if type(layer) is not Linear or type(layer.base_layer) is not nn.Linear or layer.lora_variant:
            continue
        (adapter,) = layer.active_adapters
        down, up = layer.lora_A[adapter], layer.lora_B[adapter]
        dtype = layer.base_layer.weight.dtype
        # A weight that is more precise than the base's would be rounded.
        is_exact = all(torch.promote_types(side.weight.dtype, dtype) == dtype for side in (down, up))
        if not is_exact or up.bias is not None:
            continue
        parent, _, child = name.rpartition(".")
        simple = AdaptedLinear(layer.base_layer, down.weight, up.weight, layer.scaling[adapter])
        setattr(model.get_submodule(parent), child, simple)
    return model
