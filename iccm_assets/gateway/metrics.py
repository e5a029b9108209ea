"""Metrics of one gateway process for Prometheus; `/metrics` aggregates all workers of a port (A3)."""

from __future__ import annotations

import os
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_NAMESPACE = "iccm_gateway"
MULTIPROCESS_DIR_ENV = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """The gateway's metrics. With several workers, gauges are sums or minima over the live ones.

    The metrics of ``collector`` are equal in all workers, and exposed once.
    """

    def __init__(self, collector: Collector) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(collector)
        self._collector = collector
        gauge = partial(Gauge, namespace=_NAMESPACE, registry=self.registry, multiprocess_mode="livesum")
        minimum = partial(Gauge, namespace=_NAMESPACE, registry=self.registry, multiprocess_mode="livemin")
        counter = partial(Counter, namespace=_NAMESPACE, registry=self.registry)

        self.requests = counter(
            "requests",
            "Requests by assigned arm, responding arm, version and status.",
            ("assigned_arm", "arm", "version", "status"),
        )
        self.latency = Histogram(
            "latency_seconds",
            "Time from a request's arrival to its response.",
            ("arm", "version"),
            namespace=_NAMESPACE,
            registry=self.registry,
            buckets=_SECONDS,
        )
        # Separate from requests: measuring production belongs to no session and no arm (T8).
        self.probes = counter("probes", "Quality measurements of production, by status.", ("status",))
        self.feedback = counter("feedback", "Ratings, by value.", ("rating",))
        self.stored_records = counter("records_stored", "Spool records stored in PostgreSQL.")
        self.dead_letters = counter(
            "dead_letters", "Spool records rejected by PostgreSQL and kept in a file."
        )
        self.in_flight = gauge("in_flight", "Requests in progress.")
        self.queue = gauge("queue_depth", "Requests queued or running, by model version.", ("version",))
        self.spool = gauge("spool_bytes", "Bytes of records not stored yet.")
        self.lease = minimum("lease_seconds", "Remaining seconds of the canary's lease.")
        self.weight = minimum("canary_weight", "Traffic fraction of the canary arm in force.")
        self.ready = minimum("model_ready", "1 if the version is loaded, 0 if loading failed.", ("version",))
        self.database = minimum("database_up", "Whether the database can be reached.")

    def render(self) -> bytes:
        """Render all metrics in the Prometheus text format."""
        registry = self.registry
        if MULTIPROCESS_DIR_ENV in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            registry.register(self._collector)
        return generate_latest(registry)
