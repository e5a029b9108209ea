"""The orchestra: independent reconstructors that re-implement code from requirements alone (O1).

`ICCM_ORCHESTRA` is a comma-separated list. `openai:URL#model` is one OpenAI-compatible chat endpoint;
any other name is an entry point of the group `iccm.reconstructors` holding one or more in-process
readers (`builtin` brings the three of the reference world, O2).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Literal, Protocol

from iccm_assets.errors import InputError, OrchestraError

ENTRY_POINT_GROUP = "iccm.reconstructors"
ENDPOINT = re.compile(r"openai:(?P<url>https?://[^#\s]+)#(?P<model>\S+)")
FENCE = re.compile(r"```[a-zA-Z0-9_+-]*\n(.*?)```", re.DOTALL)
PROMPT = (
    "Implement these software requirements as one self-contained Python 3 module that uses only the "
    "standard library. Answer with a single fenced code block and nothing else.\n\n"
)


@dataclass(frozen=True)
class Reconstruction:
    """What one member made of a requirements text.

    ``answered`` has code; ``unreadable`` is the text's fault (it scores 0); ``missing`` is the
    member's fault (it does not count, and may put the orchestra below its quorum).
    """

    reconstructor: str
    status: Literal["answered", "unreadable", "missing"]
    implementation: str = ""
    detail: str = ""


class Reconstructor(Protocol):
    """One member of the orchestra."""

    @property
    def name(self) -> str: ...

    def reconstruct(self, requirements: str) -> Reconstruction:
        """Re-implement; never raises for what the text or the endpoint does."""
        ...


@dataclass(frozen=True)
class Reader:
    """An in-process reader; what it cannot read is the requirements' fault."""

    name: str
    read: Callable[[str], str]

    def reconstruct(self, requirements: str) -> Reconstruction:
        try:
            return Reconstruction(self.name, "answered", self.read(requirements))
        except (ValueError, InputError) as error:
            return Reconstruction(self.name, "unreadable", detail=str(error)[:500])


@dataclass(frozen=True)
class ChatEndpoint:
    """An OpenAI-compatible chat endpoint; what it fails to answer is missing, never a score."""

    name: str
    url: str
    model: str
    timeout_seconds: float = 120.0
    max_retries: int = 3

    def reconstruct(self, requirements: str) -> Reconstruction:
        import openai  # ~0.6 s: only where an endpoint is used

        client = openai.OpenAI(
            base_url=self.url,
            api_key=_api_key(),
            timeout=self.timeout_seconds,
            max_retries=self.max_retries,
        )
        try:
            answer = client.chat.completions.create(
                model=self.model,
                temperature=0,
                messages=[{"role": "user", "content": PROMPT + requirements}],
            )
        except openai.OpenAIError as error:
            return Reconstruction(self.name, "missing", detail=f"{type(error).__name__}: {error}"[:500])
        choice = answer.choices[0] if answer.choices else None
        text = (choice.message.content or "") if choice else ""
        blocks = FENCE.findall(text)
        if choice is None or choice.finish_reason == "length" or not blocks:
            return Reconstruction(self.name, "missing", detail="no complete code block in the answer")
        return Reconstruction(self.name, "answered", max(blocks, key=len))


def _api_key() -> str:
    import os

    return os.environ.get("OPENAI_API_KEY", "none")


@dataclass(frozen=True)
class Orchestra:
    """The members asked about every requirements text, and how many must answer."""

    members: tuple[Reconstructor, ...]
    quorum: int

    @property
    def digest(self) -> str:
        """Identifies the members; part of every cached score's key (E1)."""
        names = "\n".join(member.name for member in self.members)
        return hashlib.sha256(names.encode()).hexdigest()[:12]

    def reconstruct(self, requirements: str) -> list[Reconstruction]:
        """One re-implementation per member, in the members' order."""
        if all(isinstance(member, Reader) for member in self.members):
            return [member.reconstruct(requirements) for member in self.members]
        with ThreadPoolExecutor(len(self.members)) as pool:
            return list(pool.map(lambda member: member.reconstruct(requirements), self.members))


def load_orchestra(spec: str, quorum: int) -> Orchestra:
    """The orchestra `ICCM_ORCHESTRA` describes.

    Raises:
        OrchestraError: an unknown member, the same member twice, or fewer members than the quorum.
    """
    members: list[Reconstructor] = []
    for part in (one.strip() for one in spec.split(",")):
        if part:
            members.extend(_members(part))
    names = [member.name for member in members]
    if len(set(names)) < len(names):
        raise OrchestraError(f"a member is named twice in {spec!r}")
    if len(members) < quorum:
        raise OrchestraError(f"{len(members)} members in {spec!r}, but the quorum is {quorum}")
    return Orchestra(tuple(members), quorum)


def _members(part: str) -> Sequence[Reconstructor]:
    if endpoint := ENDPOINT.fullmatch(part):
        return [ChatEndpoint(part, endpoint["url"], endpoint["model"])]
    if part.startswith("openai:"):
        raise OrchestraError(f"{part!r} is not openai:http://host:port/v1#model")
    found = entry_points(group=ENTRY_POINT_GROUP, name=part)
    if not found:
        known = ", ".join(sorted(one.name for one in entry_points(group=ENTRY_POINT_GROUP))) or "none"
        raise OrchestraError(f"unknown member {part!r}", hint=f"Known by name: {known}; or openai:URL#model.")
    readers: Mapping[str, Callable[[str], str]] = next(iter(found)).load()
    return [Reader(f"{part}/{name}", read) for name, read in readers.items()]
