"""What compose.yaml starts, started as processes of this machine: in its order, as its roles, until healthy.

The commands and variables are those of the file; only addresses, ports and directories are other ones.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import yaml

from iccm_assets_tests.factories.deployments import (
    DEPLOY,
    Container,
    compose_containers,
    read_dotenv,
    read_yaml,
)
from iccm_assets_tests.factories.external_servers import external_server
from iccm_assets_tests.factories.gateways import eventually
from iccm_assets_tests.factories.processes import BIN, ROOT, bare_environment, free_port, stop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ONE_SHOT = ("migrations", "base-model")
LONG_LIVED = ("code", "webserver", "daemon", "gateway-1", "gateway-2")
SECONDS = 300.0


class OutsideCompose:
    """The services of compose.yaml as processes."""

    def __init__(self, database: str, directory: Path) -> None:
        self.containers = {
            container.name.removeprefix("compose "): container for container in compose_containers()
        }
        self.directory, self.processes = directory, {}
        self.ports = {name: free_port() for name in ("code", "webserver", "gateway-1", "gateway-2")}
        self._replaced = {
            "postgres:5432": database,
            "0.0.0.0": "127.0.0.1",
            "/opt/iccm/workspace.yaml": str(directory / "workspace.yaml"),
        }
        workspace = read_yaml(DEPLOY / "dagster" / "workspace.yaml")
        workspace["load_from"][0]["grpc_server"] |= {"host": "127.0.0.1", "port": self.ports["code"]}
        (directory / "workspace.yaml").write_text(yaml.safe_dump(workspace), encoding="utf-8")
        dagster = directory / "dagster"
        dagster.mkdir()
        (dagster / "dagster.yaml").write_bytes((ROOT / "dagster.yaml").read_bytes())

    def environment(self, container: Container) -> dict[str, str]:
        own = {
            "ICCM_HOME": str(self.directory / "home"),
            "DAGSTER_HOME": str(self.directory / "dagster"),
            "OMP_NUM_THREADS": "1",
            **{name: self._replace(str(value)) for name, value in container.variables.items()},
        }
        return bare_environment() | own

    def command(self, name: str, words: tuple[str, ...]) -> list[str]:
        if name in self.ports:
            words = tuple(word.replace(self._port(name), str(self.ports[name])) for word in words)
        # Both `python -c …` and the scripts beside it.
        program = sys.executable if words[0] == "python" else str(BIN / words[0])
        return [program, *map(self._replace, words[1:])]

    def _port(self, name: str) -> str:
        return self.containers[name].option("--port")

    def _replace(self, text: str) -> str:
        for old, new in self._replaced.items():
            text = text.replace(old, new)
        return text

    def run(self, name: str) -> None:
        """Run a service that ends."""
        done = self._run(self.command(name, self.containers[name].command), name)
        assert done.returncode == 0, done.stdout + done.stderr

    def execute(self, name: str, words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        """Run another command with the variables of a service, as `docker compose exec` does."""
        backup = str(self.directory / "backup")
        return self._run(
            self.command(name, tuple(backup if word == "BACKUP" else word for word in words)), name
        )

    def start(self, name: str) -> None:
        with (self.directory / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                self.command(name, self.containers[name].command),
                env=self.environment(self.containers[name]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
            )

    def is_healthy(self, name: str) -> bool:
        """Run the health check of a service."""
        assert self.processes[name].poll() is None, (self.directory / f"{name}.log").read_text()
        [probe] = self.containers[name].probes
        return self._run(self.command(name, tuple(shlex.split(probe))), name).returncode == 0

    def _run(self, command: list[str], name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self.environment(self.containers[name]),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutsideCompose]:
    with external_server() as server:
        started = OutsideCompose(server.address, tmp_path_factory.mktemp("compose"))
        try:
            for name in ONE_SHOT:
                started.run(name)
            for name in LONG_LIVED:
                started.start(name)
            yield started
        finally:
            stop(list(started.processes.values()))


def test_the_services_are_all_that_run_the_image(platform: OutsideCompose) -> None:
    assert set(platform.containers) == {*ONE_SHOT, *LONG_LIVED}


@pytest.mark.parametrize("name", LONG_LIVED)
def test_a_service_becomes_healthy_by_its_own_check(platform: OutsideCompose, name: str) -> None:
    eventually(lambda: platform.is_healthy(name), SECONDS, f"{name} is never healthy")


def test_both_gateways_answer_and_count_as_replicas(platform: OutsideCompose) -> None:
    token = read_dotenv()["GATEWAY_TOKEN"]
    with httpx2.Client(headers={"Authorization": f"Bearer {token}"}, timeout=60) as client:
        for name in ("gateway-1", "gateway-2"):
            url = f"http://127.0.0.1:{platform.ports[name]}"
            body = {"source_code": "def add(a, b):\n    return a + b\n", "session_id": f"s-{name}"}
            answer = client.post(f"{url}/v1/requirements", json=body)
            assert answer.status_code == 200 and answer.json()["requirements"], answer.text
            # The scrape of Prometheus, with the token of its secret.
            eventually(lambda url=url: "iccm_gateway_replicas 2.0" in client.get(f"{url}/metrics").text)


def test_dagster_lists_the_code_location_under_the_name_of_its_module(platform: OutsideCompose) -> None:
    query = "{ workspaceOrError { ... on Workspace { locationEntries { name loadStatus } } } }"
    url = f"http://127.0.0.1:{platform.ports['webserver']}/graphql"
    entries = httpx2.post(url, json={"query": query}, timeout=60).json()["data"]["workspaceOrError"]
    assert entries["locationEntries"] == [{"name": "iccm_assets.definitions", "loadStatus": "LOADED"}]


@pytest.mark.parametrize(
    "command",
    [
        ("iccm", "status", "--json"),
        ("iccm", "token", "create", "ci", "--scope", "requirements"),
        ("iccm", "db", "shell", "-Atc", "select version, digest from iccm.model_versions"),
        ("iccm", "erase", "--session", "s-gateway-1", "--yes", "--json"),
        ("iccm", "backup", "BACKUP", "--json"),
        ("iccm", "restore", "BACKUP", "--verify", "--json"),
    ],
    ids=lambda command: " ".join(command[1:3]),
)
def test_a_persons_command_works_in_the_container_of_the_code_location(
    platform: OutsideCompose, command: tuple[str, ...]
) -> None:
    done = platform.execute("code", command)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_person_in_the_container_of_a_gateway_cannot_deploy_or_make_tokens(
    platform: OutsideCompose,
) -> None:
    for command in (("iccm", "token", "create", "own"), ("iccm", "retrain", "--reason", "own")):
        done = platform.execute("gateway-1", command)
        assert done.returncode == 1 and "permission denied" in done.stderr, done.stdout + done.stderr


def test_a_second_start_changes_nothing(platform: OutsideCompose) -> None:
    for name in ONE_SHOT:
        platform.run(name)


def test_a_stopped_gateway_leaves_nothing_in_its_spool(platform: OutsideCompose) -> None:
    """By SIGTERM, as a container is stopped."""
    process = platform.processes["gateway-2"]
    os.kill(process.pid, 15)
    assert process.wait(timeout=60) == 0
    spool = platform.directory / "home" / "spool"
    assert not [path for path in spool.rglob("*.log") if str(process.pid) in str(path)]
