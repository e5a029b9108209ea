"""Putting a proven candidate in production (section 7, first form: at once)."""

from pathlib import Path

import dagster as dg

from iccm_assets.defs.resources import Platform


class DeploymentConfig(dg.Config):
    """Which version to deploy; empty: the one this run trained, else the newest candidate."""

    version: str = ""


@dg.asset(
    group_name="rollout",
    kinds={"postgres"},
    owners=["team:ml-platform"],
    code_version="1",
    deps=["canary_evaluation"],
)
def deployed_model_version(
    context: dg.AssetExecutionContext, config: DeploymentConfig, platform: Platform
) -> dg.MaterializeResult:
    """The version that serves. Promotes the candidate, with its event, in one transaction (M1).

    The verdict of this very version is read again from the database: launching this asset alone does not
    bypass the quality gate (E4).
    """
    from iccm_assets.learning import versions
    from iccm_assets.models.manifest import verify
    from iccm_assets.rollout import deployment
    from iccm_assets.rollout.candidates import trained_in

    candidate = trained_in(platform.engine, context.run_id, config.version)
    with platform.engine.connect() as conn:
        verify(Path(versions.get(conn, candidate).path))
    promoted, authorisation = deployment.deploy(
        platform.engine, candidate, actor=f"dagster run {context.run_id}"
    )
    return dg.MaterializeResult(
        metadata={
            "version": promoted.version,
            "former_version": authorisation.evidence["production"] or "",
            "reason": authorisation.reason,
            "weight": 1.0,
            "path": dg.MetadataValue.path(promoted.path),
        },
        data_version=dg.DataVersion(promoted.digest),
    )
