"""The code location as Dagster sees it: what it loads, what it must not import, and that names stay put."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

import iccm_assets
from iccm_assets.definitions import defs
from iccm_assets.defs.code_versions import code_version
from iccm_assets.defs.metadata import with_markdown
from iccm_assets.reporting.formatting import snake_case_keys

LOADED = "from iccm_assets.definitions import defs; defs().get_repository_def()"
HEAVY = (
    "torch",
    "transformers",
    "sentence_transformers",
    "psycopg",
    "psycopg2",
    "asyncpg",
    "sqlalchemy",
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
        "test_suites",
        "training_pool",
    ]
    checks = [
        "base_model:production_checksum_matches",
        "base_model:production_descends_from_base_model",
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
        "test_suites:suites_are_recorded",
        "training_pool:no_duplicates",
        "training_pool:row_counts_reconcile",
        "training_pool:user_cap_leaves_enough_examples",
    ]
    assert sorted(key.to_user_string() for key in graph.asset_check_keys) == sorted(checks)
    assert sorted(name for name in repository.job_names if not name.startswith("__")) == [
        "captured_sessions_job",
        "daily_data_job",
        "live_scoring_job",
        "maintenance_job",
        "production_quality_job",
        "retrain_job",
    ]
    assert {schedule.name: schedule.default_status for schedule in repository.schedule_defs} == {
        "captured_sessions_schedule": dg.DefaultScheduleStatus.RUNNING,
        "daily_data_schedule": dg.DefaultScheduleStatus.RUNNING,
        "live_scoring_schedule": dg.DefaultScheduleStatus.RUNNING,
        "maintenance_schedule": dg.DefaultScheduleStatus.RUNNING,
        "production_quality_schedule": dg.DefaultScheduleStatus.RUNNING,
        "weekly_retrain_schedule": dg.DefaultScheduleStatus.RUNNING,
    }
    assert {sensor.name: sensor.default_status for sensor in repository.sensor_defs} == {
        "alert_delivery_sensor": dg.DefaultSensorStatus.RUNNING,
        "decision_report_sensor": dg.DefaultSensorStatus.RUNNING,
        "new_data_threshold_sensor": dg.DefaultSensorStatus.RUNNING,
        "quality_degradation_sensor": dg.DefaultSensorStatus.RUNNING,
        "registry_mirror_sensor": dg.DefaultSensorStatus.RUNNING,
        "retrain_dispatch_sensor": dg.DefaultSensorStatus.RUNNING,
        "run_failure_alert_sensor": dg.DefaultSensorStatus.RUNNING,
        "rollout_controller_sensor": dg.DefaultSensorStatus.RUNNING,
    }


def test_every_asset_has_a_description_a_group_and_an_owner(repository: dg.RepositoryDefinition) -> None:
    graph = repository.asset_graph
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description and node.group_name != "default" and node.owners, key


def test_every_check_states_what_holds_where_it_is_green(repository: dg.RepositoryDefinition) -> None:
    graph = repository.asset_graph
    texts = {key.name: graph.get_check_spec(key).description or "" for key in graph.asset_check_keys}
    questions = [name for name, text in texts.items() if "?" in text or not re.search(r"^[A-Z].*\.$", text)]
    assert questions == []


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


# A longer name covers its value in the tables of the UI.
MAX_NAME_LENGTH = 33


def metadata_names(path: Path) -> Iterator[str]:
    """Constant keys of dictionaries in `defs/`, and in functions elsewhere that build metadata or rows."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    builders = [node for node in functions if re.search(r"metadata$|_rows$|^steps$|counts$", node.name)]
    for scope in [tree] if "defs" in path.parts else builders:
        for mapping in ast.walk(scope):
            keys = mapping.keys if isinstance(mapping, ast.Dict) else ()
            keys = [mapping.key] if isinstance(mapping, ast.DictComp) else keys
            for key in keys:
                parts = key.values if isinstance(key, ast.JoinedStr) else [key]
                yield from (part.value for part in parts if isinstance(part, ast.Constant))


def test_metadata_has_names_in_snake_case() -> None:
    package = Path(iccm_assets.__file__).parent
    names = {(name, path.name) for path in package.rglob("*.py") for name in metadata_names(path)}
    assert len(names) > 100
    assert sorted(pair for pair in names if not re.fullmatch(r"[a-z0-9_/.]*", pair[0])) == []
    assert [pair for pair in names if re.search(r"in_words|in_a_sentence|_story", pair[0])] == []
    own = {pair for pair in names if not pair[0].startswith("dagster/")}
    assert [pair for pair in own if len(pair[0]) > MAX_NAME_LENGTH] == []


@pytest.mark.parametrize("key", ["claude-code", "claude code", "_claude__code", "Claude: code"])
def test_names_made_of_data_are_in_snake_case_too(key: str) -> None:
    assert snake_case_keys({key: 3}, "from") == {"from_claude_code": 3}


def test_every_field_of_the_launchpad_is_described(repository: dg.RepositoryDefinition) -> None:
    undescribed = [
        f"{job.name}: {node.name}.{name}"
        for job in repository.get_all_jobs()
        for node in job.nodes
        for name, field in getattr(node.definition.config_schema.config_type, "fields", {}).items()
        if not field.description
    ]
    assert undescribed == []


def test_only_what_ages_has_a_freshness_policy(repository: dg.RepositoryDefinition) -> None:
    graph = repository.asset_graph
    aging = {key.to_user_string() for key in graph.get_all_asset_keys() if graph.get(key).freshness_policy}
    assert aging == {"conversations", "fine_tuned_checkpoint", "canary_evaluation", "production_quality"}


def test_owners_and_the_first_day_come_from_the_settings() -> None:
    script = (
        f"{LOADED.rpartition(';')[0]}; graph = defs().get_repository_def().asset_graph; "
        "pool = graph.get(graph.get_all_asset_keys().__iter__().__next__()); "
        "from iccm_assets.defs.partitions import daily_partitions; "
        "print(json.dumps([pool.owners, daily_partitions.start.date().isoformat()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import json; {script}"],
        capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "ICCM_OWNERS": "team:data, ada@example.com", "ICCM_FIRST_DAY": "2024-02-29"},
    )  # fmt: skip
    assert json.loads(done.stdout) == [["team:data", "ada@example.com"], "2024-02-29"]


CODE = 'import re\n\nLIMIT = 3\n\n\ndef f(x):\n    """Halve it."""\n    return x / 2  # half\n'


@pytest.mark.parametrize(
    ("before", "after", "moves"),
    [
        ("# half", "# a half", False),
        ("Halve it.", "Return half of it.", False),
        ("import re", "import json", False),
        ("return x / 2", "return (x / 2)", False),
        ("LIMIT = 3", "LIMIT = 4", True),
        ("return x / 2", "return x / 3", True),
        ("return x / 2", 'return "Halve it."', True),
    ],
)
def test_a_code_version_moves_with_the_logic_and_with_nothing_else(
    before: str, after: str, moves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iccm_assets.defs.code_versions.PACKAGE", tmp_path)
    (tmp_path / "a.py").write_text(CODE, encoding="utf-8")
    version = code_version("a")
    (tmp_path / "a.py").write_text(CODE.replace(before, after), encoding="utf-8")
    assert (code_version("a") != version) == moves


def test_every_asset_that_is_made_has_a_code_version_of_its_own(repository: dg.RepositoryDefinition) -> None:
    graph = repository.asset_graph
    made = [graph.get(key) for key in graph.get_all_asset_keys() if graph.get(key).is_materializable]
    versions = {node.key.to_user_string(): node.code_version for node in made}
    assert len(versions) == 10 and len({*versions.values()}) == 10
    assert all(re.fullmatch("[0-9a-f]{8}", version or "") for version in versions.values()), versions


def test_long_texts_are_shown_as_markdown_and_short_ones_as_they_are() -> None:
    shown = with_markdown({"state": "ramping", "reason": "because " * 20, "items": 3})
    assert shown["state"] == "ramping" and shown["items"] == 3
    assert shown["reason"] == dg.MetadataValue.md("because " * 20)
