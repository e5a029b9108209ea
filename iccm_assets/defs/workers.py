"""Where the platform's work runs: on this machine, or on a Ray cluster (`ICCM_COMPUTE`).

The one place of this choice. Assets name a module and what it needs; the clients here start it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import dagster as dg

from iccm_assets.defs.pipes_reader import pipes_client
from iccm_assets.defs.training.training_progress import with_progress
from iccm_assets.worker_process import parent_env, worker_command

if TYPE_CHECKING:
    from iccm_assets.defs.resources import PlatformResource

Context = dg.AssetExecutionContext | dg.OpExecutionContext


class WorkerClient(ABC):
    """Runs the platform's worker modules for the steps of a Dagster run."""

    @abstractmethod
    def run(
        self,
        context: dg.AssetExecutionContext,
        platform: PlatformResource,
        module: str,
        extras: Mapping[str, Any],
        *,
        observe_progress: bool = False,
    ) -> Sequence[Any]:
        """Run a module that needs a process of its own, with a GPU if there is one; return its messages.

        ``observe_progress`` logs the points of a loss curve among the messages as observations.
        """

    @abstractmethod
    def perform(
        self, context: Context, platform: PlatformResource, module: str, request: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return what the module's ``work`` returns for this request; raise the error it raises."""


class LocalWorkers(WorkerClient):
    """Work on this machine: in a process of its own, or in that of the run."""

    def run(
        self,
        context: dg.AssetExecutionContext,
        platform: PlatformResource,
        module: str,
        extras: Mapping[str, Any],
        *,
        observe_progress: bool = False,
    ) -> Sequence[Any]:
        client = pipes_client()
        worker = (with_progress(client, context) if observe_progress else client).run(
            context=context,
            command=worker_command(module),
            env=parent_env(),
            extras=dict(extras),
        )
        return worker.get_custom_messages()

    def perform(
        self, context: Context, platform: PlatformResource, module: str, request: Mapping[str, Any]
    ) -> dict[str, Any]:
        work = import_module(module).work
        result: dict[str, Any] = work(platform.engine, platform.settings, request, context.log.info)
        return result
