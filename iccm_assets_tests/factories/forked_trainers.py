"""Trainers in processes of their own, forked from one that has loaded torch, which takes most of a start."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from contextlib import redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path

from iccm_assets import atomic_directories
from iccm_assets.registry import model_store
from iccm_assets.training import trainer_worker
from iccm_assets.training.worker_protocol import TrainingJob, TrainingOutcome, parse_reply

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([
    "iccm_assets.training.finetuning", "iccm_assets.training.checkpoint_export",
    "transformers.models.t5.modeling_t5",
    "transformers.models.gpt2.modeling_gpt2", "peft", "pyarrow.parquet", __name__,
])  # fmt: skip


def start_trainer(job: TrainingJob, killed_at: str = "") -> BaseProcess:
    """Start a trainer that kills itself at a step ("step 7") or a stage of publishing, if one is given."""
    process = PROCESSES.Process(target=_train, args=(job, killed_at))
    process.start()
    return process


def train_in_process(job: TrainingJob, folder: Path) -> TrainingOutcome:
    """Run the worker's main program on a job file and return what it replies, or raise its error."""
    job_file, reply_file = folder / "job.json", folder / "reply.json"
    job_file.write_text(job.model_dump_json(), encoding="utf-8")
    process = PROCESSES.Process(target=_run_main, args=(job_file, reply_file))
    process.start()
    process.join(240)
    assert process.exitcode in (0, 1), process.exitcode
    return parse_reply([json.loads(reply_file.read_text(encoding="utf-8"))])


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _train(job: TrainingJob, killed_at: str) -> None:
    if killed_at == "before the rename":
        trainer_worker.train(job, still_current=_die)  # type: ignore[arg-type]
    elif killed_at == "after the rename":
        atomic_directories.make_read_only = lambda directory: _die()
        trainer_worker.train(job)
    elif killed_at == "half written":
        model_store.describe_files = lambda directory: _die()  # type: ignore[assignment]
        trainer_worker.train(job)
    elif killed_at == "before its row":
        trainer_worker.train(job)
        _die()
    else:
        trainer_worker.train(
            job, progress=lambda point: _die() if killed_at == f"step {point.step}" else None
        )


def _run_main(job_file: Path, reply_file: Path) -> None:
    sys.argv = ["trainer", str(job_file)]
    with reply_file.open("w", encoding="utf-8") as reply, redirect_stdout(reply):
        status = trainer_worker.main()
    sys.exit(status)
