"""A model that is worse on purpose: production's weights with noise on them, for showing a rollback."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import sqlalchemy as sa

from iccm_assets.learning import versions
from iccm_assets.learning.model_store import ModelStore
from iccm_assets.learning.versions import ModelVersion
from iccm_assets.models.manifest import MANIFEST

WEIGHTS = "model.safetensors"


def degraded(engine: sa.Engine, store: ModelStore, *, noise: float, seed: int = 1) -> ModelVersion:
    """Register a candidate that is production with ``noise`` times each tensor's spread added to it.

    It comes in by the door every foreign model takes (`iccm evaluate DIRECTORY`), and nothing has judged it.
    """
    with engine.connect() as conn:
        serving = versions.get(conn, "production")
    with tempfile.TemporaryDirectory(prefix="iccm-degraded-") as folder:
        copied = Path(folder) / f"{serving.version}-with-noise"
        shutil.copytree(serving.path, copied, copy_function=shutil.copyfile)
        for path in [copied, *copied.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        (copied / MANIFEST).unlink(missing_ok=True)
        _add_noise(copied / WEIGHTS, noise, seed)
        published = store.import_model(str(copied))
    with engine.begin() as conn:
        return versions.register(
            conn,
            digest=published.digest,
            path=str(published.path),
            parent=serving.version,
            status="candidate",
            metrics={"degraded": {"noise": noise, "seed": seed, "of": serving.version}},
        )


def _add_noise(path: Path, noise: float, seed: int) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    rng = np.random.default_rng(seed)
    worse = {
        name: (value + noise * value.std() * rng.standard_normal(value.shape)).astype(value.dtype)
        for name, value in load_file(path).items()
    }
    save_file(worse, path, metadata={"format": "pt"})
