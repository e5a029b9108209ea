"""A process of a training by FSDP on a machine without GPUs: torch shards on CPUs, over gloo.

`accelerate` does so for GPUs only and would train whole models on CPUs, so it is told that these are GPUs.
All else is as on GPUs: which weights a process has, when they travel, and what the checkpoints contain.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from iccm_assets.training import process_group, trainer_process


def _prepare_backend(self: PartialState, *_: Any, **__: Any) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


if __name__ == "__main__":
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = _prepare_backend
    process_group.require_gpus = lambda config: None
    sys.exit(trainer_process.main())
