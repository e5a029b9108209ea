"""Checks of the scores, the canary set and its measurements: complete and comparable (U4)."""

from datetime import timedelta

import dagster as dg

from iccm_assets.defs.resources import Platform
from iccm_assets.defs.show import result


@dg.asset_check(asset="reconstructions", description="Was every text with a test suite scored?")
def no_missing_scores(platform: Platform) -> dg.AssetCheckResult:
    from iccm_assets.judging import health

    found, days = _last_days(platform)
    return result(health.missing_scores(found.with_suite, found.missing, days))


@dg.asset_check(asset="reconstructions", description="Could nearly all texts be measured?")
def few_inconclusive(platform: Platform) -> dg.AssetCheckResult:
    from iccm_assets.judging import health

    found, days = _last_days(platform)
    return result(health.inconclusive(found.scored, found.inconclusive, days))


def _last_days(platform: Platform):
    from iccm_assets.judging import facts
    from iccm_assets.store.clock import now

    back = platform.settings.curation.late_days
    with platform.engine.connect() as conn:
        yesterday = now(conn).date() - timedelta(days=1)
        return facts.scores(conn, yesterday - timedelta(days=back - 1), yesterday), back


@dg.asset_check(asset="canary_set", description="Is it the set the last verdict was reached on?")
def is_unchanged(platform: Platform) -> dg.AssetCheckResult:
    from iccm_assets.curation.canary_set import load_canary_set
    from iccm_assets.judging import facts, health

    loaded = load_canary_set(platform.settings.canary_set)
    with platform.engine.connect() as conn:
        last = facts.last_verdict(conn)
    digest, version = (last.canary_set_digest, last.version) if last else (None, "")
    return result(health.same_canary_set(loaded.digest, digest, version))


@dg.asset_check(asset="canary_set", description="Are its slices large enough to see forgetting (E3)?")
def slices_are_large_enough(platform: Platform) -> dg.AssetCheckResult:
    from iccm_assets.curation.canary_set import load_canary_set
    from iccm_assets.judging import health

    return result(health.slice_sizes(load_canary_set(platform.settings.canary_set).slices))


@dg.asset_check(
    asset="canary_set",
    description="Has the training pool anything of it, by content or by similarity (F4)? The newest rows.",
)
def not_in_training_pool(platform: Platform) -> dg.AssetCheckResult:
    from iccm_assets.curation import facts, health
    from iccm_assets.models.embedding import Embedder

    with platform.engine.connect() as conn:
        found = facts.leaks_of(conn, "phase4_training_data", platform.settings)
        alike = facts.like_canary_set(conn, platform.settings, Embedder.load(platform.settings).digest)
    overlapping = sorted({*found.overlapping, *alike})
    return result(health.leaks(found.looked_at, found.held_out, found.erased, overlapping))


@dg.asset_check(asset="production_quality", description="Is production measured, and as good as deployed?")
def is_measured_and_holds(platform: Platform) -> dg.AssetCheckResult:
    from iccm_assets.judging import facts, health

    with platform.engine.connect() as conn:
        found = facts.quality(conn)
    if found is None:
        return dg.AssetCheckResult(passed=True, description="nothing is in production yet")
    fallen = [name for name, fall in found.falls.items() if fall > health.FALL]
    return result(health.quality_is_known(found.version, found.hours, found.holdout, fallen))


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(
        asset_checks=[
            no_missing_scores,
            few_inconclusive,
            is_unchanged,
            slices_are_large_enough,
            not_in_training_pool,
            is_measured_and_holds,
        ]
    )
