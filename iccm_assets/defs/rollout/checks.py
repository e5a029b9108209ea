"""Checks of the served versions: one in production, statuses and lease consistent with the rollout."""

from iccm_assets.defs.check_factory import platform_check

exactly_one_production_version = platform_check(
    "deployed_model_version",
    "rollout.checks.exactly_one_production_version",
    "Exactly one version is in production.",
)
statuses_match_rollout = platform_check(
    "deployed_model_version",
    "rollout.checks.statuses_match_rollout",
    "The statuses of the versions match the live rollout.",
)
canary_lease_is_active = platform_check(
    "deployed_model_version",
    "rollout.checks.canary_lease_is_active",
    "The lease of a canary arm with traffic is active.",
)
