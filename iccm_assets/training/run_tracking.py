"""Report trainings and evaluations to experiment trackers, which cost them nothing but a warning. (L13)

Another process talks to the trackers. What it is sent waits in a queue of limited length and is dropped when
that is full; what the trackers have not done some time after the end of the work is left undone.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from iccm_assets.registry.versions import ModelVersion
from iccm_assets.settings import TrainingSettings

MAX_WAITING_MESSAGES = 10_000
# The key of a version's metrics that holds the names of its training's runs by tracker.
TRACKER_RUNS = "tracker_runs"
_WORKER = "iccm_assets.training.tracking_worker"

Warn = Callable[[str], None]


@dataclass
class RunReporter:
    """Sends messages to the process of the trackers, without ever waiting for it before ``finish``.

    ``runs`` are the names of the runs that the trackers have begun, known after ``finish``. Left by an
    exception, it lets the trackers end their runs as failed ones by themselves.
    """

    trackers: tuple[str, ...]
    timeout_seconds: float
    warn: Warn
    runs: dict[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[str] | None = None
    _messages: queue.Queue[Mapping[str, Any] | None] = field(
        default_factory=lambda: queue.Queue(MAX_WAITING_MESSAGES)
    )
    _done: set[str] = field(default_factory=set)
    _warned: set[str] = field(default_factory=set)
    _dropped: int = 0
    _answered: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> RunReporter:
        if self.trackers:
            try:
                self._process = _start_worker(self.timeout_seconds)
            except OSError as error:
                self._give_up(f"{error}")
                return self
            for work in (self._write, self._read):
                threading.Thread(target=work, name="trackers", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._put(None)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; it is dropped if too many wait."""
        if self._process is not None:
            self._put(message)

    def finish(self) -> None:
        """Wait for the trackers, for as long as they may take, and end their process."""
        process = self._process
        if process is None:
            return
        self._put(None)
        self._answered.wait(self.timeout_seconds)
        process.kill()
        process.wait()
        for name in self.trackers:
            if name not in self._done and name not in self._warned:
                self._warn(name, f"no answer within {self.timeout_seconds:g} s")
        if self._dropped:
            self._warn("trackers", f"{self._dropped} points of the curve were dropped")
        self._process = None

    def _put(self, message: Mapping[str, Any] | None) -> None:
        try:
            self._messages.put_nowait(message)
        except queue.Full:
            self._dropped += message is not None

    def _write(self) -> None:
        process = self._process
        assert process is not None and process.stdin is not None
        try:
            while (message := self._messages.get()) is not None:
                process.stdin.write(json.dumps(message, default=str) + "\n")
                process.stdin.flush()
            process.stdin.close()
        except (OSError, ValueError):  # the process has ended, which `_read` notices
            return

    def _read(self) -> None:
        process = self._process
        assert process is not None and process.stdout is not None
        stdout: IO[str] = process.stdout
        for line in stdout:
            match json.loads(line):
                case {"run": [name, run]}:
                    self.runs[name] = run
                case {"warning": [name, text]}:
                    self._warn(name, text)
                case {"done": name}:
                    self._done.add(name)
            if self._done >= set(self.trackers):
                break
        self._answered.set()

    def _give_up(self, reason: str) -> None:
        for name in self.trackers:
            self._warn(name, reason)

    def _warn(self, name: str, reason: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            self.warn(f"{name} does not show this run completely, which changes nothing else: {reason}")


def start_reporter(config: TrainingSettings, warn: Warn) -> RunReporter:
    """Make the reporter of one training, to be entered; without trackers it does nothing."""
    return RunReporter(config.trackers, config.report_timeout_seconds, warn)


def describe_start(
    home: Path, config: TrainingSettings, name: str, tags: Mapping[str, str]
) -> Callable[[Mapping[str, Any], Mapping[str, Any], int], dict[str, Any]]:
    """Return what makes the first message from the Trainer's arguments, the model's config and its size."""

    def describe(arguments: Mapping[str, Any], model: Mapping[str, Any], parameters: int) -> dict[str, Any]:
        return {
            "start": {
                "trackers": config.trackers,
                "name": name,
                "tags": tags,
                "directory": tensorboard_directory(home),
                "arguments": arguments,
                "config": model,
                "parameters": parameters,
            }
        }

    return describe


def update_runs(
    runs: Mapping[str, str],
    name: str,
    *,
    home: Path,
    timeout_seconds: float,
    warn: Warn,
    tags: Mapping[str, str],
    figures: Mapping[str, float] | None = None,
) -> None:
    """Give the runs of a training that is over the name of its version, and add tags and figures to them."""
    if not runs:
        return
    update = {
        "runs": dict(runs),
        "name": name,
        "tags": dict(tags),
        "figures": dict(figures or {}),
        "directory": tensorboard_directory(home),
    }
    with RunReporter(tuple(runs), timeout_seconds, warn) as reporter:
        reporter.send({"update": update})
        reporter.finish()


def version_tags(version: ModelVersion) -> dict[str, str]:
    """Return the tags that a version has in trackers and registries."""
    return {
        "iccm.version": version.version,
        "iccm.digest": version.digest,
        "iccm.parent": version.parent_version or "",
    }


def tensorboard_directory(home: Path) -> str:
    """Return the directory of the directories of TensorBoard's runs."""
    return os.environ.get("TENSORBOARD_LOGGING_DIR") or str(home / "tensorboard")


def _start_worker(timeout_seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", _WORKER, f"{timeout_seconds:g}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )
