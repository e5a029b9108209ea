"""Decide who may write to a session: the user who opened it, else the token that did. (C1)"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SessionOwner:
    """Whose session it is, or who writes: a stored user id and the name of a token, each None if absent."""

    user_id: str | None = None
    token_name: str | None = None


def may_write(owner: SessionOwner, writer: SessionOwner) -> bool:
    """Whether the writer may write to a session of this owner.

    Two user ids have to be equal, whatever the tokens: a user may have several. Without one on either side,
    the tokens have to be equal. A session that was opened without both is open to everybody, until the first
    writer who names one of them.
    """
    if owner.user_id is not None and writer.user_id is not None:
        return owner.user_id == writer.user_id
    return owner == SessionOwner() or owner.token_name == writer.token_name


def merge_owner(owner: SessionOwner, writer: SessionOwner) -> SessionOwner:
    """Return the owner after this writer wrote: the first user id stays, and so does the opener's token."""
    token_name = writer.token_name if owner == SessionOwner() else owner.token_name
    return SessionOwner(owner.user_id or writer.user_id, token_name)
