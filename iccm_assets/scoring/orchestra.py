"""The orchestra: independent reconstructors that re-implement code from requirements alone (O1).

`ICCM_ORCHESTRA` is a comma-separated list. `openai:URL#model` is one OpenAI-compatible chat endpoint;
any other name is an entry point of the group `iccm.reconstructors` holding one or more in-process
reconstructors (`builtin` provides the three of the simulation).
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.metadata import entry_points

from iccm_assets.endpoint_urls import EndpointAddress, parse_orchestra
from iccm_assets.errors import OrchestraError
from iccm_assets.scoring.chat_endpoints import (
    DEFAULT_KEY_VARIABLE,
    ChatEndpoint,
    RequestLoop,
    get_key_variable,
)
from iccm_assets.scoring.endpoint_limits import RateLimiter
from iccm_assets.scoring.reconstruction import LocalReconstructor, Reconstruction, ReconstructionRequest
from iccm_assets.settings import EndpointSettings, Settings

ENTRY_POINT_GROUP = "iccm.reconstructors"

Reconstructor = LocalReconstructor | ChatEndpoint


@dataclass(frozen=True)
class Orchestra:
    """The reconstructors that re-implement every requirements text, and how many of them must answer."""

    members: tuple[Reconstructor, ...]
    quorum: int

    @property
    def digest(self) -> str:
        """Hash of the members, their prompt and their decoding; part of every cached score's key (E1)."""
        return hashlib.sha256("\n".join(member.identity for member in self.members).encode()).hexdigest()[:12]

    def reconstruct(self, requirements: str) -> list[Reconstruction]:
        """Return one re-implementation per member, in the order of the members."""
        [answers] = self.reconstruct_many([ReconstructionRequest(requirements)])
        return answers

    def reconstruct_many(self, requests: Iterable[ReconstructionRequest]) -> Iterator[list[Reconstruction]]:
        """Yield one reconstruction per member for each request, in the order of the requests and members.

        HTTP requests run ahead of the caller, by enough texts to keep all endpoints busy. In-process members
        run when the caller reaches their text. Closing the iterator cancels the requests in flight.
        """
        endpoints = [member for member in self.members if isinstance(member, ChatEndpoint)]
        if not endpoints:
            yield from (self._collect(request, {}) for request in requests)
            return
        max_ahead = max(16, 4 * max(endpoint.limits.concurrency for endpoint in endpoints))
        queue: deque[tuple[ReconstructionRequest, dict[str, Future[Reconstruction]]]] = deque()
        with RequestLoop() as calls:
            for request in requests:
                futures = {
                    endpoint.name: calls.submit(endpoint, request.requirements, request.shape)
                    for endpoint in endpoints
                    if endpoint.name not in request.cached_answers
                }
                queue.append((request, futures))
                if len(queue) > max_ahead:
                    yield self._collect(*queue.popleft())
            while queue:
                yield self._collect(*queue.popleft())

    def _collect(
        self, request: ReconstructionRequest, futures: Mapping[str, Future[Reconstruction]]
    ) -> list[Reconstruction]:
        def answer(member: Reconstructor) -> Reconstruction:
            if member.name in request.cached_answers:
                return request.cached_answers[member.name]
            if isinstance(member, ChatEndpoint):
                return futures[member.name].result()
            return member.reconstruct(request.requirements)

        return [answer(member) for member in self.members]


def load_orchestra_from_settings(settings: Settings) -> Orchestra:
    """Load the orchestra that the settings name; raises like ``load_orchestra``."""
    return load_orchestra(settings.orchestra, settings.orchestra_quorum, settings.endpoints)


def load_orchestra(spec: str, quorum: int, limits: EndpointSettings | None = None) -> Orchestra:
    """Parse an `ICCM_ORCHESTRA` value; sends no request.

    Raises:
        OrchestraError: an unknown member, the same member twice, or fewer members than the quorum.
    """
    try:
        parts = parse_orchestra(spec)
    except ValueError as error:
        raise OrchestraError(f"ICCM_ORCHESTRA {error}") from None
    limits = limits or EndpointSettings()
    keys = _get_key_variables([part for part in parts if isinstance(part, EndpointAddress)])
    limiters: dict[str, RateLimiter] = {}
    members: list[Reconstructor] = []
    for part in parts:
        if isinstance(part, EndpointAddress):
            members.append(
                ChatEndpoint(
                    part,
                    limits.for_member(part.model, part.name),
                    keys[part],
                    limiters.setdefault(part.url, RateLimiter()),
                )
            )
        else:
            members.extend(_load_local_reconstructors(part))
    if len(members) < quorum:
        names = ", ".join(member.name for member in members)
        raise OrchestraError(f"{len(members)} members ({names}), but the quorum is {quorum}")
    return Orchestra(tuple(members), quorum)


def _get_key_variables(addresses: Iterable[EndpointAddress]) -> dict[EndpointAddress, str | None]:
    """Return the environment variable of each endpoint's API key; None where it has none.

    The common key is used only when a single host lacks its own key, so no host receives another's key.
    """
    own = {address: get_key_variable(address) for address in addresses}
    hosts = {address.host for address, variable in own.items() if not os.environ.get(variable)}
    common = DEFAULT_KEY_VARIABLE if len(hosts) == 1 else None
    return {address: name if os.environ.get(name) else common for address, name in own.items()}


def _load_local_reconstructors(name: str) -> list[LocalReconstructor]:
    matches = entry_points(group=ENTRY_POINT_GROUP, name=name)
    if not matches:
        known = ", ".join(sorted(entry_points(group=ENTRY_POINT_GROUP).names)) or "none"
        raise OrchestraError(f"unknown member {name!r}", hint=f"Known names: {known}; or openai:URL#model.")
    reconstruct: Mapping[str, Callable[[str], str]] = next(iter(matches)).load()
    return [LocalReconstructor(f"{name}/{key}", function) for key, function in reconstruct.items()]
