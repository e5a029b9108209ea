"""The orchestra: independent reconstructors that re-implement code from requirements alone (O1).

`ICCM_ORCHESTRA` is a comma-separated list. `openai:URL#model` is one OpenAI-compatible chat endpoint;
any other name is an entry point of the group `iccm.reconstructors` holding one or more in-process
readers (`builtin` brings the three of the reference world, O2).
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.metadata import entry_points

from iccm_assets.addresses import EndpointAddress, parse_orchestra
from iccm_assets.errors import OrchestraError
from iccm_assets.judging.endpoints import DEFAULT_KEY, Calls, ChatEndpoint, Line, own_key_variable
from iccm_assets.judging.reconstruction import Question, Reader, Reconstruction, Reconstructor
from iccm_assets.settings import Endpoints, Settings

__all__ = [
    "Orchestra",
    "Question",
    "Reader",
    "Reconstruction",
    "Reconstructor",
    "load_orchestra",
    "orchestra_of",
]

ENTRY_POINT_GROUP = "iccm.reconstructors"


@dataclass(frozen=True)
class Orchestra:
    """The members asked about every requirements text, and how many must answer."""

    members: tuple[Reconstructor, ...]
    quorum: int

    @property
    def digest(self) -> str:
        """Identifies the members, their prompt and their decoding; part of every cached score's key (E1)."""
        names = "\n".join(member.identity for member in self.members)
        return hashlib.sha256(names.encode()).hexdigest()[:12]

    def reconstruct(self, requirements: str) -> list[Reconstruction]:
        """One re-implementation per member, in the members' order."""
        [answers] = self.ask([Question(requirements)])
        return answers

    def ask(self, questions: Iterable[Question]) -> Iterator[list[Reconstruction]]:
        """For each question one reconstruction per member, in the order of the questions and the members.

        Endpoints are asked ahead of the reader, by as many questions as keep all their slots busy, and no
        question is taken before that; the in-process readers work when it is their turn. Ending the
        iteration early cancels what is under way.
        """
        endpoints = [one for one in self.members if isinstance(one, ChatEndpoint)]
        if not endpoints:
            for question in questions:
                yield [self._answer(member, question, {}) for member in self.members]
            return
        ahead = max(16, 4 * max(one.limits.concurrency for one in endpoints))
        waiting: deque[tuple[Question, dict[str, Future[Reconstruction]]]] = deque()
        with Calls() as calls:
            for question in questions:
                asked = [one for one in endpoints if one.name not in question.known]
                waiting.append(
                    (question, {one.name: calls.place(one, question.requirements) for one in asked})
                )
                if len(waiting) > ahead:
                    yield self._answers(*waiting.popleft())
            while waiting:
                yield self._answers(*waiting.popleft())

    def _answers(
        self, question: Question, placed: Mapping[str, Future[Reconstruction]]
    ) -> list[Reconstruction]:
        return [self._answer(member, question, placed) for member in self.members]

    @staticmethod
    def _answer(
        member: Reconstructor, question: Question, placed: Mapping[str, Future[Reconstruction]]
    ) -> Reconstruction:
        if member.name in question.known:
            return question.known[member.name]
        if member.name in placed:
            return placed[member.name].result()
        return member.reconstruct(question.requirements)


def orchestra_of(settings: Settings) -> Orchestra:
    """The orchestra the settings name; raises like ``load_orchestra``."""
    return load_orchestra(settings.orchestra, settings.orchestra_quorum, settings.endpoints)


def load_orchestra(spec: str, quorum: int, limits: Endpoints | None = None) -> Orchestra:
    """The orchestra `ICCM_ORCHESTRA` describes; nobody is asked anything yet.

    Raises:
        OrchestraError: an unknown member, the same member twice, or fewer members than the quorum.
    """
    try:
        parts = parse_orchestra(spec)
    except ValueError as error:
        raise OrchestraError(f"ICCM_ORCHESTRA {error}") from None
    keys = _key_variables([part for part in parts if isinstance(part, EndpointAddress)])
    lines: dict[str, Line] = {}
    members: list[Reconstructor] = []
    for part in parts:
        if isinstance(part, EndpointAddress):
            line = lines.setdefault(part.url, Line())
            members.append(ChatEndpoint(part, limits or Endpoints(), keys[part], line))
        else:
            members.extend(_readers(part))
    if len(members) < quorum:
        named = ", ".join(member.name for member in members)
        raise OrchestraError(f"{len(members)} members ({named}), but the quorum is {quorum}")
    return Orchestra(tuple(members), quorum)


def _key_variables(addresses: Sequence[EndpointAddress]) -> dict[EndpointAddress, str | None]:
    """Where each endpoint's key is. The common one goes to one host only: no host sees another's key."""
    own = {one: own_key_variable(one) for one in addresses}
    hosts = {one.host for one, variable in own.items() if not os.environ.get(variable)}
    common = DEFAULT_KEY if len(hosts) == 1 else None
    return {one: variable if os.environ.get(variable) else common for one, variable in own.items()}


def _readers(name: str) -> list[Reader]:
    found = entry_points(group=ENTRY_POINT_GROUP, name=name)
    if not found:
        known = ", ".join(sorted(one.name for one in entry_points(group=ENTRY_POINT_GROUP))) or "none"
        raise OrchestraError(f"unknown member {name!r}", hint=f"Known by name: {known}; or openai:URL#model.")
    readers: Mapping[str, Callable[[str], str]] = next(iter(found)).load()
    return [Reader(f"{name}/{one}", read) for one, read in readers.items()]
