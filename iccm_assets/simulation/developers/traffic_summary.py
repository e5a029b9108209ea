"""Summary of simulated traffic: sessions, users, and how the developers reacted to the responses (X4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from iccm_assets.simulation.developers.developers import FinishedConversation, PlannedSession


@dataclass(frozen=True)
class TrafficSummary:
    """Sessions and users of a simulation, and how the developers reacted to the responses.

    The response of an ``open`` session was not accepted: the session is abandoned or not finished yet.
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
class PendingSession:
    """A session that has its response but is not finished yet."""

    session: PlannedSession
    answer: str


def summarize_traffic(
    version: str, sessions: Sequence[PlannedSession], finished: Sequence[FinishedConversation]
) -> TrafficSummary:
    """Summarize these sessions."""
    accepted = [conversation for conversation in finished if not conversation.is_open]
    as_is = sum(conversation.requirements == conversation.answer for conversation in accepted)
    ratings = Counter(conversation.rating for conversation in finished)
    return TrafficSummary(
        version=version,
        conversations=len(finished),
        users=len({conversation.user_id for conversation in finished}),
        new_domain=sum(session.new_domain for session in sessions),
        repeated=sum(session.repeated_session_id is not None for session in sessions),
        accepted_as_is=as_is,
        corrected=len(accepted) - as_is,
        open=len(finished) - len(accepted),
        thumbs_up=ratings[1],
        thumbs_down=ratings[-1],
        domains=dict(Counter(session.program.family for session in sessions).most_common()),
    )
