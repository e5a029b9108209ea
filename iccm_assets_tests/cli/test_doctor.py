"""`iccm doctor` names what is missing with its fix, and fails only for requirements."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from iccm_assets.cli import doctor
from iccm_assets.settings import Settings, load_settings
from iccm_assets_tests.cli.conftest import Run


def test_every_check_has_a_detail_and_every_failed_check_a_fix(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ICCM_HOME", str(tmp_path))
    monkeypatch.setenv("ICCM_BASE_MODEL", str(tmp_path / "no-model"))
    report = json.loads(run("doctor", "--json", exit_code=1).stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert not report["ok"]
    assert {"python", "settings", "postgresql", "disk", "port", "base model", "embedder", "chromium"} <= set(
        checks
    )
    assert any(name.startswith("sandbox") for name in checks)
    assert all(check["detail"] for check in checks.values())
    assert all(bool(check["fix"]) != check["ok"] for check in checks.values())
    assert "no-model" in checks["base model"]["detail"]
    printed = run("doctor", exit_code=1).stdout
    assert "missing base model" in printed
    assert "fix: Use an existing directory" in printed


def test_an_invalid_endpoint_address_fails_the_settings_check(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICCM_ORCHESTRA", "builtin,openai:http://host/v1")
    report = json.loads(run("doctor", "--json", exit_code=1).stdout)
    assert (
        "ICCM_ORCHESTRA: Value error, part 2 is not openai:http://host:port/v1#model"
        in (report["checks"][-1]["detail"])
    )


def test_an_invalid_setting_fails_its_check_without_a_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICCM_TRIGGERS__MIN_EXAMPLES", "none")
    report = json.loads(run("doctor", "--json", exit_code=1).stdout)
    assert report["checks"][-1]["name"] == "settings"
    assert "ICCM_TRIGGERS__MIN_EXAMPLES" in report["checks"][-1]["detail"]


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("ICCM_CANARY_SET", "/no/such/file", "canary set"),
        ("ICCM_ORCHESTRA", "nobody", "orchestra"),
        ("ICCM_ORCHESTRA_QUORUM", "4", "orchestra"),
    ],
)
def test_doctor_reports_what_would_only_fail_a_later_step(
    run: Run, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, name: str
) -> None:
    monkeypatch.setenv(variable, value)
    report = json.loads(run("doctor", "--json", exit_code=1).stdout)
    (check,) = (check for check in report["checks"] if check["name"] == name)
    assert check["required"] and not check["ok"] and value in check["detail"] and check["fix"]


def test_the_database_at_the_url_is_contacted(settings: Settings) -> None:
    check = doctor.check_database(settings)
    assert check.ok
    assert "with pgvector, schema revision" in check.detail
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"postgresql://app:hunter2@127.0.0.1:{free.getsockname()[1]}/iccm"
        unreachable = doctor.check_database(load_settings(database_url=url))
    assert not unreachable.ok and unreachable.required
    assert "127.0.0.1" in unreachable.detail
    assert "ICCM_DATABASE_URL" in unreachable.fix
    assert "hunter2" not in unreachable.detail + unreachable.fix


def test_without_a_url_the_embedded_binaries_are_checked() -> None:
    check = doctor.check_database(load_settings())
    assert check.ok
    assert "embedded, postgres (PostgreSQL)" in check.detail


def test_a_port_in_use_is_reported_but_not_required() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        check = doctor.check_port(listener.getsockname()[1])
    assert (check.ok, check.required) == (False, False)
    assert "dagster dev --port" in check.fix


def test_disk_space_is_checked_where_the_home_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = doctor.check_disk(tmp_path / "not" / "there" / "yet")
    assert check.ok
    assert str(tmp_path) in check.detail
    monkeypatch.setattr(doctor, "MIN_DISK_BYTES", 1 << 60)
    full = doctor.check_disk(tmp_path)
    assert not full.ok
    assert "ICCM_HOME" in full.fix


@pytest.mark.parametrize(
    ("switch", "value", "fix"),
    [
        ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
        ("user/max_user_namespaces", "60000", ""),
    ],
)
def test_a_forbidding_kernel_setting_is_named_with_the_command_that_changes_it(
    tmp_path: Path, switch: str, value: str, fix: str
) -> None:
    (tmp_path / switch).parent.mkdir(parents=True)
    (tmp_path / switch).write_text(f"{value}\n", encoding="ascii")
    restriction, advice = doctor.find_namespace_restriction(tmp_path)
    assert bool(restriction) == bool(fix)
    assert fix in advice


def test_the_unsafe_mode_fails_the_sandbox_check() -> None:
    (check,) = doctor.check_sandbox(load_settings(sandbox="unsafe"))
    assert not check.ok
    assert "Unset ICCM_SANDBOX" in check.fix
