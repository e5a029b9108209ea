"""The configuration of `accelerate` for a training in several processes of one machine (K4).

The file is read once, where the job is made; the job and the version's manifest carry its content. What the
trainer would not follow is refused: `accelerate` itself ignores much without saying so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from iccm_assets.errors import InputError, SettingsError, first_line
from iccm_assets.settings import TrainingSettings

_STRICT = ConfigDict(frozen=True, extra="forbid")
_HINT = "Correct ICCM_TRAINING__ACCELERATE_CONFIG or the file."
# What decides about the weights. The other keys say where and how the processes run.
_WEIGHT_KEYS = {"distributed_type", "num_processes", "mixed_precision", "use_cpu", "fsdp_config"}


class FsdpConfig(BaseModel):
    """How FSDP shards the model; checkpoints have whole weights, which a gateway loads."""

    model_config = _STRICT

    fsdp_version: Literal[2]
    fsdp_state_dict_type: Literal["FULL_STATE_DICT"]
    fsdp_auto_wrap_policy: Literal["TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP"] = (
        "TRANSFORMER_BASED_WRAP"
    )
    fsdp_transformer_layer_cls_to_wrap: str | None = None
    fsdp_min_num_params: int | None = None
    fsdp_reshard_after_forward: bool = True
    fsdp_activation_checkpointing: bool = False
    fsdp_cpu_ram_efficient_loading: bool = False
    fsdp_offload_params: Literal[False] = False


class AccelerateConfig(BaseModel):
    """The keys of a configuration file of `accelerate`, for several processes on one machine.

    ``num_processes`` processes train one candidate: ``MULTI_GPU`` and ``MULTI_CPU`` with a whole model each,
    ``FSDP`` with a part of it each.
    """

    model_config = _STRICT

    distributed_type: Literal["MULTI_CPU", "MULTI_GPU", "FSDP"]
    num_processes: int = Field(ge=2)
    mixed_precision: Literal["no", "bf16"] = "no"
    use_cpu: bool = False
    fsdp_config: FsdpConfig | None = None
    gpu_ids: str | None = None
    main_process_port: int | None = None
    enable_cpu_affinity: bool = False
    debug: bool = False
    # What `accelerate config` also writes, with the only values that mean one machine with CPUs or GPUs.
    compute_environment: Literal["LOCAL_MACHINE"] = "LOCAL_MACHINE"
    num_machines: Literal[1] = 1
    machine_rank: Literal[0] = 0
    rdzv_backend: Literal["static"] = "static"
    same_network: bool = True
    main_training_function: str = "main"
    downcast_bf16: Literal["no", False] = "no"
    tpu_env: list[str] = Field(default=[], max_length=0)
    tpu_use_cluster: Literal[False] = False
    tpu_use_sudo: Literal[False] = False

    @model_validator(mode="after")
    def _check_consistency(self) -> AccelerateConfig:
        if self.use_cpu != (self.distributed_type == "MULTI_CPU"):
            raise ValueError(
                "use_cpu: true and distributed_type: MULTI_CPU go together; with another type accelerate"
                " trains whole models on CPUs without saying so"
            )
        if self.use_cpu and self.mixed_precision != "no":
            raise ValueError("CPUs train with mixed_precision: no")
        if (self.distributed_type == "FSDP") != (self.fsdp_config is not None):
            raise ValueError("distributed_type: FSDP and a fsdp_config go together")
        return self

    @property
    def is_sharded(self) -> bool:
        """Whether each process has a part of the model."""
        return self.distributed_type == "FSDP"

    def describe_for_manifest(self) -> dict[str, Any]:
        """Return what decides about the weights, as JSON values."""
        return self.model_dump(mode="json", include=_WEIGHT_KEYS, exclude_none=True)


def load_accelerate_config(config: TrainingSettings) -> AccelerateConfig | None:
    """Read the file of ``ICCM_TRAINING__ACCELERATE_CONFIG``; None if it is not set.

    Raises ``InputError`` if it cannot be read or has a key or value that the trainer does not follow, and
    ``SettingsError`` if the training settings do not go with it.
    """
    if not config.accelerate_config:
        return None
    path = Path(config.accelerate_config)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        detail = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"{path} cannot be read ({detail})", hint=_HINT) from error
    try:
        accelerate = AccelerateConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {_describe(error)}", hint=_HINT) from error
    require_trainable(config, accelerate)
    return accelerate


def require_trainable(config: TrainingSettings, accelerate: AccelerateConfig) -> None:
    """Raise ``SettingsError`` if several processes cannot do what is configured."""
    examples = config.batch_size * config.gradient_accumulation_steps
    if examples % accelerate.num_processes:
        raise SettingsError(
            f"an optimizer step has {examples} examples (ICCM_TRAINING__BATCH_SIZE × ICCM_TRAINING__"
            f"GRADIENT_ACCUMULATION_STEPS), which {accelerate.num_processes} processes cannot share equally",
            hint="Make the product a multiple of num_processes in the file of"
            " ICCM_TRAINING__ACCELERATE_CONFIG.",
        )
    if config.objective == "dpo":
        raise SettingsError(
            "the objective dpo trains in one process, but ICCM_TRAINING__ACCELERATE_CONFIG asks for"
            f" {accelerate.num_processes}",
            hint="Unset it, or set ICCM_TRAINING__OBJECTIVE to sft or rft.",
        )
    if accelerate.is_sharded and config.method == "lora":
        raise SettingsError(
            "FSDP shards a model of which all weights are trained, but this one is trained as an adapter, by"
            " ICCM_TRAINING__METHOD or because of its size",
            hint="Set ICCM_TRAINING__METHOD=full, or distributed_type: MULTI_GPU in the file of"
            " ICCM_TRAINING__ACCELERATE_CONFIG.",
        )


def _describe(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        key = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "not supported for a training on one machine"
        problems.append(f"{key}: {message}" if key else message)
    return first_line("; ".join(problems))
