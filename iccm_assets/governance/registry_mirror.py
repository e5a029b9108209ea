"""Mirror verdicts, promotions and rollbacks to a registered model of an MLflow server, by an outbox (L13).

A decision is delivered at least once, in order; what is written for it is named after it, so that twice is
the same as once. Aliases are computed from the log of all decisions, and so is which version served when.
Delivery runs in a process of its own, which a server that hangs cannot outlive.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from iccm_assets.db import database
from iccm_assets.db.locks import Lock, try_lock
from iccm_assets.errors import IccmError, first_line
from iccm_assets.governance.model_export import describe_version
from iccm_assets.registry.mlflow_registry import (
    MlflowRegistry,
    ModelRegistry,
    check_client,
    hide_password,
)
from iccm_assets.reporting.traffic_history import ServedVersion, TrafficEvent, compute_served_versions
from iccm_assets.settings import AlertSettings, Settings, load_settings
from iccm_assets.worker_process import exit_with_parent, parent_env, worker_command

PRODUCTION_ALIAS, CANDIDATE_ALIAS = "production", "candidate"
# MLflow rejects tags above 5,000 characters, older servers above less.
MAX_REASON_LENGTH, MAX_NUMBERS_LENGTH = 500, 3500
MAX_ERROR_LENGTH = 300
# What starting the process and closing it may take besides the delivery itself.
_PROCESS_SECONDS = 20.0

_NEXT = sa.text(
    """
    select r.id, r.attempts = 0 or r.last_attempt_at > iccm.now() or iccm.now() >= r.last_attempt_at
               + make_interval(secs => least(:retry * power(2, r.attempts - 1), :max_retry)) as due,
           coalesce(d.version, g.version) as version, coalesce(d."timestamp", g.created_at) as at,
           d.id as event_id, d.event_type, d.weight, d.notes, d.actor, d.evidence as numbers,
           coalesce(o.candidate, d.evidence ->> 'from') as candidate,
           g.id as verdict_id, g.status, g.improvement, g.verdict, g.production_version
    from iccm.registry_events r
        left join iccm.deployment_events d on d.id = r.deployment_event_id
        left join iccm.rollouts o on o.id = d.rollout_id
        left join iccm.gate_verdicts g on g.id = r.verdict_id
    where r.delivered_at is null order by r.id limit 1
    """
)
_MARK = sa.text(
    """
    update iccm.registry_events set attempts = attempts + 1, last_attempt_at = iccm.now(),
        last_error = nullif(:error, ''), delivered_at = case when :error = '' then iccm.now() end
    where id = :id
    """
)
_COUNT = sa.text("select count(*) from iccm.registry_events where delivered_at is null")


@dataclass(frozen=True)
class HistoryEntry:
    """One decision in the log: a share of traffic that a version has from ``at`` on, or a verdict on it.

    ``number`` orders the events of one moment. Of a verdict, ``event`` is `verdict`, and there is no weight.
    """

    at: datetime
    number: int
    event: str
    version: str
    weight: float | None = None
    verdict: str | None = None
    candidate: str | None = None
    reason: str = ""
    actor: str = ""
    numbers: Mapping[str, Any] | None = None

    @property
    def key(self) -> str:
        """The name of the entry, which sorts by time."""
        kind = "verdict" if self.weight is None else "traffic"
        return f"{self.at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z.{kind}.{self.number:010d}"

    def to_json(self) -> str:
        """Return the entry as a tag's value, without what it does not have."""
        values = {name: value for name, value in asdict(self).items() if value not in (None, "")}
        return json.dumps({**values, "at": self.at.astimezone(UTC).isoformat()}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> HistoryEntry:
        """Read a tag's value."""
        values = json.loads(text)
        return cls(**{**values, "at": datetime.fromisoformat(values["at"])})


@dataclass(frozen=True)
class MirrorReport:
    """Result of a pass: how many decisions were delivered, how many wait, and why."""

    delivered: int
    pending: int
    error: str = ""

    def summary(self) -> str:
        """Summarize the pass in one line, with its numbers."""
        error = f"; {self.error}" if self.error else ""
        return f"{self.delivered} decisions mirrored, {self.pending} wait{error}"


def has_due_decisions(engine: sa.Engine, settings: Settings) -> bool:
    """Check by one query, without MLflow, whether a pass would deliver anything now."""
    if not settings.mlflow_model:
        return False
    with engine.connect() as conn:
        row = conn.execute(_NEXT, _limits(settings.alerts)).one_or_none()
    return row is not None and bool(row.due)


def count_pending_decisions(engine: sa.Engine) -> int:
    """Count the decisions that are not mirrored."""
    with engine.connect() as conn:
        return int(conn.execute(_COUNT).scalar_one())


def mirror_decisions(
    engine: sa.Engine,
    settings: Settings,
    registry: ModelRegistry,
    *,
    time_budget_seconds: float | None = None,
) -> MirrorReport:
    """Deliver decisions in order, until none waits, one fails or the time is over.

    A failed one is tried again later, at growing intervals, and those behind it wait for it.
    """
    budget = settings.alerts.time_budget_seconds if time_budget_seconds is None else time_budget_seconds
    deadline, delivered, error = time.monotonic() + budget, 0, ""
    while not error and time.monotonic() < deadline:
        with engine.begin() as conn:
            if not try_lock(conn, Lock.REGISTRY_MIRROR):
                error = "another process is mirroring"
                break
            row = conn.execute(_NEXT, _limits(settings.alerts)).one_or_none()
            if row is None or not row.due:
                break
            try:
                _deliver(conn, registry, row)
            except IccmError as failure:
                error = failure.message[:MAX_ERROR_LENGTH]
            except Exception as failure:  # of MLflow's client, or of what it talks through
                text = f"{type(failure).__name__}: {hide_password(first_line(failure))}"
                error = text[:MAX_ERROR_LENGTH]
            conn.execute(_MARK, {"id": row.id, "error": error})
        delivered += not error
    return MirrorReport(delivered, count_pending_decisions(engine), error)


def _deliver(conn: sa.Connection, registry: ModelRegistry, row: sa.Row[Any]) -> None:
    entry = _read_entry(row)
    for version in dict.fromkeys(filter(None, (entry.candidate, entry.version))):
        subject = entry.candidate or entry.version
        registry.ensure_version(
            describe_version(conn, version, tags=_decision_tags(entry) if version == subject else {})
        )
    registry.add_history(entry.key, entry.to_json())
    for alias, holder in compute_aliases(read_history(registry)).items():
        registry.set_alias(alias, holder)


def _read_entry(row: sa.Row[Any]) -> HistoryEntry:
    if row.event_id is None:
        reasons = "; ".join(map(str, row.verdict.get("reasons", [])))
        return HistoryEntry(
            at=row.at,
            number=row.verdict_id,
            event="verdict",
            version=row.version,
            verdict=row.status,
            reason=reasons[:MAX_REASON_LENGTH],
            numbers={"improvement": row.improvement, "production": row.production_version},
        )
    is_short = len(json.dumps(row.numbers)) <= MAX_NUMBERS_LENGTH
    return HistoryEntry(
        at=row.at,
        number=row.event_id,
        event=row.event_type,
        version=row.version,
        weight=row.weight,
        candidate=row.candidate,
        reason=(row.notes or "")[:MAX_REASON_LENGTH],
        actor=row.actor,
        numbers=row.numbers if is_short else None,
    )


def _decision_tags(entry: HistoryEntry) -> dict[str, str]:
    """Return the tags that a version has of the last decision of each kind on it."""
    kind = "verdict" if entry.weight is None else "rollout"
    improvement = (entry.numbers or {}).get("improvement")
    tags = {
        f"iccm.{kind}": entry.verdict or entry.event,
        f"iccm.{kind}_at": entry.at.astimezone(UTC).isoformat(),
        f"iccm.{kind}_reason": entry.reason,
        "iccm.improvement": f"{improvement:.6g}" if entry.weight is None and improvement is not None else "",
    }
    return {name: value for name, value in tags.items() if value}


def read_history(registry: ModelRegistry) -> list[HistoryEntry]:
    """Return all decisions that the registry has, in the order of their time."""
    return [HistoryEntry.from_json(value) for _, value in sorted(registry.read_history().items())]


def compute_aliases(history: Iterable[HistoryEntry]) -> dict[str, str | None]:
    """Return the version of each alias after these decisions.

    ``production`` is the version that was last given all traffic. ``candidate`` is that of the live rollout
    or, without one, the version that the gate passed last and that is neither production nor taken back.
    """
    production: str | None = None
    passed: str | None = None
    rolling: str | None = None
    for entry in history:
        if entry.verdict is not None:
            if entry.verdict == "pass" and entry.version != production:
                passed = entry.version
            elif passed == entry.version:
                passed = None
            continue
        if entry.event == "opened":
            rolling = entry.version
        ended = {entry.candidate, entry.version} if entry.event in ("rolled_back", "aborted") else set()
        if entry.weight == 1.0:
            production = entry.version
            ended.add(production)
        passed = None if passed in ended else passed
        rolling = None if rolling in ended else rolling
    return {PRODUCTION_ALIAS: production, CANDIDATE_ALIAS: rolling or passed}


def versions_served_at(history: Iterable[HistoryEntry], as_of: datetime) -> list[ServedVersion]:
    """Return the versions live at a time with their weights, from what the registry holds alone."""
    events = (
        TrafficEvent(entry.at, entry.version, entry.weight) for entry in history if entry.weight is not None
    )
    return compute_served_versions(events, as_of)


def run_mirror_process(engine: sa.Engine, settings: Settings) -> MirrorReport:
    """Deliver what is due in another process, and end that if it takes too long.

    Raises ``InputError`` where there is nothing to talk to.
    """
    check_client(settings.mlflow_model)
    command = worker_command("iccm_assets.governance.registry_mirror")
    limit = settings.alerts.time_budget_seconds + _PROCESS_SECONDS
    with subprocess.Popen(
        command,
        env={**os.environ, **parent_env()},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            return MirrorReport(0, count_pending_decisions(engine), f"no answer within {limit:g} s")
    lines = output.strip().splitlines()
    if process.returncode or not lines:
        reason = f"the process ended with status {process.returncode}"
        return MirrorReport(0, count_pending_decisions(engine), reason)
    return MirrorReport(**json.loads(lines[-1]))


def _limits(limits: AlertSettings) -> dict[str, float]:
    return {"retry": limits.retry_seconds, "max_retry": 60.0 * limits.max_retry_minutes}


def main() -> int:
    """Deliver what is due; print the report."""
    exit_with_parent()
    settings = load_settings()
    engine = database.connect(settings)
    try:
        report = mirror_decisions(engine, settings, MlflowRegistry(settings.mlflow_model))
    except IccmError as error:
        report = MirrorReport(0, count_pending_decisions(engine), error.message)
    sys.stdout.write(f"\n{json.dumps(asdict(report))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
