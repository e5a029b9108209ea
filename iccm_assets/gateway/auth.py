"""Authenticate requests by bearer token, which an address reachable from other hosts requires (G6)."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from hashlib import sha256

from iccm_assets.errors import SettingsError
from iccm_assets.gateway.problem_details import ProblemDetail
from iccm_assets.settings import Settings

# Load balancers probe these paths without a token.
PUBLIC_PATHS = frozenset({"/healthz", "/readyz"})


def bearer_tokens(settings: Settings) -> list[str]:
    """Return the configured tokens."""
    return [token for part in settings.gateway.tokens.split(",") if (token := part.strip())]


def token_digests(settings: Settings) -> tuple[bytes, ...]:
    """Return the SHA-256 digests of the configured tokens."""
    return tuple(sha256(token.encode()).digest() for token in bearer_tokens(settings))


def require_tokens_off_loopback(host: str, tokens: Sequence[bytes]) -> None:
    """Raise ``SettingsError`` if no token is configured and other hosts can reach the address."""
    if not tokens and not _is_loopback(host):
        raise SettingsError(
            f"{host} can be reached from other machines and no token is set",
            hint="Set ICCM_GATEWAY__TOKENS, or listen on 127.0.0.1.",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_token(path: str, header: str | None, tokens: Sequence[bytes]) -> str | None:
    """Return the name of the request's token; None where the path is public or no token is configured.

    Raises a 401 `ProblemDetail` for a token that is not configured.
    """
    if not tokens or path in PUBLIC_PATHS:
        return None
    scheme, _, token = (header or "").partition(" ")
    digest = sha256(token.strip().encode("utf-8", "replace")).digest()
    # Compares with every token, so that the time taken does not depend on which one matches.
    matches = [hmac.compare_digest(digest, known) for known in tokens]
    if scheme.lower() != "bearer" or not any(matches):
        raise ProblemDetail(401, "a valid token is required: Authorization: Bearer …")
    return token_name(digest)


def token_name(digest: bytes) -> str:
    """Return the name under which a token owns sessions; it does not reveal the token."""
    return f"token-{digest.hex()[:8]}"
