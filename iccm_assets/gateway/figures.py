"""What `/metrics` tells from the database (A3): read by a thread of its own, now and then, never by a scrape.

Not by the control thread: its next look at the routing must not wait for a query over an hour of requests. A
reading that is too old is not shown any more, and its age says so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta

import sqlalchemy as sa
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from iccm_assets.errors import DatabaseError
from iccm_assets.judging.pending import count, pending_live
from iccm_assets.settings import Settings
from iccm_assets.store.arms import ArmFigures
from iccm_assets.store.live import Live, LiveRollout, live

log = logging.getLogger("iccm.gateway")

# A reading never takes more than this share of the time, however long its query.
LARGEST_SHARE = 0.05
STALE_READINGS = 5
ARM = ("arm", "version")


class Figures(Collector):
    """The newest reading as Prometheus metrics; the same from every process over one database."""

    def __init__(self, engine: Callable[[], sa.Engine], settings: Settings) -> None:
        limits = settings.gateway
        self._engine = engine
        self._window = timedelta(minutes=limits.figures_window_minutes)
        self._every = limits.figures_seconds
        self._read: tuple[float, Live, int] | None = None
        self._over = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="gateway-figures", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """End; a query under way is not waited for."""
        self._over.set()

    def describe(self) -> Iterable[Metric]:
        """Nothing: what is exposed depends on what was read."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The metrics of the newest reading, without a query."""
        found = self._read
        age = None if found is None else time.monotonic() - found[0]
        fresh = age is not None and age < STALE_READINGS * self._every
        yield gauge("iccm_figures_up", "Whether what the database tells is fresh.", float(fresh))
        if found is not None and age is not None:
            yield gauge("iccm_figures_age_seconds", "Since the database was last read for this page.", age)
        if found is not None and fresh:
            yield from of_arms(found[1].arms)
            yield from of_rollout(found[1].rollout)
            yield from of_platform(found[1], found[2])

    def _run(self) -> None:
        pause = 0.0
        while not self._over.wait(pause):
            begun = time.monotonic()
            try:
                self._read = self._look()
                self._failing = False
            except (sa.exc.SQLAlchemyError, DatabaseError, OSError) as error:
                if not self._failing:
                    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
                    log.warning("the figures of /metrics cannot be read: %s", first)
                self._failing = True
            pause = max(self._every, (time.monotonic() - begun) / LARGEST_SHARE)

    def _look(self) -> tuple[float, Live, int]:
        engine = self._engine()
        with engine.connect() as conn:
            found = live(conn, self._window)
        return time.monotonic(), found, count(engine, pending_live())


def of_arms(arms: Iterable[ArmFigures]) -> Iterator[Metric]:
    """Per arm and version: quality, speed, errors and feedback. Pure."""
    arms = list(arms)
    shares: tuple[tuple[str, str, Callable[[ArmFigures], float | None]], ...] = (
        ("pass_rate", "Mean test pass rate of the arm's scored sessions.", lambda one: one.pass_rate),
        (
            "implementation_variance", "Mean variance of pass rates over the orchestra.",
            lambda one: one.implementation_variance,
        ),
        ("api_compatibility", "Mean share of public signatures kept.", lambda one: one.api_compatibility),
        ("error_rate", "Share of requests that failed, timed out or fell back.", lambda one: one.error_rate),
        ("scored_sessions", "Sessions with a score.", lambda one: float(one.scored_sessions)),
        ("requests", "Requests assigned to the arm.", lambda one: float(one.requests)),
    )  # fmt: skip
    for name, text, value in shares:
        family = GaugeMetricFamily(f"iccm_arm_{name}", f"{text} In the window.", labels=ARM)
        for one in arms:
            if (known := value(one)) is not None:
                family.add_metric([one.arm, one.version], known)
        yield family
    latency = GaugeMetricFamily(
        "iccm_arm_latency_seconds", "Latency of answers in the window.", labels=(*ARM, "quantile")
    )
    feedback = GaugeMetricFamily("iccm_arm_feedback", "Ratings in the window.", labels=(*ARM, "rating"))
    for one in arms:
        for quantile, ms in (
            ("0.5", one.latency_p50_ms), ("0.95", one.latency_p95_ms), ("0.99", one.latency_p99_ms),
        ):  # fmt: skip
            if ms is not None:
                latency.add_metric([one.arm, one.version, quantile], ms / 1000)
        feedback.add_metric([one.arm, one.version, "up"], one.thumbs_up)
        feedback.add_metric([one.arm, one.version, "down"], one.thumbs_down)
    yield latency
    yield feedback


def of_rollout(rollout: LiveRollout | None) -> Iterator[Metric]:
    """State, stage, weight, lease and hold of the live rollout; weight and stage 0 without one. Pure."""
    info = GaugeMetricFamily(
        "iccm_rollout", "1 for the live rollout and its state.",
        labels=("rollout", "candidate", "production", "state"),
    )  # fmt: skip
    if rollout is not None:
        labels = [str(rollout.id), rollout.candidate, rollout.production, rollout.state]
        info.add_metric(labels, 1.0)
    yield info
    stage, weight = (0, 0.0) if rollout is None else (rollout.stage, rollout.weight)
    yield gauge("iccm_rollout_stage", "1: 10 %, 2: 50 %, 3: bake; 0 without a rollout.", stage)
    yield gauge("iccm_rollout_weight", "Share of the canary arm, as the controller set it.", weight)
    if rollout is not None and rollout.lease_seconds is not None:
        text = "Seconds left of the canary's lease; below 0 since it ended."
        yield gauge("iccm_rollout_lease_seconds", text, rollout.lease_seconds)
    held = rollout.held_seconds if rollout is not None and rollout.held_seconds is not None else 0.0
    yield gauge("iccm_rollout_held_seconds", "For how long the rollout has been held.", held)


def of_platform(found: Live, waiting: int) -> Iterator[Metric]:
    """Replicas, and what waits for somebody. Pure."""
    yield gauge("iccm_gateway_replicas", "Living gateway processes.", found.replicas)
    ready = GaugeMetricFamily(
        "iccm_gateway_replicas_ready", "Of them, with a version loaded and warm.", labels=("version",)
    )
    for version, replicas in sorted(found.ready.items()):
        ready.add_metric([version], replicas)
    yield ready
    production = GaugeMetricFamily("iccm_production", "1 for the version in production.", labels=("version",))
    if found.production is not None:
        production.add_metric([found.production], 1.0)
    yield production
    yield gauge("iccm_alerts_undelivered", "Alerts that have not arrived.", found.undelivered_alerts)
    yield gauge("iccm_live_scoring_waiting", "Answers with tests that wait for a score.", waiting)


def gauge(name: str, text: str, value: float) -> Metric:
    """A gauge without labels."""
    return GaugeMetricFamily(name, text, value=value)
