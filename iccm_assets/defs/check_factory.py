"""Asset checks from functions of the domain packages."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import dagster as dg

from iccm_assets.defs.metadata import to_asset_check_result
from iccm_assets.defs.resources import PlatformResource

if TYPE_CHECKING:
    import sqlalchemy as sa

    from iccm_assets.check_result import CheckResult
    from iccm_assets.settings import Settings


CheckFunction = Callable[["sa.Connection", "Settings"], "CheckResult"]


def platform_check(asset: str, description: str) -> Callable[[CheckFunction], dg.AssetChecksDefinition]:
    """Turn a function of a connection and the settings into an asset check of its name.

    @platform_check("training_pool", "Is every filtered row in the pool or removed as a duplicate?")
    def row_counts_reconcile(conn: Connection, settings: Settings) -> CheckResult: ...
    """

    def decorate(check: CheckFunction) -> dg.AssetChecksDefinition:
        @dg.asset_check(asset=asset, name=check.__name__, description=description)
        def asset_check(platform: PlatformResource) -> dg.AssetCheckResult:
            with platform.engine.connect() as conn:
                return to_asset_check_result(check(conn, platform.settings))

        return asset_check

    return decorate
