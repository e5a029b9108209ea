"""The settings of the platform in one typed tree (S3).

Sources, highest precedence first: arguments, environment (``ICCM_<GROUP>__<FIELD>`` and the short names of
the top-level fields, e.g. ``ICCM_HOME``), the file of the profile, the defaults below, which are the
production values. An unknown ``ICCM_*`` variable or an invalid value raises ``SettingsError``.

The profile is ``local`` (``profiles/local.toml``: what the packaged demo model needs) unless
``ICCM_BASE_MODEL`` is set, then ``production``; ``ICCM_PROFILE`` overrides it.
"""

from __future__ import annotations

import os
import re
import tomllib
from datetime import date, timedelta
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

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

from iccm_assets.endpoint_urls import EndpointAddress, parse_orchestra
from iccm_assets.errors import SettingsError, first_line

PACKAGE = Path(__file__).parent
PACKAGED_MODEL = PACKAGE / "simulation" / "data" / "base_model"
PACKAGED_REHEARSAL = PACKAGE / "simulation" / "data" / "rehearsal.jsonl.gz"
PACKAGED_CANARY_SET = PACKAGE / "simulation" / "data" / "canary_set.jsonl.gz"
PACKAGED_AUDIT_SET = PACKAGE / "simulation" / "data" / "audit_set.jsonl.gz"
# Experiment trackers; each is also the name of the module that it needs.
TRACKERS = ("mlflow", "trackio", "tensorboard", "wandb")
MLFLOW_MODEL_PATTERN = re.compile(r"\w([\w .-]{0,198}\w)?")
# A conversation with an impossible time does not add partitions before this day.
MIN_FIRST_DAY = date(2000, 1, 1)


class SettingsGroup(BaseModel):
    """A group of settings: immutable, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CaptureSettings(SettingsGroup):
    """Processing of conversations before they are stored."""

    redact: bool = Field(True, description="Replace secrets and personal data with typed placeholders.")
    max_conversation_mib: float = Field(
        4.0, gt=0, description="Maximum size of a conversation; a larger one is rejected."
    )


class CurationSettings(SettingsGroup):
    """Filter and deduplication of training examples."""

    min_test_pass_rate: float = Field(
        0.75, ge=0, le=1, description="A conversation passes the filter above this test pass rate."
    )
    max_implementation_variance: float = Field(
        0.04,
        ge=0,
        le=1,
        description="A conversation passes the filter below this variance over the orchestra.",
    )
    variance_weight: float = Field(
        0.5, ge=0, description="quality_score = test_pass_rate - weight x implementation_variance."
    )
    duplicate_similarity: float = Field(
        0.9, gt=0, le=1, description="Cosine similarity at or above which two texts are near-duplicates."
    )
    holdout_fraction: float = Field(0.15, ge=0, lt=1, description="Fraction of sessions never trained on.")
    holdout_days: int = Field(
        28, ge=1, description="Maximum age of a holdout session that is evaluated, in days."
    )
    lookback_days: int = Field(7, ge=1, description="Days that the daily job checks for changed inputs.")
    evidence: str = Field(
        "cases,pytest",
        description="Kinds of test suites whose scores may teach the model, comma separated: "
        "cases, and pytest, the weaker kind.",
    )
    suite_origins: str = Field(
        "attached,collected,recorded",
        description="Origins of test suites whose scores may teach the model, comma separated: "
        "attached (came with the conversation), collected (test files of the session), recorded.",
    )

    @field_validator("evidence", mode="after")
    @classmethod
    def _check_evidence(cls, value: str) -> str:
        return ",".join(_parse_choices(value, ("cases", "pytest")))

    @field_validator("suite_origins", mode="after")
    @classmethod
    def _check_suite_origins(cls, value: str) -> str:
        return ",".join(_parse_choices(value, ("attached", "collected", "recorded")))

    @property
    def allowed_evidence(self) -> frozenset[str]:
        """The kinds of suites whose scores may teach the model."""
        return frozenset(self.evidence.split(","))

    @property
    def allowed_suite_origins(self) -> frozenset[str]:
        """The origins of suites whose scores may teach the model."""
        return frozenset(self.suite_origins.split(","))


def _parse_choices(value: str, known: tuple[str, ...]) -> list[str]:
    """Parse a comma-separated list of known words, at least one, each once."""
    choices = [word.strip() for word in value.split(",")]
    unknown = sorted({word for word in choices if word not in known})
    if unknown:
        raise ValueError(f"{', '.join(map(repr, unknown))} unknown; known: {', '.join(known)}")
    return [word for word in known if word in choices]


class TriggerSettings(SettingsGroup):
    """Conditions under which a retrain starts."""

    weekly_min_examples: int = Field(50, ge=1, description="Selectable examples the weekly trigger requires.")
    threshold_min_examples: int = Field(
        100, ge=1, description="Selectable examples the daily trigger requires."
    )
    min_examples: int = Field(
        20, ge=1, description="Minimum examples of any training; below it a run is skipped."
    )
    max_quality_drop: float = Field(
        0.05, gt=0, le=1, description="Drop of production quality below its baseline that is an emergency."
    )
    degradation_confidence: float = Field(
        0.99,
        gt=0.5,
        lt=1,
        description="Confidence required that the drop exceeds the limit; false-alarm rate: 1 - this.",
    )
    degradation_min_items: int = Field(
        20, ge=2, description="Minimum items of a measurement that counts as evidence."
    )
    max_attempts: int = Field(3, ge=1, description="Maximum attempts of one training run.")
    retry_minutes: float = Field(
        5.0, ge=0, description="Delay between a failed attempt and the next, in minutes."
    )
    dispatch_timeout_seconds: int = Field(
        300,
        ge=10,
        description="Restart a dispatched training run if Dagster has not reported it within this time.",
    )


class SelectionSettings(SettingsGroup):
    """Selection of the pool rows that a retrain trains on."""

    window_days: int = Field(7, ge=1, description="Maximum age of the selected examples, in days.")
    max_window_days: int = Field(
        30, ge=1, description="Limit of the window when the last training is longer ago, in days."
    )
    max_examples: int = Field(100, ge=1, description="Maximum number of new examples.")
    emergency_max_examples: int = Field(
        200, ge=1, description="Maximum number of new examples in an emergency."
    )
    max_user_share: float = Field(
        0.10,
        gt=0,
        le=1,
        description="Maximum share of the selection that one user has; twice an equal share if that is more.",
    )

    def with_window(self, window_days: int | None) -> SelectionSettings:
        """A copy whose window is exactly ``window_days``; None returns the group itself."""
        if window_days is None:
            return self
        return self.model_copy(update={"window_days": window_days, "max_window_days": window_days})


class TrainingSettings(SettingsGroup):
    """Training of a candidate."""

    objective: Literal["sft", "rft", "dpo"] = Field(
        "sft",
        description="What a candidate learns: accepted requirements (`sft`); these and the best of its own "
        "sampled answers, by their verified score (`rft`); to prefer the accepted requirements to a "
        "worse-scored answer (`dpo`, causal models; needs the extra `dpo`).",
    )
    dpo_beta: float = Field(
        0.1, gt=0, le=10, description="How strongly `dpo` holds the candidate to the production model."
    )
    method: Literal["auto", "full", "lora"] = Field(
        "auto",
        description="`full`: train all weights and publish a whole model. `lora`: train a low-rank adapter "
        "of a frozen base and publish the adapter alone. `auto`: `lora` above 1 billion weights, "
        "else `full`.",
    )
    learning_rate: float = Field(1e-6, gt=0, le=1, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of AdamW.")
    warmup_steps: int = Field(10, ge=0, description="Linear warm-up, in optimizer steps.")
    max_warmup_share: float = Field(0.2, ge=0, le=1, description="Maximum share of the steps that warm up.")
    batch_size: int = Field(
        2,
        ge=1,
        description="Examples per forward pass, if they are the longest; of shorter ones as many as need no "
        "more memory.",
    )
    gradient_accumulation_steps: int = Field(
        4,
        ge=1,
        description="Examples per optimizer step, as a multiple of `batch_size`; of several processes those "
        "of all together.",
    )
    max_grad_norm: float = Field(0.5, gt=0, description="Gradient clipping norm.")
    epochs: int = Field(5, ge=1, description="Maximum number of epochs.")
    emergency_epochs: int = Field(3, ge=1, description="Maximum number of epochs in an emergency.")
    early_stopping_patience: int = Field(
        2, ge=1, description="Epochs without a lower validation loss before training stops."
    )
    validation_share: float = Field(0.1, gt=0, lt=1, description="Share of the examples used for validation.")
    rehearsal_fraction: float = Field(
        0.5, ge=0, lt=1, description="Share of the examples that are rehearsal examples."
    )
    weight_averaging_alpha: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Weight of the trained weights in the average with production's; 1: no averaging, the "
        "only value for adapters.",
    )
    max_source_tokens: int = Field(2048, ge=8, description="Maximum tokens of an input.")
    max_target_tokens: int = Field(1024, ge=8, description="Maximum tokens of a target.")
    seed: int = Field(
        17, ge=0, description="Seed of training; the same inputs and seed give the same weights."
    )
    threads: int = Field(
        2, ge=1, description="torch threads; stored in the manifest, since floating-point sums depend on it."
    )
    lora_r: int = Field(
        16, ge=1, description="Rank of the adapters; cannot change while an adapter is trained on."
    )
    lora_alpha: int = Field(
        32, ge=1, description="Scaling of the adapters; cannot change while an adapter is trained on."
    )
    max_runtime_seconds: int = Field(
        12 * 3600, ge=60, description="Maximum runtime of a retrain run; Dagster terminates it afterwards."
    )
    heartbeat_timeout_seconds: int = Field(
        900, ge=10, description="A running attempt without a heartbeat for this long is stalled."
    )
    accelerate_config: str = Field(
        "",
        description="Configuration file of `accelerate` with which several processes of one machine train a "
        "candidate, each on a GPU (`num_processes`); empty: one process. The processes share the examples of "
        "each optimizer step.",
    )
    report_to: str = Field(
        "",
        description="Experiment trackers that show trainings and their evaluations, comma separated: mlflow,"
        " trackio, tensorboard, wandb; empty: none.",
    )
    report_timeout_seconds: float = Field(
        60.0,
        gt=0,
        le=600,
        description="How long a training or an evaluation, once it is over, waits for its trackers; one that"
        " needs longer is left behind with a warning.",
    )

    @field_validator("report_to", mode="after")
    @classmethod
    def _check_trackers(cls, value: str) -> str:
        return ",".join(_parse_choices(value, TRACKERS)) if value.strip() else ""

    @property
    def trackers(self) -> tuple[str, ...]:
        """The experiment trackers of trainings."""
        return tuple(filter(None, self.report_to.split(",")))

    @model_validator(mode="after")
    def _check_consistency(self) -> TrainingSettings:
        if self.method == "lora" and self.weight_averaging_alpha != 1.0:
            raise ValueError(
                f"weight_averaging_alpha of {self.weight_averaging_alpha:g} needs method=full: the average of"
                f" two adapters of rank {self.lora_r} has rank {2 * self.lora_r}, no adapter is equal to it"
            )
        return self


class SamplingSettings(SettingsGroup):
    """The answers that production samples for `ICCM_TRAINING__OBJECTIVE` `rft` and `dpo`."""

    samples: int = Field(
        8, ge=1, le=64, description="Sampled answers to a source whose greedy answer is not right."
    )
    temperature: float = Field(1.0, gt=0, le=2, description="Temperature of the sampled answers.")
    max_sources: int = Field(
        200, ge=1, description="Maximum number of recent sources answered for one retrain, newest first."
    )
    max_judge_seconds: float = Field(
        1800.0, gt=0, description="No further answer of one retrain is scored after this time, in seconds."
    )


class PromptSettings(SettingsGroup):
    """The prompt of a base model that is imported; its manifest keeps it for all its descendants."""

    system: str = Field(
        "",
        description="System text. Empty: a default for a chat model, none for a plain prompt.",
    )
    template: str = Field(
        "",
        description="Jinja template of the prompt, with `source` and `system`. Empty: the tokenizer's chat "
        "template, or the plain prompt if it has none.",
    )


class EvaluationSettings(SettingsGroup):
    """The quality gate, and the generation of the responses it compares."""

    confidence: float = Field(
        0.90, gt=0.5, lt=1, description="One-sided paired confidence that a verdict requires."
    )
    emergency_bound: float = Field(-0.02, ge=-1, le=0, description="Minimum improvement in an emergency.")
    max_pass_rate_drop: float = Field(
        0.02, ge=0, le=1, description="Maximum drop of the mean pass rate below production."
    )
    max_variance_ratio: float = Field(
        1.5, ge=1, description="Maximum implementation variance, candidate : production."
    )
    variance_floor: float = Field(0.005, ge=0, description="Variance below which the ratio is not judged.")
    max_latency_ratio: float = Field(
        1.2, ge=1, description="Maximum p95 latency per output token, candidate : production."
    )
    min_slice_items: int = Field(20, ge=2, description="Minimum items of a slice judged for forgetting.")
    max_slice_drop: float = Field(0.05, ge=0, le=1, description="Maximum drop of a slice.")
    max_pooled_drop: float = Field(
        0.03, ge=0, le=1, description="Maximum drop of the slices that production masters, taken together."
    )
    latency_items: int = Field(40, ge=5, description="Items whose latency is measured at batch size 1.")
    latency_rounds: int = Field(
        3,
        ge=1,
        description="Maximum latency rounds; the fastest response of each item counts,"
        " and one whose two fastest agree is measured no further.",
    )
    batch_size: int = Field(32, ge=1, description="Prompts generated together.")
    max_new_tokens: int = Field(512, ge=8, description="Maximum tokens of a response.")


class JudgeSettings(SettingsGroup):
    """Limits of one sandboxed implementation."""

    wall_seconds: float = Field(10.0, gt=0, description="Wall-clock time.")
    cpu_seconds: int = Field(5, ge=1, description="CPU time.")
    memory_mib: int = Field(512, ge=32, description="Memory of all processes together.")
    processes: int = Field(64, ge=1, description="Processes at a time.")
    output_mib: float = Field(1.0, gt=0, description="Output of all cases together.")
    workers: int = Field(
        default_factory=lambda: max(1, os.cpu_count() or 1),
        ge=1,
        description="Implementations judged concurrently.",
    )
    environment: str = Field(
        "",
        description="Name or digest of the environment that code runs in unless its suite names another or "
        "it imports what only another has; empty: the standard library alone.",
    )


class ScoringSettings(SettingsGroup):
    """Scoring of live traffic."""

    time_budget_seconds: float = Field(
        240.0, gt=0, description="Time budget of one scoring pass; remaining texts are left to the next pass."
    )
    recorded_sessions_per_day: int = Field(
        200,
        ge=0,
        description="Sessions of a day without tests that are scored on a suite recorded from their source "
        "while the day lasts; 0: none. Conversations whose requirements were accepted do not count.",
    )


class EndpointMemberSettings(SettingsGroup):
    """Requests to one member of the orchestra; null removes a field from the request."""

    timeout_seconds: float = Field(
        120.0, gt=0, description="Timeout of one text at one endpoint, retries included."
    )
    retries: int = Field(2, ge=0, le=20, description="Retries of a failed request within the timeout.")
    prompt: str = Field("", description="Instruction sent before the requirements; empty: the default.")
    system_prompt: str = Field("", description="System prompt sent before the instruction; empty: none.")
    max_tokens: int | None = Field(4096, ge=16, description="Maximum tokens of a reply.")
    temperature: float | None = Field(0.0, ge=0, le=2, description="Sampling temperature; 0: greedy.")
    seed: int | None = Field(17, ge=0, description="Seed sent with every request.")
    request: dict[str, JsonValue] = Field(
        {}, description="JSON merged into the body of every request; null removes a field."
    )


class EndpointSettings(EndpointMemberSettings):
    """Requests to chat endpoints of the orchestra; API keys are not settings (docs/how-to/orchestra.md)."""

    connect_seconds: float = Field(5.0, gt=0, description="Connect timeout.")
    concurrency: int = Field(4, ge=1, le=256, description="Concurrent requests to one URL.")
    requests_per_minute: float = Field(
        0.0, ge=0, description="Rate limit of one URL, evenly spaced; 0: no limit."
    )
    max_response_mib: float = Field(
        4.0, gt=0, le=64, description="Maximum size of a reply; a longer one is invalid."
    )
    circuit_breaker_failures: int = Field(
        8, ge=1, description="Consecutive failures that open the circuit breaker of an endpoint."
    )
    circuit_breaker_cooldown_seconds: float = Field(
        300.0, gt=0, description="Time an open circuit breaker waits before it lets one request through."
    )
    members: dict[str, EndpointMemberSettings] = Field(
        {},
        description="JSON of overrides by member, named by its model or `openai:URL#model`; null removes a"
        " field from the request.",
    )

    @field_validator("members", mode="after")
    @classmethod
    def _normalize_names(cls, value: dict[str, EndpointMemberSettings]) -> dict[str, EndpointMemberSettings]:
        """Write the names as the orchestra does: without a trailing slash, hosts in lower case."""
        names = {name: name for name in value}
        for name in (name for name in value if name.startswith("openai:") and "," not in name):
            [part] = parse_orchestra(name)
            names[name] = part.name if isinstance(part, EndpointAddress) else name
        return {names[name]: member for name, member in value.items()}

    def for_member(self, *names: str) -> EndpointSettings:
        """Return the settings of the member with these names; the override of a later name wins."""
        values: dict[str, Any] = {}
        for member in (self.members[name] for name in names if name in self.members):
            request = {**values.get("request", self.request), **member.request}
            values |= {name: getattr(member, name) for name in member.model_fields_set}
            values["request"] = request
        return self.model_copy(update={**values, "members": {}})


class RolloutSettings(SettingsGroup):
    """Progressive deployment; a rollout keeps the values it was opened with."""

    evidence: Literal["sequential", "point"] = Field(
        "sequential",
        description="How a guardrail is judged: anytime-valid sequential evidence, or plain means.",
    )
    alpha: float = Field(
        0.05, gt=0, lt=0.5, description="Significance level shared by all quality tests of one rollout."
    )
    first_stage_hours: float = Field(6.0, gt=0, description="Minimum healthy time at 10 %.")
    first_stage_sessions: int = Field(30, ge=1, description="Minimum scored canary-arm sessions at 10 %.")
    second_stage_hours: float = Field(12.0, gt=0, description="Minimum healthy time at 50 %.")
    second_stage_sessions: int = Field(75, ge=1, description="Minimum scored canary-arm sessions at 50 %.")
    bake_hours: float = Field(
        24.0, gt=0, description="Minimum healthy time at 100 %, with the previous version warm."
    )
    min_pass_rate: float = Field(
        0.73, gt=0, lt=1, description="Minimum pass rate of the stages at 10 and 50 %."
    )
    first_stage_drop: float = Field(
        0.01, ge=0, lt=1, description="Maximum pass-rate drop below production at 10 %."
    )
    second_stage_drop: float = Field(
        0.0, ge=0, lt=1, description="Maximum pass-rate drop below production at 50 %."
    )
    health_pass_rate: float = Field(0.70, gt=0, lt=1, description="Minimum pass rate in every live state.")
    health_variance: float = Field(0.05, gt=0, le=0.25, description="Maximum implementation variance.")
    health_error_rate: float = Field(0.05, gt=0, lt=1, description="Maximum canary-arm error rate.")
    health_sessions: int = Field(10, ge=1, description="Minimum scored sessions for a verdict on quality.")
    health_requests: int = Field(20, ge=1, description="Minimum requests for a verdict on errors or latency.")
    health_interval_seconds: float = Field(
        300.0, gt=0, description="Interval between two health assessments, `point` only."
    )
    health_window_minutes: float = Field(60.0, gt=0, description="Window of such an assessment.")
    max_data_age_minutes: float = Field(
        60.0, gt=0, description="Maximum age of the newest score; older scores are stale."
    )
    max_hold_days: float = Field(
        14.0, gt=0, description="Maximum days of a stage; afterwards the rollout is aborted as undecided."
    )
    lease_seconds: float = Field(
        180.0, gt=0, description="Lifetime of the canary weight after a controller tick."
    )
    tick_seconds: int = Field(30, ge=1, description="Minimum interval between two controller ticks.")
    tick_timeout_seconds: float = Field(5.0, gt=0, description="Timeout of a controller tick.")
    load_timeout_minutes: float = Field(
        10.0, gt=0, description="Time the replicas have to load a version before an alert is raised."
    )
    replay_threshold_sessions: int = Field(
        200,
        ge=0,
        description="Scored sessions a day below which holdout sessions are replayed as paired evidence.",
    )

    @model_validator(mode="after")
    def _check_consistency(self) -> RolloutSettings:
        """Require a lease that outlives a tick, and stages that can end before they are undecided."""
        if self.lease_seconds < self.tick_seconds + self.tick_timeout_seconds:
            raise ValueError("lease_seconds is shorter than a tick and its timeout")
        longest = max(self.first_stage_hours, self.second_stage_hours, self.bake_hours)
        if longest >= 24 * self.max_hold_days:
            raise ValueError(
                f"a stage of {longest:g} h cannot end within max_hold_days of {self.max_hold_days:g}"
            )
        if self.health_pass_rate > self.min_pass_rate:
            raise ValueError("health_pass_rate is above min_pass_rate")
        if self.second_stage_drop > self.first_stage_drop:
            raise ValueError("second_stage_drop is above first_stage_drop")
        return self


class RetentionSettings(SettingsGroup):
    """Retention of checkpoints and history."""

    unpromoted_retention_days: int = Field(
        7, ge=1, description="Retention of checkpoints that were never promoted."
    )
    rolled_back_retention_days: int = Field(
        30, ge=1, description="Retention of checkpoints that were rolled back."
    )
    history_retention_days: int = Field(
        365,
        ge=30,
        description="Retention of reconstructions, requests, canary history, and sampled answers that no"
        " training run used.",
    )

    @property
    def history_retention(self) -> timedelta:
        """``history_retention_days`` as a duration."""
        return timedelta(days=self.history_retention_days)


class GatewaySettings(SettingsGroup):
    """The HTTP service that serves CET-D."""

    backend: Literal["transformers", "openai"] = Field(
        "transformers",
        description="Models in the gateway process, or an OpenAI-compatible server per version.",
    )
    openai_urls: dict[str, str] = Field(
        {},
        description="JSON: version -> http://host:port/v1#model; the key * is the default, and {version}"
        " stands for the name of the version. The server of adapters may stand under their base's digest.",
    )
    openai_models_path: str = Field(
        "",
        description="Directory at which model servers see `models` of the home, to load adapters from; empty:"
        " at the same path.",
    )
    tokens: str = Field(
        "", description="Bearer tokens, comma separated, at least 16 characters each; required off loopback."
    )
    device: str = Field("", description="torch device of the models; empty: a GPU if available.")
    threads: int = Field(
        default_factory=lambda: max(1, os.cpu_count() or 1), ge=1, description="torch threads per process."
    )
    batch_size: int = Field(16, ge=1, le=1024, description="Maximum requests per batch.")
    batch_timeout_ms: float = Field(
        1.0, ge=0, le=1000, description="How long to wait for more requests before running a batch."
    )
    queue_size: int = Field(64, ge=1, description="Maximum queued requests per model; beyond it 503.")
    max_in_flight: int = Field(
        256, ge=1, description="Maximum concurrent requests per process; beyond it 503."
    )
    timeout_seconds: float = Field(30.0, gt=0, description="Timeout of a request (504).")
    canary_timeout_seconds: float = Field(
        10.0, gt=0, description="Timeout of the canary arm, after which production responds."
    )
    max_body_mib: float = Field(1.0, gt=0, le=64, description="Maximum request body (413).")
    max_response_kib: int = Field(
        256, ge=1, description="Maximum response of the canary arm; a longer one is invalid."
    )
    poll_interval_seconds: float = Field(1.0, gt=0, le=2.0, description="Polling interval of the routing.")
    drain_timeout_seconds: float = Field(30.0, gt=0, description="Time for requests in flight at shutdown.")
    spool_max_mib: float = Field(512.0, gt=0, description="Maximum spool size; beyond it 503.")
    spool_batch: int = Field(200, ge=1, le=10000, description="Maximum records per transaction.")
    spool_flush_interval_ms: float = Field(
        250.0, ge=1, description="Interval between two flushes of the spool."
    )
    database_metrics_interval_seconds: float = Field(
        15.0, ge=1, description="Interval between two reads of the database metrics in `/metrics`."
    )
    database_metrics_window_minutes: float = Field(
        60.0, gt=0, description="Window of the metrics of both arms."
    )
    keep_previous_warm: bool = Field(
        True, description="Keep the previous version loaded, so that a rollback is immediate."
    )

    @field_validator("tokens", mode="after")
    @classmethod
    def _check_token_length(cls, value: str) -> str:
        # Error messages never contain a token.
        for number, token in enumerate(filter(None, (part.strip() for part in value.split(","))), start=1):
            if len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token:
                raise ValueError(f"token {number} is shorter than 16 characters, or not plain ASCII")
        return value

    @model_validator(mode="after")
    def _check_consistency(self) -> GatewaySettings:
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


class ClientSettings(SettingsGroup):
    """How the tools for coding agents reach the gateway."""

    gateway_url: str = Field(
        "http://127.0.0.1:8321", description="URL of the gateway that `iccm mcp` and `iccm connect` call."
    )
    token: str = Field(
        "", description="Bearer token of these calls; empty: the first of `ICCM_GATEWAY__TOKENS`, if any."
    )

    @field_validator("gateway_url", mode="after")
    @classmethod
    def _check_url(cls, value: str) -> str:
        if re.fullmatch(r"https?://[^\s/?#@]+/?", value) is None:
            raise ValueError("must be http://HOST:PORT or https://HOST:PORT, without a path or a password")
        return value.rstrip("/")


class AlertSettings(SettingsGroup):
    """Delivery of alerts to the channels of `alert_urls`."""

    time_budget_seconds: float = Field(
        20.0, gt=0, le=50, description="Time budget of one delivery pass, and timeout of one channel."
    )
    retry_seconds: float = Field(
        30.0,
        gt=0,
        description="Delay after the first failure of a channel; doubles with each further failure.",
    )
    max_retry_minutes: float = Field(60.0, gt=0, description="Maximum delay between two attempts.")
    max_alert_age_days: int = Field(
        7, ge=1, description="Maximum age of an alert that is still delivered; its row is retained."
    )


class RaySettings(SettingsGroup):
    """The Ray cluster that work runs on with `ICCM_COMPUTE=ray`."""

    address: str = Field(
        "http://127.0.0.1:8265", description="URL of the cluster's dashboard, where jobs are submitted."
    )
    num_cpus: float = Field(
        2.0, gt=0, description="CPUs that a job, or one task of a scoring pass, reserves on a node."
    )
    num_gpus: float = Field(0.0, ge=0, description="GPUs that training and evaluation reserve on a node.")
    memory_gib: float = Field(
        0.0, ge=0, description="Memory that a job, or one task of a scoring pass, reserves; 0: none."
    )
    scoring_tasks: int = Field(
        0, ge=0, description="Tasks that share one scoring pass; 0: one for each node with CPUs."
    )
    python: str = Field(
        "python", description="Python interpreter on the nodes, with the same release of this package."
    )
    node_variables: str = Field(
        "",
        description="`ICCM_*` variables that each node sets itself and that are not sent to it, comma"
        " separated: its own ICCM_HOME, or secrets such as ICCM_DATABASE_URL.",
    )

    @field_validator("address", mode="after")
    @classmethod
    def _check_address(cls, value: str) -> str:
        if re.fullmatch(r"https?://[^\s/?#@]+/?", value) is None:
            raise ValueError("must be http://HOST:PORT or https://HOST:PORT, without a path or a password")
        return value.rstrip("/")

    @field_validator("node_variables", mode="after")
    @classmethod
    def _check_names(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",") if name.strip()]
        if unknown := [name for name in names if name not in known_variables()]:
            raise ValueError(f"unknown variable {', '.join(unknown)}")
        return ",".join(names)

    @property
    def is_on_this_machine(self) -> bool:
        """Whether the dashboard listens on a loopback address."""
        return urlsplit(self.address).hostname in ("127.0.0.1", "::1", "localhost")


class Settings(BaseSettings):
    """The settings of the platform; ``iccm config show`` prints them with the source of each value."""

    model_config = SettingsConfigDict(
        env_prefix="ICCM_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        validate_default=True,
        env_ignore_empty=True,
    )

    profile: Literal["local", "production"] = Field(
        "production", description="Profile whose overrides apply."
    )
    home: Path = Field(Path("~/.iccm"), description="Directory of all files of the platform.")
    database_url: str | None = Field(
        None, description="PostgreSQL >= 15 with pgvector; unset: the embedded server."
    )
    dagster_database_url: str | None = Field(
        None, description="Dagster's own database; unset: `<database>_dagster` on the same server."
    )
    storage: str = Field(
        "",
        description="URL that homes share models, training sets and environments by, such as"
        " s3://bucket/prefix; empty: the home alone.",
    )
    storage_max_cache_gib: float = Field(
        100.0,
        gt=0,
        description="Maximum size of what a home holds of the storage; the least recently used is removed.",
    )
    base_model: str = Field(
        str(PACKAGED_MODEL), description="Hugging Face hub id or path of the first model."
    )
    rehearsal: str = Field(
        str(PACKAGED_REHEARSAL),
        description="JSON lines (optionally .gz): the training sample of the base model.",
    )
    canary_set: str = Field(
        str(PACKAGED_CANARY_SET), description="JSON lines (optionally .gz): the frozen evaluation set."
    )
    embedder: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2", description="Hub id or path of the text embedder."
    )
    orchestra: str = Field(
        "builtin", description="Reconstructors, comma separated: `builtin` or `openai:URL#model`."
    )
    orchestra_quorum: int = Field(
        2, ge=1, description="Minimum reconstructions of a score; fewer make it inconclusive."
    )
    sandbox: Literal["strict", "unsafe"] = Field(
        "strict", description="`unsafe` runs untrusted code without isolation."
    )
    alert_urls: str = Field("", description="apprise URLs, comma separated.")
    mlflow_model: str = Field(
        "",
        description="Registered model of the MLflow server at `MLFLOW_TRACKING_URI` that verdicts, promotions"
        " and rollbacks are mirrored to; empty: none.",
    )
    compute: Literal["local", "ray"] = Field(
        "local",
        description="Where training, evaluation, suite recording and scoring run: on this machine, or as jobs"
        " of the Ray cluster at `ICCM_RAY__ADDRESS`.",
    )
    first_day: date | None = Field(
        None,
        ge=MIN_FIRST_DAY,
        description="First daily partition, as YYYY-MM-DD (UTC); unset: 2025-01-01. `iccm dev` and `iccm env`"
        " set it to the day of the first conversation where that is earlier, or where it is unset.",
    )
    owners: str = Field(
        "team:ml-platform",
        description="Owners of the assets in Dagster, comma separated: `team:NAME`, or an e-mail address.",
    )

    capture: CaptureSettings = CaptureSettings()
    curation: CurationSettings = CurationSettings()
    triggers: TriggerSettings = TriggerSettings()
    selection: SelectionSettings = SelectionSettings()
    prompt: PromptSettings = PromptSettings()
    training: TrainingSettings = TrainingSettings()
    sampling: SamplingSettings = SamplingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    judge: JudgeSettings = JudgeSettings()
    scoring: ScoringSettings = ScoringSettings()
    endpoints: EndpointSettings = EndpointSettings()
    rollout: RolloutSettings = RolloutSettings()
    gateway: GatewaySettings = GatewaySettings()
    client: ClientSettings = ClientSettings()
    retention: RetentionSettings = RetentionSettings()
    alerts: AlertSettings = AlertSettings()
    ray: RaySettings = RaySettings()

    @field_validator("home", mode="after")
    @classmethod
    def _make_absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("database_url", "dagster_database_url", mode="after")
    @classmethod
    def _check_scheme(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("must start with postgresql://")
        return value

    @field_validator("storage", mode="after")
    @classmethod
    def _check_storage(cls, value: str) -> str:
        if value and re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s?#@]+", value) is None:
            raise ValueError("must be a URL such as s3://bucket/prefix, without a password")
        return value.rstrip("/")

    @field_validator("mlflow_model", mode="after")
    @classmethod
    def _check_mlflow_model(cls, value: str) -> str:
        if value and MLFLOW_MODEL_PATTERN.fullmatch(value) is None:
            raise ValueError("must be the name of a registered model: letters, digits, spaces and _ . -")
        return value

    @field_validator("owners", mode="after")
    @classmethod
    def _check_owners(cls, value: str) -> str:
        owners = [owner.strip() for owner in value.split(",")]
        for owner in owners:
            if not re.fullmatch(r"team:\w[\w-]*|[^@\s]+@[^@\s]+\.\w+", owner):
                raise ValueError(f"{owner!r} is neither team:NAME nor an e-mail address")
        return ",".join(owners)

    @field_validator("orchestra", mode="after")
    @classmethod
    def _check_members(cls, value: str) -> str:
        parse_orchestra(value)
        return value

    @model_validator(mode="after")
    def _check_endpoint_members(self) -> Settings:
        members = [part for part in parse_orchestra(self.orchestra) if isinstance(part, EndpointAddress)]
        names = [name for member in members for name in (member.model, member.name)]
        if unknown := sorted(set(self.endpoints.members) - set(names)):
            known = ", ".join(member.name for member in members) or "none"
            raise ValueError(
                f"ICCM_ENDPOINTS__MEMBERS: no member is named {', '.join(unknown)}; the endpoints of"
                f" ICCM_ORCHESTRA are: {known}"
            )
        return self

    @model_validator(mode="after")
    def _check_objective(self) -> Settings:
        """Reject an objective that this installation, or the method, cannot train."""
        if self.training.objective != "dpo":
            return self
        if find_spec("trl") is None:
            raise ValueError(
                "ICCM_TRAINING__OBJECTIVE=dpo requires a package that is not installed: "
                "pip install 'iccm-assets[dpo]'"
            )
        if self.training.method == "lora":
            raise ValueError("ICCM_TRAINING__OBJECTIVE=dpo requires ICCM_TRAINING__METHOD=full")
        return self

    @model_validator(mode="after")
    def _check_compute(self) -> Settings:
        """Reject a cluster that this installation cannot use, or whose nodes cannot reach the database."""
        if self.compute != "ray":
            return self
        if find_spec("dagster_ray") is None or find_spec("ray") is None:
            raise ValueError(
                "ICCM_COMPUTE=ray requires packages that are not installed: pip install 'iccm-assets[ray]'"
            )
        if self.database_url is None and not self.ray.is_on_this_machine:
            raise ValueError(
                "ICCM_COMPUTE=ray requires ICCM_DATABASE_URL: the nodes of the cluster cannot reach the"
                " embedded server of this machine"
            )
        if not self.storage and "ICCM_HOME" in self.ray.node_variables.split(","):
            raise ValueError(
                "ICCM_RAY__NODE_VARIABLES names ICCM_HOME, so each node has a home of its own: this requires"
                " ICCM_STORAGE, by which homes share models"
            )
        return self

    @model_validator(mode="after")
    def _disable_packaged_rehearsal(self) -> Settings:
        """The packaged rehearsal sample is for the packaged model only, unless it is set explicitly."""
        if self.base_model != str(PACKAGED_MODEL) and "rehearsal" not in self.model_fields_set:
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
    """The overrides of the profile; the environment takes precedence."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        profile = self.current_state.get("profile") or default_profile()
        return {**profile_overrides(profile), "profile": profile}


def default_profile() -> str:
    """``local`` while the packaged demo model is the base model, else ``production``."""
    return "production" if os.environ.get("ICCM_BASE_MODEL") else "local"


def profile_overrides(name: str) -> dict[str, Any]:
    """The values of a profile's file; the production profile has none."""
    path = PACKAGE / "profiles" / f"{name}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def known_variables() -> dict[str, str]:
    """Return every environment variable of the platform with its description."""
    names: dict[str, str] = {}
    for name, field in Settings.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, SettingsGroup):
            for member, group_field in annotation.model_fields.items():
                names[f"ICCM_{name}__{member}".upper()] = group_field.description or ""
        else:
            names[f"ICCM_{name}".upper()] = field.description or ""
    return names


def load_settings(**overrides: Any) -> Settings:
    """Load the settings; raise ``SettingsError`` with every unknown variable or invalid value."""
    known = known_variables()
    unknown = sorted(
        name for name in os.environ if name.upper().startswith("ICCM_") and name.upper() not in known
    )
    if unknown:
        raise SettingsError(
            f"unknown variable {', '.join(unknown)}", hint="`iccm config show` lists the known names."
        )
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise SettingsError("; ".join(map(_describe_problem, error.errors()))) from None
    except ValueError as error:  # pydantic-settings: a group variable that is not JSON
        raise SettingsError(first_line(error)) from None


def _describe_problem(problem: Any) -> str:
    """Name the variable, and the path inside of a JSON value as it is written there."""
    # A validator of the whole tree has no location; its message names the variables.
    variable, path = problem["loc"][:2], problem["loc"][2:]
    message = problem["msg"].removeprefix("Value error, ")
    name = f"ICCM_{'__'.join(map(str, variable)).upper()}" if variable else ""
    return ": ".join(filter(None, (name, ".".join(map(str, path)), message)))


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, loaded once."""
    return load_settings()
