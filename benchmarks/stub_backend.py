"""A backend without a model, for benchmarks and tests; no setting selects it.

``python -m benchmarks.stub_backend --port 0`` runs the real gateway with it, on the configured database. A
version named in the JSON object ``--faults`` fails: ``{"v2": "hang"}``; the faults are ``error``, ``hang``,
``empty``, ``binary``, ``unstorable``, ``huge`` and ``unloadable``. ``--seconds`` is the duration of a batch;
while the file ``--hold`` exists, no batch finishes. ``--lookup-seconds`` is the time that the database has to
name the owner of a session.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from iccm_assets.errors import ModelError
from iccm_assets.gateway import session_owners
from iccm_assets.gateway.batching import Backend, BackendResponse, DynamicBatcher
from iccm_assets.gateway.model_pool import ModelLoader
from iccm_assets.gateway.routing import ModelLocation
from iccm_assets.gateway.server import listen, run, socket_url
from iccm_assets.gateway.supervisor import configure_logging
from iccm_assets.settings import Settings, get_settings


def make_stub_loader(
    settings: Settings, faults: Mapping[str, str], seconds: float = 0.0, hold: Path | None = None
) -> ModelLoader:
    """Make a function that loads any version immediately; the responses contain the version's name."""

    def load(version: ModelLocation) -> Backend:
        fault = faults.get(version.version, "")
        if fault == "unloadable":
            raise ModelError(f"{version.version} has no weights")
        limits = settings.gateway
        return DynamicBatcher(
            version.version,
            lambda sources: [_respond(version.version, fault, seconds, hold)] * len(sources),
            batch_size=limits.batch_size,
            batch_timeout_seconds=limits.batch_timeout_ms / 1000,
            queue_size=limits.queue_size,
            stall_timeout_seconds=limits.canary_timeout_seconds,
        )

    return load


def _respond(version: str, fault: str, seconds: float, hold: Path | None) -> BackendResponse:
    time.sleep(3600 if fault == "hang" else seconds)
    while hold and hold.exists():
        time.sleep(0.01)
    if fault == "error":
        raise RuntimeError("the stub fails")
    responses = {
        "empty": BackendResponse(" \n", 1),
        "binary": BackendResponse("\x01\x02\x03", 3),
        "unstorable": BackendResponse(f"{version} shall hold a NUL \x00 and half a pair \ud800.", 12),
        "huge": BackendResponse("shall " * 100_000, 100_000),
    }
    return responses.get(fault, BackendResponse(f"The function `add` shall return the sum. ({version})", 12))


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--hold", type=Path)
    parser.add_argument("--faults", type=json.loads, default={})
    parser.add_argument("--lookup-seconds", type=float, default=session_owners.LOOKUP_TIMEOUT_SECONDS)
    options = parser.parse_args(arguments)
    session_owners.LOOKUP_TIMEOUT_SECONDS = options.lookup_seconds
    configure_logging()
    settings = get_settings()
    listening = listen("127.0.0.1", options.port, settings)
    print(socket_url(listening), flush=True)  # noqa: T201
    run(listening, settings, make_stub_loader(settings, options.faults, options.seconds, options.hold))


if __name__ == "__main__":
    main()
