"""The resources of assets, checks, schedules and sensors: the platform's settings and database.

Dagster sets resources up on every sensor tick, so nothing is opened or loaded before it is used.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import dagster as dg

from iccm_assets.defs.ray_workers import RayWorkers
from iccm_assets.defs.workers import LocalWorkers, WorkerClient
from iccm_assets.settings import Settings, get_settings, load_settings

if TYPE_CHECKING:
    import sqlalchemy as sa

    from iccm_assets.registry.model_store import ModelStore
    from iccm_assets.scoring.orchestra import Orchestra


@lru_cache(maxsize=1)
def _engine() -> sa.Engine:
    from iccm_assets.db.database import connect
    from iccm_assets.db.embedded.server_watch import watch_server

    settings = get_settings()
    engine = connect(settings)
    # Of Dagster's processes, the code server lives long and uses the platform's database on every tick.
    watch_server(settings)
    return engine


class PlatformResource(dg.ConfigurableResource["PlatformResource"]):
    """The settings of this process (`ICCM_*`) and what they configure."""

    @property
    def settings(self) -> Settings:
        """The settings of this process."""
        return get_settings()

    @property
    def engine(self) -> sa.Engine:
        """The engine of the platform's database, whose schema is migrated on first use."""
        return _engine()

    @property
    def orchestra(self) -> Orchestra:
        """The orchestra that the settings name."""
        from iccm_assets.scoring.orchestra import load_orchestra_from_settings

        return load_orchestra_from_settings(self.settings)

    @property
    def model_store(self) -> ModelStore:
        """The model store below `ICCM_HOME`."""
        from iccm_assets.registry.model_store import ModelStore

        return ModelStore.open(self.settings)


# Where work runs, by `ICCM_COMPUTE`.
WORKERS: dict[str, type[WorkerClient]] = {"local": LocalWorkers, "ray": RayWorkers}


def defs() -> dg.Definitions:
    """The resources of the code location: the platform, and the client that runs its worker modules."""
    return dg.Definitions(
        resources={"platform": PlatformResource(), "workers": WORKERS[load_settings().compute]()}
    )
