"""Assets, checks, and jobs, schedules and sensors, from the definitions of the code location."""

from __future__ import annotations

from functools import cache
from typing import Any

import dagster as dg

from iccm_assets.definitions import defs
from scripts.reference.markdown import code, codes, page, prose, section, table

ASSETS = """
The assets by group. The catalog of the Dagster UI shows the same, with what each materialization measured. A
type with `?` may be null. [A tour](../tutorial/tour.md) has pictures.
"""
CHECKS = """
Each check is a statement that holds on a healthy platform. When a blocking check does not pass, its run
ends and nothing after it is materialized; the others only report. A check that does not pass says what to
do.
"""
AUTOMATION = """
What runs by itself, once Dagster's daemon runs. [What the platform does
automatically](../explanation/automation.md) describes how the triggers decide.
"""
COLUMN_HEAD = ("column", "type", "meaning")


@cache
def _repository() -> dg.RepositoryDefinition:
    return defs().get_repository_def()


def render_assets() -> str:
    """Return the page of the assets."""
    graph = _repository().asset_graph
    nodes = [graph.get(key) for key in graph.get_all_asset_keys()]
    nodes.sort(key=lambda node: (node.group_name, node.key.to_user_string()))
    return page("Assets", ASSETS, *map(_asset, nodes))


def _asset(node: Any) -> str:
    facts = {
        "group": code(node.group_name),
        "kinds": codes(sorted(node.kinds)),
        "depends on": codes(sorted(key.to_user_string() for key in node.parent_keys)),
        "partitions": "UTC days" if node.partitions_def else "",
        "table": code(node.metadata.get("dagster/table_name", "")),
    }
    known = [f"- {name}: {fact}" for name, fact in facts.items() if fact]
    schema = node.metadata.get("dagster/column_schema")
    columns = [
        (code(item.name), item.type + "?" * item.constraints.nullable, prose(item.description))
        for item in _columns(schema)
    ]
    name = node.key.to_user_string()
    return section(name, prose(node.description), "\n".join(known), table(COLUMN_HEAD, columns))


def _columns(schema: Any) -> list[dg.TableColumn]:
    return [] if schema is None else list(getattr(schema, "schema", schema).columns)


def render_checks() -> str:
    """Return the page of the asset checks."""
    graph = _repository().asset_graph
    keys = sorted(graph.asset_check_keys, key=lambda key: (key.asset_key.to_user_string(), key.name))
    rows = [
        (
            code(key.asset_key.to_user_string()),
            code(key.name),
            "yes" if (spec := graph.get_check_spec(key)).blocking else "",
            prose(spec.description),
        )
        for key in keys
    ]
    return page("Asset checks", CHECKS, table(("asset", "check", "blocking", "statement"), rows))


def render_automation() -> str:
    """Return the page of jobs, schedules and sensors."""
    repository = _repository()
    jobs = [job for job in repository.get_all_jobs() if not job.name.startswith("__")]
    schedules = [
        (code(item.name), code(item.cron_schedule), code(item.job_name), prose(item.description))
        for item in sorted(repository.schedule_defs, key=lambda item: item.name)
    ]
    sensors = [
        (
            code(item.name),
            f"{item.minimum_interval_seconds} s",
            codes(target.job_name for target in item.targets),
            prose(item.description),
        )
        for item in sorted(repository.sensor_defs, key=lambda item: item.name)
    ]
    return page(
        "Jobs, schedules and sensors",
        AUTOMATION,
        section(
            "Jobs", table(("job", "steps", "meaning"), map(_job, sorted(jobs, key=lambda job: job.name)))
        ),
        section("Schedules", "All times are UTC.", table(("schedule", "cron", "job", "meaning"), schedules)),
        section("Sensors", table(("sensor", "interval", "starts", "meaning"), sensors)),
    )


def _job(job: dg.JobDefinition) -> tuple[str, str, str]:
    keys = _repository().asset_graph.asset_check_keys
    checks = {f"{key.asset_key.to_python_identifier()}_{key.name}" for key in keys}
    steps = sorted({node.name for node in job.nodes} - checks)
    return code(job.name), codes(steps), prose(job.description)
