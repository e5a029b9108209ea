"""The processes of one training, seen from one of them (K4).

`accelerate launch` starts them and says by environment variables who they are; they meet here. The first one
reports, writes checkpoints' marks and publishes; the others compute their share of each step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import PartialState
from torch import distributed

from iccm_assets.errors import TrainingError
from iccm_assets.training.accelerate_config import AccelerateConfig

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """Which of how many processes this one is; ``device`` is the one that it computes on."""

    rank: int
    size: int
    device: torch.device
    is_sharded: bool

    @property
    def is_main(self) -> bool:
        """Whether this process reports and publishes."""
        return self.rank == 0

    def call_in_main(self, function: Callable[[], T]) -> T:
        """Call a function in the main process only, and return its result in all of them."""
        values: list[T | None] = [function() if self.is_main else None]
        distributed.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[return-value]

    def wait(self) -> None:
        """Wait for the other processes."""
        distributed.barrier()


def join_group(config: AccelerateConfig) -> ProcessGroup:
    """Meet the other processes of this training; raises ``TrainingError`` if there are too few GPUs."""
    if not config.use_cpu:
        require_gpus(config)
    state = PartialState(cpu=config.use_cpu)
    if state.num_processes != config.num_processes:
        raise TrainingError(
            f"accelerate started {state.num_processes} of {config.num_processes} processes as one group"
            f" ({state.distributed_type})"
        )
    return ProcessGroup(state.process_index, state.num_processes, state.device, config.is_sharded)


def require_gpus(config: AccelerateConfig) -> None:
    """Raise ``TrainingError`` if this machine lacks the GPUs of the configuration, or their precision."""
    names = config.gpu_ids
    limited = len(names.split(",")) if names and names != "all" else config.num_processes
    available = min(torch.cuda.device_count(), limited)
    if available < config.num_processes:
        raise TrainingError(
            f"the training needs {config.num_processes} GPUs, one for each process, and this machine has"
            f" {available}",
            hint="The file of ICCM_TRAINING__ACCELERATE_CONFIG sets num_processes and gpu_ids.",
        )
    if config.mixed_precision == "bf16" and not torch.cuda.is_bf16_supported():
        raise TrainingError("the GPUs do not compute in bfloat16, which mixed_precision: bf16 asks for")
