"""Checks of what is in service: one production version, statuses and lease consistent with the rollout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iccm_assets.defs.check_factory import platform_check

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from iccm_assets.check_result import CheckResult
    from iccm_assets.settings import Settings


@platform_check("deployed_model_version", "Is exactly one version in production?")
def exactly_one_production_version(conn: Connection, settings: Settings) -> CheckResult:
    from iccm_assets.rollout import checks

    return checks.check_single_production(checks.list_versions(conn, "production"))


@platform_check("deployed_model_version", "Do the statuses of the versions match the live rollout?")
def statuses_match_rollout(conn: Connection, settings: Settings) -> CheckResult:
    from iccm_assets.rollout import checks

    production, canaries = (checks.list_versions(conn, status) for status in ("production", "canary"))
    return checks.check_statuses(checks.load_live_rollout(conn), next(iter(production), None), canaries)


@platform_check("deployed_model_version", "Is the lease of a canary arm with traffic active?")
def canary_lease_is_active(conn: Connection, settings: Settings) -> CheckResult:
    from iccm_assets.db.clock import now
    from iccm_assets.rollout import checks

    return checks.check_lease(checks.load_live_rollout(conn), now(conn))
