"""A deliberately worse model for demonstrating a rollback: production's weights with noise."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import sqlalchemy as sa

from iccm_assets.registry import versions
from iccm_assets.registry.manifest import MANIFEST_FILE
from iccm_assets.registry.model_store import ModelStore, fetch_model
from iccm_assets.registry.versions import ModelVersion

WEIGHTS_FILE = "model.safetensors"


def register_degraded_model(
    engine: sa.Engine, store: ModelStore, *, noise: float, seed: int = 1
) -> ModelVersion:
    """Register production with normal noise, of ``noise`` standard deviations per tensor, as a candidate.

    It is imported like a model trained elsewhere (`iccm evaluate DIRECTORY`) and has not been evaluated.
    """
    with engine.connect() as conn:
        serving = versions.get_version(conn, "production")
    with tempfile.TemporaryDirectory(prefix="iccm-degraded-") as folder:
        copy = Path(folder) / f"{serving.version}-with-noise"
        shutil.copytree(fetch_model(serving.path), copy, copy_function=shutil.copyfile)
        for path in [copy, *copy.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        (copy / MANIFEST_FILE).unlink(missing_ok=True)
        _add_noise(copy / WEIGHTS_FILE, noise, seed)
        published = store.import_model(str(copy))
    with engine.begin() as conn:
        return versions.register_version(
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
    noisy = {
        name: (value + noise * value.std() * rng.standard_normal(value.shape)).astype(value.dtype)
        for name, value in load_file(path).items()
    }
    save_file(noisy, path, metadata={"format": "pt"})
