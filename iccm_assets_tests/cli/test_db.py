"""`iccm db` and `iccm env`, as a person or a shell script uses them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iccm_assets.cli.env import prepare_dagster_home
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets.settings import load_settings

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    EmbeddedServer(tmp_path / "home").stop()


@pytest.fixture
def iccm(home: Path) -> Command:
    """Runs `iccm …` in a process of its own on an empty home."""

    def run(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("ICCM_", "PG"))
        }
        return subprocess.run(
            [sys.executable, "-c", "from iccm_assets.cli.main import main; main()", *args],
            capture_output=True,
            text=True,
            timeout=120,
            env=inherited | {"ICCM_HOME": str(home)} | variables,
        )

    return run


@pytest.mark.slow
def test_the_embedded_server_starts_reports_its_status_and_stops(iccm, home):
    before = iccm("db", "status")
    assert (before.returncode, before.stdout) == (3, f"not running (data: {home}/postgres/data)\n")

    started = iccm("db", "start")
    assert started.returncode == 0, started.stderr
    assert "running at 127.0.0.1:" in started.stdout
    assert "schema at revision" in started.stdout

    status = json.loads(iccm("db", "status", "--json").stdout)
    assert status["running"] is True
    assert status["revision"] == status["newest_revision"]
    os.kill(status["pid"], 0)

    assert iccm("db", "upgrade").stdout == f"at revision {status['revision']}\n"
    url = iccm("db", "url").stdout.strip()
    assert url.endswith(status["address"])
    result = iccm("db", "shell", "-Atc", "select count(*) from conversations")
    assert result.stdout == "0\n", result.stderr

    stopped = iccm("db", "stop")
    assert (stopped.returncode, stopped.stdout) == (0, "stopped\n")
    assert iccm("db", "stop").stdout == "it was not running\n"
    assert iccm("db", "status").returncode == 3


def test_psql_gets_the_password_only_through_its_environment():
    from iccm_assets.db.client_programs import client_environment

    url = "postgresql://me:s3cret@example.org:5433/mine?sslmode=require"
    variables = client_environment(url, "-c search_path=iccm,public")
    assert variables == {
        "PGUSER": "me",
        "PGPASSWORD": "s3cret",
        "PGHOST": "example.org",
        "PGPORT": "5433",
        "PGDATABASE": "mine",
        "PGSSLMODE": "require",
        "PGOPTIONS": "-c search_path=iccm,public",
    }


def test_an_external_server_is_neither_started_nor_stopped(iccm):
    for verb in ("start", "stop"):
        result = iccm("db", verb, ICCM_DATABASE_URL="postgresql://u:s3cret@127.0.0.1:1/x")
        assert result.returncode == 1
        assert "does not start or stop" in result.stderr


@pytest.mark.parametrize("words", [("db", "status"), ("db", "upgrade"), ("env",), ("db", "url", "--dagster")])
def test_an_unreachable_server_is_reported_in_one_line(iccm, words):
    result = iccm(*words, ICCM_DATABASE_URL="postgresql://u:s3cret@127.0.0.1:1/x")
    assert result.returncode == 1
    assert result.stderr.startswith(
        "error: PostgreSQL cannot be reached; nothing was changed: 127.0.0.1:1/x: "
    )
    assert result.stderr.count("\n") == 1
    assert "s3cret" not in result.stderr + result.stdout


def test_a_home_that_cannot_be_created_is_reported_in_one_line(iccm, tmp_path):
    (tmp_path / "file").touch()
    result = iccm("db", "start", ICCM_HOME=str(tmp_path / "file"))
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_env_prints_the_variables_dagster_needs(iccm, tmp_path, server_url):
    home = tmp_path / "a home with 'quotes'"
    result = iccm("env", ICCM_HOME=str(home), ICCM_DATABASE_URL=server_url)
    assert result.returncode == 0, result.stderr
    shown = subprocess.run(
        [
            "sh",
            "-c",
            'eval "$1"; printf "%s\\n" "$ICCM_HOME" "$DAGSTER_HOME" "$DAGSTER_PG_URL"',
            "sh",
            result.stdout,
        ],
        capture_output=True,
        text=True,
    )
    assert shown.stdout.splitlines() == [str(home), f"{home}/dagster", f"{server_url}_dagster"]
    assert "postgres_url" in (home / "dagster" / "dagster.yaml").read_text(encoding="utf-8")


def test_dagster_yaml_is_updated_only_if_it_differs_from_the_packaged_one(tmp_path):
    settings = load_settings(home=tmp_path)
    written = prepare_dagster_home(settings) / "dagster.yaml"
    before = written.stat()
    prepare_dagster_home(settings)
    assert written.stat().st_mtime_ns == before.st_mtime_ns
    written.write_text("storage: {}\n", encoding="utf-8")
    prepare_dagster_home(settings)
    assert "DAGSTER_PG_URL" in written.read_text(encoding="utf-8")
    assert [path.name for path in written.parent.iterdir()] == ["dagster.yaml"]
