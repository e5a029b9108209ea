"""A platform whose versions tiny jobs have trained, and their verification."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from iccm_assets.registry import versions
from iccm_assets.registry.versions import ModelVersion
from iccm_assets.settings import Settings
from iccm_assets.training.dataset import read_dataset
from iccm_assets.training.reproducibility import LineCallback, ReproductionReport, reproduce_version
from iccm_assets.training.trainer_worker import train
from iccm_assets.training.worker_protocol import TrainingJob, TrainingOutcome
from iccm_assets_tests.factories.platform_rows import conversation, training_run
from iccm_assets_tests.factories.sampled_answers import own_answer


def train_again(job: TrainingJob, on_line: LineCallback) -> TrainingOutcome:
    return train(job, progress=lambda point: on_line(point.to_log_line()))


def fail_if_trained(job: TrainingJob, on_line: LineCallback) -> TrainingOutcome:
    pytest.fail("it was trained although its records rule that out")


@dataclass
class TrainingPlatform:
    """A platform with versions trained by tiny jobs, and their verification."""

    engine: sa.Engine
    settings: Settings

    def version(
        self,
        job: TrainingJob,
        parent: str | None = None,
        train_function: Callable[[TrainingJob], TrainingOutcome] = train,
    ) -> ModelVersion:
        """Train a version and register it with its lineage."""
        outcome = train_function(job)
        examples = {
            example.conversation_id: example.role
            for example in read_dataset(Path(job.dataset)).examples
            if example.conversation_id is not None
        }
        with self.engine.begin() as conn:
            version = versions.register_version(
                conn, digest=outcome.digest, path=outcome.path, parent=parent, status="candidate"
            )
            for number in examples:
                if not conn.execute(
                    sa.text("select from iccm.conversations where id = :id"), {"id": number}
                ).all():
                    conversation(conn, number, pool=False, filtered=False)
            training_run(
                conn,
                int(job.run_id),
                version.version,
                examples={number: role for number, role in examples.items() if role != "self"},
                dataset_digest=outcome.dataset_digest,
            )
            for number, role in examples.items():
                if role == "self":
                    own_answer(conn, int(job.run_id), number, made_by=version.version)
        return version

    def verify(self, version: ModelVersion, **options: object) -> ReproductionReport:
        options.setdefault("train", fail_if_trained)
        return reproduce_version(self.engine, self.settings.home, version, **options)  # type: ignore[arg-type]

    def state(self) -> tuple[str, str]:
        """Return fingerprints of every file of the home and every row that a verification reads."""
        files = hashlib.sha256()
        for path in sorted(self.settings.home.rglob("*")):
            files.update(f"{path} {path.stat().st_mode}".encode())
            files.update(path.read_bytes() if path.is_file() else b"")
        with self.engine.connect() as conn:
            rows = [
                conn.execute(sa.text(f"select xmin, * from iccm.{table} order by 2")).all()
                for table in ("model_versions", "phase4_training_runs", "conversations")
            ]
        return files.hexdigest(), repr(rows)
