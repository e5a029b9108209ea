"""Checks of what is in service: one production version, statuses and lease consistent with the rollout."""

from iccm_assets.defs.check_factory import platform_check


@platform_check("deployed_model_version", "Is exactly one version in production?")
def exactly_one_production_version(conn, settings):
    from iccm_assets.rollout import checks

    return checks.check_single_production(checks.list_versions(conn, "production"))


@platform_check("deployed_model_version", "Do the statuses of the versions match the live rollout?")
def statuses_match_rollout(conn, settings):
    from iccm_assets.rollout import checks, repository

    production, canaries = (checks.list_versions(conn, status) for status in ("production", "canary"))
    return checks.check_statuses(repository.get_live_rollout(conn), next(iter(production), None), canaries)


@platform_check("deployed_model_version", "Is the lease of a canary arm with traffic active?")
def canary_lease_is_active(conn, settings):
    from iccm_assets.db.clock import now
    from iccm_assets.rollout import checks, repository

    return checks.check_lease(repository.get_live_rollout(conn), now(conn))
