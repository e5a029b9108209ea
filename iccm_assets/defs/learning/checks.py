"""Checks of the models: are they what was published, did training do anything? (U4)"""

import dagster as dg

from iccm_assets.defs.resources import Platform
from iccm_assets.defs.show import result


@dg.asset_check(asset="base_model", description="Does the model in production fit its manifest (L6)?")
def production_is_intact(platform: Platform) -> dg.AssetCheckResult:
    from iccm_assets.learning import facts, health, versions

    with platform.engine.connect() as conn:
        serving = versions.production(conn)
    if serving is None:
        return dg.AssetCheckResult(
            passed=False, description="no version is in production. What to do: materialize base_model"
        )
    found = facts.look_at(serving.path)
    return result(health.intact(serving.version, found.damage, found.hashed))


@dg.asset_check(
    asset="fine_tuned_checkpoint", description="Does the newest checkpoint fit its manifest (L6)?"
)
def checkpoint_is_intact(platform: Platform) -> dg.AssetCheckResult:
    from iccm_assets.learning import facts, health

    with platform.engine.connect() as conn:
        newest = facts.newest_trained(conn)
    if newest is None:
        return _nothing_trained()
    found = facts.look_at(newest.path)
    return result(health.intact(newest.version, found.damage, found.hashed))


@dg.asset_check(
    asset="fine_tuned_checkpoint", description="Did training move the weights, and not too far (L2)?"
)
def weights_moved(platform: Platform) -> dg.AssetCheckResult:
    from iccm_assets.learning import facts, health

    with platform.engine.connect() as conn:
        newest = facts.newest_trained(conn)
    if newest is None:
        return _nothing_trained()
    return result(health.moved(newest.version, newest.training.get("movement")))


@dg.asset_check(
    asset="fine_tuned_checkpoint",
    description="Is it known which conversations taught it, and are they all still there (V1, V2)?",
)
def lineage_is_complete(platform: Platform) -> dg.AssetCheckResult:
    from iccm_assets.learning import facts, health

    with platform.engine.connect() as conn:
        newest = facts.newest_trained(conn)
    if newest is None:
        return _nothing_trained()
    counted = newest.training.get("counts", {})
    return result(health.taught(newest.version, newest.recorded, counted, newest.erased))


def _nothing_trained() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True, description="nothing was trained yet")


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(
        asset_checks=[production_is_intact, checkpoint_is_intact, weights_moved, lineage_is_complete]
    )
