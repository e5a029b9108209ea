"""The heartbeat of a rollout: one tick every 30 seconds (R7), and its history as observations."""

import json
from datetime import datetime, timedelta

import dagster as dg

from iccm_assets.defs.resources import Platform
from iccm_assets.defs.show import table

DEPLOYED = dg.AssetKey("deployed_model_version")
# Between two observations of a rollout that has not changed.
AT_MOST_EVERY = timedelta(minutes=5)


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Carries the live rollout on: observes, decides, renews its lease. Launches no runs.",
)
def rollout_controller_sensor(context: dg.SensorEvaluationContext, platform: Platform) -> dg.SensorResult:
    """One tick of the controller; nothing but convenience is kept in the cursor."""
    from iccm_assets.rollout import controller, records
    from iccm_assets.rollout.view import observed, shown, timeline
    from iccm_assets.store.clock import now

    decision = controller.tick(platform.engine, platform.settings)
    seen = json.loads(context.cursor) if context.cursor else {}
    with platform.engine.connect() as conn:
        at = now(conn)
        # Ended by an order, or by another controller, it has its last observation coming.
        state = records.newest(conn) if decision is None else decision.state
        events = records.history(conn, state.id) if state else []
    if state is None:
        return dg.SensorResult(skip_reason="no rollout yet")
    changed = seen.get("shown") != shown(state)
    due = state.live and (not seen or at - datetime.fromisoformat(seen["at"]) >= AT_MOST_EVERY)
    told = f"rollout {state.id} of {state.candidate} is {state.state}: {state.reason}"
    if not (changed or due):
        return dg.SensorResult(skip_reason=told, cursor=context.cursor)
    metadata = {**observed(state, at), "timeline": table(timeline(events))}
    observation = dg.AssetObservation(DEPLOYED, description=told, metadata=metadata)
    cursor = json.dumps({"shown": shown(state), "at": at.isoformat()})
    return dg.SensorResult(skip_reason=told, asset_events=[observation], cursor=cursor)
