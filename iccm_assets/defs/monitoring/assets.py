"""The quality of production, measured through its serving path."""

import dagster as dg

from iccm_assets.defs.code_versions import code_version
from iccm_assets.defs.metadata import worker_metadata
from iccm_assets.defs.partitions import OWNERS, six_hourly_freshness
from iccm_assets.defs.resources import PlatformResource
from iccm_assets.defs.workers import LocalWorkers


@dg.asset(
    group_name="monitoring",
    kinds={"python", "pytorch"},
    owners=OWNERS,
    code_version=code_version(
        *("monitoring.production_quality", "monitoring.baseline", "models.generation", "suites.suite_runner")
    ),
    pool="production_quality",
    freshness_policy=six_hourly_freshness,
    deps=["deployed_model_version", "canary_set"],
)
def production_quality(
    context: dg.AssetExecutionContext, platform: PlatformResource
) -> dg.MaterializeResult[None]:
    """The production version on the canary set and the production holdout, compared with its baseline.

    Every response is generated again through the serving path: a live gateway, whose probes count as no
    traffic, or the same code in a separate process. `quality_degradation_sensor` reads what is stored here.
    """
    # Never on a cluster: its nodes may not reach the gateways, which register by their own addresses.
    messages = LocalWorkers().run(
        context,
        platform,
        "iccm_assets.monitoring.monitoring_worker",
        {"dagster_run_id": context.run.run_id},
    )
    return dg.MaterializeResult(metadata=worker_metadata(messages))
