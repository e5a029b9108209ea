"""What simulated traffic came to: sessions, their users, and how the developers took the answers (X4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from iccm_assets.reference.developers import FinishedConversation, PlannedSession


@dataclass(frozen=True)
class Traffic:
    """What a simulation brought: sessions and their users, and how the developers took the answers.

    ``open`` sessions have an answer and nobody who accepted it: abandoned, or not heard of yet.
    """

    version: str
    conversations: int
    users: int
    new_domain: int
    repeated: int
    accepted_as_is: int
    corrected: int
    open: int
    thumbs_up: int
    thumbs_down: int
    domains: dict[str, int]


@dataclass(frozen=True)
class Pending:
    """A session that was asked and answered, and whose end the platform has yet to hear of."""

    session: PlannedSession
    answer: str
    version: str


def summary(
    version: str, sessions: Sequence[PlannedSession], finished: Sequence[FinishedConversation]
) -> Traffic:
    """What these sessions came to."""
    ended = [one for one in finished if not one.open]
    as_is = sum(one.requirements == one.answer for one in ended)
    return Traffic(
        version=version,
        conversations=len(finished),
        users=len({one.user_id for one in finished}),
        new_domain=sum(session.new_domain for session in sessions),
        repeated=sum(session.repeats is not None for session in sessions),
        accepted_as_is=as_is,
        corrected=len(ended) - as_is,
        open=len(finished) - len(ended),
        thumbs_up=sum(one.rating == 1 for one in finished),
        thumbs_down=sum(one.rating == -1 for one in finished),
        domains=dict(Counter(session.sketch.family for session in sessions).most_common()),
    )
