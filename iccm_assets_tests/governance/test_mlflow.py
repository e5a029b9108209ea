"""A real MLflow server: runs, figures, versions, aliases and who served when (L13)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from iccm_assets.db.clock import set_clock
from iccm_assets.errors import InputError, ModelError
from iccm_assets.governance.model_export import export_version
from iccm_assets.governance.registry_mirror import (
    MirrorReport,
    mirror_decisions,
    read_history,
    run_mirror_process,
    versions_served_at,
)
from iccm_assets.registry import versions
from iccm_assets.registry.mlflow_registry import MlflowRegistry, VersionRecord
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.reporting import traffic_history
from iccm_assets.settings import Settings
from iccm_assets.training.run_tracking import update_runs, version_tags
from iccm_assets.training.trainer_worker import train
from iccm_assets_tests.factories.model_registries import DecisionHistory, MlflowServer, run_mlflow_server
from iccm_assets_tests.factories.tiny_models import tiny_t5
from iccm_assets_tests.factories.training_jobs import tiny_job
from iccm_assets_tests.factories.verdicts import store_verdict

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Three histories: a plain one, one with a rollout that is taken back, one that ends in a rollback.
HISTORIES: list[list[tuple[str, int]]] = [
    [("pass", 1), ("promote", 1), ("fail", 2), ("promote", 3)],
    [("pass", 1), ("open", 1), ("advance", 0), ("advance", 0), ("take_back", 0), ("pass", 2)],
    [("promote", 1), ("pass", 2), ("open", 2), ("advance", 0), ("abort", 0), ("roll_back", 0)],
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with run_mlflow_server(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


@pytest.fixture
def client(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    from mlflow import MlflowClient

    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return MlflowClient(server.url)


@pytest.fixture
def version(engine: sa.Engine, settings: Settings, tmp_path: Path) -> str:
    """A version in production with a model and a verdict."""
    stored = ModelStore(settings.home).import_model(str(tiny_t5(tmp_path / "tiny")))
    with engine.begin() as conn:
        values = {"path": str(stored.path), "parent": None, "status": "production"}
        made = versions.register_version(conn, digest=stored.digest, **values)
    store_verdict(engine, made.version, made.version, "better")
    return made.version


def test_a_run_has_the_curve_the_name_of_its_version_and_the_figures_of_its_gate(
    client: Any, tmp_path: Path
) -> None:
    warnings: list[str] = []
    job = tiny_job(tmp_path, epochs=1, report_to="mlflow", report_timeout_seconds=300)
    outcome = train(job, warn=warnings.append)
    assert warnings == []
    run_id = outcome.tracker_runs["mlflow"]
    started = client.get_run(run_id)
    assert (started.info.run_name, started.info.status) == ("training-1", "FINISHED")
    assert started.data.tags["iccm.dataset_digest"] == outcome.dataset_digest
    assert started.data.params["learning_rate"] == "0.002" and started.data.params["d_model"]
    made = versions.ModelVersion("v2-x", "v1-y", "candidate", outcome.digest, "", {}, None, None)  # type: ignore[arg-type]
    figures = {"gate/improvement": 0.25, "gate/candidate_slice/dates": 0.5}
    update_runs(
        outcome.tracker_runs,
        made.version,
        home=tmp_path,
        timeout_seconds=300,
        warn=warnings.append,
        tags={**version_tags(made), "iccm.verdict": "pass"},
        figures=figures,
    )
    assert warnings == []
    [run] = client.search_runs([started.info.experiment_id], "attributes.run_name = 'v2-x'")
    assert run.info.run_id == run_id
    assert (run.data.tags["iccm.digest"], run.data.tags["iccm.verdict"]) == (outcome.digest, "pass")
    assert {name: run.data.metrics[name] for name in figures} == figures
    curve = {point.step: point.value for point in client.get_metric_history(run_id, "loss")}
    assert curve == {
        point.step: pytest.approx(point.loss) for point in outcome.history if point.loss is not None
    }
    losses = [point.value for point in client.get_metric_history(run_id, "eval_loss")]
    assert losses == [pytest.approx(p.validation_loss) for p in outcome.history if p.validation_loss]


def test_an_exported_version_is_one_version_of_the_model_with_files_card_and_evidence(
    client: Any,
    engine: sa.Engine,
    version: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from transformers import AutoModelForSeq2SeqLM

    with engine.connect() as conn:
        first, second = (export_version(conn, "production", "mlflow://exported") for _ in range(2))
    assert first.location == second.location == "models:/exported/1"
    assert capfd.readouterr().out == ""  # where `iccm export --json` prints its document
    [made] = client.search_model_versions("name='exported'")
    assert made.tags["iccm.version"] == version and made.tags["iccm.verdict"] == "pass"
    assert made.tags["iccm.digest"] == first.digest and made.tags["iccm.files"] == "complete"
    folder = Path(client.download_artifacts(made.run_id, "model", str(tmp_path)))
    assert json.loads((folder / "evidence.json").read_text())["version"] == version
    assert f"Version `{version}`" in (folder / "README.md").read_text()
    assert AutoModelForSeq2SeqLM.from_pretrained(folder).num_parameters() > 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="did not take"), engine.connect() as conn:
        export_version(conn, "production", "mlflow://exported")


def test_an_adapter_and_the_model_merged_from_it_never_share_a_version_or_a_directory(
    client: Any, tmp_path: Path
) -> None:
    run = client.create_run(client.create_experiment("merging")).info.run_id
    record = VersionRecord("v7-abc", {}, tracker_run=run)
    adapter, whole = tmp_path / "adapter", tmp_path / "whole"
    for folder, name in ((adapter, "adapter_model.safetensors"), (whole, "model.safetensors")):
        folder.mkdir()
        (folder / name).write_bytes(b"weights")
    for _ in range(2):
        first = MlflowRegistry("cet-d").upload_version(record, adapter)
        second = MlflowRegistry("cet-d-merged").upload_version(record, whole, merged=True)
    assert (first, second) == (("1", False), ("1", False))
    with pytest.raises(InputError, match=r"v7-abc with other files: adapter_model\.safetensors"):
        MlflowRegistry("cet-d").upload_version(record, whole, merged=True)
    with pytest.raises(InputError, match=r"v7-abc with other files: model\.safetensors"):
        MlflowRegistry("cet-d-merged").upload_version(record, adapter)
    MlflowRegistry("cet-d-merged").ensure_version(replace(record, evidence="{}"))
    files = [
        sorted(Path(file.path).name for file in client.list_artifacts(run, made))
        for made in ("model", "model-merged")
    ]
    assert files == [["adapter_model.safetensors"], ["evidence.json", "model.safetensors"]]


def test_the_server_knows_who_served_when_as_the_database_does_though_it_is_away_for_half_of_it(
    client: Any, server: MlflowServer, engine: sa.Engine, settings: Settings
) -> None:
    for number, history in enumerate(HISTORIES):
        model = f"cet-d {number}"
        world = DecisionHistory(engine, settings.model_copy(update={"mlflow_model": model})).bootstrap()
        registry = MlflowRegistry(model)
        for position, (decision, candidate) in enumerate(history):
            world.do(decision, candidate, 600.0)
            if position == len(history) // 2 - 1:
                early = mirror_decisions(engine, world.settings, registry, time_budget_seconds=300)
                assert (early.pending, early.error) == (0, "")
                server.stop()
        assert mirror_decisions(engine, world.settings, registry).error
        server.start()
        with engine.begin() as conn:
            set_clock(conn, shift=timedelta(hours=2))
        report = mirror_decisions(engine, world.settings, registry, time_budget_seconds=300)
        assert (report.pending, report.error) == (0, "")
        entries = read_history(registry)
        with engine.connect() as conn:
            for at in world.served():
                assert versions_served_at(entries, at) == traffic_history.versions_served_at(conn, at)
            production = versions.get_production_version(conn)
        assert production is not None
        aliases = client.get_registered_model(model).aliases
        holder = client.get_model_version_by_alias(model, "production")
        assert holder.tags["iccm.version"] == production.version and str(aliases["production"])
        assert len(client.search_model_versions(f"name='{model}'")) == len({e.version for e in entries})
        artifacts = [file.path for file in client.list_artifacts(holder.run_id, "model")]
        assert artifacts == ["model/README.md", "model/evidence.json"]


def test_the_process_of_the_sensor_delivers_and_a_server_that_is_away_is_an_error_with_its_reason(
    client: Any, engine: sa.Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = DecisionHistory(engine, settings.model_copy(update={"mlflow_model": "by process"})).bootstrap()
    monkeypatch.setenv("ICCM_MLFLOW_MODEL", "by process")
    monkeypatch.setenv("ICCM_ALERTS__TIME_BUDGET_SECONDS", "50")
    monkeypatch.setenv("ICCM_DATABASE_URL", str(settings.database_url))
    monkeypatch.setenv("ICCM_HOME", str(settings.home))
    limits = world.settings.alerts.model_copy(update={"time_budget_seconds": 50.0})
    patient = world.settings.model_copy(update={"alerts": limits})
    assert run_mirror_process(engine, patient) == MirrorReport(1, 0)
    world.do("promote", 1, 60.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    report = run_mirror_process(engine, patient)
    assert (report.delivered, report.pending) == (0, 1)
    assert "127.0.0.1" in report.error and "secret" not in report.error
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI is not set"):
        run_mirror_process(engine, patient)
