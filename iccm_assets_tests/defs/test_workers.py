"""What a job of a cluster is given, and that its messages arrive whole; without a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from iccm_assets.defs.ray_workers import ChunkedLines, job_parameters, node_environment
from iccm_assets.defs.resources import WORKERS
from iccm_assets.errors import SettingsError
from iccm_assets.settings import RaySettings, Settings, load_settings

URL = "postgresql://u:p@db/iccm"


@pytest.fixture
def ray_settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("ICCM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ICCM_COMPUTE", "ray")
    monkeypatch.setenv("ICCM_DATABASE_URL", URL)
    monkeypatch.setenv("ICCM_DAGSTER_DATABASE_URL", URL)
    monkeypatch.setenv("ICCM_TRAINING__THREADS", "3")
    return load_settings()


def test_a_node_gets_the_settings_and_the_threads_but_not_the_database_of_dagster(
    ray_settings: Settings,
) -> None:
    environment = node_environment(ray_settings)
    assert environment == {
        "OMP_NUM_THREADS": "3",
        "ICCM_DATABASE_URL": URL,
        "ICCM_HOME": str(ray_settings.home),
        "ICCM_TRAINING__THREADS": "3",
    }


def test_what_the_nodes_set_themselves_is_not_sent_and_threads_set_here_are(
    ray_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("ICCM_STORAGE", "s3://b/p")
    monkeypatch.setenv("ICCM_RAY__NODE_VARIABLES", "ICCM_HOME, ICCM_DATABASE_URL")
    environment = node_environment(load_settings())
    assert environment["OMP_NUM_THREADS"] == "5" and environment["ICCM_STORAGE"] == "s3://b/p"
    assert not {"ICCM_HOME", "ICCM_DATABASE_URL", "ICCM_COMPUTE"} & environment.keys()


def test_a_job_reserves_what_the_settings_say_and_that_of_a_scoring_pass_nothing() -> None:
    limits = RaySettings(num_cpus=4, num_gpus=1, memory_gib=0.5, python="/opt/python")
    job = job_parameters(limits, "iccm_assets.training.trainer_worker", {"A": "1"}, limits.num_gpus)
    assert job == {
        "entrypoint": "/opt/python -m iccm_assets.training.trainer_worker",
        "runtime_env": {"env_vars": {"A": "1"}},
        "entrypoint_num_cpus": 4,
        "entrypoint_num_gpus": 1,
        "entrypoint_memory": 2**29,
    }
    assert job_parameters(limits, "iccm_assets.scoring.scoring_worker", {}, 0.0).keys() == {
        "entrypoint",
        "runtime_env",
    }


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"ICCM_COMPUTE": "slurm"}, "ICCM_COMPUTE"),
        (
            {"ICCM_COMPUTE": "ray", "ICCM_RAY__ADDRESS": "ray://head:10001"},
            "ICCM_RAY__ADDRESS.*http://HOST:PORT",
        ),
        ({"ICCM_COMPUTE": "ray", "ICCM_RAY__ADDRESS": "http://head:8265"}, "requires ICCM_DATABASE_URL"),
        ({"ICCM_COMPUTE": "ray", "ICCM_RAY__NODE_VARIABLES": "ICCM_HOME"}, "requires ICCM_STORAGE"),
        ({"ICCM_RAY__NODE_VARIABLES": "AWS_PROFILE"}, "unknown variable AWS_PROFILE"),
        ({"ICCM_RAY__NUM_CPUS": "0"}, "ICCM_RAY__NUM_CPUS"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_a_settings_error(
    variables: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=problem):
        load_settings()


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iccm_assets.settings.find_spec", lambda name: None)
    monkeypatch.setenv("ICCM_COMPUTE", "ray")
    with pytest.raises(SettingsError, match=r"pip install 'iccm-assets\[ray\]'"):
        load_settings()


def test_every_value_of_the_setting_has_its_client_and_loading_the_definitions_imports_no_ray() -> None:
    assert set(WORKERS) == {"local", "ray"}
    code = (
        "import sys; from iccm_assets.definitions import defs; defs().get_repository_def()\n"
        "print({'ray', 'dagster_ray'} & {*sys.modules})"
    )
    environment = {**os.environ, "ICCM_COMPUTE": "ray"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_lines_in_chunks_of_any_size_arrive_whole_and_once(size: int) -> None:
    text = 'first\n\n{"a": "long line"}\nlast without its end'
    lines, read = ChunkedLines(), []
    for start in range(0, len(text) - 20, size):  # the connection breaks before the end
        read += lines.add(text[start : start + size])
    assert read + lines.finish(text) == ["first", '{"a": "long line"}', "last without its end"]


def test_a_message_stands_on_a_line_of_its_own_between_what_else_is_written() -> None:
    code = (
        "import sys; from iccm_assets.worker_process import LineChannel\n"
        "sys.stderr.write('50% |####'); sys.stderr.flush(); sys.stdout.write('half a line')\n"
        "LineChannel().write_message({'x' * 10: 'y' * 100_000}); print('rest')"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    lines = done.stdout.splitlines()
    assert json.loads(lines[1]) == {"x" * 10: "y" * 100_000}
    assert lines[0].endswith("half a line") and lines[2] == "rest"
