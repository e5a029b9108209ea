"""Progress of the trainer as observations of the asset while it trains.

Pipes has no call for an observation and delivers custom messages after the process has ended; intercepted
here, progress points become events in the log of the run immediately.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import dagster as dg

from iccm_assets.defs.pipes_reader import LineBufferedMessageReader

if TYPE_CHECKING:
    from contextlib import _GeneratorContextManager

    from dagster._core.pipes.context import PipesMessageHandler
    from dagster_pipes import PipesMessage, PipesParams


class ProgressMessageReader(LineBufferedMessageReader):
    """Reads the messages of a trainer and logs the progress points among them."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        super().__init__()
        self._context = context

    def read_messages(self, handler: PipesMessageHandler) -> _GeneratorContextManager[PipesParams]:
        return super().read_messages(observe_progress(handler, self._context))


def observe_progress(handler: PipesMessageHandler, context: dg.AssetExecutionContext) -> PipesMessageHandler:
    """A message handler that logs the progress points, and passes every other message on to this one."""
    return cast("PipesMessageHandler", _ProgressHandler(handler, context))


class _ProgressHandler:
    """The message handler of a Pipes session, with progress points intercepted."""

    def __init__(self, handler: PipesMessageHandler, context: dg.AssetExecutionContext) -> None:
        self._handler = handler
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)

    def handle_message(self, message: PipesMessage) -> None:
        payload = (message["params"] or {}).get("payload")
        point = payload.get("point") if isinstance(payload, Mapping) else None
        if point is None:
            self._handler.handle_message(message)
        else:
            log_progress(self._context, point)


def log_progress(context: dg.AssetExecutionContext, point: Mapping[str, Any]) -> None:
    """Log one point of the loss curve as an observation, without the values that it lacks."""
    metadata = {name: value for name, value in point.items() if value is not None}
    context.log_event(dg.AssetObservation(asset_key=context.asset_key, metadata=metadata))


def with_progress(
    pipes: dg.PipesSubprocessClient, context: dg.AssetExecutionContext
) -> dg.PipesSubprocessClient:
    """A copy of the client that logs the progress of what it runs."""
    client = copy.copy(pipes)
    client.message_reader = ProgressMessageReader(context)
    return client
