"""Choose how a candidate is trained, all its weights or an adapter, before torch is imported (L2, L11)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from iccm_assets.errors import CorruptCheckpointError, ModelError, SettingsError
from iccm_assets.registry.hub import ADAPTER_CONFIG_FILE, CONFIG_FILE, has_manifest
from iccm_assets.registry.weight_files import count_weights
from iccm_assets.settings import TrainingSettings

# A whole model of more weights is trained and published as an adapter, unless the method is set.
MAX_FULL_WEIGHTS = 1_000_000_000


def resolve_method(config: TrainingSettings, weights: int) -> TrainingSettings:
    """Return the configuration with the method that ``auto`` stands for at this number of weights.

    Raises ``SettingsError`` if the method cannot do what else is configured.
    """
    if config.method == "auto":
        config = config.model_copy(update={"method": "lora" if weights > MAX_FULL_WEIGHTS else "full"})
    if config.method == "lora" and config.weight_averaging_alpha != 1.0:
        # The average of two products of rank r has rank 2 r: no adapter of rank r is equal to it.
        raise SettingsError(
            f"ICCM_TRAINING__WEIGHT_AVERAGING_ALPHA is {config.weight_averaging_alpha:g}, but the average of"
            f" two adapters of rank {config.lora_r} has rank {2 * config.lora_r} and cannot be published as"
            " an adapter",
            hint="Set it to 1, or set ICCM_TRAINING__METHOD=full.",
        )
    if config.method == "lora" and config.objective == "dpo":
        raise SettingsError(
            "the objective dpo trains all weights, but this model is trained as an adapter, by"
            " ICCM_TRAINING__METHOD or because of its size",
            hint="Set ICCM_TRAINING__METHOD=full, or ICCM_TRAINING__OBJECTIVE to sft or rft.",
        )
    return config


def require_kind(config: TrainingSettings, *, seq2seq: bool) -> None:
    """Raise ``SettingsError`` if the objective cannot train a seq2seq model and the base is one."""
    if config.objective == "dpo" and seq2seq:
        raise SettingsError(
            "the objective dpo trains causal models, and the base is a seq2seq model",
            hint="Set ICCM_TRAINING__OBJECTIVE to sft or rft.",
        )


def is_seq2seq(model: Path) -> bool:
    """Whether the config of a whole model says so; raises ``CorruptCheckpointError``."""
    return bool(_read_json(model / CONFIG_FILE).get("is_encoder_decoder"))


def choose_method(config: TrainingSettings, parent: Path, base: Path) -> TrainingSettings:
    """Return the configuration with its method, for a parent whose weights are those of ``base``.

    ``base`` is the parent itself, or the whole model of an adapter. Raises ``SettingsError`` if the method
    cannot do what is configured, ``CorruptCheckpointError`` for an unreadable file, ``ModelError`` if an
    adapter could not name its base.
    """
    config = resolve_method(config, count_weights(base) if config.method == "auto" else 0)
    require_kind(config, seq2seq=config.objective == "dpo" and is_seq2seq(base))
    if config.method == "lora" and not has_manifest(base):
        raise ModelError(
            f"{base} is not in the model store: an adapter names its base by the digest that it has there",
            hint="`iccm evaluate DIR` imports it, or set ICCM_TRAINING__METHOD=full.",
        )
    if config.method == "lora" and parent != base:
        _require_same_shape(config, read_adapter_config(parent), parent)
    return config


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """Read an adapter's config; raises ``CorruptCheckpointError``."""
    path = adapter / ADAPTER_CONFIG_FILE
    values = _read_json(path)
    try:
        return {**values, "r": int(values["r"]), "lora_alpha": int(values["lora_alpha"])}
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CorruptCheckpointError:
    return CorruptCheckpointError(f"{path} cannot be read ({' '.join(str(error).split())})")


def _require_same_shape(config: TrainingSettings, values: dict[str, Any], parent: Path) -> None:
    """Raise if the adapter to continue has another rank or scaling than is configured."""
    trained = values["r"], values["lora_alpha"]
    if (config.lora_r, config.lora_alpha) != trained:
        raise SettingsError(
            f"ICCM_TRAINING__LORA_R and ICCM_TRAINING__LORA_ALPHA are {config.lora_r} and"
            f" {config.lora_alpha}, but the adapter {parent.name[:12]}, which training continues, has"
            f" {trained[0]} and {trained[1]}",
            hint="Set them to its values, or train one version with ICCM_TRAINING__METHOD=full, which merges"
            " the adapter: the next adapter has the configured ones.",
        )
