"""The platform's first production version: the base model, copied into the store and verified (M1)."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from iccm_assets.learning import versions
from iccm_assets.learning.model_store import ModelStore
from iccm_assets.learning.versions import ModelVersion
from iccm_assets.models.manifest import Manifest, verify
from iccm_assets.rollout.deployment import bootstrap
from iccm_assets.settings import Settings


def ensure_production(
    engine: sa.Engine, store: ModelStore, settings: Settings
) -> tuple[ModelVersion, Manifest]:
    """Return the version in production and its verified manifest; the base model where there is none yet.

    Raises ``ModelNotFound`` or ``DamagedCheckpoint``; the database is unchanged then.
    """
    with engine.connect() as conn:
        serving = versions.get_production_version(conn)
    if serving is None:
        published = store.import_model(settings.base_model)
        path, base = str(published.path), published.manifest.base
        with engine.begin() as conn:
            serving = bootstrap(conn, digest=published.digest, path=path, base_model=base)
    return serving, verify(Path(serving.path))
