"""`iccm doctor` names what is missing with its fix, and fails only for requirements."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from iccm_assets.cli import doctor, machine_checks
from iccm_assets.cli.machine_checks import SystemCheck
from iccm_assets.errors import ModelError
from iccm_assets.models import model_probe
from iccm_assets.models.model_probe import ModelAnswer
from iccm_assets.registry.manifest import Prompt
from iccm_assets.rollout import deployment
from iccm_assets.settings import Settings, load_settings
from iccm_assets_tests.factories.commands import Run


@pytest.fixture(autouse=True)
def probed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Models answer without being loaded; returns their directories."""
    directories: list[Path] = []

    def answer(directory: Path, settings: Settings) -> ModelAnswer:
        directories.append(directory)
        if "dead" in directory.name:
            raise ModelError(f"{directory} cannot answer", hint="Copy it again.")
        return ModelAnswer("seq2seq", 1000, 100, "the function shall", Prompt())

    monkeypatch.setattr(model_probe, "probe_model", answer)
    return directories


def load_checks(run: Run, exit_code: int = 1) -> dict[str, dict[str, Any]]:
    report = json.loads(run("doctor", "--json", exit_code=exit_code).stdout)
    return {check["name"]: check for check in report["checks"]}


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
        "ICCM_ORCHESTRA: part 2 is not openai:http://host:port/v1#model" in (report["checks"][-1]["detail"])
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
        ("ICCM_REHEARSAL", "/no/such/file", "rehearsal"),
        ("ICCM_REHEARSAL", __file__, "rehearsal"),
        ("ICCM_EMBEDDER", "/no/such/model", "embedder"),
        ("ICCM_BASE_MODEL", "/no/such/model", "base model"),
        ("ICCM_ORCHESTRA", "nobody", "orchestra"),
        ("ICCM_ORCHESTRA_QUORUM", "4", "orchestra"),
        ("ICCM_TRAINING__OBJECTIVE", "dpo", "base model"),
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
        check = machine_checks.check_port(listener.getsockname()[1])
    assert (check.ok, check.required) == (False, False)
    assert "iccm dev --port" in check.fix


def test_disk_space_is_checked_where_the_home_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = machine_checks.check_disk(tmp_path / "not" / "there" / "yet")
    assert check.ok
    assert str(tmp_path) in check.detail
    monkeypatch.setattr(machine_checks, "MIN_DISK_BYTES", 1 << 60)
    full = machine_checks.check_disk(tmp_path)
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
    restriction, advice = machine_checks.find_namespace_restriction(tmp_path)
    assert bool(restriction) == bool(fix)
    assert fix in advice


def test_the_unsafe_mode_fails_the_sandbox_check() -> None:
    (check,) = machine_checks.check_sandbox(load_settings(sandbox="unsafe"))
    assert not check.ok
    assert "Unset ICCM_SANDBOX" in check.fix


def test_a_base_model_that_cannot_answer_is_a_missing_requirement(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "dead").mkdir()
    monkeypatch.setenv("ICCM_BASE_MODEL", str(tmp_path / "dead"))
    check = load_checks(run)["base model"]
    assert not check["ok"] and check["required"]
    assert "cannot answer" in check["detail"] and check["fix"] == "Copy it again."


def test_the_base_model_and_the_version_in_production_are_loaded(
    engine: sa.Engine, settings: Settings, probed: list[Path]
) -> None:
    assert list(doctor.check_production(settings)) == []
    with engine.begin() as conn:
        version = deployment.bootstrap(conn, digest="a" * 64, path="/models/dead", base_model="other").version
    loads, base = doctor.check_production(settings)
    assert probed == [Path("/models/dead")]
    assert not loads.ok and loads.required and "iccm deploy VERSION --force --skip-rollout" in loads.fix
    assert not base.ok and not base.required
    assert f"descends from {version} (other)" in base.detail and "iccm evaluate" in base.fix


@pytest.mark.parametrize(
    ("missing", "summary"), [(1, "1 requirement is missing."), (2, "2 requirements are missing.")]
)
def test_one_missing_requirement_is_in_the_singular(
    run: Run, monkeypatch: pytest.MonkeyPatch, missing: int, summary: str
) -> None:
    checks = [SystemCheck(f"part {number}", False, True, "lost", "find it") for number in range(missing)]
    warning = SystemCheck("chromium", False, False, "not found", "install it")
    monkeypatch.setattr(doctor, "run_checks", lambda: iter([*checks, warning]))
    assert run("doctor", exit_code=1).stdout.splitlines()[-1] == summary


def test_a_database_that_does_not_run_has_no_production_to_load(probed: list[Path], tmp_path: Path) -> None:
    for values in ({"home": tmp_path}, {"database_url": "postgresql://app@127.0.0.1:9/iccm"}):
        assert list(doctor.check_production(load_settings(**values))) == []
    assert probed == []


def test_a_base_model_without_a_rehearsal_sample_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert doctor.check_rehearsal(load_settings()).ok
    check = doctor.check_rehearsal(load_settings(base_model=str(tmp_path)))
    assert not check.ok and not check.required and "ICCM_REHEARSAL" in check.fix


def test_the_rules_that_cannot_decide_with_a_canary_set_are_warnings(tmp_path: Path) -> None:
    path = tmp_path / "canary.jsonl"
    suite = {"kind": "cases", "cases": [{"new": "C", "steps": [{"call": "f"}]}]}
    item = {"item": "a", "slice": "s", "source_code": "x", "requirements": "y", "test_suite": suite}
    path.write_text(json.dumps(item))
    readable, *limits = doctor.check_canary_set(load_settings(canary_set=str(path)))
    assert readable.ok and readable.detail.startswith("1 item in 1 slice, ")
    assert [(check.ok, check.required, bool(check.fix)) for check in limits] == [(False, False, True)] * 3


def test_trackers_that_are_missing_or_without_an_address_are_requirements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("ICCM_TRAINING__REPORT_TO", "mlflow,tensorboard,wandb")
    monkeypatch.setenv("ICCM_MLFLOW_MODEL", "cet-d")
    checks = {check.name: check for check in doctor.check_trackers(load_settings())}
    assert [name for name, check in checks.items() if check.ok] == ["tracker tensorboard"]
    assert "MLFLOW_TRACKING_URI is not set" in checks["tracker mlflow"].detail
    assert checks["tracker wandb"].fix.startswith("`pip install wandb`")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow:5000")
    assert [check.detail for check in doctor.check_trackers(load_settings()) if "ow" in check.name] == [
        "http://***@mlflow:5000",
        "http://***@mlflow:5000",
    ]
    monkeypatch.delenv("ICCM_TRAINING__REPORT_TO")
    monkeypatch.delenv("ICCM_MLFLOW_MODEL")
    assert list(doctor.check_trackers(load_settings())) == []


def test_the_processes_of_a_training_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def check(**environment: str) -> SystemCheck:
        with monkeypatch.context() as variables:
            for name, value in {"TRAINING__ACCELERATE_CONFIG": str(path), **environment}.items():
                variables.setenv(f"ICCM_{name}", value)
            [result] = doctor.check_processes(load_settings())
        return result

    path = tmp_path / "accelerate.yaml"
    assert list(doctor.check_processes(load_settings())) == []
    assert "accelerate.yaml cannot be read" in check().detail
    path.write_text("{distributed_type: MULTI_CPU, num_processes: 2, use_cpu: true}")
    assert check() == SystemCheck("training processes", True, True, "2 processes, MULTI_CPU, on CPUs")
    odd = check(TRAINING__BATCH_SIZE="1", TRAINING__GRADIENT_ACCUMULATION_STEPS="3")
    assert not odd.ok and "cannot share equally" in odd.detail
    path.write_text("{distributed_type: MULTI_GPU, num_processes: 800}")
    many = {"TRAINING__GRADIENT_ACCUMULATION_STEPS": "800"}
    assert "needs 800 GPUs" in check(**many).detail
    on_cluster = check(**many, COMPUTE="ray", RAY__NUM_GPUS="8")
    assert not on_cluster.ok and on_cluster.fix == "Set ICCM_RAY__NUM_GPUS=800."
    assert check(**many, COMPUTE="ray", RAY__NUM_GPUS="800").ok
