"""The code location as Dagster sees it: what it loads, what it must not import, and that names stay put."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

import iccm_assets
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
    "apprise",
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


def test_loading_needs_no_project_file(tmp_path: Path) -> None:
    """It is not there where the package comes from a wheel, and reading it is slow (U6)."""
    package = Path(iccm_assets.__file__).parent
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    script = f"import iccm_assets; print(iccm_assets.__file__); {LOADED}"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(str(tmp_path))


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
        "production_quality",
        "reconstructions",
        "training_pool",
    ]
    checks = [
        "base_model:production_checksum_matches",
        "canary_evaluation:no_missing_items",
        "canary_evaluation:quality_gate",
        "canary_set:digest_is_unchanged",
        "canary_set:no_train_test_overlap",
        "canary_set:slices_have_min_items",
        "conversations:daily_volume_is_normal",
        "conversations:content_is_valid",
        "conversations:spool_is_flushed",
        "deployed_model_version:exactly_one_production_version",
        "deployed_model_version:statuses_match_rollout",
        "deployed_model_version:canary_lease_is_active",
        "filtered_conversations:partitions_are_fresh",
        "filtered_conversations:no_contamination",
        "filtered_conversations:yesterday_is_materialized",
        "fine_tuned_checkpoint:checkpoint_checksum_matches",
        "fine_tuned_checkpoint:lineage_is_complete",
        "fine_tuned_checkpoint:weights_changed",
        "production_quality:production_quality_is_stable",
        "reconstructions:inconclusive_rate_is_low",
        "reconstructions:no_missing_scores",
        "reconstructions:suites_are_usable",
        "training_pool:no_duplicates",
        "training_pool:row_counts_reconcile",
    ]
    assert sorted(key.to_user_string() for key in graph.asset_check_keys) == sorted(checks)
    assert sorted(name for name in repository.job_names if not name.startswith("__")) == [
        "daily_data_job",
        "live_scoring_job",
        "maintenance_job",
        "production_quality_job",
        "retrain_job",
    ]
    assert {schedule.name: schedule.default_status for schedule in repository.schedule_defs} == {
        "daily_data_schedule": dg.DefaultScheduleStatus.RUNNING,
        "live_scoring_schedule": dg.DefaultScheduleStatus.RUNNING,
        "maintenance_schedule": dg.DefaultScheduleStatus.RUNNING,
        "production_quality_schedule": dg.DefaultScheduleStatus.RUNNING,
        "weekly_retrain_schedule": dg.DefaultScheduleStatus.RUNNING,
    }
    assert {sensor.name: sensor.default_status for sensor in repository.sensor_defs} == {
        "alert_delivery_sensor": dg.DefaultSensorStatus.RUNNING,
        "new_data_threshold_sensor": dg.DefaultSensorStatus.RUNNING,
        "quality_degradation_sensor": dg.DefaultSensorStatus.RUNNING,
        "retrain_dispatch_sensor": dg.DefaultSensorStatus.RUNNING,
        "run_failure_alert_sensor": dg.DefaultSensorStatus.RUNNING,
        "rollout_controller_sensor": dg.DefaultSensorStatus.RUNNING,
    }


def test_every_asset_has_a_description_a_group_and_an_owner(repository: dg.RepositoryDefinition) -> None:
    graph = repository.asset_graph
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description and node.group_name != "default" and node.owners, key


def test_loading_warns_of_nothing_and_links_every_asset_to_its_code(
    repository: dg.RepositoryDefinition, recwarn: pytest.WarningsRecorder
) -> None:
    defs().get_repository_def()
    assert [str(warning.message) for warning in recwarn if "iccm_assets" in warning.filename] == []
    graph = repository.asset_graph
    made = [graph.get(key) for key in graph.get_all_asset_keys() if graph.get(key).is_materializable]
    for node in made:
        [link] = node.metadata["dagster/code_references"].code_references
        assert link.file_path.endswith(".py") and "iccm_assets/defs" in link.file_path


def test_tables_show_their_columns(repository: dg.RepositoryDefinition) -> None:
    graph = repository.asset_graph
    for key in ("conversations", "reconstructions", "filtered_conversations", "training_pool", "canary_set"):
        assert graph.get(dg.AssetKey(key)).metadata["dagster/column_schema"].columns


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
