"""The Prometheus metrics of a gateway process."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, NoReturn, cast

from prometheus_client.core import Metric
from prometheus_client.metrics import MetricWrapperBase

from iccm_assets.gateway.database_metrics import DatabaseCollector
from iccm_assets.gateway.metrics import Metrics
from iccm_assets.reporting.live_traffic import LiveRollout, LiveTraffic
from iccm_assets.settings import GatewaySettings
from scripts.reference.markdown import code, codes, page, prose, section, table

HEAD = ("metric", "type", "labels", "meaning")
INTRODUCTION = """
Every gateway process serves `GET /metrics` in the Prometheus text format. [Alerts and
metrics](../how-to/alerts-and-metrics.md) says how to scrape them and which rules and dashboards there are.
"""
PROCESS = "With `iccm serve --workers N` these are aggregated over the workers of a port."
DATABASE = """
A thread reads these from the database; they are equal in every process that shares it. A metric without a
value is not exposed, for example the quality of an arm without scored sessions.
"""


def render() -> str:
    """Return the page."""
    collector = _collector()
    process = [item for item in vars(Metrics(collector)).values() if isinstance(item, MetricWrapperBase)]
    counted = [_row(metric, wrapper) for wrapper in process for metric in wrapper.describe()]
    return page(
        "Metrics",
        INTRODUCTION,
        section("Counted by the process", PROCESS, table(HEAD, counted)),
        section("Read from the database", DATABASE.strip(), table(HEAD, map(_row, collector.collect()))),
    )


def _collector() -> DatabaseCollector:
    """Return a collector that has a reading, of a platform with a rollout."""
    settings = SimpleNamespace(gateway=GatewaySettings())
    collector = DatabaseCollector(_no_engine, cast(Any, settings))
    rollout = LiveRollout(1, "v2", "v1", "ramping", 1, 0.1, lease_seconds=0.0, held_seconds=0.0)
    collector._reading = (time.monotonic(), LiveTraffic((), rollout, "v1", 1, {}, 0), 0)
    return collector


def _no_engine() -> NoReturn:
    raise NotImplementedError("the reference pages need no database")


def _row(metric: Metric, source: Any = None) -> tuple[str, ...]:
    labels: tuple[str, ...] = (source or cast(Any, metric))._labelnames
    name = f"{metric.name}_total" if metric.type == "counter" else metric.name
    return code(name), metric.type, codes(labels), prose(metric.documentation)
