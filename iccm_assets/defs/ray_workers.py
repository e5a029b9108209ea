"""Work as jobs of a Ray cluster, through the Pipes client of `dagster-ray`.

`ray` and `dagster_ray` are imported where a job is submitted: together they take seconds.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg

from iccm_assets.defs.training.training_progress import observe_progress as observe
from iccm_assets.defs.workers import Context, WorkerClient
from iccm_assets.errors import ComputeError, IccmError, first_line
from iccm_assets.settings import RaySettings, Settings, get_settings

if TYPE_CHECKING:
    from dagster._core.pipes.context import PipesMessageHandler
    from dagster_ray import PipesRayJobClient, PipesRayJobMessageReader
    from ray.job_submission import JobSubmissionClient

T = TypeVar("T")

POLL_INTERVAL_SECONDS = 1.0
# A job is submitted again so often after its node was lost. Every worker resumes what was stored.
RESUBMISSIONS = 2
# The head of a cluster may restart under a job that takes hours.
OUTAGE_SECONDS = 120.0
# How long the log of a finished job may take to arrive; then it is read once more as a whole.
TAIL_SECONDS = 5.0
# How long `iccm doctor` waits for a node to check itself.
DOCTOR_SECONDS = 180.0
# What the nodes do not get: where this process submits its work, Dagster's database, and the path of a file
# whose content a training job has.
NOT_SENT = ("ICCM_COMPUTE", "ICCM_DAGSTER_DATABASE_URL", "ICCM_TRAINING__ACCELERATE_CONFIG")
# Ray would set the first one to the CPUs that a job reserves. The last bits of a sum depend on the threads.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class RayWorkers(WorkerClient):
    """Every module as a job of the cluster at `ICCM_RAY__ADDRESS`."""

    def run(
        self,
        context: dg.AssetExecutionContext,
        platform: Any,
        module: str,
        extras: Mapping[str, Any],
        *,
        observe_progress: bool = False,
    ) -> Sequence[Any]:
        gpus = get_settings().ray.num_gpus
        return self._run(context, platform, module, extras, observe_progress=observe_progress, gpus=gpus)

    def perform(
        self, context: Context, platform: Any, module: str, request: Mapping[str, Any]
    ) -> dict[str, Any]:
        reply: dict[str, Any] = next(iter(self._run(context, platform, module, request)), {})
        if "metadata" not in reply:
            missing = ComputeError("the job ended without a reply").to_dict()
            raise IccmError.from_dict(reply.get("error") or missing)
        metadata: dict[str, Any] = reply["metadata"]
        return metadata

    def _run(
        self,
        context: Context,
        platform: Any,
        module: str,
        extras: Mapping[str, Any],
        *,
        observe_progress: bool = False,
        gpus: float = 0.0,
    ) -> Sequence[Any]:
        from iccm_assets.db.worker_presence import hold_presence  # imports SQLAlchemy

        settings = platform.settings
        with hold_presence(platform.engine) as presence:
            environment = {**node_environment(settings), **presence}
            for attempt in range(1 + RESUBMISSIONS):
                client = make_client(settings.ray, context if observe_progress else None)
                job = _JobRun(client, context, attempt == RESUBMISSIONS)
                params = job_parameters(settings.ray, module, environment, gpus)
                if (messages := job.run(params, extras)) is not None:
                    return messages
        raise AssertionError("the last attempt returns or raises")


def node_environment(settings: Settings) -> dict[str, str]:
    """Return the environment variables that a worker on a node needs to do what it would do here."""
    from iccm_assets.db.database import database_url

    own = {*NOT_SENT, *filter(None, settings.ray.node_variables.split(","))}
    sent = {name: value for name, value in os.environ.items() if name.startswith("ICCM_")}
    # Also that of the embedded server: a worker must not start another one.
    sent.update(ICCM_HOME=str(settings.home), ICCM_DATABASE_URL=database_url(settings))
    threads = dict(OMP_NUM_THREADS=str(settings.training.threads))
    threads |= {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
    return {**threads, **{name: value for name, value in sent.items() if name not in own}}


def job_parameters(
    limits: RaySettings, module: str, environment: Mapping[str, str], gpus: float
) -> dict[str, Any]:
    """Return the parameters of a submission: the command, its environment and what it reserves.

    The job of a scoring pass computes nothing itself and reserves nothing: its tasks do.
    """
    parameters: dict[str, Any] = {
        "entrypoint": f"{limits.python} -m {module}",
        "runtime_env": {"env_vars": dict(environment)},
    }
    if module.endswith(".scoring_worker"):
        return parameters
    memory = {"entrypoint_memory": int(limits.memory_gib * 2**30)} if limits.memory_gib else {}
    return {
        **parameters,
        "entrypoint_num_cpus": limits.num_cpus,
        **({"entrypoint_num_gpus": gpus} if gpus else {}),
        **memory,
    }


class _JobRun:
    """One submission of a job, awaited to its end."""

    def __init__(self, client: PipesRayJobClient, context: Context, is_last: bool) -> None:
        self._client, self._context, self._is_last = client, context, is_last

    def run(self, parameters: Mapping[str, Any], extras: Mapping[str, Any]) -> Sequence[Any] | None:
        """Return the messages of the job; None if its node was lost and it may be submitted again.

        Raises ``ComputeError`` if the job failed otherwise.
        """
        from dagster_ray.core.pipes import generate_job_id

        job = generate_job_id()
        try:
            finished = self._client.run(
                context=self._context,
                submit_job_params={**parameters, "submission_id": job},  # type: ignore[typeddict-item]
                extras=dict(extras),
            )
        except (OSError, RuntimeError) as error:
            is_lost, problem = _explain(self._client, job, error)
            if not is_lost or self._is_last:
                raise problem from error
            self._context.log.warning(f"{problem} It is submitted again.")
            return None
        return finished.get_custom_messages()


def _explain(client: PipesRayJobClient, job: str, error: Exception) -> tuple[bool, ComputeError]:
    """Return whether the node of a failed job was lost, and the error that says what happened."""
    from ray.job_submission import JobErrorType, JobStatus

    try:
        info = client.client.get_job_info(job)
    except (OSError, RuntimeError):
        address = client._address
        return False, ComputeError(
            f"the Ray cluster at {address} cannot be reached ({first_line(error)})",
            hint="Start the cluster, or correct ICCM_RAY__ADDRESS; `iccm doctor` tries it.",
        )
    if info.status == JobStatus.STOPPED:
        return False, ComputeError(f"Ray job {job} was stopped", hint="Launch the run again.")
    is_lost = info.error_type == JobErrorType.JOB_SUPERVISOR_ACTOR_DIED
    node = f" on node {info.driver_node_id[:8]}" if info.driver_node_id else ""
    lines = (info.message or str(error)).strip().splitlines()
    what = "its node or its supervisor died" if is_lost else " ".join(lines[:1] + lines[-3:])[:1500]
    hint = f"`ray job logs {job}` shows all that it wrote."
    return is_lost, ComputeError(f"Ray job {job} failed{node}: {what}", hint=hint)


def make_client(limits: RaySettings, asset_context: Any = None) -> PipesRayJobClient:
    """Return the Pipes client of the cluster; raises ``ComputeError`` if it does not answer.

    ``asset_context`` is the context of the asset that the points of a loss curve are logged for.
    """
    from dagster_ray import PipesRayJobClient

    client = PipesRayJobClient(
        address=limits.address,
        message_reader=_make_reader(asset_context),
        poll_interval=POLL_INTERVAL_SECONDS,
    )
    client.client = connect(limits)
    return client


def connect(limits: RaySettings) -> JobSubmissionClient:
    """Return a client of the cluster's jobs; raises ``ComputeError`` if it does not answer."""
    from ray.job_submission import JobSubmissionClient

    class PatientClient(JobSubmissionClient):
        """Asks again while the cluster does not answer for a while: the job may go on meanwhile."""

        def get_job_status(self, job_id: str) -> Any:
            return _with_patience(lambda: super(PatientClient, self).get_job_status(job_id))

    try:
        return PatientClient(limits.address)
    except (OSError, RuntimeError) as error:
        raise ComputeError(
            f"the Ray cluster at {limits.address} cannot be reached ({first_line(error)})",
            hint="Start the cluster, or correct ICCM_RAY__ADDRESS; `iccm doctor` tries it.",
        ) from error


def run_doctor(settings: Settings) -> tuple[str, str, dict[str, Any]]:
    """Run `iccm doctor` on a node; return the job, the node and its report. Raises ``ComputeError``."""
    from dagster_ray.core.pipes import generate_job_id

    client, job = connect(settings.ray), generate_job_id()
    parameters = job_parameters(settings.ray, "", node_environment(settings), 0.0)
    command = "from iccm_assets.cli.main import main; main()"
    parameters["entrypoint"] = f"{settings.ray.python} -c '{command}' doctor --json"
    try:
        client.submit_job(**parameters, submission_id=job)
        deadline = time.monotonic() + DOCTOR_SECONDS
        while not client.get_job_status(job).is_terminal():
            if time.monotonic() >= deadline:
                client.stop_job(job)
                raise ComputeError(
                    f"no node of the cluster finished job {job} within {DOCTOR_SECONDS:.0f} s",
                    hint="A job waits until a node has ICCM_RAY__NUM_CPUS and ICCM_RAY__MEMORY_GIB free.",
                )
            time.sleep(POLL_INTERVAL_SECONDS)
        log, info = client.get_job_logs(job), client.get_job_info(job)
    except (OSError, RuntimeError) as error:
        raise ComputeError(f"Ray job {job}: {first_line(error)}") from error
    start, end = log.find("\n{"), log.rfind("}")
    try:
        report: dict[str, Any] = json.loads(log[start : end + 1])
    except ValueError:
        last = (log.strip().splitlines() or ["no output"])[-1]
        raise ComputeError(
            f"Ray job {job} gave no report: {last[:300]}",
            hint="The nodes need this package: ICCM_RAY__PYTHON names their interpreter.",
        ) from None
    return job, info.driver_node_id or "", report


def _with_patience(ask: Callable[[], T], outage_seconds: float = OUTAGE_SECONDS) -> T:
    deadline = time.monotonic() + outage_seconds
    while True:
        try:
            return ask()
        except (OSError, RuntimeError):
            if time.monotonic() >= deadline:
                raise
            time.sleep(POLL_INTERVAL_SECONDS)


def _make_reader(asset_context: Any) -> PipesRayJobMessageReader:
    """Return a reader that takes a message for complete at the end of its line only, and misses none.

    That of `dagster-ray` reads each chunk of the log as lines: a message in two chunks is lost, and so is all
    that is written after the connection broke.
    """
    from dagster._core.pipes.utils import extract_message_or_forward_to_stdout
    from dagster_ray import PipesRayJobMessageReader
    from dagster_ray.core.pipes import tail_logs

    class MessageReader(PipesRayJobMessageReader):
        def __init__(self) -> None:
            super().__init__()
            self._lines, self._lock = ChunkedLines(), threading.Lock()

        def handle_job_logs(self, handler: PipesMessageHandler) -> None:
            while not self.messages_are_readable({}):
                if self.session_closed.wait(0.1):
                    return
            self.thread_ready.set()
            handler = observe(handler, asset_context) if asset_context else handler
            for chunk in tail_logs(self.client.tail_job_logs(job_id=self.job_id)):
                with self._lock:
                    if self.completed.is_set():
                        return
                    self._handle(handler, self._lines.add(chunk or ""))

        def terminate(self, handler: PipesMessageHandler) -> None:
            self.session_closed.set()
            if self._thread is not None:
                self._thread.join(TAIL_SECONDS)  # of a lost node it may not end
            with self._lock:
                self.completed.set()
                if self.messages_are_readable({}):
                    rest = self._lines.finish(_read_log(self.client, self.job_id))
                    self._handle(observe(handler, asset_context) if asset_context else handler, rest)

        def _handle(self, handler: PipesMessageHandler, lines: Sequence[str]) -> None:
            for line in lines:
                extract_message_or_forward_to_stdout(handler, line)

    return MessageReader()


def _read_log(client: JobSubmissionClient, job: str) -> str:
    """Return the whole log of a job; empty if it was lost with its node, which the job's status says."""
    try:
        return client.get_job_logs(job)
    except (OSError, RuntimeError):
        return ""


class ChunkedLines:
    """The complete lines of a text that arrives in chunks."""

    def __init__(self) -> None:
        self._length, self._rest = 0, ""

    def add(self, chunk: str) -> list[str]:
        """Return the lines that the chunk completes, without empty ones."""
        self._length += len(chunk)
        *lines, self._rest = (self._rest + chunk).split("\n")
        return list(filter(None, lines))

    def finish(self, text: str) -> list[str]:
        """Return what is left of the whole text, if the chunks did not reach its end, and the last line."""
        return self.add(text[self._length :] + "\n")
