"""What goes into the trainer process and what comes out of it: plain values, no torch.

The asset that starts the trainer and the trainer itself both speak these; they cross the process
boundary as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iccm_assets.errors import IccmError, TrainingError
from iccm_assets.settings import Training

# Settings that say how a run is supervised, not what it learns: not part of a candidate's identity.
OPERATIONAL = {"max_runtime_seconds", "heartbeat_timeout_seconds", "emergency_epochs"}


@dataclass(frozen=True)
class TrainingJob:
    """One attempt at one training run.

    ``base`` is the production model's directory (or a path or hub id), ``dataset`` a training set's
    directory. ``run_id``, ``attempt`` and ``fence`` name the staging directory; ``training_run_id`` is
    the database row whose fence is guarded, null when there is none (``iccm verify``, tests). ``device`` is
    the device class whose bits are wanted (L5); null takes what the machine has.
    """

    home: str
    base: str
    dataset: str
    config: Training
    run_id: str
    attempt: int = 1
    fence: int = 1
    emergency: bool = False
    training_run_id: int | None = None
    device: str | None = None

    @property
    def epochs(self) -> int:
        """Epochs at most: fewer in an emergency (L1)."""
        return self.config.emergency_epochs if self.emergency else self.config.epochs

    @property
    def recipe(self) -> dict[str, Any]:
        """The configuration as far as it decides about the weights; with a base and a training set, all."""
        return {**self.config.model_dump(mode="json", exclude=OPERATIONAL), "epochs": self.epochs}

    def to_dict(self) -> dict[str, Any]:
        """The job as JSON values, e.g. as Dagster Pipes extras under ``job``."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**values, "config": self.config.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingJob:
        """The inverse of ``to_dict``; raises ``TrainingError`` on anything else."""
        try:
            return cls(**{**values, "config": Training(**values["config"])})
        except (KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"the job cannot be read ({error})") from error


@dataclass(frozen=True)
class LossPoint:
    """One line of the training curve.

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

    def line(self) -> str:
        """The point as one log line (L7)."""
        where = f"step {self.step}/{self.total_steps} epoch {self.epoch:.2f}"
        if self.validation_loss is not None:
            return f"{where} validation loss {self.validation_loss:.4f}"
        rate, gradient = self.learning_rate or 0.0, self.grad_norm or 0.0
        return f"{where} loss {self.loss or 0.0:.4f} learning rate {rate:.2e} gradient {gradient:.3f}"


@dataclass(frozen=True)
class Movement:
    """How far training moved the weights, compared in float32 (L2).

    ``relative`` is the norm of the change over the norm of production's weights; ``largest`` the
    greatest change of one weight; ``changed_share`` the share of weights that changed at all.
    """

    relative: float
    largest: float
    changed_share: float


@dataclass(frozen=True)
class TrainingOutcome:
    """A published candidate and how it came about.

    Times are seconds of wall clock of this attempt; ``resumed_from_step`` is 0 unless it went on from a
    killed one's checkpoint.
    """

    digest: str
    path: str
    weights_digest: str
    parent_digest: str
    dataset_digest: str
    counts: Mapping[str, int]
    history: tuple[LossPoint, ...]
    best_epoch: float
    best_validation_loss: float
    initial_validation_loss: float
    stopped_early: bool
    movement: Movement
    parameters: int
    device: str
    seconds: Mapping[str, float]
    resumed_from_step: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingOutcome:
        """The inverse of ``to_dict``."""
        history = tuple(LossPoint(**point) for point in values["history"])
        return cls(**{**values, "history": history, "movement": Movement(**values["movement"])})


def reply_of(outcome: TrainingOutcome | IccmError) -> dict[str, Any]:
    """What the trainer process answers: the outcome, or the named error."""
    if isinstance(outcome, TrainingOutcome):
        return {"outcome": outcome.to_dict()}
    return {"error": outcome.to_dict()}


def read_reply(messages: Sequence[Any]) -> TrainingOutcome:
    """The outcome among a trainer's messages (Pipes ``get_custom_messages()``).

    Raises the error the trainer met, by its own name, or ``TrainingError`` when it never answered.
    """
    for message in reversed(messages):
        if isinstance(message, Mapping) and "outcome" in message:
            return TrainingOutcome.from_dict(message["outcome"])
        if isinstance(message, Mapping) and "error" in message:
            raise IccmError.from_dict(message["error"])
    raise TrainingError("the trainer process ended without an answer")


def write_job(job: TrainingJob, path: Path) -> None:
    """Store a job for ``python -m iccm_assets.learning.trainer FILE``."""
    path.write_text(json.dumps(job.to_dict(), indent=1), encoding="utf-8")
