"""A platform with a rollout in its database: traffic as gateways would store it, scores, and the clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.db.clock import now, set_clock
from iccm_assets.gateway.routing import assign_arm
from iccm_assets.registry import versions
from iccm_assets.registry.manifest import MANIFEST_FILE, Manifest, describe_files
from iccm_assets.rollout import controller, deployment, opening, repository
from iccm_assets.rollout.actions import Decision
from iccm_assets.rollout.state import State
from iccm_assets.settings import Settings

SUITE = {"kind": "cases", "cases": [{"call": "f", "args": [1], "expect": 1}]}
# Stages of minutes and a handful of samples; limits, lease and evidence as in production.
SHORT = {
    "first_stage_hours": 0.1,
    "second_stage_hours": 0.1,
    "bake_hours": 0.1,
    "first_stage_sessions": 5,
    "second_stage_sessions": 8,
    "health_sessions": 3,
    "replay_threshold_sessions": 0,
}


def short(settings: Settings, **changes: Any) -> Settings:
    """Return settings with stages of minutes."""
    rollout = settings.rollout.model_copy(update={**SHORT, **changes})
    return settings.model_copy(update={"rollout": rollout})


def model(root: Path, name: str) -> Path:
    """Make a directory that verifies as a published model; no test loads it."""
    path = root / name
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(name.encode())
    manifest = Manifest(kind="imported", base=name, files=describe_files(path))
    (path / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return path


@dataclass
class World:
    """A production version, a candidate with a passing verdict, and their traffic."""

    engine: sa.Engine
    settings: Settings
    root: Path
    production: str = ""
    candidate: str = ""
    request_count: int = 0
    decisions: list[Decision] = field(default_factory=list)

    def bootstrap(self) -> World:
        base = model(self.root, "base")
        with self.engine.begin() as conn:
            first = deployment.bootstrap(conn, digest="a" * 64, path=str(base), base_model="base")
        self.production = first.version
        self.candidate = self.version("b")
        return self

    def version(self, letter: str, verdict: str | None = "pass", status: str = "candidate") -> str:
        path = model(self.root, letter)
        with self.engine.begin() as conn:
            serving = versions.get_production_version(conn)
            assert serving is not None
            made = versions.register_version(
                conn, digest=letter * 64, path=str(path), parent=serving.version, status=status
            )
            if verdict:
                conn.execute(
                    t.gate_verdicts.insert().values(
                        version=made.version, production_version=serving.version, status=verdict,
                        verdict={"status": verdict, "reasons": ["improvement: +0.05"]},
                        canary_set_digest="c", orchestra="o", judge_version="j",
                    )
                )  # fmt: skip
        return made.version

    def open(self, **more: Any) -> State:
        state = opening.open_rollout(self.engine, self.settings, self.candidate, actor="test", **more).state
        assert state is not None
        return state

    def state(self) -> State:
        with self.engine.connect() as conn:
            state = repository.get_latest_rollout(conn)
        assert state is not None
        return state

    def now(self) -> datetime:
        with self.engine.connect() as conn:
            return now(conn)

    def wait(self, seconds: float) -> None:
        with self.engine.begin() as conn:
            set_clock(conn, shift=timedelta(seconds=seconds))

    def beat(self, replicas: int = 2, ready: Sequence[str] | None = None) -> None:
        """Store gateways with a fresh heartbeat, by default with both models ready."""
        names = [self.production, self.candidate] if ready is None else list(ready)
        with self.engine.begin() as conn:
            conn.execute(t.gateway_replicas.delete())
            for number in range(replicas):
                conn.execute(t.gateway_replicas.insert().values(replica=f"g{number}", ready_versions=names))

    def ask(
        self,
        session: str | None = None,
        *,
        arm: str | None = None,
        rate: float | None = 0.8,
        variance: float | None = 0.01,
        tests: bool = True,
        status: str = "ok",
        at: datetime | None = None,
        rollout_id: int | None = -1,
        answered_by: str | None = None,
        latency: float = 100.0,
        tokens: int = 10,
        text: str = "The function shall return its argument.",
        attempted: bool | None = None,
        conn: sa.Connection | None = None,
    ) -> int | None:
        """Store a request as the gateway does, scored unless ``rate`` is None; return its response's id."""
        if conn is None:
            with self.engine.begin() as own:
                return self.ask(
                    session, arm=arm, rate=rate, variance=variance, tests=tests, status=status, at=at,
                    rollout_id=rollout_id, answered_by=answered_by, latency=latency, tokens=tokens, text=text,
                    attempted=attempted, conn=own,
                )  # fmt: skip
        self.request_count += 1
        request, state = f"r{self.request_count}", self.state()
        session = session or f"s{self.request_count}"
        arm = arm or assign_arm(state.id, session, state.weight)
        rollout_id = state.id if rollout_id == -1 else rollout_id
        answered_by = answered_by or ("production" if status == "fallback" else arm)
        created_at = at or now(conn)
        version = self.candidate if answered_by == "canary" else self.production
        failed = status in ("error", "timeout", "rejected")
        conn.execute(
            t.requests.insert().values(
                request_id=request, session_id=session, rollout_id=rollout_id, assigned_arm=arm,
                arm=None if failed else answered_by, model_version=version, status=status,
                latency_ms=latency, output_tokens=None if failed else tokens, created_at=created_at,
            )
        )  # fmt: skip
        if failed:
            return None
        answer = conn.execute(
            t.requirements.insert()
            .values(
                session_id=session, kind="model", text=text, request_id=request, model_version=version,
                arm=answered_by, test_suite=SUITE if tests else None, created_at=created_at,
            )
            .returning(t.requirements.c.id)
        ).scalar_one()  # fmt: skip
        if tests and (rate is not None or attempted):
            self.score(answer, rate, variance, conn=conn)
        return int(answer)

    def score(
        self,
        answer: int,
        rate: float | None = 0.8,
        variance: float | None = 0.01,
        conn: sa.Connection | None = None,
    ) -> None:
        """Score a response; a ``rate`` of None is an inconclusive score."""
        if conn is None:
            with self.engine.begin() as own:
                return self.score(answer, rate, variance, conn=own)
        r = t.requirements
        values = {"test_pass_rate": rate, "implementation_variance": None if rate is None else variance}
        conn.execute(r.update().where(r.c.id == answer).values(**values, scored_at=now(conn)))
        return None

    def tick(self) -> Decision:
        decision = controller.tick(self.engine, self.settings)
        assert decision is not None
        self.decisions.append(decision)
        return decision

    def step(self, sessions: int = 12, canary: float = 0.8, production: float = 0.8, **more: Any) -> Decision:
        """Store a minute of scored traffic, split by the weight, and tick."""
        self.wait(60)
        self.beat()
        state = self.state()
        with self.engine.begin() as conn:
            for _ in range(sessions if state.weight else 0):
                name = f"s{self.request_count + 1}"
                arm = assign_arm(state.id, name, state.weight)
                rate = canary if arm == "canary" else production
                self.ask(name, arm=arm, rate=rate, conn=conn, **more)
        return self.tick()

    def until(self, *names: str, steps: int = 80, **traffic: Any) -> State:
        """Step until the rollout has one of these states."""
        for _ in range(steps):
            if self.step(**traffic).state.state in names:
                return self.state()
        raise AssertionError(f"none of {names} was reached: {self.state().reason}")

    def stage(self, number: int, steps: int = 80, **traffic: Any) -> State:
        """Step until a stage has begun."""
        for _ in range(steps):
            state = self.state()
            if state.stage == number and state.weight > 0:
                return state
            self.step(**traffic)
        raise AssertionError(f"stage {number} was not reached: {self.state().reason}")

    def rows(self, query: str, **values: Any) -> list[Any]:
        with self.engine.connect() as conn:
            return list(conn.execute(sa.text(query), values))

    def statuses(self) -> dict[str, str]:
        return dict(self.rows("select version, status from iccm.model_versions"))  # type: ignore[arg-type]

    def events(self, rollout_id: int | None = None) -> list[str]:
        which = self.state().id if rollout_id is None else rollout_id
        query = "select event_type from iccm.deployment_events where rollout_id = :id order by seq"
        return [row.event_type for row in self.rows(query, id=which)]
