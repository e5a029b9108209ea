"""The sampling process: production answers recent sources, and the answers are scored (L12).

``python -m iccm_assets.training.sampling_worker`` under Pipes reads a ``SamplingJob`` from the extra ``job``
and replies with a ``SamplingReport``. The scored answers are in the database.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from iccm_assets.db.database import connect
from iccm_assets.db.worker_presence import exit_without_presence
from iccm_assets.registry import versions
from iccm_assets.registry.model_store import fetch_model
from iccm_assets.scoring.orchestra import load_orchestra_from_settings
from iccm_assets.settings import Settings, load_settings
from iccm_assets.training.sampling import AnswerFn, SamplingJob, SamplingReport, sample_answers
from iccm_assets.worker_process import run_pipes_worker

if TYPE_CHECKING:
    from dagster_pipes import PipesContext

    from iccm_assets.models.generation import GeneratedResponse, LoadedModel


def run_sampling(
    engine: sa.Engine, job: SamplingJob, settings: Settings, log: Callable[[str], None]
) -> SamplingReport:
    """Load the job's version, and sample and score its answers.

    Raises ``VersionNotFoundError``, ``ModelNotFoundError``, ``CorruptCheckpointError``, ``ModelError``.
    """
    with engine.connect() as conn:
        version = versions.get_version(conn, job.version)
    answer = load_answer_function(str(fetch_model(version.path, settings)), settings)
    return sample_answers(engine, job, version, answer, load_orchestra_from_settings(settings), settings, log)


def load_answer_function(path: str, settings: Settings) -> AnswerFn:
    """Load a model; return the function that answers with it, greedily or by the seeds of samples."""
    from iccm_assets.models.generation import load_model, set_threads

    set_threads(settings.training.threads)
    return partial(_answer, load_model(path), settings)


def _answer(
    loaded: LoadedModel, settings: Settings, sources: Sequence[str], seeds: Sequence[int]
) -> Sequence[GeneratedResponse]:
    from iccm_assets.models.generation import generate, sample

    limits: dict[str, Any] = {
        "max_new_tokens": settings.evaluation.max_new_tokens,
        "batch_size": settings.evaluation.batch_size,
        "max_source_tokens": settings.training.max_source_tokens,
    }
    if not seeds:
        return generate(loaded, sources, **limits)
    return sample(loaded, sources, seeds, temperature=settings.sampling.temperature, **limits)


def _sample_for(pipes: PipesContext) -> dict[str, Any]:
    settings = load_settings()
    exit_without_presence(partial(connect, settings))
    job = SamplingJob.model_validate(pipes.get_extra("job"))
    return run_sampling(connect(settings), job, settings, pipes.log.info).model_dump(mode="json")


def main() -> int:
    """Run the worker under Dagster Pipes."""
    return run_pipes_worker(_sample_for)


if __name__ == "__main__":
    sys.exit(main())
