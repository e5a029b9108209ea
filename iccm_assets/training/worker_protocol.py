"""The messages between the asset and the trainer process: plain values, no torch.

The asset that starts the trainer and the trainer itself exchange them as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from iccm_assets.errors import IccmError, TrainingError
from iccm_assets.registry.loss_curve import LossPoint
from iccm_assets.settings import TrainingSettings
from iccm_assets.training.accelerate_config import AccelerateConfig

# Settings of the supervision and the reports of a run, which do not affect the weights: not part of a
# candidate's identity.
OPERATIONAL_FIELDS = {
    *("max_runtime_seconds", "heartbeat_timeout_seconds", "emergency_epochs"),
    "accelerate_config",  # the path; the content is the job's and the manifest's ``accelerate``
    *("report_to", "report_timeout_seconds"),
}


class TrainingJob(BaseModel):
    """One attempt at one training run.

    ``base`` is the directory of the production model (or a path or hub id), ``dataset`` that of a training
    set. ``run_id``, ``attempt`` and ``fence`` make up the name of the staging directory; ``training_run_id``
    is the database row whose fencing token is checked, null if there is none (``iccm verify``, tests).
    ``device`` is the required device class (L5); null accepts any. ``storage`` is the URL that the candidate
    is published to and what the home lacks is downloaded from; empty: the home alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: str
    base: str
    dataset: str
    config: TrainingSettings
    run_id: str
    attempt: int = 1
    fence: int = 1
    emergency: bool = False
    training_run_id: int | None = None
    device: str | None = None
    storage: str = ""
    accelerate: AccelerateConfig | None = None

    @property
    def epochs(self) -> int:
        """The maximum number of epochs: fewer in an emergency (L1)."""
        return self.config.emergency_epochs if self.emergency else self.config.epochs

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The hyperparameters: with a base and a training set, all that determines the weights."""
        return {**self.config.model_dump(mode="json", exclude=OPERATIONAL_FIELDS), "epochs": self.epochs}

    def move_home(self, home: Path) -> TrainingJob:
        """Return the job as it is on a machine whose home lies at ``home``."""

        def move(path: str) -> str:
            inside = Path(path).is_relative_to(self.home)
            return str(home / Path(path).relative_to(self.home)) if inside else path

        moved = {"home": str(home), "base": move(self.base), "dataset": move(self.dataset)}
        return self.model_copy(update=moved)


@dataclass(frozen=True)
class WeightChange:
    """How much training changed the weights, compared in float32 (L2).

    ``relative`` is the norm of the change over the norm of production's weights; ``largest`` the
    largest change of one weight; ``changed_share`` the share of weights that changed at all.
    """

    relative: float
    largest: float
    changed_share: float


class TrainingOutcome(BaseModel):
    """A published candidate and the course of its training.

    ``seconds`` are wall-clock seconds of this attempt by phase; ``resumed_from_step`` is 0 unless the attempt
    resumed the checkpoint of a killed one. ``base_digest`` is an adapter's base, ``tracker_runs`` are the
    trackers' names of this training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    weight_change: WeightChange
    parameters: int
    device: str
    seconds: Mapping[str, float]
    resumed_from_step: int = 0
    method: str = "full"
    base_digest: str | None = None
    tracker_runs: Mapping[str, str] = {}


def parse_job(values: Any) -> TrainingJob:
    """Validate a job's JSON values; raises ``TrainingError`` if they are not a job."""
    try:
        return TrainingJob.model_validate(values)
    except ValidationError as error:
        raise TrainingError(f"the job is invalid ({' '.join(str(error).split())})") from error


def to_reply(outcome: TrainingOutcome | IccmError) -> dict[str, Any]:
    """Return the trainer's reply as JSON values: the outcome or the error."""
    if isinstance(outcome, IccmError):
        return {"error": outcome.to_dict()}
    return {"outcome": outcome.model_dump(mode="json")}


def parse_reply(messages: Sequence[Any]) -> TrainingOutcome:
    """Return the outcome among a trainer's messages (Pipes ``get_custom_messages()``).

    Raises the trainer's error by its own class, or ``TrainingError`` if there is no reply.
    """
    for message in reversed(messages):
        match message:
            case {"outcome": outcome}:
                return TrainingOutcome.model_validate(outcome)
            case {"error": error}:
                raise IccmError.from_dict(error)
    raise TrainingError("the trainer process ended without a reply")
