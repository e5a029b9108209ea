"""The code location as Dagster sees it: what it loads, what it must not import, and that names stay put."""

from __future__ import annotations

import json
import subprocess
import sys

import dagster as dg
import pytest

from iccm_assets.definitions import defs

LOADED = "from iccm_assets.definitions import defs; defs().get_repository_def()"
HEAVY = (
    "torch",
    "transformers",
    "sentence_transformers",
    "psycopg",
    "psycopg2",
    "asyncpg",
    "matplotlib",
    "pandas",
)


@pytest.fixture(scope="module")
def repository() -> dg.RepositoryDefinition:
    loaded = defs()
    dg.Definitions.validate_loadable(loaded)
    return loaded.get_repository_def()


def modules_after(code: str) -> set[str]:
    script = f"import sys, json; {code}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("code", ["import iccm_assets.definitions", LOADED])
def test_the_code_location_loads_without_torch_transformers_or_a_database_driver(code: str) -> None:
    assert modules_after(code).isdisjoint(HEAVY)


def test_asset_keys_jobs_schedules_and_checks_are_the_ones_people_know(
    repository: dg.RepositoryDefinition,
) -> None:
    graph = repository.asset_graph
    assert sorted(key.to_user_string() for key in graph.get_all_asset_keys()) == [
        "base_model",
        "canary_evaluation",
        "canary_set",
        "conversations",
        "deployed_model_version",
        "filtered_conversations",
        "fine_tuned_checkpoint",
        "reconstructions",
        "training_pool",
    ]
    assert sorted(key.to_user_string() for key in graph.asset_check_keys) == [
        "canary_evaluation:quality_gate"
    ]
    assert sorted(name for name in repository.job_names if not name.startswith("__")) == [
        "daily_data_job",
        "retrain_job",
    ]
    assert {schedule.name: schedule.default_status for schedule in repository.schedule_defs} == {
        "daily_data_schedule": dg.DefaultScheduleStatus.RUNNING,
        "weekly_retrain_schedule": dg.DefaultScheduleStatus.RUNNING,
    }


def test_every_asset_has_a_description_a_group_and_an_owner(repository: dg.RepositoryDefinition) -> None:
    graph = repository.asset_graph
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description and node.group_name != "default" and node.owners, key


def test_the_pool_depends_on_its_own_previous_day(repository: dg.RepositoryDefinition) -> None:
    pool = repository.asset_graph.get(dg.AssetKey("training_pool"))
    assert {key.to_user_string() for key in pool.parent_keys} == {"filtered_conversations", "training_pool"}
    mapping = pool.partition_mappings[dg.AssetKey("training_pool")]
    assert (mapping.start_offset, mapping.end_offset) == (-1, -1)


def test_the_gate_blocks_the_deployment(repository: dg.RepositoryDefinition) -> None:
    graph = repository.asset_graph
    gate = graph.get_check_spec(dg.AssetCheckKey(dg.AssetKey("canary_evaluation"), "quality_gate"))
    assert gate.blocking
    deployed = graph.get(dg.AssetKey("deployed_model_version"))
    assert dg.AssetKey("canary_evaluation") in deployed.parent_keys
