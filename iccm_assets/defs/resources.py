"""What the assets are given: the platform's settings and database, opened on first use.

Resource hooks run on every sensor tick, so nothing is opened or loaded in them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import dagster as dg

from iccm_assets.defs.messages import workers
from iccm_assets.settings import Settings, get_settings

if TYPE_CHECKING:
    import sqlalchemy as sa

    from iccm_assets.judging.orchestra import Orchestra
    from iccm_assets.learning.model_store import ModelStore


@lru_cache(maxsize=1)
def _engine() -> sa.Engine:
    from iccm_assets.store.database import connect

    return connect(get_settings())


class Platform(dg.ConfigurableResource):
    """The settings of this process (`ICCM_*`) and what they lead to."""

    @property
    def settings(self) -> Settings:
        return get_settings()

    @property
    def engine(self) -> sa.Engine:
        """Connections to the platform's database, migrated to the newest schema."""
        return _engine()

    @property
    def orchestra(self) -> Orchestra:
        from iccm_assets.judging.orchestra import orchestra_of

        return orchestra_of(self.settings)

    @property
    def model_store(self) -> ModelStore:
        from iccm_assets.learning.model_store import ModelStore

        return ModelStore(self.settings.home)


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(resources={"platform": Platform(), "pipes": workers()})
