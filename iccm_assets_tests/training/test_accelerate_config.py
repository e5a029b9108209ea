"""The file of ICCM_TRAINING__ACCELERATE_CONFIG: what the trainer would not follow is refused before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from iccm_assets.errors import InputError, SettingsError
from iccm_assets.settings import TrainingSettings
from iccm_assets.training.accelerate_config import load_accelerate_config
from iccm_assets_tests.factories.deployments import DEPLOY

FSDP = yaml.safe_load((DEPLOY / "accelerate" / "fsdp.yaml").read_text("utf-8"))
# As `accelerate config` writes it for two GPUs of one machine.
GPUS = {
    "compute_environment": "LOCAL_MACHINE", "debug": False, "distributed_type": "MULTI_GPU",
    "downcast_bf16": "no", "enable_cpu_affinity": False, "gpu_ids": "all", "machine_rank": 0,
    "main_training_function": "main", "mixed_precision": "bf16", "num_machines": 1, "num_processes": 2,
    "rdzv_backend": "static", "same_network": True, "tpu_env": [], "tpu_use_cluster": False,
    "tpu_use_sudo": False, "use_cpu": False,
}  # fmt: skip


def load(tmp_path: Path, values: Any, **settings: Any) -> Any:
    path = tmp_path / "config.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    return load_accelerate_config(TrainingSettings(accelerate_config=str(path), **settings))


def test_without_the_setting_one_process_trains() -> None:
    assert load_accelerate_config(TrainingSettings()) is None


def test_the_manifest_gets_what_decides_about_the_weights_and_no_more(tmp_path: Path) -> None:
    assert load(tmp_path, GPUS).describe_for_manifest() == {
        "distributed_type": "MULTI_GPU", "num_processes": 2, "mixed_precision": "bf16", "use_cpu": False,
    }  # fmt: skip
    sharded = load(tmp_path, FSDP).describe_for_manifest()
    assert sharded["num_processes"] == 8
    assert sharded["fsdp_config"].items() >= FSDP["fsdp_config"].items()


def test_the_examples_of_a_step_have_to_divide_among_the_processes(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"step has 6 examples .* 8 processes cannot share equally"):
        load(tmp_path, FSDP, batch_size=2, gradient_accumulation_steps=3)
    assert load(tmp_path, FSDP, batch_size=2, gradient_accumulation_steps=4).num_processes == 8


def test_what_several_processes_cannot_train_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="the objective dpo trains in one process"):
        load(tmp_path, GPUS, objective="dpo")
    with pytest.raises(SettingsError, match="FSDP shards a model of which all weights are trained"):
        load(tmp_path, FSDP, method="lora")
    assert load(tmp_path, GPUS, method="lora", objective="rft").num_processes == 2


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({**GPUS, "num_procesess": 4}, "num_procesess: not supported"),
        ({**GPUS, "num_processes": 1}, "num_processes: Input should be greater than or equal to 2"),
        ({**GPUS, "num_machines": 2}, "num_machines: Input should be 1"),
        ({**GPUS, "main_process_ip": "10.0.0.1"}, "main_process_ip: not supported"),
        ({**GPUS, "distributed_type": "DEEPSPEED"}, "distributed_type: Input should be 'MULTI_CPU'"),
        ({**GPUS, "mixed_precision": "fp8"}, "mixed_precision: Input should be 'no' or 'bf16'"),
        ({**GPUS, "use_cpu": True}, "use_cpu: true and distributed_type: MULTI_CPU go together"),
        ({**FSDP, "use_cpu": True}, "trains whole models on CPUs without saying so"),
        ({**GPUS, "distributed_type": "FSDP"}, "distributed_type: FSDP and a fsdp_config go together"),
        ({**FSDP, "fsdp_config": {"fsdp_version": 1}}, "fsdp_config.fsdp_version: Input should be 2"),
        ("a: [", "cannot be read"),
        ("just text", "valid dictionary"),
        ("", "valid dictionary"),
        ("\x00", "cannot be read"),
    ],
)
def test_a_wrong_file_is_named_with_its_problem(values: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, values)
    assert problem in caught.value.detail and "config.yaml" in caught.value.detail
    assert "ICCM_TRAINING__ACCELERATE_CONFIG" in caught.value.hint


def test_a_file_that_is_not_there_or_is_not_text_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.yaml", tmp_path):
        with pytest.raises(InputError, match=f"{path.name} cannot be read"):
            load_accelerate_config(TrainingSettings(accelerate_config=str(path)))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="binary cannot be read"):
        load_accelerate_config(TrainingSettings(accelerate_config=str(tmp_path / "binary")))
