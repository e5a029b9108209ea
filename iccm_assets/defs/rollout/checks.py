"""Checks of who serves: one production version, statuses and lease that fit the rollout (U4)."""

import dagster as dg

from iccm_assets.defs.resources import Platform
from iccm_assets.defs.show import result


@dg.asset_check(asset="deployed_model_version", description="Is exactly one version in production (M1)?")
def one_production_version(platform: Platform) -> dg.AssetCheckResult:
    from iccm_assets.rollout import facts, health

    with platform.engine.connect() as conn:
        return result(health.one_production(facts.versions_with(conn, "production")))


@dg.asset_check(
    asset="deployed_model_version", description="Do the versions' statuses fit the live rollout (R8)?"
)
def statuses_fit_the_rollout(platform: Platform) -> dg.AssetCheckResult:
    from iccm_assets.rollout import facts, health

    with platform.engine.connect() as conn:
        live = facts.live_rollout(conn)
        serving = facts.versions_with(conn, "production")
        canaries = facts.versions_with(conn, "canary")
    return result(health.consistent(live, serving[0] if serving else None, canaries))


@dg.asset_check(
    asset="deployed_model_version", description="Has a canary arm with traffic a lease that holds (R7)?"
)
def weight_is_leased(platform: Platform) -> dg.AssetCheckResult:
    from iccm_assets.rollout import facts, health
    from iccm_assets.store.clock import now

    with platform.engine.connect() as conn:
        return result(health.leased(facts.live_rollout(conn), now(conn)))


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(asset_checks=[one_production_version, statuses_fit_the_rollout, weight_is_leased])
