"""The platform's first production version: the base model, copied into the store and verified (M1)."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from iccm_assets.learning import versions
from iccm_assets.learning.model_store import ModelStore
from iccm_assets.learning.versions import ModelVersion
from iccm_assets.models.manifest import Manifest, verify
from iccm_assets.rollout import deployment
from iccm_assets.settings import Settings


def ensure_production(
    engine: sa.Engine, store: ModelStore, settings: Settings
) -> tuple[ModelVersion, Manifest]:
    """The version in production and its verified manifest; the base model where there is none yet.

    Raises ``ModelNotFound`` or ``DamagedCheckpoint``; the database is unchanged then.
    """
    with engine.connect() as conn:
        serving = versions.production(conn)
    if serving is None:
        published = store.import_model(settings.base_model)
        with engine.begin() as conn:
            serving = deployment.bootstrap(
                conn, digest=published.digest, path=str(published.path), base_model=published.manifest.base
            )
    return serving, verify(Path(serving.path))
