"""Train one candidate in several processes: start them by `accelerate launch` and watch them (K4).

This process imports no torch. The processes write their messages line by line into a file each, so that none
is lost in another's output. Whatever happens, no process is left behind.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from iccm_assets.errors import IccmError, TrainingError
from iccm_assets.registry.loss_curve import LossPoint
from iccm_assets.training.worker_protocol import TrainingJob, TrainingOutcome, parse_reply
from iccm_assets.worker_process import kill_all, kill_tree, parent_env

MODULE = "iccm_assets.training.trainer_process"
POLL_INTERVAL_SECONDS = 0.2
# The launcher ends the other processes when one has failed, and says which.
END_SECONDS = 30.0
MAX_LOG_LINES = 1000
_FAILED = re.compile(r"^\s*(?:rank\s*:\s*(?P<rank>\d+)|exitcode\s*:\s*(?P<status>-?\d+))")


def train_in_processes(
    job: TrainingJob, progress: Callable[[LossPoint], None], warn: Callable[[str], None]
) -> TrainingOutcome:
    """Train a job in the processes that its ``accelerate`` describes; return the outcome of the main one.

    Raises the error of the first process that failed, or ``TrainingError`` if one died or if none reported
    anything for ``ICCM_TRAINING__HEARTBEAT_TIMEOUT_SECONDS``; nothing is published then.
    """
    with tempfile.TemporaryDirectory(prefix="iccm-training-") as name:
        launch = _Launch(job, Path(name), progress, warn)
        try:
            return launch.wait()
        finally:
            launch.end()


@dataclass
class _Member:
    """One of the processes, by what it wrote."""

    number: int
    process: psutil.Process | None = None
    heard_at: float = field(default_factory=time.monotonic)
    step: int = 0
    reply: Mapping[str, Any] | None = None
    _offset: int = 0

    def read(self, directory: Path) -> Iterator[Mapping[str, Any]]:
        """Yield the complete messages that were written since the last call."""
        with suppress(FileNotFoundError), (directory / f"{self.number}.jsonl").open("rb") as stream:
            stream.seek(self._offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self.heard_at = time.monotonic()
                yield json.loads(line)


class _Launch:
    """The launcher and its processes."""

    def __init__(
        self,
        job: TrainingJob,
        directory: Path,
        progress: Callable[[LossPoint], None],
        warn: Callable[[str], None],
    ) -> None:
        assert job.accelerate is not None
        self._directory, self._progress, self._warn = directory, progress, warn
        self._timeout = job.config.heartbeat_timeout_seconds
        self._log: deque[str] = deque(maxlen=MAX_LOG_LINES)
        self._members = [_Member(number) for number in range(job.accelerate.num_processes)]
        (directory / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
        config = directory / "accelerate.json"
        config.write_text(job.accelerate.model_dump_json(exclude_none=True), encoding="utf-8")
        self._launcher = subprocess.Popen(
            [*_launch_command(job, config), "--module", MODULE, str(directory)],
            env=_environment(job),
            stdout=sys.stderr,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert self._launcher.stderr is not None
        self._reader = threading.Thread(target=self._forward, args=(self._launcher.stderr,), daemon=True)
        self._reader.start()

    def wait(self) -> TrainingOutcome:
        """Return the outcome once the main process has published; raise why it could not."""
        while self._launcher.poll() is None and not any(member.reply for member in self._members):
            self._handle_messages()
            self._check_progress()
            time.sleep(POLL_INTERVAL_SECONDS)
        self._handle_messages()
        if not self._has_published:
            with suppress(subprocess.TimeoutExpired):
                self._launcher.wait(END_SECONDS)
            self.end()
            self._reader.join(END_SECONDS)
            self._handle_messages()
        # Once the main process has published, nothing is left to do for the others.
        if self._has_published:
            return parse_reply([self._members[0].reply])
        raise explain_failure(self._log, self._members, self._launcher.returncode)

    @property
    def _has_published(self) -> bool:
        return "outcome" in (self._members[0].reply or {})

    def end(self) -> None:
        """Kill what is left of the launcher and of its processes, and wait for their end."""
        if self._launcher.poll() is None:
            kill_tree(self._launcher.pid)
        self._launcher.wait()
        # Those that a launcher left behind which was killed itself.
        kill_all([member.process for member in self._members if member.process is not None])

    def _forward(self, stderr: IO[str]) -> None:
        for line in stderr:
            self._log.append(line.rstrip())
            sys.stderr.write(line)
            sys.stderr.flush()

    def _handle_messages(self) -> None:
        for member in self._members:
            for message in member.read(self._directory):
                match message:
                    case {"pid": pid}:
                        with suppress(psutil.NoSuchProcess):
                            member.process = psutil.Process(pid)
                    case {"point": values}:
                        point = LossPoint(**values)
                        member.step = point.step
                        if member.number == 0:
                            self._progress(point)
                    case {"warning": text}:
                        self._warn(text)
                    case {"outcome": _} | {"error": _}:
                        member.reply = message

    def _check_progress(self) -> None:
        silent = time.monotonic() - max(member.heard_at for member in self._members)
        if silent > self._timeout:
            steps = ", ".join(f"process {member.number} at step {member.step}" for member in self._members)
            raise TrainingError(
                f"no process reported anything for {silent:.0f} s and all were ended; last heard of: {steps}",
                hint="If the machine is only slow, raise ICCM_TRAINING__HEARTBEAT_TIMEOUT_SECONDS.",
            )


def explain_failure(log: Sequence[str], members: Sequence[_Member], status: int) -> IccmError:
    """Return why a training failed, by what its launcher wrote, its processes' replies and its exit status.

    A signal that ended a process comes before the errors of its peers, who only lost the connection to it.
    """
    failures = list(_parse_failures(log))
    # The launcher ends the others by SIGTERM; it names the first failure last.
    killed = [failure for failure in failures if failure[1] < 0 and failure[1] != -signal.SIGTERM]
    first, first_status = (killed or failures or [(0, 0)])[-1]
    process = f"process {first} of {len(members)}"
    if first_status < 0:
        return TrainingError(f"{process} was ended by {signal.Signals(-first_status).name}")
    if errors := [member.reply for member in members if member.reply]:
        return IccmError.from_dict(min(errors, key=lambda reply: reply["at"])["error"])
    if first_status:
        return TrainingError(f"{process} ended with exit status {first_status}")
    last = next((line for line in reversed(log) if line.strip()), "no output")
    return TrainingError(f"accelerate launch ended with {status}: {last}")


def _launch_command(job: TrainingJob, config: Path) -> list[str]:
    assert job.accelerate is not None
    port = job.accelerate.main_process_port or 0  # 0: a free one
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--main_process_port", str(port)]
    command += ["--num_cpu_threads_per_process", str(job.config.threads)]
    # Of several processes on CPUs accelerate's own launcher, which needs MPI, starts one; that for GPUs all.
    return command + (["--multi_gpu"] if job.accelerate.use_cpu else [])


def _environment(job: TrainingJob) -> dict[str, str]:
    """Return the processes' environment: they talk over the loopback interface, and end with this one."""
    loopback = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    assert job.accelerate is not None
    pipes = ("DAGSTER_PIPES_CONTEXT", "DAGSTER_PIPES_MESSAGES")
    inherited = {name: value for name, value in os.environ.items() if name not in pipes}
    on_cpu = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""} if job.accelerate.use_cpu else {}
    return {**loopback, **inherited, **on_cpu, **parent_env()}


def _parse_failures(log: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the number and the exit status of each process in the launcher's summary of failures."""
    number: int | None = None
    for line in log:
        match = _FAILED.match(line)
        if match and match["rank"]:
            number = int(match["rank"])
        elif match and number is not None:
            yield number, int(match["status"])
            number = None
