"""Tokens of the gateway's clients: named, scoped, hashed, with expiry, rotation and counted uses (G9).

The gateway knows them from a snapshot that is read with the routing, so it needs no database to check one.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from iccm_assets.db.notify import notify_routing
from iccm_assets.db.tables.rollout import TOKEN_NAME, TOKEN_SCOPES
from iccm_assets.errors import InputError

PREFIX = "iccm_"
# Names that tokens of ICCM_GATEWAY__TOKENS have.
_RESERVED = "token-"

READ_TOKENS = """
    select name, hash, previous_hash, previous_until, scopes, expires_at, revoked_at from iccm.gateway_tokens
"""
COUNT_USES = """
    update iccm.gateway_tokens set use_count = use_count + %s, last_used_at = iccm.now() where name = %s
"""


@dataclass(frozen=True)
class TokenGrant:
    """What a token allows; ``expires_at`` is on the platform clock."""

    name: str
    scopes: frozenset[str]
    expires_at: datetime | None = None
    is_revoked: bool = False

    def allows(self, scope: str) -> bool:
        """Whether it has a scope; `admin` has all, and "" needs none."""
        return not scope or scope in self.scopes or "admin" in self.scopes


class TokenStore:
    """The tokens as one gateway process knows them, and how often each was used since the last count."""

    def __init__(self) -> None:
        self.grants: Mapping[bytes, TokenGrant] = {}
        self._uses: Counter[str] = Counter()
        self._lock = threading.Lock()

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace the tokens by those of the database."""
        grants: dict[bytes, TokenGrant] = {}
        for row in rows:
            scopes, is_revoked = frozenset(row["scopes"]), row["revoked_at"] is not None
            grant = TokenGrant(row["name"], scopes, row["expires_at"], is_revoked)
            grants[bytes.fromhex(row["hash"])] = grant
            if row["previous_hash"]:
                ends = [end for end in (row["previous_until"], row["expires_at"]) if end is not None]
                old = TokenGrant(row["name"], scopes, min(ends, default=None), is_revoked)
                grants.setdefault(bytes.fromhex(row["previous_hash"]), old)
        self.grants = grants

    def count(self, name: str) -> None:
        """Count one use."""
        with self._lock:
            self._uses[name] += 1

    def take_uses(self) -> list[tuple[int, str]]:
        """Take the uses that are not stored yet."""
        with self._lock:
            uses, self._uses = self._uses, Counter()
        return [(count, name) for name, count in sorted(uses.items())]

    def put_back(self, uses: Sequence[tuple[int, str]]) -> None:
        """Keep uses that could not be stored."""
        with self._lock:
            self._uses.update({name: count for count, name in uses})


def hash_token(token: str) -> bytes:
    """Return the SHA-256 digest of a token, which has more entropy than a password."""
    return sha256(token.encode("utf-8", "replace")).digest()


def create_token(
    engine: Engine, name: str, scopes: Sequence[str], expires_in_days: float | None = None
) -> str:
    """Create a token and return it; only its hash is stored. Raises ``InputError``."""
    if not re.fullmatch(TOKEN_NAME, name) or name.startswith(_RESERVED):
        raise InputError(
            f"{name[:80]!r} is no name of a token",
            hint="Use up to 60 letters, digits, '.', '_' and '-', not beginning with 'token-'.",
        )
    if unknown := [scope for scope in scopes if scope not in TOKEN_SCOPES]:
        raise InputError(f"there is no scope {unknown[0][:40]!r}", hint=f"Scopes: {', '.join(TOKEN_SCOPES)}.")
    if not scopes:
        raise InputError("a token needs a scope", hint=f"Scopes: {', '.join(TOKEN_SCOPES)}.")
    token = _make_token()
    values = {"name": name, "hash": hash_token(token).hex(), "scopes": sorted(set(scopes))}
    try:
        with engine.begin() as conn:
            conn.execute(
                text(
                    "insert into iccm.gateway_tokens (name, hash, scopes, expires_at) values"
                    " (:name, :hash, :scopes, iccm.now() + :seconds * interval '1 second')"
                ),
                {**values, "seconds": _to_seconds(expires_in_days)},
            )
            notify_routing(conn)
    except IntegrityError:
        raise InputError(
            f"there is a token {name} already", hint=f"Use another name, or `iccm token rotate {name}`."
        ) from None
    return token


def rotate_token(engine: Engine, name: str, grace_hours: float) -> str:
    """Give a token a new secret and return it; the old one is valid for some hours more."""
    token = _make_token()
    statement = """
        update iccm.gateway_tokens set previous_hash = hash, hash = :hash, rotated_at = iccm.now(),
            previous_until = iccm.now() + :hours * interval '1 hour'
        where name = :name and revoked_at is null
    """
    _change(engine, name, statement, hash=hash_token(token).hex(), hours=grace_hours)
    return token


def revoke_token(engine: Engine, name: str) -> None:
    """Revoke a token; it stays in the table, since sessions name it."""
    _change(
        engine,
        name,
        "update iccm.gateway_tokens set revoked_at = iccm.now() where name = :name and revoked_at is null",
    )


def list_tokens(engine: Engine) -> list[dict[str, Any]]:
    """List the tokens, the newest first, each with its state."""
    query = """
        select name, scopes, created_at, rotated_at, expires_at, revoked_at, last_used_at, use_count,
            case when revoked_at is not null then 'revoked'
                when expires_at < iccm.now() then 'expired' else 'active' end as state
        from iccm.gateway_tokens order by created_at desc, name
    """
    with engine.connect() as conn:
        return [dict(row) for row in conn.execute(text(query)).mappings()]


def has_active_token(engine: Engine) -> bool:
    """Whether any token is valid now."""
    return any(item["state"] == "active" for item in list_tokens(engine))


def _change(engine: Engine, name: str, statement: str, **values: Any) -> None:
    with engine.begin() as conn:
        if conn.execute(text(statement), {"name": name, **values}).rowcount != 1:
            raise InputError(f"there is no valid token {name[:80]!r}", hint="See `iccm token list`.")
        notify_routing(conn)


def _make_token() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def _to_seconds(days: float | None) -> float | None:
    return None if days is None else 86_400 * days
