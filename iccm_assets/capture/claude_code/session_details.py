"""What a file contains of a session besides its turns: its user, source, requirements and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

# The stored metadata lists which of them the file contains.
ATTACHED_NAMES = ("source_code", "requirements")


@dataclass(frozen=True)
class SessionDetails:
    """What a file contains of a session besides its turns; None and empty where it contains nothing.

    ``has_weak_id``: the id is that of a record, which another file may use for another conversation.
    """

    user_id: str | None = None
    source_code: str | None = None
    requirements: str | None = None
    test_suite: object = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    has_weak_id: bool = False


NO_DETAILS = SessionDetails()


def parse_details(metadata: Mapping[str, Any]) -> SessionDetails:
    """Return what earlier files said of a stored session."""
    names = metadata.get("attached")
    values: dict[str, Any] = {name: metadata.get(name) for name in ATTACHED_NAMES}
    attached = names if isinstance(names, list) else []
    return SessionDetails(**{name: value for name, value in values.items() if name in attached})


def join_details(earlier: SessionDetails | None, later: SessionDetails) -> SessionDetails:
    """Return what two files say of a session; the later one counts where both do."""
    if earlier is None:
        return later
    names = ("user_id", *ATTACHED_NAMES, "test_suite")
    values = {name: getattr(earlier, name) for name in names if getattr(later, name) is None}
    return replace(later, metadata={**earlier.metadata, **later.metadata}, **values)
