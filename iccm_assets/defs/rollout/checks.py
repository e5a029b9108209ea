"""Checks of what is in service: one production version, statuses and lease consistent with the rollout."""

from iccm_assets.defs.check_factory import platform_check


@platform_check("deployed_model_version", "Is exactly one version in production?")
def exactly_one_production_version(conn, settings):
    from iccm_assets.rollout import facts, health

    return health.check_single_production(facts.list_versions(conn, "production"))


@platform_check("deployed_model_version", "Do the statuses of the versions match the live rollout?")
def statuses_match_rollout(conn, settings):
    from iccm_assets.rollout import facts, health, records

    production, canaries = (facts.list_versions(conn, status) for status in ("production", "canary"))
    return health.check_statuses(records.get_live_rollout(conn), next(iter(production), None), canaries)


@platform_check("deployed_model_version", "Is the lease of a canary arm with traffic active?")
def canary_lease_is_active(conn, settings):
    from iccm_assets.rollout import health, records
    from iccm_assets.store.clock import now

    return health.check_lease(records.get_live_rollout(conn), now(conn))
