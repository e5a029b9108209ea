"""Load the model that a training starts from: a whole one, or an adapter and its base (L11)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from iccm_assets.models.generation import LoadedModel, load_model, without_progress_bars
from iccm_assets.registry.manifest import verify
from iccm_assets.training.whole_model import has_bf16


def load_parent(parent: Path, base: Path, *, method: str, device: str | None = None) -> LoadedModel:
    """Load the weights that a method trains: all of the parent's, or those of the adapter's frozen base.

    ``base`` is the parent itself if it is a whole model, else the adapter's base. Full training of an
    adapter's child begins with the adapter merged into the base's unrounded weights, in float32. The digest
    and the path are those of the parent. Raises what ``load_model`` raises.
    """
    dtype = torch.bfloat16 if method == "lora" and has_bf16() else torch.float32
    if parent == base:
        return load_model(base, device=device, dtype=dtype)
    manifest = verify(parent)
    loaded = load_model(base, device=device, dtype=dtype)
    model = loaded.model
    if method == "full":
        from iccm_assets.training.adapter_training import merge

        model = merge(model, parent)
    return replace(loaded, model=model, digest=manifest.digest, path=parent)


def merge_adapter(adapter: Path, base: Path, *, device: str | None = None) -> LoadedModel:
    """Load an adapter merged into its base's unrounded weights, in float32."""
    return load_parent(adapter, base, method="full", device=device)


def write_merged(adapter: Path, base: Path, directory: Path) -> None:
    """Write the whole model that an adapter makes of its base, in float32, readable like any other file."""
    model = merge_adapter(adapter, base, device="cpu").model
    with without_progress_bars():
        model.save_pretrained(directory)
    for path in directory.glob("*.safetensors"):
        path.chmod(0o644)
