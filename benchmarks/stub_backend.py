"""A backend without a model, for benchmarks and tests; no setting selects it.

With `ICCM_GATEWAY__BACKEND=openai` the gateway has its own backend, for tests of it.

``python -m benchmarks.stub_backend --port 0`` runs the real gateway with it, on the configured database. A
version named in the JSON object ``--faults`` fails: ``{"v2": "hang"}``; the faults are ``error``, ``hang``,
``empty``, ``binary``, ``unstorable``, ``huge``, ``torn`` (a stream that breaks off) and ``unloadable``.
``--seconds`` is the duration of a batch; while the file ``--hold`` exists, no batch finishes.
``--lookup-seconds`` is the time that the database has to name the owner of a session.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from iccm_assets.errors import ModelError
from iccm_assets.gateway import session_owners
from iccm_assets.gateway.backends import make_model_loader
from iccm_assets.gateway.batching import Backend, BackendResponse, DynamicBatcher
from iccm_assets.gateway.model_pool import ModelLoader
from iccm_assets.gateway.routing import ModelLocation
from iccm_assets.gateway.server import listen, run, socket_url
from iccm_assets.gateway.supervisor import configure_logging
from iccm_assets.models.token_streaming import TextListener
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
            lambda sources, listeners: _respond_to_all(version.version, fault, seconds, hold, listeners),
            batch_size=limits.batch_size,
            batch_timeout_seconds=limits.batch_timeout_ms / 1000,
            queue_size=limits.queue_size,
            stall_timeout_seconds=limits.canary_timeout_seconds,
        )

    return load


def _respond_to_all(
    version: str,
    fault: str,
    seconds: float,
    hold: Path | None,
    listeners: Sequence[TextListener | None],
) -> list[BackendResponse]:
    """Respond word by word to those who listen, ``huge`` a hundred at a time; ``torn`` fails after three."""
    response = _respond(version, fault, seconds, hold)
    words = re.findall(r"(?:\s*\S+){1,100}|\s+" if fault == "huge" else r"\s*\S+|\s+", response.text)
    for listener in filter(None, listeners):
        for number, word in enumerate(words, 1):
            listener(word, number)
            if fault == "torn" and number == 3:
                raise RuntimeError("the stub fails in the middle")
    return [response] * len(listeners)


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
    text = f"The function `add` shall return the sum. ({version})"
    return responses.get(fault, BackendResponse(text, 12, 9))


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
    if settings.gateway.backend == "openai":
        load = make_model_loader(settings)
    else:
        load = make_stub_loader(settings, options.faults, options.seconds, options.hold)
    run(listening, settings, load)


if __name__ == "__main__":
    main()
