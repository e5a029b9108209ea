"""The process that talks to experiment trackers, so that none of them can hold up or change a training. (L13)

Reads messages from standard input, one JSON object a line, and writes what the trackers answer to standard
output. Trainings are reported by the callbacks of `transformers`, which the Trainer itself would call; a
tracker has a thread of its own, because another one may hang.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

PROJECT = "iccm"
MLFLOW_TRACKING_URI = "MLFLOW_TRACKING_URI"
# Figures only: a tracker gets no weights. An unreachable server is given up within seconds.
_ENVIRONMENT = {
    "HF_MLFLOW_LOG_ARTIFACTS": "FALSE",
    "WANDB_LOG_MODEL": "false",
    "WANDB_WATCH": "false",
    "WANDB_SILENT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_DEFAULTS = {
    "MLFLOW_EXPERIMENT_NAME": PROJECT,
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "WANDB_PROJECT": PROJECT,
}

Message = Mapping[str, Any]
Answer = Callable[..., None]


class ForwardedValues(SimpleNamespace):
    """The Trainer's arguments, or a model's config, as far as callbacks use them."""

    def to_dict(self) -> dict[str, Any]:
        """Return the values."""
        return dict(vars(self))

    def to_sanitized_dict(self) -> dict[str, Any]:
        """Return the values as numbers, truth values and texts."""
        simple = (bool, int, float, str)
        return {
            name: value if isinstance(value, simple) else str(value) for name, value in vars(self).items()
        }

    def to_json_string(self, **_: Any) -> str:
        """Return the values as JSON."""
        return json.dumps(vars(self), indent=2, default=str)


class Tracker(ABC):
    """One tracker: reports a training by the callback of `transformers`, and adds to a run that is over."""

    name: str

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._callback: Any = None
        self._arguments: Any = None
        self._model: Any = None
        self._state: Any = None

    def handle(self, message: Message) -> None:
        """Do what a message says."""
        match message:
            case {"start": start}:
                self._start(start)
            case {"log": log}:
                self._follow(log)
                self._callback.on_log(self._arguments, self._state, None, logs=log["logs"], model=self._model)
            case {"finish": _}:
                self._finish()
            case {"fail": _}:
                self.abandon()
            case {"update": update}:
                self.update(update["runs"][self.name], update)

    def _start(self, start: Message) -> None:
        from transformers.integrations import get_reporting_integration_callbacks
        from transformers.trainer_callback import TrainerState

        [callback] = get_reporting_integration_callbacks([self.name])
        values = {**start["arguments"], "run_name": start["name"], "project": PROJECT}
        self._arguments = ForwardedValues(**values)
        self._model = SimpleNamespace(
            config=ForwardedValues(**start["config"]), num_parameters=lambda: start["parameters"]
        )
        self._state = TrainerState()
        self.prepare(start)
        self._callback = callback()
        self._callback.on_train_begin(self._arguments, self._state, None, model=self._model)
        self._answer(run=[self.name, self.run_id(start)])

    def _follow(self, log: Message) -> None:
        self._state.global_step, self._state.max_steps = log["step"], log["total_steps"]
        self._state.epoch = log["epoch"]

    def _finish(self) -> None:
        self._callback.on_train_end(self._arguments, self._state, None, model=self._model)

    @abstractmethod
    def prepare(self, start: Message) -> None:
        """Check and set what the tracker needs, before its callback is made."""

    def run_id(self, start: Message) -> str:
        """Return what finds the run again."""
        return str(start["name"])

    def abandon(self) -> None:
        """End the run of a training that has failed."""
        self._finish()

    @abstractmethod
    def update(self, run: str, update: Message) -> None:
        """Name a run that is over as its version, and add figures and tags to it."""


class MlflowTracker(Tracker):
    """Runs of an MLflow server."""

    name = "mlflow"

    def prepare(self, start: Message) -> None:
        """Refuse to write runs into the current directory, which is what MLflow does without a server."""
        if not os.environ.get(MLFLOW_TRACKING_URI):
            raise ValueError(f"{MLFLOW_TRACKING_URI} is not set")
        os.environ.pop("MLFLOW_RUN_ID", None)
        tags = json.loads(os.environ.get("MLFLOW_TAGS") or "{}")
        os.environ["MLFLOW_TAGS"] = json.dumps({**tags, **start["tags"]})

    def run_id(self, start: Message) -> str:
        """Return the id of the run."""
        import mlflow

        run = mlflow.active_run()
        return str(run.info.run_id) if run else ""

    def _finish(self) -> None:
        import mlflow

        mlflow.flush_async_logging()  # it logs in the background, and end_run does not wait for it
        super()._finish()

    def abandon(self) -> None:
        """End the run as a failed one."""
        import mlflow

        mlflow.flush_async_logging()
        mlflow.end_run("FAILED")

    def update(self, run: str, update: Message) -> None:
        """Rename the run, and set its tags and metrics."""
        from mlflow import MlflowClient
        from mlflow.entities import Metric, RunTag

        tags = {**update["tags"], "mlflow.runName": update["name"]}
        now = int(time.time() * 1000)
        MlflowClient().log_batch(
            run,
            metrics=[Metric(name, value, now, 0) for name, value in update["figures"].items()],
            tags=[RunTag(name, str(value)) for name, value in tags.items()],
        )


class TensorboardTracker(Tracker):
    """Event files in a directory of its own for each run."""

    name = "tensorboard"

    def prepare(self, start: Message) -> None:
        """Choose the directory, of which the callback reads the name from the environment."""
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(Path(start["directory"]) / start["name"])

    def update(self, run: str, update: Message) -> None:
        """Rename the directory, and write another event file."""
        from torch.utils.tensorboard import SummaryWriter

        directory = Path(update["directory"])
        former, current = directory / run, directory / update["name"]
        if former.is_dir() and not current.exists():
            former.rename(current)
        with SummaryWriter(log_dir=str(current)) as writer:
            for name, value in update["figures"].items():
                writer.add_scalar(name, value, 0)
            for name, text in update["tags"].items():
                writer.add_text(name, str(text))


class WandbTracker(Tracker):
    """Runs of Weights & Biases; without a network those of its offline mode (WANDB_MODE=offline)."""

    name = "wandb"

    def prepare(self, start: Message) -> None:
        """Do nothing: the library has its own defaults."""

    def run_id(self, start: Message) -> str:
        """Return the id of the run."""
        import wandb

        return str(wandb.run.id) if wandb.run else ""

    def _finish(self) -> None:
        super()._finish()
        import wandb

        wandb.finish()

    def abandon(self) -> None:
        """End the run as a failed one."""
        import wandb

        wandb.finish(exit_code=1)

    def update(self, run: str, update: Message) -> None:
        """Resume the run to rename it, and set its configuration and summary."""
        import wandb

        resumed = wandb.init(id=run, resume="allow", name=update["name"])
        resumed.name = update["name"]
        resumed.config.update(dict(update["tags"]), allow_val_change=True)
        resumed.summary.update(dict(update["figures"]))
        resumed.finish()


class TrackioTracker(Tracker):
    """Runs of Trackio, which keep the name of the training: its version is a value of their configuration."""

    name = "trackio"

    def prepare(self, start: Message) -> None:
        """Do nothing: the library has its own defaults."""

    def update(self, run: str, update: Message) -> None:
        """Resume the run, set its configuration and log the figures."""
        import trackio

        trackio.init(project=PROJECT, name=run, resume="allow", config=dict(update["tags"]))
        if update["figures"]:
            trackio.log(dict(update["figures"]))
        trackio.finish()


TRACKER_CLASSES = {
    tracker.name: tracker for tracker in (MlflowTracker, TrackioTracker, TensorboardTracker, WandbTracker)
}


def describe_error(error: BaseException) -> str:
    """Return the class and first line of an error, without the password of a URL."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0] if lines else ''}"
    return re.sub(r"://[^/@\s]+@", "://***@", text)[:300]


class _TrackerThread(threading.Thread):
    """Handles one tracker's messages in order, until the last one or its first error."""

    def __init__(self, name: str, answer: Answer) -> None:
        super().__init__(name=name, daemon=True)
        self.messages: SimpleQueue[Message | None] = SimpleQueue()
        self._answer = answer

    def run(self) -> None:
        """Handle the messages; an error ends this tracker and no other."""
        try:
            tracker = TRACKER_CLASSES[self.name](self._answer)
            while (message := self.messages.get()) is not None:
                tracker.handle(message)
        except BaseException as error:  # whatever a library raises, SystemExit included, is a warning
            self._answer(warning=[self.name, describe_error(error)])
        self._answer(done=self.name)


def main() -> int:
    """Report until standard input ends; ``argv`` has the seconds that the trackers have afterwards."""
    timeout = float(sys.argv[1])
    # Libraries print to standard output, which is the channel of the answers.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def answer(**message: Any) -> None:
        with lock:
            channel.write(json.dumps(message) + "\n")
            channel.flush()

    os.environ.update(_ENVIRONMENT)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    threads: dict[str, _TrackerThread] = {}
    ended = False
    for line in sys.stdin:
        message = json.loads(line)
        for name in _names(message):
            threads[name] = _TrackerThread(name, answer)
            threads[name].start()
        ended = ended or "finish" in message or "update" in message
        for thread in threads.values():
            thread.messages.put(message)
    deadline = time.monotonic() + timeout
    for thread in threads.values():
        if not ended:  # the trainer has failed or was killed
            thread.messages.put({"fail": {}})
        thread.messages.put(None)
    for thread in threads.values():
        thread.join(max(0.0, deadline - time.monotonic()))
    # Libraries wait for their own threads and servers when Python ends.
    os._exit(0)


def _names(message: Message) -> list[str]:
    """Return the trackers of the first message."""
    match message:
        case {"start": start}:
            import transformers.integrations  # noqa: F401  once, not by all threads at a time

            return list(start["trackers"])
        case {"update": update}:
            return list(update["runs"])
    return []


if __name__ == "__main__":
    sys.exit(main())
