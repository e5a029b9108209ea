"""A deliberately worse model for demonstrating a rollback: production's weights with noise."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import sqlalchemy as sa

from iccm_assets.registry import versions
from iccm_assets.registry.hub import ADAPTER_WEIGHTS_FILE, is_adapter
from iccm_assets.registry.manifest import MANIFEST_FILE, Manifest, read_manifest
from iccm_assets.registry.model_store import ModelStore, StoredModel, fetch_model
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
        source = fetch_model(serving.path)
        shutil.copytree(source, copy, copy_function=shutil.copyfile)
        for path in [copy, *copy.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        (copy / MANIFEST_FILE).unlink(missing_ok=True)
        if is_adapter(copy):
            _add_noise(copy / ADAPTER_WEIGHTS_FILE, noise, seed)
            published = _publish_adapter(store, copy, read_manifest(source))
        else:
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
            base_digest=published.manifest.base_digest,
        )


def _publish_adapter(store: ModelStore, copy: Path, serving: Manifest) -> StoredModel:
    """Publish a changed adapter on the base of the version in production."""
    kept = {"prompt": serving.prompt, "base_digest": serving.base_digest}
    staging = store.create_staging(f"degraded{os.getpid()}", 1, 1)
    shutil.copytree(copy, staging, dirs_exist_ok=True)
    return store.publish(staging, Manifest(kind="imported", base=copy.name, files={}, **kept))


def _add_noise(path: Path, noise: float, seed: int) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    rng = np.random.default_rng(seed)
    noisy = {
        name: (value + noise * value.std() * rng.standard_normal(value.shape)).astype(value.dtype)
        for name, value in load_file(path).items()
    }
    save_file(noisy, path, metadata={"format": "pt"})
