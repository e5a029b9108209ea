from __future__ import annotations

import json

import pytest

from iccm_assets.errors import IccmError, NoWeightsChangedError, TrainingError
from iccm_assets.registry.loss_curve import LossPoint
from iccm_assets.reporting.formatting import markdown_image
from iccm_assets.reporting.plots import plot_loss_curve
from iccm_assets.settings import TrainingSettings
from iccm_assets.training.worker_protocol import (
    TrainingJob,
    TrainingOutcome,
    WeightChange,
    parse_job,
    parse_reply,
    to_reply,
)

OUTCOME = TrainingOutcome(
    digest="d", path="/models/d", weights_digest="w", parent_digest="p", dataset_digest="s",
    counts={"new": 3},
    history=(LossPoint(0, 4, 0.0, validation_loss=2.0), LossPoint(1, 4, 0.5, 1.5, None, 1e-3, 0.2)),
    best_epoch=2.0, best_validation_loss=1.0, initial_validation_loss=2.0,
    weight_change=WeightChange(0.01, 0.1, 1.0), parameters=10, device="cpu", seconds={"train": 1.0},
)  # fmt: skip


def test_a_job_survives_the_process_boundary() -> None:
    job = TrainingJob(
        home="/home", base="base", dataset="data", config=TrainingSettings(learning_rate=5e-4), run_id="7",
        attempt=2, fence=3, emergency=True, training_run_id=7,
    )  # fmt: skip
    assert parse_job(json.loads(json.dumps(job.model_dump(mode="json")))) == job


@pytest.mark.parametrize(
    "values", [{}, {"config": {"nonsense": 1}}, {"config": {}, "home": "x"}, {"config": None}]
)
def test_values_that_are_no_job_are_a_training_error(values: dict) -> None:
    with pytest.raises(TrainingError):
        parse_job(values)


def test_an_emergency_has_its_own_number_of_epochs() -> None:
    job = TrainingJob(
        home="h", base="b", dataset="d", config=TrainingSettings(epochs=9, emergency_epochs=4), run_id="1"
    )
    assert job.epochs == 9
    assert job.model_copy(update={"emergency": True}).epochs == 4


def test_the_outcome_survives_the_process_boundary() -> None:
    messages = [{"other": 1}, json.loads(json.dumps(to_reply(OUTCOME)))]
    assert parse_reply(messages) == OUTCOME


def test_an_error_is_raised_again_by_its_class_with_detail_and_hint() -> None:
    with pytest.raises(NoWeightsChangedError) as caught:
        parse_reply([json.loads(json.dumps(to_reply(NoWeightsChangedError("rate 0", hint="Raise it."))))])
    assert (caught.value.detail, caught.value.hint) == ("rate 0", "Raise it.")


@pytest.mark.parametrize("messages", [[], ["text"], [{"progress": 1}]])
def test_a_trainer_without_a_reply_is_a_training_error(messages: list) -> None:
    with pytest.raises(TrainingError, match="without a reply"):
        parse_reply(messages)


def test_an_error_of_unknown_name_is_a_platform_error() -> None:
    with pytest.raises(IccmError):
        parse_reply([{"error": {"name": "SomethingNew", "detail": "x", "hint": ""}}])


def test_the_log_lines_contain_step_epoch_and_loss() -> None:
    before, step = OUTCOME.history
    assert before.to_log_line() == "step 0/4 epoch 0.00 validation loss 2.0000"
    assert step.to_log_line() == "step 1/4 epoch 0.50 loss 1.5000 learning rate 1.00e-03 gradient 0.200"


def test_the_curve_is_a_png_even_without_points() -> None:
    for history in ((), OUTCOME.history):
        assert plot_loss_curve(history).startswith(b"\x89PNG\r\n\x1a\n")
    assert plot_loss_curve(()) != plot_loss_curve(OUTCOME.history)
    assert markdown_image(plot_loss_curve(OUTCOME.history), "loss").startswith(
        "![loss](data:image/png;base64,iVBOR"
    )
