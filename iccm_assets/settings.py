"""Every number of the platform in one typed tree (S3).

Values come from, strongest first: arguments, environment (``ICCM_<GROUP>__<FIELD>`` and the short
names of the top-level fields, e.g. ``ICCM_HOME``), the profile's file, the defaults below, which are
the production numbers. An unknown ``ICCM_*`` variable or an impossible value is a ``SettingsError``.

The profile is ``local`` (``profiles/local.toml``: what the tiny reference model needs, X5) when no
``ICCM_BASE_MODEL`` is named, else ``production``; ``ICCM_PROFILE`` says otherwise.
"""

from __future__ import annotations

import os
import tomllib
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from iccm_assets.addresses import parse_orchestra
from iccm_assets.errors import SettingsError

PACKAGE = Path(__file__).parent
REFERENCE_MODEL = PACKAGE / "reference" / "data" / "base_model"
REFERENCE_REHEARSAL = PACKAGE / "reference" / "data" / "rehearsal.jsonl.gz"
REFERENCE_CANARY_SET = PACKAGE / "reference" / "data" / "canary_set.jsonl.gz"

Share = Field(ge=0.0, le=1.0)


class Group(BaseModel):
    """A group of settings: immutable, and no field it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Capture(Group):
    """What happens to conversations before they are stored (C4)."""

    redact: bool = Field(True, description="Replace secrets and personal data by typed placeholders.")
    max_conversation_mib: float = Field(4.0, gt=0, description="A larger conversation is refused.")


class Curation(Group):
    """Which conversations may teach the model (F1-F4, P1-P3)."""

    min_test_pass_rate: float = Field(0.75, ge=0, le=1, description="Kept only above this test pass rate.")
    max_implementation_variance: float = Field(
        0.04, ge=0, le=1, description="Kept only below this variance over the orchestra."
    )
    variance_weight: float = Field(
        0.5, ge=0, description="quality_score = test_pass_rate - weight x implementation_variance."
    )
    duplicate_similarity: float = Field(
        0.9, gt=0, le=1, description="Cosine at or above which two requirements texts are duplicates."
    )
    held_out_share: float = Field(0.15, ge=0, lt=1, description="Share of sessions never trained on (F3).")
    holdout_days: int = Field(
        28, ge=1, description="Age in days up to which a held-out session is evaluated."
    )
    late_days: int = Field(7, ge=1, description="Days the daily job looks back for changed inputs (P6).")


class Triggers(Group):
    """When a retraining starts (T1-T6)."""

    weekly_min_examples: int = Field(50, ge=1, description="Selectable examples the weekly trigger asks for.")
    threshold_min_examples: int = Field(
        100, ge=1, description="Selectable examples the daily trigger asks for."
    )
    floor_examples: int = Field(20, ge=1, description="Below this nothing trains, whatever the trigger (T5).")
    degradation_drop: float = Field(0.05, gt=0, le=1, description="Fall of production that is an emergency.")
    degradation_confidence: float = Field(
        0.99, gt=0.5, lt=1, description="Confidence that the fall exceeds that; a look errs at most so often."
    )
    degradation_min_items: int = Field(
        20, ge=2, description="Fewer items are no evidence that production has fallen."
    )
    max_attempts: int = Field(3, ge=1, description="Attempts one training run may take (T6).")
    retry_minutes: float = Field(5.0, ge=0, description="Before a failed attempt is followed by the next.")
    dispatch_timeout_seconds: int = Field(
        300, ge=10, description="A Dagster run nobody has heard of for so long is started again (T6)."
    )


class Selection(Group):
    """Which pool rows a retraining learns from (T7)."""

    window_days: int = Field(7, ge=1, description="Age of the examples taken, in days.")
    max_window_days: int = Field(
        30, ge=1, description="The window reaches back to the last training, at most so far."
    )
    max_examples: int = Field(100, ge=1, description="New examples at most.")
    emergency_max_examples: int = Field(200, ge=1, description="The same in an emergency.")
    max_per_user: int = Field(10, ge=1, description="Examples of one user at most.")
    max_user_share: float = Field(0.10, gt=0, le=1, description="Share of the selection one user may have.")

    def over(self, window_days: int | None) -> Selection:
        """The same limits on a window asked for by hand, back to the last training or not; None: these."""
        if window_days is None:
            return self
        return self.model_copy(update={"window_days": window_days, "max_window_days": window_days})


class Training(Group):
    """How the candidate is trained (L1-L5)."""

    method: Literal["full", "lora"] = Field(
        "full", description="Train all weights, or low-rank adapters merged at the end."
    )
    learning_rate: float = Field(1e-6, gt=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    warmup_steps: int = Field(10, ge=0, description="Linear warm-up, in optimiser steps.")
    max_warmup_share: float = Field(
        0.2, ge=0, le=1, description="Warm-up is at most this share of the steps."
    )
    batch_size: int = Field(2, ge=1, description="Examples per forward pass.")
    gradient_accumulation_steps: int = Field(4, ge=1)
    max_grad_norm: float = Field(0.5, gt=0)
    epochs: int = Field(5, ge=1)
    emergency_epochs: int = Field(3, ge=1)
    early_stopping_patience: int = Field(2, ge=1, description="Epochs without a better validation loss.")
    validation_share: float = Field(0.1, gt=0, lt=1)
    rehearsal_fraction: float = Field(
        0.5, ge=0, lt=1, description="Share of the examples that is rehearsal (L3)."
    )
    interpolation: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Weight of the trained weights when averaged with production's (1 = no averaging).",
    )
    max_source_tokens: int = Field(2048, ge=8)
    max_target_tokens: int = Field(1024, ge=8)
    seed: int = Field(17, ge=0)
    threads: int = Field(
        2, ge=1, description="torch threads; part of the manifest, since sums depend on it (L5)."
    )
    lora_r: int = Field(16, ge=1)
    lora_alpha: int = Field(32, ge=1)
    max_runtime_seconds: int = Field(12 * 3600, ge=60, description="A retrain run is stopped after this.")
    heartbeat_timeout_seconds: int = Field(
        900, ge=10, description="A running attempt silent for this long is dead (T6)."
    )


class Evaluation(Group):
    """The quality gate (E3) and how answers are generated for it."""

    confidence: float = Field(0.90, gt=0.5, lt=1, description="One-sided paired confidence a verdict needs.")
    emergency_bound: float = Field(-0.02, ge=-1, le=0, description="Smallest improvement in an emergency.")
    max_pass_rate_drop: float = Field(0.02, ge=0, le=1)
    max_variance_ratio: float = Field(1.5, ge=1)
    variance_floor: float = Field(0.005, ge=0)
    max_latency_ratio: float = Field(
        1.2, ge=1, description="p95 latency per output token, candidate : production."
    )
    slice_min_items: int = Field(20, ge=2)
    max_slice_drop: float = Field(0.05, ge=0, le=1)
    latency_items: int = Field(40, ge=5, description="Items on which latency is measured at batch 1.")
    latency_rounds: int = Field(3, ge=1, description="Rounds of which each item's fastest answer counts.")
    batch_size: int = Field(32, ge=1, description="Prompts generated together.")
    max_new_tokens: int = Field(512, ge=8)


class Judge(Group):
    """Limits of one sandboxed implementation (J3)."""

    wall_seconds: float = Field(10.0, gt=0)
    cpu_seconds: int = Field(5, ge=1)
    memory_mib: int = Field(512, ge=32, description="All processes of one implementation together.")
    processes: int = Field(64, ge=1)
    output_mib: float = Field(1.0, gt=0)
    workers: int = Field(
        default_factory=lambda: max(1, os.cpu_count() or 1),
        ge=1,
        description="Implementations judged at a time.",
    )


class Scoring(Group):
    """Scoring of live traffic (U2)."""

    pass_seconds: float = Field(
        240.0, gt=0, description="After this a pass begins no further text; the next one goes on."
    )


class Endpoints(Group):
    """How the orchestra's chat endpoints are asked (O1); API keys are no settings (docs/orchestra.md)."""

    timeout_seconds: float = Field(
        120.0, gt=0, description="One text at one endpoint, from the first byte out to the last byte in."
    )
    connect_seconds: float = Field(5.0, gt=0, description="Of these, for getting a connection.")
    retries: int = Field(2, ge=0, le=20, description="Further requests after one that failed, in that time.")
    concurrency: int = Field(4, ge=1, le=256, description="Requests to one URL at a time.")
    requests_per_minute: float = Field(0.0, ge=0, description="To one URL, evenly spaced; 0: no limit.")
    max_answer_mib: float = Field(4.0, gt=0, le=64, description="A longer reply is cut off and is no answer.")
    failures_before_pause: int = Field(
        8, ge=1, description="Failures in a row after which an endpoint is left alone for a while."
    )
    pause_seconds: float = Field(300.0, gt=0, description="How long, before one request tries it again.")
    system_prompt: str = Field("", description="Sent before the requirements; empty: none is sent.")
    max_tokens: int = Field(4096, ge=16)
    temperature: float = Field(0.0, ge=0, le=2)
    seed: int = Field(17, ge=0)
    request: dict[str, JsonValue] = Field(
        {}, description="JSON merged into each request's body; null takes a field out."
    )


class Rollout(Group):
    """Progressive deployment (R1-R9); a rollout keeps the numbers it was opened with."""

    evidence: Literal["sequential", "point"] = Field(
        "sequential", description="What crosses a limit: anytime-valid evidence, or plain means (R5)."
    )
    alpha: float = Field(0.05, gt=0, lt=0.5, description="Error shared by all tests of one rollout (R5).")
    first_stage_hours: float = Field(6.0, gt=0, description="Healthy time at 10 % (R1).")
    first_stage_sessions: int = Field(30, ge=1, description="Scored canary-arm sessions at 10 % (R1).")
    second_stage_hours: float = Field(12.0, gt=0, description="Healthy time at 50 % (R2).")
    second_stage_sessions: int = Field(75, ge=1, description="Scored canary-arm sessions at 50 % (R2).")
    bake_hours: float = Field(24.0, gt=0, description="Healthy time at 100 %, the old version warm (R3).")
    min_pass_rate: float = Field(0.73, gt=0, lt=1, description="Floor of the stages at 10 and 50 %.")
    first_stage_drop: float = Field(0.01, ge=0, lt=1, description="Allowed below production at 10 %.")
    second_stage_drop: float = Field(0.0, ge=0, lt=1, description="Allowed below production at 50 %.")
    health_pass_rate: float = Field(0.70, gt=0, lt=1, description="Floor in every live state (R4).")
    health_variance: float = Field(0.05, gt=0, le=0.25, description="Implementation variance at most (R4).")
    health_error_rate: float = Field(0.05, gt=0, lt=1, description="Canary-arm error rate at most (R4).")
    health_sessions: int = Field(10, ge=1, description="Fewer scored sessions carry no verdict on quality.")
    health_requests: int = Field(20, ge=1, description="Fewer requests carry no verdict on errors or speed.")
    health_interval_seconds: float = Field(300.0, gt=0, description="Between two looks at health, `point`.")
    health_window_minutes: float = Field(60.0, gt=0, description="What such a look sees.")
    max_data_age_minutes: float = Field(60.0, gt=0, description="Scores older than this are stale (R6).")
    max_hold: float = Field(14.0, gt=0, description="Days a stage may last before it ends undecided (R6).")
    lease_seconds: float = Field(180.0, gt=0, description="Life of the canary weight after a tick (R7).")
    tick_seconds: float = Field(30.0, gt=0, description="Between two ticks of the controller.")
    tick_timeout_seconds: float = Field(5.0, gt=0, description="A tick is given up after this (R7).")
    ready_minutes: float = Field(10.0, gt=0, description="Replicas may take to load before it is alerted.")
    replay_below_sessions: int = Field(
        200, ge=0, description="Scored sessions a day below which holdout sessions are replayed (R11)."
    )

    @model_validator(mode="after")
    def _possible(self) -> Rollout:
        """A lease that lives from tick to tick, and stages that can end before they are undecided."""
        if self.lease_seconds < self.tick_seconds + self.tick_timeout_seconds:
            raise ValueError("lease_seconds is shorter than a tick and its timeout")
        longest = max(self.first_stage_hours, self.second_stage_hours, self.bake_hours)
        if longest >= 24 * self.max_hold:
            raise ValueError(f"a stage of {longest:g} h cannot end within max_hold of {self.max_hold:g} days")
        if self.health_pass_rate > self.min_pass_rate:
            raise ValueError("health_pass_rate is above min_pass_rate")
        if self.second_stage_drop > self.first_stage_drop:
            raise ValueError("second_stage_drop is above first_stage_drop")
        return self


class Retention(Group):
    """How long what nobody needs is kept (V3)."""

    unpromoted_days: int = Field(7, ge=1, description="Checkpoints that were never promoted.")
    rolled_back_days: int = Field(30, ge=1, description="Checkpoints that were rolled back.")
    history_days: int = Field(
        365, ge=30, description="Reconstructions, routing (requests) and canary history."
    )

    @property
    def history(self) -> timedelta:
        """The same as a duration."""
        return timedelta(days=self.history_days)


class Gateway(Group):
    """The HTTP service that answers with CET-D (G1-G7)."""

    backend: Literal["transformers", "openai"] = Field(
        "transformers", description="Models in this process, or an OpenAI-compatible server per version (G7)."
    )
    openai_urls: dict[str, str] = Field(
        {},
        description="JSON: version -> http://host:port/v1#model; the key * serves the others, and {version}"
        " stands for their name.",
    )
    tokens: str = Field(
        "", description="Bearer tokens, comma separated, 16 characters at least; needed off loopback (G6)."
    )
    device: str = Field("", description="torch device of the models; empty: the GPU if there is one.")
    threads: int = Field(
        default_factory=lambda: max(1, os.cpu_count() or 1), ge=1, description="torch threads of one process."
    )
    batch_size: int = Field(16, ge=1, le=1024, description="Requests answered together at most (G6).")
    batch_wait_ms: float = Field(1.0, ge=0, le=1000, description="How long a batch waits for company.")
    queue_size: int = Field(64, ge=1, description="Requests waiting per model; beyond it 503 (G6).")
    max_in_flight: int = Field(256, ge=1, description="Requests in one process at a time; beyond it 503.")
    timeout_seconds: float = Field(30.0, gt=0, description="A request is given up after this (504).")
    canary_timeout_seconds: float = Field(
        10.0, gt=0, description="Of these, for the canary arm, before production answers (G3)."
    )
    max_body_mib: float = Field(1.0, gt=0, le=64, description="A larger body is refused (413).")
    max_answer_kib: int = Field(256, ge=1, description="A longer answer of the canary arm is garbage.")
    poll_seconds: float = Field(1.0, gt=0, le=2.0, description="Between two looks at the routing (G4).")
    drain_seconds: float = Field(30.0, gt=0, description="Given to requests in flight at shutdown.")
    spool_max_mib: float = Field(512.0, gt=0, description="Of answers not yet stored; beyond it 503 (G5).")
    spool_batch: int = Field(200, ge=1, le=10000, description="Records stored in one transaction.")
    spool_pause_ms: float = Field(250.0, ge=1, description="Between two deliveries from the spool.")
    figures_seconds: float = Field(
        15.0, ge=1, description="Between two readings of what `/metrics` tells from the database (A3)."
    )
    figures_window_minutes: float = Field(60.0, gt=0, description="The time both arms' figures are about.")
    keep_former_warm: bool = Field(
        True, description="Keep the version that served before loaded, so that a rollback is immediate."
    )

    @field_validator("tokens", mode="after")
    @classmethod
    def _long_enough(cls, value: str) -> str:
        # No message repeats a token.
        for number, token in enumerate(filter(None, (part.strip() for part in value.split(","))), start=1):
            if len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token:
                raise ValueError(f"token {number} is shorter than 16 characters, or not plain ASCII")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Gateway:
        if self.canary_timeout_seconds >= self.timeout_seconds:
            raise ValueError("canary_timeout_seconds leaves production no time to answer instead")
        for version, url in self.openai_urls.items():
            try:
                parse_orchestra(f"openai:{url.replace('{version}', 'v1')}")
            except ValueError as error:
                raise ValueError(f"openai_urls[{version!r}]: {str(error).replace('openai:', '')}") from None
        if self.backend == "openai" and not self.openai_urls:
            raise ValueError("backend openai needs openai_urls")
        return self


class Alerts(Group):
    """How the outbox is delivered to the channels of `alert_urls` (A1)."""

    pass_seconds: float = Field(
        20.0, gt=0, le=50, description="A pass of the daemon takes so long at most; a hanging channel, too."
    )
    retry_seconds: float = Field(30.0, gt=0, description="After a channel's first failure; then doubling.")
    max_retry_minutes: float = Field(60.0, gt=0, description="Between two attempts at most.")
    give_up_days: int = Field(7, ge=1, description="An older alert is not sent any more; its row stays.")


class Settings(BaseSettings):
    """The platform's settings; ``iccm config show`` prints them with where each came from."""

    model_config = SettingsConfigDict(
        env_prefix="ICCM_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        validate_default=True,
        env_ignore_empty=True,
    )

    profile: Literal["local", "production"] = Field(
        "production", description="Which profile's overrides hold (X5)."
    )
    home: Path = Field(Path("~/.iccm"), description="Where the platform keeps its files.")
    database_url: str | None = Field(
        None, description="PostgreSQL >= 15 with pgvector; unset: the embedded server."
    )
    dagster_database_url: str | None = Field(
        None, description="Dagster's own database; unset: `<database>_dagster` on the same server."
    )
    base_model: str = Field(
        str(REFERENCE_MODEL), description="Hugging Face hub id or path of the first model."
    )
    rehearsal: str = Field(
        str(REFERENCE_REHEARSAL),
        description="JSON lines (optionally .gz) with the base model's own training sample.",
    )
    canary_set: str = Field(
        str(REFERENCE_CANARY_SET), description="JSON lines (optionally .gz): the frozen evaluation set."
    )
    embedder: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2", description="Hub id or path of the text embedder."
    )
    orchestra: str = Field(
        "builtin", description="Reconstructors, comma separated: `builtin` or `openai:URL#model`."
    )
    orchestra_quorum: int = Field(2, ge=1, description="Fewer answers than this make a score inconclusive.")
    sandbox: Literal["strict", "unsafe"] = Field(
        "strict", description="`unsafe` runs untrusted code without isolation."
    )
    alert_urls: str = Field("", description="apprise URLs, comma separated.")
    compute: Literal["local", "ray", "k8s"] = Field("local", description="Where workers run.")

    capture: Capture = Capture()
    curation: Curation = Curation()
    triggers: Triggers = Triggers()
    selection: Selection = Selection()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    judge: Judge = Judge()
    scoring: Scoring = Scoring()
    endpoints: Endpoints = Endpoints()
    rollout: Rollout = Rollout()
    gateway: Gateway = Gateway()
    retention: Retention = Retention()
    alerts: Alerts = Alerts()

    @field_validator("home", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("database_url", "dagster_database_url", mode="after")
    @classmethod
    def _postgresql_only(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("must start with postgresql://")
        return value

    @field_validator("orchestra", mode="after")
    @classmethod
    def _members(cls, value: str) -> str:
        parse_orchestra(value)
        return value

    @model_validator(mode="after")
    def _own_rehearsal(self) -> Settings:
        """The packaged rehearsal sample belongs to the packaged model only, unless it is asked for (L3)."""
        if self.base_model != str(REFERENCE_MODEL) and "rehearsal" not in self.model_fields_set:
            object.__setattr__(self, "rehearsal", "")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings, _ProfileSource(settings_cls))


class _ProfileSource(PydanticBaseSettingsSource):
    """The overrides of the profile in force, weaker than the environment."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        chosen = self.current_state.get("profile") or default_profile()
        return {**profile_overrides(chosen), "profile": chosen}


def default_profile() -> str:
    """``local`` while the packaged reference model is the base model, else ``production``."""
    return "production" if os.environ.get("ICCM_BASE_MODEL") else "local"


def profile_overrides(name: str) -> dict[str, Any]:
    """What a profile's file sets; the production profile sets nothing."""
    path = PACKAGE / "profiles" / f"{name}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def known_variables() -> dict[str, str]:
    """Every environment variable the platform reads, with its description."""
    names: dict[str, str] = {}
    for name, field in Settings.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Group):
            for inner, inner_field in annotation.model_fields.items():
                names[f"ICCM_{name}__{inner}".upper()] = inner_field.description or ""
        else:
            names[f"ICCM_{name}".upper()] = field.description or ""
    return names


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; raises ``SettingsError`` naming each unknown variable or impossible value."""
    known = known_variables()
    unknown = sorted(
        name for name in os.environ if name.upper().startswith("ICCM_") and name.upper() not in known
    )
    if unknown:
        raise SettingsError(
            f"unknown variable {', '.join(unknown)}", hint="`iccm config show` lists the names there are."
        )
    try:
        return Settings(**overrides)
    except ValidationError as error:
        problems = "; ".join(
            f"ICCM_{'__'.join(str(part) for part in one['loc']).upper()}: {one['msg']}"
            for one in error.errors()
        )
        raise SettingsError(problems) from None
    except ValueError as error:  # pydantic-settings: a group variable that is not JSON
        raise SettingsError(str(error).splitlines()[0]) from None


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read once."""
    return load_settings()
