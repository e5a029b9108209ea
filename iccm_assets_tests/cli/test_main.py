"""`iccm` reports errors of the machine or the caller in one line, never as a traceback."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator

import pytest

from iccm_assets.cli.main import main
from iccm_assets.settings import get_settings
from iccm_assets_tests.factories.commands import iccm
from iccm_assets_tests.factories.processes import bare_environment


@pytest.fixture
def run_main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[object, str]]]:
    """`run_main("judge", ICCM_HOME=home)` in this process: the exit status and what is on standard error."""
    for name in os.environ.keys() - bare_environment().keys():
        monkeypatch.delenv(name)

    def call(*arguments: str, **environment: str) -> tuple[object, str]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["iccm", *arguments])
        get_settings.cache_clear()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().err

    yield call
    get_settings.cache_clear()


def test_a_too_long_home_path_is_reported_in_one_line() -> None:
    process = iccm("db", "status", ICCM_HOME=f"/tmp/{'x' * 300}")
    assert process.returncode == 1
    assert "File name too long" in process.stderr and process.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [("config", "show"), ("config", "show", "--json")])
def test_a_full_disk_is_reported_in_one_line(command: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        process = iccm(*command, stdout=full.fileno())
    assert process.returncode == 1
    assert process.stderr.startswith("error: No space left on device") and "Traceback" not in process.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("lineage",),
        ("lineage", "v1", "--session", "s"),
        ("judge",),
        ("judge", "--batch", "x", "--suite", "y"),
        ("erase",),
        ("erase", "--user", "u", "--json", "--retrain"),
        ("evaluate", "--set", "a=1"),
        ("deploy", "v1", "--force"),
        ("rollout", "show", "--watch", "0"),
        ("simulate", "--start", "[yesterday]"),
        ("config", "show", "nowhere"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_exit_status_2(arguments: tuple[str, ...], run_main, tmp_path) -> None:
    status, message = run_main(*arguments, ICCM_HOME=str(tmp_path))
    assert status == 2, message
    assert message.startswith("error: The command line is not valid; nothing was done: ")
    assert message.count("\n") == 1 and not any(tmp_path.iterdir())


def test_an_address_in_use_is_not_an_unreadable_input(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = str(listening.getsockname()[1])
        for arguments in (("serve", "--port", port), ("orchestra", "serve", "--port", port)):
            process = iccm(*arguments, ICCM_HOME=str(tmp_path))
            assert process.returncode == 1
            assert process.stderr.startswith("error: The address cannot be used; nothing was started: cannot")
            assert process.stderr.count("\n") == 1


def test_a_version_name_that_is_not_text_is_reported_in_one_line(settings) -> None:
    process = iccm("lineage", "\udcff", ICCM_HOME=str(settings.home), ICCM_DATABASE_URL=settings.database_url)
    assert process.returncode == 1
    assert "not text" in process.stderr and process.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("end", "outside"),
    [
        ("0001-01-01", "0001-01-01"),
        ("2024-12-31", "2024-12-31"),
        ("2025-01-06", "2024-12-31"),  # the first of its seven days
        ("9999-12-31", "9999-12-31"),
    ],
)
def test_days_without_a_partition_are_not_simulated(end: str, outside: str, run_main, tmp_path) -> None:
    status, message = run_main("simulate", "--days", "7", "--end", end, ICCM_HOME=str(tmp_path))
    assert status == 2
    assert f"{outside} has no daily partition: they range from 2025-01-01 to " in message
    assert message.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_skipped_retrain_is_reported_without_dagster_output(tmp_path) -> None:
    try:
        process = iccm("retrain", "--key", "k", ICCM_HOME=str(tmp_path))
    finally:
        iccm("db", "stop", ICCM_HOME=str(tmp_path))
    assert process.returncode == 3, process.stderr
    assert "skipped" in process.stdout and "result  0 of 20 new examples" in process.stdout
    assert "asset check" not in process.stderr
