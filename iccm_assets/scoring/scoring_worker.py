"""The scoring worker: one scoring pass, in this process or shared by the nodes of a Ray cluster.

A request is JSON: ``days`` = [first, last] scores the texts of these days, ``live_seconds`` answers of the
gateway within a time budget (`live_scoring`). The asset `reconstructions` and the live scoring job call
`work`; on a cluster they run ``python -m iccm_assets.scoring.scoring_worker`` under
Pipes, and it starts a task on each node.

Tasks share a pass like any concurrent passes: each claims rows before it scores them (scoring_queue.py). The
claims of a killed task end with its connection, and Ray starts it again on a node that is left.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from typing import Any

import sqlalchemy as sa
from dagster_pipes import PipesContext

from iccm_assets.db.database import connect
from iccm_assets.db.worker_presence import exit_without_presence
from iccm_assets.errors import ComputeError, IccmError, first_line
from iccm_assets.scoring import orchestra
from iccm_assets.scoring.live_scoring import score_live_pages
from iccm_assets.scoring.scoring_pass import ScoringReport, score_unscored
from iccm_assets.scoring.suite_recordings import record_live_suites
from iccm_assets.settings import RaySettings, Settings, load_settings
from iccm_assets.worker_process import run_pipes_worker

# A task is started again so often after its node or its process died.
TASK_RETRIES = 3

LogFunction = Callable[[str], None]


def parse_days(days: Sequence[str]) -> tuple[date, date]:
    """Return the first and the last day of a request."""
    first, last = map(date.fromisoformat, days)
    return first, last


def work(
    engine: sa.Engine, settings: Settings, request: Mapping[str, Any], log: LogFunction
) -> dict[str, Any]:
    """Run the requested pass in this process and return its report as JSON values.

    Of the tasks that share a live pass the first one records suites, too.
    """
    scored = 0

    def progress(count: int) -> None:
        nonlocal scored
        scored += count
        log(f"scored {scored} requirements texts")

    members = orchestra.load_orchestra_from_settings(settings)
    if "days" in request:
        days = parse_days(request["days"])
        return score_unscored(engine, members, settings, days=days, progress=progress).to_dict()
    deadline = time.monotonic() + request["live_seconds"]
    if request.get("task", 0) == 0:
        record_live_suites(engine, settings, deadline=deadline)
    return score_live_pages(engine, members, settings, deadline=deadline, progress=progress).to_dict()


def work_on_cluster(settings: Settings, request: Mapping[str, Any], log: LogFunction) -> dict[str, Any]:
    """Run the requested pass as tasks on the nodes of the cluster that this process belongs to.

    Raises the first error of a task once all have ended; the scores of the others are stored.
    """
    import ray

    ray.init(log_to_driver=False, configure_logging=False)
    limits = settings.ray
    task = ray.remote(_work_on_node).options(
        num_cpus=limits.num_cpus,
        memory=int(limits.memory_gib * 2**30) or None,
        scheduling_strategy="SPREAD",
        max_retries=TASK_RETRIES,
    )
    running = [task.remote({**request, "task": number}) for number in range(_count_tasks(limits))]
    log(f"{len(running)} tasks share the pass")
    reports, nodes, errors = [], Counter[str](), []
    while running:
        [finished], running = ray.wait(running)
        try:
            node, values = ray.get(finished)
        except ray.exceptions.RayTaskError as error:
            errors.append(_to_iccm_error(error))
        except ray.exceptions.RayError as error:
            errors.append(ComputeError(f"a scoring task ended: {type(error).__name__}: {first_line(error)}"))
        else:
            report = ScoringReport.from_dict(values)
            reports.append(report)
            nodes[node] += report.scored + report.inconclusive
            log(f"node {node[:8]}: {report.scored} scored, {report.inconclusive} inconclusive")
    if errors:
        raise errors[0]
    return {**_sum_reports(reports).to_dict(), "nodes": dict(nodes)}


def _count_tasks(limits: RaySettings) -> int:
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    cpus = [node["Resources"].get("CPU", 0) for node in nodes if node["Alive"]]
    suitable = [count for count in cpus if count >= limits.num_cpus]
    if not suitable:
        raise ComputeError(
            f"no node of the cluster has {limits.num_cpus:g} CPUs", hint="Set a lower ICCM_RAY__NUM_CPUS."
        )
    return limits.scoring_tasks or len(suitable)


def _work_on_node(request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Run one task; return the id of its node and its report."""
    import ray

    settings = load_settings()
    engine = connect(settings)
    try:
        values = work(engine, settings, request, lambda message: None)
    finally:
        engine.dispose()
    return ray.get_runtime_context().get_node_id(), values


def _to_iccm_error(error: Any) -> IccmError:
    cause = error.cause
    return cause if isinstance(cause, IccmError) else ComputeError(f"a scoring task failed: {cause!r}")


def _sum_reports(reports: Sequence[ScoringReport]) -> ScoringReport:
    """Add the reports of tasks that selected the same rows."""
    selected = max(report.selected_rows for report in reports)
    return replace(sum(reports, ScoringReport()), selected_rows=selected)


def _work_for(pipes: PipesContext) -> dict[str, Any]:
    settings = load_settings()
    exit_without_presence(partial(connect, settings))
    return work_on_cluster(settings, pipes.extras, pipes.log.info)


def main() -> int:
    """Run the worker under Dagster Pipes, in a job of a Ray cluster."""
    return run_pipes_worker(_work_for)


if __name__ == "__main__":
    sys.exit(main())
