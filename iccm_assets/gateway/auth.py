"""Authenticate requests by bearer token, which an address reachable from other hosts requires (G6, G9)."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from iccm_assets.errors import SettingsError
from iccm_assets.gateway.problem_details import ProblemDetail
from iccm_assets.gateway.tokens import TokenGrant, TokenStore, hash_token
from iccm_assets.settings import Settings

# Load balancers probe these paths without a token.
PUBLIC_PATHS = frozenset({"/healthz", "/readyz"})
MCP_PATH = "/mcp"  # of the tools for coding agents, which are an application of their own


def bearer_tokens(settings: Settings) -> list[str]:
    """Return the configured tokens."""
    return [token for part in settings.gateway.tokens.split(",") if (token := part.strip())]


def token_digests(settings: Settings) -> tuple[bytes, ...]:
    """Return the SHA-256 digests of the configured tokens."""
    return tuple(map(hash_token, bearer_tokens(settings)))


def require_tokens_off_loopback(
    host: str, tokens: Sequence[bytes], has_token: Callable[[], bool] = lambda: False
) -> None:
    """Raise ``SettingsError`` if there is no token and other hosts can reach the address.

    ``has_token`` says whether the database holds one.
    """
    if not tokens and not _is_loopback(host) and not has_token():
        raise SettingsError(
            f"{host} can be reached from other machines and there is no token",
            hint="Run `iccm token create`, set ICCM_GATEWAY__TOKENS, or listen on 127.0.0.1.",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_local(headers: Mapping[bytes, bytes]) -> None:
    """Raise a 403 `ProblemDetail` for a request that a web page of another site may have sent (G9).

    For an address that only this machine reaches, without tokens: a name that resolves to it does not make a
    page of that name one of this machine's.
    """
    host = headers.get(b"host", b"localhost").decode("latin-1")
    if not _names_loopback(f"http://{host}"):
        raise ProblemDetail(403, "without a token the gateway answers to loopback names only, see the Host")
    origin = headers.get(b"origin")
    if origin is not None and not _names_loopback(origin.decode("latin-1")):
        raise ProblemDetail(403, "without a token no page of another site may send requests, see the Origin")


def _names_loopback(url: str) -> bool:
    try:
        return _is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


SCOPE_BY_PATH = {
    "/v1/requirements": "requirements",
    "/v1/chat/completions": "requirements",
    MCP_PATH: "requirements",
    "/v1/conversations": "conversations",
    "/v1/feedback": "feedback",
    "/v1/probe": "metrics",
    "/metrics": "metrics",
}


@dataclass(frozen=True)
class Caller:
    """Who sends a request: the name of its token, None without one; ``is_admin`` may act for others."""

    token_name: str | None = None
    is_admin: bool = False


class Authenticator:
    """Decides who a request comes from, and whether that may do it.

    ``bootstrap`` are the digests of ICCM_GATEWAY__TOKENS, which have every scope but `admin`. Without any, a
    loopback address answers without a token, too.
    """

    def __init__(
        self, bootstrap: Sequence[bytes], store: TokenStore, host: str, now: Callable[[], datetime | None]
    ) -> None:
        self._bootstrap, self._store, self._now = bootstrap, store, now
        self._is_required = bool(bootstrap) or not _is_loopback(host)

    def authenticate(self, path: str, headers: Mapping[bytes, bytes]) -> Caller:
        """Return who sends a request; raises a 401 or 403 `ProblemDetail`."""
        if path in PUBLIC_PATHS:
            return Caller()
        scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        digest = hash_token(token.strip()) if scheme.lower() == "bearer" else b""
        # Compares with every token, so that the time taken does not depend on which one matches.
        matches = [hmac.compare_digest(digest, known) for known in self._bootstrap]
        if any(matches):
            return Caller(bootstrap_name(digest))
        grant = self._store.grants.get(digest)
        if grant is not None:
            return self._admit(grant, SCOPE_BY_PATH.get(path, ""))
        if self._is_required:
            raise ProblemDetail(401, "a valid token is required: Authorization: Bearer …")
        check_local(headers)
        return Caller()

    def _admit(self, grant: TokenGrant, scope: str) -> Caller:
        now = self._now()
        if grant.is_revoked:
            raise ProblemDetail(401, f"the token {grant.name} is revoked")
        if grant.expires_at is not None and (now is None or now >= grant.expires_at):
            raise ProblemDetail(401, f"the token {grant.name} has expired")
        self._store.count(grant.name)
        if not grant.allows(scope):
            raise ProblemDetail(403, f"the token {grant.name} lacks the scope {scope}")
        return Caller(grant.name, "admin" in grant.scopes)


def bootstrap_name(digest: bytes) -> str:
    """Return the name of a token without one; it does not reveal the token."""
    return f"token-{digest.hex()[:8]}"
