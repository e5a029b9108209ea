"""Who may ask (G6): bearer tokens, needed wherever others than this machine can knock."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from hashlib import sha256

from iccm_assets.errors import SettingsError
from iccm_assets.gateway.problems import Problem
from iccm_assets.settings import Settings

# Without a token even when tokens are set: what a load balancer asks.
OPEN = frozenset({"/healthz", "/readyz"})


def tokens_of(settings: Settings) -> tuple[bytes, ...]:
    """Hashes of the tokens that are let in."""
    given = (one.strip() for one in settings.gateway.tokens.split(","))
    return tuple(sha256(one.encode()).digest() for one in given if one)


def check_bind(host: str, tokens: Sequence[bytes]) -> None:
    """Raises ``SettingsError`` for an address others can reach while no token is set."""
    if tokens or is_loopback(host):
        return
    raise SettingsError(
        f"{host} can be reached from other machines and no token is set",
        hint="Set ICCM_GATEWAY__TOKENS, or listen on 127.0.0.1.",
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can knock there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check(path: str, header: str | None, tokens: Sequence[bytes]) -> None:
    """Raises a 401 `Problem` unless the path is open or the token one of ours; all are compared, always."""
    if not tokens or path in OPEN:
        return
    scheme, _, token = (header or "").partition(" ")
    digest = sha256(token.strip().encode("utf-8", "replace")).digest()
    matches = [hmac.compare_digest(digest, one) for one in tokens]
    if scheme.lower() != "bearer" or not any(matches):
        raise Problem(401, "a valid token is needed: Authorization: Bearer …")
