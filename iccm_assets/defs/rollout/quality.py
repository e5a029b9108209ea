"""What production is worth now, measured as it is served (T8)."""

import sys

import dagster as dg

from iccm_assets.defs.resources import Platform
from iccm_assets.orphans import started_by_me


@dg.asset(
    group_name="rollout",
    kinds={"python", "torch"},
    owners=["team:ml-platform"],
    code_version="1",
    deps=["deployed_model_version", "canary_set"],
)
def production_quality(
    context: dg.AssetExecutionContext, platform: Platform, pipes: dg.PipesSubprocessClient
) -> dg.MaterializeResult:
    """The version that serves, on the canary set and on the production holdout, beside its baseline (T8).

    It answers afresh through its serving path: a living gateway, asked so that it counts as nobody's traffic,
    or the same code in a process of its own. `quality_degradation_sensor` reads what is stored here.
    """
    from iccm_assets.errors import IccmError

    answer = pipes.run(
        context=context,
        command=[sys.executable, "-m", "iccm_assets.gateway.quality"],
        env=started_by_me(),
        extras={"dagster_run_id": context.run.run_id},
    )
    reply = next(iter(answer.get_custom_messages()), {})
    if "metadata" not in reply:
        raise IccmError.from_dict(reply.get("error") or {"name": "IccmError", "detail": "", "hint": ""})
    return dg.MaterializeResult(
        metadata={
            name: dg.MetadataValue.md(value["raw_value"]) if isinstance(value, dict) else value
            for name, value in reply["metadata"].items()
        }
    )


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(assets=[production_quality])
