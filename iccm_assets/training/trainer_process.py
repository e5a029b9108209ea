"""One of several processes of a training (K4): ``accelerate launch … --module …trainer_process DIRECTORY``.

The directory has the job; messages for ``distributed_launch`` go into a file of this process there.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from iccm_assets.errors import IccmError
from iccm_assets.registry.loss_curve import LossPoint
from iccm_assets.training import trainer_worker
from iccm_assets.training.worker_protocol import TrainingJob, to_reply
from iccm_assets.worker_process import exit_with_parent


class MessageFile:
    """Appends messages to the file of a process, each a line with the time of its writing."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("a", encoding="utf-8")

    def send(self, message: Mapping[str, Any]) -> None:
        """Write a message."""
        self._stream.write(json.dumps({**message, "at": time.time()}) + "\n")
        self._stream.flush()

    def send_point(self, point: LossPoint) -> None:
        """Write a point of the loss curve."""
        self.send({"point": asdict(point)})


def main() -> int:
    """Train as the process that the environment names; an error of the platform is a message and status 1."""
    exit_with_parent()
    trainer_worker.prepare_process()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    directory, number = Path(sys.argv[1]), int(os.environ["RANK"])
    messages = MessageFile(directory / f"{number}.jsonl")
    messages.send({"pid": os.getpid()})
    try:
        job = TrainingJob.model_validate_json((directory / "job.json").read_text(encoding="utf-8"))
        if number:
            trainer_worker.assist_training(job, progress=messages.send_point)
        else:
            outcome = trainer_worker.train(
                job,
                progress=messages.send_point,
                still_current=trainer_worker.make_heartbeat(job.training_run_id, job.fence),
                before_import=trainer_worker.skip_unused_libraries,
                warn=lambda text: messages.send({"warning": text}),
            )
            messages.send(to_reply(outcome))
    except IccmError as error:
        messages.send(to_reply(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
