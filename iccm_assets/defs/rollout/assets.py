"""Rolling a proven candidate out (section 7)."""

import dagster as dg

from iccm_assets.defs.resources import Platform


class DeploymentConfig(dg.Config):
    """Which version to deploy; empty: the one this run trained, else the newest candidate.

    ``rollout`` false promotes at once after the gate, without traffic in between.
    """

    version: str = ""
    rollout: bool = True


@dg.asset(
    group_name="rollout",
    kinds={"postgres"},
    owners=["team:ml-platform"],
    code_version="2",
    deps=["canary_evaluation"],
)
def deployed_model_version(
    context: dg.AssetExecutionContext, config: DeploymentConfig, platform: Platform
) -> dg.MaterializeResult:
    """The version that serves, or is on its way: opens the candidate's rollout (10, 50, 100 %; R1-R9).

    The verdict of this very version is read again from the database: launching this asset alone does not
    bypass the quality gate (E4). What becomes of the rollout is observed here, by
    `rollout_controller_sensor`. The first production version is promoted at once.
    """
    from iccm_assets.rollout.candidates import trained_in
    from iccm_assets.rollout.delivery import deliver

    candidate = trained_in(platform.engine, context.run.run_id, config.version)
    delivered = deliver(
        platform.engine,
        platform.settings,
        candidate,
        actor=f"dagster run {context.run.run_id}",
        rollout=config.rollout,
    )
    return dg.MaterializeResult(
        metadata={**delivered.metadata, "path": dg.MetadataValue.path(delivered.version.path)},
        data_version=dg.DataVersion(delivered.version.digest),
    )
