"""Limits of requests to endpoints: rate, circuit breaker, and the waits between retries (O1)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from iccm_assets.scoring.chat_responses import InvalidResponse
from iccm_assets.settings import EndpointSettings

INITIAL_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 8.0


@dataclass
class RateLimiter:
    """Rate limiter of one URL; ``next_slot_at`` is the time (monotonic seconds) of the next free slot."""

    next_slot_at: float = 0.0

    def reserve_slot(self, now: float, requests_per_minute: float) -> float:
        """Reserve the next slot and return the seconds until it."""
        slot = max(now, self.next_slot_at)
        self.next_slot_at = slot + (60.0 / requests_per_minute if requests_per_minute else 0.0)
        return slot - now


@dataclass
class CircuitBreaker:
    """Circuit breaker of one member: consecutive failures, and until when it gets no request."""

    failures: int = 0
    last_failure: str = ""
    open_until: float = 0.0

    def rejection_reason(self, now: float) -> str:
        """Return why the member gets no request now; empty when it does."""
        if now >= self.open_until:
            return ""
        return f"skipped after {self.failures} consecutive failures, the last: {self.last_failure}"

    def record_result(self, problem: InvalidResponse | None, now: float, limits: EndpointSettings) -> None:
        """Record the outcome of a request; any sign that the endpoint works resets the count.

        So after a cooldown a single failure opens the breaker again.
        """
        if problem is None or problem.endpoint_works:
            self.failures, self.open_until = 0, 0.0
            return
        self.failures, self.last_failure = self.failures + 1, problem.reason
        if self.failures >= limits.circuit_breaker_failures:
            self.open_until = now + limits.circuit_breaker_cooldown_seconds


def retry_delay(
    problem: InvalidResponse, attempt: int, remaining_seconds: float, max_retries: int, jitter: float
) -> tuple[float | None, str]:
    """Return the seconds to wait before the next attempt, or None for no retry, with the reason.

    ``attempt`` counts from 0. A `Retry-After` is followed when ``remaining_seconds`` (of the deadline)
    allow it; otherwise the wait doubles from 0.5 s to 8 s, less up to a quarter (``jitter``, 0 to 1).
    """
    allowed = max_retries if problem.max_retries is None else min(max_retries, problem.max_retries)
    if attempt >= allowed:
        return None, f"{problem.reason} ({attempt + 1} attempts)" if attempt else problem.reason
    backoff = min(INITIAL_BACKOFF_SECONDS * 2**attempt, MAX_BACKOFF_SECONDS) * (1 - jitter / 4)
    wait = backoff if problem.retry_after_seconds is None else max(problem.retry_after_seconds, 0.0)
    if wait >= remaining_seconds:
        return (
            None,
            f"{problem.reason} (retry after {wait:.0f} s, but {max(remaining_seconds, 0.0):.0f} s"
            " of the deadline remain)",
        )
    return wait, problem.reason


def parse_retry_after(value: str | None, clock: Callable[[], float]) -> float | None:
    """Parse a `Retry-After` header, a number or a date, into seconds; None when it is absent or invalid."""
    for parse in (float, lambda date: parsedate_to_datetime(date).timestamp() - clock()):
        with suppress(ValueError, OverflowError):
            seconds = parse(value or "")
            return seconds if 0 <= seconds < float("inf") else None
    return None
