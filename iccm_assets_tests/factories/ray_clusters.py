"""A Ray cluster of two node processes on this machine, bound to 127.0.0.1, in a process that a test ends.

``python -m iccm_assets_tests.factories.ray_clusters DIRECTORY`` starts it and prints the URL of its
dashboard. ``replace`` on stdin kills the second node and adds another one; the end of stdin ends all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from iccm_assets_tests.factories.processes import ROOT, bare_environment, free_port

# Without the second one every process would bind the address of this host.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # A busy machine is slow, not dead.
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_health_check_failure_threshold": "20",
}
# Ray gives its own processes 30 seconds to start.
ATTEMPTS = 3
OBJECT_STORE_BYTES = 80 * 2**20


@dataclass
class RayCluster:
    """A running cluster: the URL of its dashboard, and what its environment was given."""

    address: str
    process: subprocess.Popen[str]
    environment: Mapping[str, str]

    def replace_second_node(self) -> None:
        """Kill all processes of the second node, wait until they have ended, and add another one."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("replace\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "replaced\n"


@contextmanager
def start_cluster(directory: Path, environment: Mapping[str, str] | None = None) -> Iterator[RayCluster]:
    """Start a cluster whose head has one CPU, and whose second node has two; all ends with the block.

    ``environment`` is that of all workers; each node has a home of its own below ``directory``.
    """
    for _ in range(ATTEMPTS):
        process = _start(directory, environment or {})
        assert process.stdout is not None
        try:
            if address := process.stdout.readline().strip():
                yield RayCluster(address, process, environment or {})
                return
        finally:
            _end(process)
    raise AssertionError((directory / "cluster.log").read_text())


def _start(directory: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # Ray writes the cluster's address below it, and makes the directory only for a cluster in its own place.
    (directory / "ray").mkdir(exist_ok=True)
    with (directory / "cluster.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", __name__, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env={
                **bare_environment(),
                **ENVIRONMENT,
                "PATH": path,
                "RAY_TMPDIR": str(directory),
                **environment,
            },
        )


def _end(process: subprocess.Popen[str]) -> None:
    """End the cluster and all its processes."""
    assert process.stdin is not None
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.kill()
    process.wait()
    psutil.wait_procs(family, 20)


def _serve(directory: Path) -> None:
    from ray.cluster_utils import Cluster

    def node_arguments(name: str, cpus: int) -> dict[str, object]:
        return {
            "num_cpus": cpus,
            "node_ip_address": "127.0.0.1",
            "object_store_memory": OBJECT_STORE_BYTES,
            "dashboard_agent_listen_port": free_port(),
            "env_vars": {"ICCM_HOME": str(directory / name)},
        }

    port = free_port()
    dashboard = {
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": port,
        "temp_dir": str(directory),
    }
    cluster = Cluster(initialize_head=True, head_node_args={**node_arguments("head", 1), **dashboard})
    second = cluster.add_node(**node_arguments("second", 2))
    _say(f"http://127.0.0.1:{port}")
    for _ in sys.stdin:
        cluster.remove_node(second, allow_graceful=False)
        second = cluster.add_node(**node_arguments("second", 2))
        _say("replaced")
    cluster.shutdown()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
