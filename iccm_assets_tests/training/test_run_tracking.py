"""Experiment trackers show a training and its gate; a broken one costs a warning, and no bit (L13)."""

from __future__ import annotations

import json
import os
import textwrap
import time
from pathlib import Path

import pytest

from iccm_assets.settings import TrainingSettings, load_settings
from iccm_assets.training.run_tracking import RunReporter, update_runs
from iccm_assets.training.trainer_worker import train
from iccm_assets_tests.factories.training_jobs import tiny_job

# What `transformers` imports for its callback of Trackio, misbehaving in one way each.
BROKEN_TRACKIO = {
    "hangs when imported": "import time\ntime.sleep(3600)",
    "hangs when it begins": "import time\ndef init(**_): time.sleep(3600)",
    "raises": "def init(**_): raise RuntimeError('quota exceeded for https://me:secret@host/x')",
    "ends the process": "import os\ndef init(**_): os._exit(3)",
    "prints": "print('{not json')\ndef init(**_): raise SystemExit('no terminal')",
}


@pytest.fixture
def fake_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of modules that the tracking process finds before the installed ones."""
    directory = tmp_path / "modules"
    directory.mkdir()
    inherited = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(directory), inherited))))
    return directory


@pytest.fixture(scope="module")
def untracked_digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return train(tiny_job(tmp_path_factory.mktemp("untracked"), epochs=1)).digest


@pytest.mark.parametrize("fault", BROKEN_TRACKIO)
def test_a_broken_tracker_costs_one_warning_and_delays_no_other(
    fault: str, tmp_path: Path, fake_modules: Path
) -> None:
    (fake_modules / "trackio.py").write_text(BROKEN_TRACKIO[fault])
    (fake_modules / "wandb.py").write_text("def init(**_): raise RuntimeError('reached')")
    warnings: list[str] = []
    runs = {"trackio": "training-1", "wandb": "abc"}
    timeout = 4.0 if fault.startswith("hangs") else 100.0
    update_runs(runs, "v1", home=tmp_path, timeout_seconds=timeout, warn=warnings.append, tags={})
    trackio, *wandb = sorted(warnings)
    assert trackio.startswith("trackio does not show this run completely, which changes nothing else: ")
    assert ("no answer within 4 s" in trackio) == (fault.startswith("hangs"))
    assert "secret" not in trackio
    # A library that ends the process takes the others with it, and no more.
    assert fault == "ends the process" or ("reached" in wandb[0] and len(wandb) == 1)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hangs when it begins", "ends the process"])
def test_a_training_with_a_broken_tracker_has_the_same_bits_and_one_warning(
    fault: str, tmp_path: Path, fake_modules: Path, untracked_digest: str
) -> None:
    reached = tmp_path / "reached"
    code = BROKEN_TRACKIO[fault].replace("def init(**_): ", f"def init(**_): open({str(reached)!r}, 'w'); ")
    (fake_modules / "trackio.py").write_text(code)
    warnings: list[str] = []
    job = tiny_job(tmp_path / "home", epochs=1, report_to="trackio", report_timeout_seconds=45)
    outcome = train(job, warn=warnings.append)
    assert outcome.digest == untracked_digest and outcome.tracker_runs == {}
    assert len(warnings) == 1 and warnings[0].startswith("trackio does not show this run completely")
    assert reached.exists()


@pytest.mark.slow
def test_a_server_that_refuses_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untracked_digest: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    warnings: list[str] = []
    job = tiny_job(tmp_path, epochs=1, report_to="mlflow", report_timeout_seconds=100)
    assert train(job, warn=warnings.append).digest == untracked_digest
    [warning] = warnings
    assert warning.startswith("mlflow ") and "127.0.0.1:9" in warning


@pytest.mark.slow
def test_missing_packages_and_settings_are_one_warning_each_and_tensorboard_has_the_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, untracked_digest: str
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name in ("MLFLOW_TRACKING_URI", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.delenv(name, raising=False)
    warnings: list[str] = []
    trackers = "tensorboard, mlflow, wandb"
    job = tiny_job(tmp_path, epochs=1, report_to=trackers, report_timeout_seconds=100)
    outcome = train(job, warn=warnings.append)
    assert outcome.digest == untracked_digest
    mlflow, wandb = sorted(warnings)
    assert "MLFLOW_TRACKING_URI is not set" in mlflow and "wandb to be installed" in wandb
    assert outcome.tracker_runs == {"tensorboard": "training-1"}
    named = {"iccm.version": "v2-0123abcd"}
    figures = {"gate/improvement": 0.25, "gate/candidate_slice/dates": 0.5}
    update_runs(
        outcome.tracker_runs,
        "v2-0123abcd",
        home=tmp_path,
        timeout_seconds=100,
        warn=warnings.append,
        tags=named,
        figures=figures,
    )
    assert len(warnings) == 2 and not (tmp_path / "tensorboard" / "training-1").exists()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "v2-0123abcd")).Reload()
    curve = {event.step: event.value for event in events.Scalars("train/loss")}
    assert curve == {
        point.step: pytest.approx(point.loss) for point in outcome.history if point.loss is not None
    }
    losses = [event.value for event in events.Scalars("eval/loss")]
    assert losses == [pytest.approx(p.validation_loss) for p in outcome.history if p.validation_loss]
    assert {name: events.Scalars(name)[0].value for name in figures} == figures


def test_a_full_queue_drops_points_and_never_waits(tmp_path: Path, fake_modules: Path) -> None:
    (fake_modules / "sitecustomize.py").write_text("import time\ntime.sleep(3600)")  # reads nothing
    warnings: list[str] = []
    started = time.process_time()
    with RunReporter(("tensorboard",), 0.2, warnings.append) as reporter:
        for step in range(20_000):
            reporter.send({"log": {"step": step, "logs": {"loss": "x" * 100}}})
        reporter.finish()
    assert time.process_time() - started < 5
    hanging, dropped = warnings
    assert "no answer within 0.2 s" in hanging and "points of the curve were dropped" in dropped


def test_trackers_receive_what_they_are_told_in_order_and_the_end(tmp_path: Path, fake_modules: Path) -> None:
    received = tmp_path / "received"
    (fake_modules / "trackio.py").write_text(
        textwrap.dedent(
            f"""
            import json, types
            __version__ = "1.0.0"
            context_vars = types.SimpleNamespace(current_space_id=types.SimpleNamespace(get=lambda: None))
            def note(*values):
                with open({str(received)!r}, "a") as file:
                    file.write(json.dumps(values, default=str) + "\\n")
            class Config(dict):
                def update(self, values, allow_val_change=True):
                    note("config", values["learning_rate"], values["d_model"])
            config = Config()
            def init(project, name, **_): note("init", project, name)
            def log(values, **_): note("log", values)
            def finish(*_, **__): note("finish")
            def freeze(**_): note("freeze")
            """
        )
    )
    warnings: list[str] = []
    job = tiny_job(tmp_path / "home", epochs=1, report_to="trackio", report_timeout_seconds=100)
    outcome = train(job, warn=warnings.append)
    assert warnings == [] and outcome.tracker_runs == {"trackio": "training-1"}
    notes = [json.loads(line) for line in received.read_text().splitlines()]
    assert notes[0] == ["init", "iccm", "training-1"] and notes[1][:2] == ["config", 2e-3]
    losses = [note[1]["train/loss"] for note in notes if note[0] == "log" and "train/loss" in note[1]]
    assert losses == [point.loss for point in outcome.history if point.loss is not None]
    assert "finish" in notes[-1]


def test_trackers_are_known_names_and_no_part_of_a_candidates_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TrainingSettings(report_to=" wandb,mlflow ").trackers == ("mlflow", "wandb")
    assert TrainingSettings().trackers == ()
    monkeypatch.setenv("ICCM_TRAINING__REPORT_TO", "mlflow,comet")
    with pytest.raises(Exception, match="'comet' unknown; known: mlflow, trackio, tensorboard, wandb"):
        load_settings()
    plain, tracked = tiny_job(tmp_path), tiny_job(tmp_path, report_to="wandb", report_timeout_seconds=1)
    assert plain.hyperparameters == tracked.hyperparameters
