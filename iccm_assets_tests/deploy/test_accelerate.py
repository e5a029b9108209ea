"""deploy/accelerate/fsdp.yaml: every key and value is one that the installed accelerate reads (K4)."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from iccm_assets_tests.factories.deployments import DEPLOY

FSDP = DEPLOY / "accelerate" / "fsdp.yaml"


def variables(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What `accelerate launch` sets for its processes."""
    # It asks torch how many GPUs there are.
    arguments = ["--config_file", str(path), "--gpu_ids", "all", "train.py"]
    parsed, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    return prepare_multi_gpu_env(parsed)


def test_every_key_is_an_option_of_accelerate_launch() -> None:
    config = yaml.safe_load(FSDP.read_text("utf-8"))
    assert load_config_from_file(str(FSDP)).distributed_type.value == "FSDP"
    options = {action.dest for action in launch_command_parser()._actions}
    assert set(config["fsdp_config"]) <= options and set(config["fsdp_config"])


def test_a_key_that_accelerate_does_not_know_is_an_error(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(FSDP.read_text("utf-8") + "num_procesess: 8\n", encoding="utf-8")
    with pytest.raises(ValueError, match="num_procesess"):
        load_config_from_file(str(wrong))


def test_the_processes_shard_the_model_as_the_file_says(monkeypatch: pytest.MonkeyPatch) -> None:
    made = variables(FSDP, monkeypatch)
    for name, value in made.items():
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)
    assert made["ACCELERATE_USE_FSDP"] == "true" and made["ACCELERATE_MIXED_PRECISION"] == "bf16"
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.activation_checkpointing and plugin.cpu_ram_efficient_loading
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert type(plugin.cpu_offload).__name__ == "OffloadPolicy"  # not CPUOffloadPolicy
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
