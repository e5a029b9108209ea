"""What Prometheus reads at `/metrics` (A3): one registry a process; several workers are added up."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
SHARED = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """The gateway's metrics. Where workers share a port, sums and maxima over those that live."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._beside: Collector | None = None
        name = "iccm_gateway_"

        def gauge(what: str, text: str, labels: tuple[str, ...] = (), mode: str = "livesum") -> Gauge:
            return Gauge(
                name + what,
                text,
                labels,
                registry=self.registry,
                multiprocess_mode=mode,  # type: ignore[arg-type]
            )

        self.requests = Counter(
            name + "requests", "Requests by assigned arm, arm that answered, version and status.",
            ("assigned_arm", "arm", "version", "status"), registry=self.registry,
        )  # fmt: skip
        self.latency = Histogram(
            name + "latency_seconds", "From a request's arrival to its answer.", ("arm", "version"),
            registry=self.registry, buckets=_SECONDS,
        )  # fmt: skip
        # Of no session and in no arm: what measures production is no traffic (T8).
        self.probes = Counter(
            name + "probes", "Measurements of production, by status.", ("status",), registry=self.registry
        )
        self.feedback = Counter(name + "feedback", "Ratings.", ("rating",), registry=self.registry)
        self.delivered = gauge("records_delivered", "Records this process has stored.")
        self.refused = gauge("records_refused", "Records PostgreSQL refused, kept in a file.")
        self.in_flight = gauge("in_flight", "Requests being answered.")
        self.queue = gauge("queue_depth", "Requests waiting for or in a model.", ("version",))
        self.spool = gauge("spool_bytes", "Bytes of answers not yet stored.")
        self.lease = gauge("lease_seconds", "Seconds left of the canary's lease.", mode="livemin")
        self.weight = gauge("canary_weight", "Share of the canary arm at this moment.", mode="livemin")
        self.ready = gauge(
            "model_ready", "Whether a version is loaded (1) or failed (0).", ("version",), "livemin"
        )
        self.database = gauge("database_up", "Whether the database is reached.", mode="livemin")

    def beside(self, collector: Collector) -> None:
        """Expose what this collector tells as well; it is the same in every worker, and told once."""
        self._beside = collector
        self.registry.register(collector)

    def text(self) -> bytes:
        """The exposition."""
        if SHARED not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        multiprocess.MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        if self._beside is not None:
            together.register(self._beside)
        return generate_latest(together)
