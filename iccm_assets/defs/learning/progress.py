"""The trainer's progress as observations of the asset, while it trains (L7).

Pipes has no call for an observation and keeps custom messages until the process has ended; read on the way,
they become events in the run's log at once.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from iccm_assets.defs.messages import WholeMessages

if TYPE_CHECKING:
    from dagster._core.pipes.context import PipesMessageHandler


class ObservingReader(WholeMessages):
    """Reads the messages of a trainer and observes the points among them."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        super().__init__()
        self._context = context

    def read_messages(self, handler: PipesMessageHandler):
        return super().read_messages(_Observing(handler, self._context))


class _Observing:
    """The handler of a Pipes session, with an eye on its custom messages."""

    def __init__(self, handler: PipesMessageHandler, context: dg.AssetExecutionContext) -> None:
        self._handler = handler
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)

    def handle_message(self, message: Mapping[str, Any]) -> None:
        payload = (message["params"] or {}).get("payload")
        point = payload.get("point") if isinstance(payload, Mapping) else None
        if point is None:
            self._handler.handle_message(message)
        else:
            observe(self._context, point)


def observe(context: dg.AssetExecutionContext, point: Mapping[str, Any]) -> None:
    """One point of the curve as an observation; what the point has not measured is left out."""
    measured = {name: value for name, value in point.items() if value is not None}
    context.log_event(dg.AssetObservation(asset_key=context.asset_key, metadata=measured))


def observing(pipes: dg.PipesSubprocessClient, context: dg.AssetExecutionContext) -> dg.PipesSubprocessClient:
    """The client, with the progress of what it runs observed."""
    watched = copy.copy(pipes)
    watched.message_reader = ObservingReader(context)
    return watched
