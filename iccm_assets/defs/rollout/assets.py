"""The deployment of a candidate that passed the quality gate."""

import dagster as dg
from pydantic import Field

from iccm_assets.defs.code_versions import code_version
from iccm_assets.defs.metadata import with_markdown
from iccm_assets.defs.partitions import OWNERS
from iccm_assets.defs.resources import PlatformResource


class DeploymentConfig(dg.Config):
    """Options of a deployment."""

    version: str = Field(
        "", description="The version to deploy; empty: the one this run trained, else the newest candidate."
    )
    rollout: bool = Field(
        True, description="Roll out over live traffic; false promotes immediately once the gate has passed."
    )


@dg.asset(
    group_name="rollout",
    kinds={"postgres"},
    owners=OWNERS,
    code_version=code_version("rollout.opening", "rollout.deployment", "rollout.policy"),
    deps=["canary_evaluation"],
)
def deployed_model_version(
    context: dg.AssetExecutionContext, config: DeploymentConfig, platform: PlatformResource
) -> dg.MaterializeResult[None]:
    """The version in service, or being rolled out: opens a rollout to 10, 50 and 100 % of traffic.

    The verdict of exactly this version is read again from the database: materializing this asset alone does
    not bypass the quality gate. `decision_report_sensor` adds what happens later: stages, promotion,
    rollback, and deployments by command. The first production version is promoted immediately.
    """
    from iccm_assets.defs.automation.decision_reports import deployment_metadata
    from iccm_assets.registry.versions import get_version, resolve_candidate
    from iccm_assets.rollout.opening import deploy_candidate

    candidate = resolve_candidate(platform.engine, context.run.run_id, config.version)
    version, metadata = deploy_candidate(
        platform.engine,
        platform.settings,
        candidate,
        actor=f"dagster run {context.run.run_id}",
        rollout=config.rollout,
    )
    with platform.engine.connect() as conn:
        metadata = {**metadata, **deployment_metadata(conn)}
        # While the rollout is live, what depends on the version in service is still up to date.
        production = get_version(conn, "production")
    return dg.MaterializeResult(
        metadata={**with_markdown(metadata), "path": dg.MetadataValue.path(version.path)},
        data_version=dg.DataVersion(production.digest),
    )
