"""Metrics from the database for `/metrics`, read periodically by a thread and never during a scrape (A3).

The routing has its own thread, because its next poll must not wait for a query over an hour of requests. A
reading that is too old is no longer exposed, and its age is a metric.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from iccm_assets.errors import DatabaseError, first_line
from iccm_assets.reporting.arm_metrics import ArmMetrics
from iccm_assets.reporting.live_traffic import LiveRollout, LiveTraffic, load_live_traffic
from iccm_assets.scoring.scoring_queue import count_rows, unscored_live_responses
from iccm_assets.settings import Settings

log = logging.getLogger(__name__)

# Reading takes at most this fraction of the time, however slow its queries are.
MAX_TIME_FRACTION = 0.05
MAX_AGE_INTERVALS = 5
ARM_LABELS = ("arm", "version")

# Pairs of label values and sample; no sample is exposed for None.
Samples = Iterable[tuple[Sequence[str], float | None]]


class DatabaseCollector(Collector, threading.Thread):
    """Expose the latest reading as Prometheus metrics, equal in all processes that share a database."""

    def __init__(self, engine: Callable[[], Engine], settings: Settings) -> None:
        threading.Thread.__init__(self, name="database-metrics", daemon=True)
        self._engine = engine
        self._window = timedelta(minutes=settings.gateway.database_metrics_window_minutes)
        self._interval = settings.gateway.database_metrics_interval_seconds
        self._reading: tuple[float, LiveTraffic, int] | None = None
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Stop without waiting for a running query."""
        self._stopping.set()

    def collect(self) -> Iterator[Metric]:
        """Return the metrics of the latest reading, without a query."""
        age = None if self._reading is None else time.monotonic() - self._reading[0]
        fresh = age is not None and age < MAX_AGE_INTERVALS * self._interval
        yield gauge("iccm_database_metrics_up", "Whether the metrics from the database are fresh.", fresh)
        if self._reading is not None and age is not None:
            yield gauge("iccm_database_metrics_age_seconds", "Age of the metrics from the database.", age)
        if self._reading is not None and fresh:
            _, traffic, pending = self._reading
            yield from arm_metrics(traffic.arms)
            yield from rollout_metrics(traffic.rollout)
            yield from platform_metrics(traffic, pending)

    def run(self) -> None:
        """Read periodically until `stop`."""
        pause, failing = 0.0, False
        while not self._stopping.wait(pause):
            started = time.monotonic()
            try:
                engine = self._engine()
                with engine.connect() as conn:
                    traffic = load_live_traffic(conn, self._window)
                self._reading = (time.monotonic(), traffic, count_rows(engine, unscored_live_responses()))
                failing = False
            except (SQLAlchemyError, DatabaseError, OSError) as error:
                if not failing:
                    log.warning("cannot read the metrics from the database: %s", first_line(error))
                failing = True
            pause = max(self._interval, (time.monotonic() - started) / MAX_TIME_FRACTION)


def arm_metrics(arms: Iterable[ArmMetrics]) -> Iterator[Metric]:
    """Build the metrics per arm and version: quality, latency, errors and feedback."""
    by_labels = [((arm.arm, arm.version), arm) for arm in arms]
    for field, text in (
        ("pass_rate", "Mean test pass rate of the scored sessions"),
        ("implementation_variance", "Mean variance of pass rates across the orchestra"),
        ("api_compatibility", "Mean fraction of unchanged public signatures"),
        ("error_rate", "Fraction of requests that failed, timed out or fell back"),
        ("scored_sessions", "Sessions with a score"),
        ("pytest_sessions", "Sessions with a score by a pytest suite, the weaker evidence"),
        ("requests", "Requests assigned to the arm"),
    ):
        samples = [(labels, getattr(arm, field)) for labels, arm in by_labels]
        yield _family(f"iccm_arm_{field}", f"{text}, in the window.", ARM_LABELS, samples)
    latencies = (
        ((*labels, quantile), None if milliseconds is None else milliseconds / 1000)
        for labels, arm in by_labels
        for quantile, milliseconds in (
            ("0.5", arm.latency_p50_ms),
            ("0.95", arm.latency_p95_ms),
            ("0.99", arm.latency_p99_ms),
        )
    )
    ratings = (
        ((*labels, rating), thumbs)
        for labels, arm in by_labels
        for rating, thumbs in (("up", arm.thumbs_up), ("down", arm.thumbs_down))
    )
    yield _family(
        "iccm_arm_latency_seconds", "Response latency, in the window.", (*ARM_LABELS, "quantile"), latencies
    )
    yield _family("iccm_arm_feedback", "Ratings, in the window.", (*ARM_LABELS, "rating"), ratings)


def rollout_metrics(rollout: LiveRollout | None) -> Iterator[Metric]:
    """Build the metrics of the live rollout; without one, stage, weight and hold are 0."""
    labels = ("rollout", "candidate", "production", "state")
    info: Samples = ()
    stage, weight, held_seconds = 0, 0.0, 0.0
    if rollout is not None:
        info = [((str(rollout.id), rollout.candidate, rollout.production, rollout.state), 1.0)]
        stage, weight, held_seconds = rollout.stage, rollout.weight, rollout.held_seconds or 0.0
        if rollout.lease_seconds is not None:
            yield gauge(
                "iccm_rollout_lease_seconds",
                "Remaining seconds of the canary's lease; negative once it has expired.",
                rollout.lease_seconds,
            )
    yield _family("iccm_rollout", "1 for the live rollout and its state.", labels, info)
    yield gauge("iccm_rollout_stage", "1: 10 %, 2: 50 %, 3: bake; 0 without a rollout.", stage)
    yield gauge("iccm_rollout_weight", "Traffic fraction of the canary arm set by the controller.", weight)
    yield gauge("iccm_rollout_held_seconds", "Time for which the rollout has been held.", held_seconds)


def platform_metrics(traffic: LiveTraffic, pending: int) -> Iterator[Metric]:
    """Build the metrics of replicas, production, alerts and pending scores."""
    production: Samples = [] if traffic.production is None else [((traffic.production,), 1.0)]
    ready: Samples = [((version,), replicas) for version, replicas in sorted(traffic.ready.items())]
    yield gauge("iccm_gateway_replicas", "Live gateway processes.", traffic.replicas)
    yield _family(
        "iccm_gateway_replicas_ready",
        "Live gateway processes with the version loaded and warm.",
        ("version",),
        ready,
    )
    yield _family("iccm_production", "1 for the production version.", ("version",), production)
    yield gauge("iccm_alerts_undelivered", "Alerts not delivered yet.", traffic.undelivered_alerts)
    yield gauge("iccm_live_scoring_pending", "Responses with tests that have no score yet.", pending)


def gauge(name: str, text: str, value: float) -> Metric:
    """Build a gauge without labels."""
    return GaugeMetricFamily(name, text, value=float(value))


def _family(name: str, text: str, labels: Sequence[str], samples: Samples) -> Metric:
    metric = GaugeMetricFamily(name, text, labels=labels)
    for values, sample in samples:
        if sample is not None:
            metric.add_metric(values, sample)
    return metric
