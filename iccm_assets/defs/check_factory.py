"""Asset checks from functions of the domain packages."""

from importlib import import_module

import dagster as dg

from iccm_assets.defs.metadata import to_asset_check_result
from iccm_assets.defs.resources import PlatformResource


def platform_check(asset: str, function: str, description: str) -> dg.AssetChecksDefinition:
    """Build the asset check of a function that returns a ``CheckResult``; the check has its name.

    ``function`` is a dotted path below `iccm_assets`. The check imports it when it runs, and calls it with a
    connection and the settings: loading the definitions imports no database driver.
    """
    module, name = f"iccm_assets.{function}".rsplit(".", 1)

    @dg.asset_check(asset=asset, name=name, description=description)
    def asset_check(platform: PlatformResource) -> dg.AssetCheckResult:
        check = getattr(import_module(module), name)
        with platform.engine.connect() as conn:
            return to_asset_check_result(check(conn, platform.settings))

    return asset_check
