"""The loss curve of a training: plain values, no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LossPoint:
    """One point of the training curve.

    A training step has ``loss`` (mean per target token over the step), ``learning_rate`` and
    ``grad_norm`` (before clipping); an evaluation has ``validation_loss``. Step 0 is the model before
    training.
    """

    step: int
    total_steps: int
    epoch: float
    loss: float | None = None
    validation_loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None

    def to_log_line(self) -> str:
        """Format the point as one log line (L7)."""
        text = f"step {self.step}/{self.total_steps} epoch {self.epoch:.2f}"
        if self.validation_loss is not None:
            return f"{text} validation loss {self.validation_loss:.4f}"
        rate, gradient = self.learning_rate or 0.0, self.grad_norm or 0.0
        return f"{text} loss {self.loss or 0.0:.4f} learning rate {rate:.2e} gradient {gradient:.3f}"
