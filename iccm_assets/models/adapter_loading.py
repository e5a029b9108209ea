"""Put the LoRA adapter of a version on its base model (L11)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iccm_assets.errors import ModelError
from iccm_assets.registry.hub import ADAPTER_WEIGHTS_FILE

# Other initializations also change the weights of the base, which is shared by all its versions.
_HARMLESS_INITIALIZATIONS = (True, False, "gaussian")


def apply_adapter(model: Any, directory: Path) -> Any:
    """Add the adapter's layers to a model in place and return the model.

    Raises ``ModelError`` for an adapter of another kind, or one that does not fit; what `peft` raises for a
    config that it cannot read.
    """
    import torch
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
    return adapted.get_base_model()
