"""Train all weights of a model: in float32, averaged with production's, and compared with them (L2)."""

from __future__ import annotations

import math
from typing import Any

import torch

from iccm_assets.errors import TrainingDivergedError
from iccm_assets.settings import TrainingSettings
from iccm_assets.training.worker_protocol import WeightChange


class WholeModelTraining:
    """All weights of a model, in float32 even if the checkpoint's are not.

    Without ``keeps_parent`` the change cannot be measured: of several processes one keeps the weights before.
    """

    def __init__(self, *, keeps_parent: bool = True) -> None:
        self._keeps_parent = keeps_parent
        self._production: dict[str, torch.Tensor] = {}

    def begin(self, model: Any, config: TrainingSettings) -> Any:
        """Return the model to train."""
        if self._keeps_parent:
            named = model.named_parameters()
            self._production = {name: weight.detach().cpu().clone() for name, weight in named}
        return model.float()

    def finish(self, model: Any, config: TrainingSettings) -> WeightChange:
        """Average the weights with production's, and return how far they moved.

        Raises ``TrainingDivergedError`` if a weight is not finite.
        """
        _average_weights(model, self._production, config.weight_averaging_alpha)
        return _measure_weight_change(model, self._production)


def has_bf16() -> bool:
    """Return whether the device computes in bfloat16."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


@torch.no_grad()
def _average_weights(model: Any, production: dict[str, torch.Tensor], share: float) -> None:
    """Set weights = (1 - share) × production + share × trained; share 1 keeps the trained ones."""
    if share == 1.0:
        return
    for name, weight in model.named_parameters():
        weight.copy_(torch.lerp(production[name].to(weight.device, torch.float32), weight.float(), share))


@torch.no_grad()
def _measure_weight_change(model: Any, production: dict[str, torch.Tensor]) -> WeightChange:
    """Compare with production's weights; raises ``TrainingDivergedError`` if one is not finite."""
    change_squared = parent_squared = largest = 0.0
    changed = total = 0
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise TrainingDivergedError(f"weight {name} is not finite")
        before = production[name].double()
        difference = weight.detach().cpu().double() - before
        change_squared += float(difference.square().sum())
        parent_squared += float(before.square().sum())
        largest = max(largest, float(difference.abs().max()) if difference.numel() else 0.0)
        changed += int(difference.count_nonzero())
        total += difference.numel()
    return WeightChange(math.sqrt(change_squared / (parent_squared or 1.0)), largest, changed / max(1, total))
