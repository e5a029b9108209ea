"""`iccm dev` starts everything with one command and stops it all on Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import httpx2
import psutil
import pytest

from iccm_assets_tests.factories.commands import iccm
from iccm_assets_tests.factories.processes import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SECONDS = 240


def answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx2.get(url, timeout=10).status_code == 200:
                return True
        except httpx2.HTTPError:
            pass
        time.sleep(0.5)
    return False


def test_database_gateway_ui_and_daemon_start_with_one_command_and_end_with_ctrl_c(tmp_path) -> None:
    ui, gateway, home = free_port(), free_port(), tmp_path / "home"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ICCM_")}
    command = [sys.executable, "-c", "from iccm_assets.cli.main import main; main()", "dev"]
    with (tmp_path / "said").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(ui), "--gateway-port", str(gateway)],
            env={**inherited, "ICCM_HOME": str(home)}, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        read_log = (tmp_path / "said").read_text
        assert answers(f"http://127.0.0.1:{gateway}/readyz", process), read_log()
        assert answers(f"http://127.0.0.1:{ui}/server_info", process), read_log()
        children = psutil.Process(process.pid).children(recursive=True)
        assert any("daemon" in " ".join(child.cmdline()) for child in children)
        # Before Ctrl-C only: Dagster's daemon logs a tick that is interrupted with its traceback.
        assert f"http://127.0.0.1:{ui}" in read_log() and "Traceback" not in read_log()
        assert "superseded" not in read_log() and "will not be used" not in read_log()
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0, read_log()
        psutil.wait_procs(children, timeout=30)
        assert [
            child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE
        ] == []
        status = iccm("db", "status", "--json", ICCM_HOME=str(home))
        assert '"running": false' in status.stdout
    finally:
        if process.poll() is None:
            process.kill()
        iccm("db", "stop", ICCM_HOME=str(home))


def test_a_port_in_use_is_reported_in_one_line(tmp_path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        try:
            process = iccm("dev", "--gateway-port", port, ICCM_HOME=str(tmp_path / "home"))
        finally:
            iccm("db", "stop", ICCM_HOME=str(tmp_path / "home"))
    assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in process.stderr and "Traceback" not in process.stderr
