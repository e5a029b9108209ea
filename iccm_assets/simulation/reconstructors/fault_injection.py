"""Faults that the mock endpoint can inject, each of which occurs with real endpoints (O1).

`parse_faults("slow=0.1,429=0.1,hang")` returns the fraction of requests with each fault; a name without a
fraction means all of them. The fault of a request depends on the seed, the model, the text and the number of
earlier requests for it, but not on the order in which requests arrive.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from iccm_assets.errors import UsageError

FAULTS = {
    "slow": "a late response",
    "429": "rate limit, with Retry-After",
    "500": "internal error",
    "half": "announces a longer body than it sends",
    "short": "cuts the JSON and closes, without announcing a length",
    "garbage": "bytes that are not UTF-8",
    "html": "an HTML page with status 200",
    "empty": "a completion without choices",
    "silent": "an empty message",
    "length": "half the code, finish_reason length",
    "filter": "finish_reason content_filter",
    "refusal": "an apology, no code",
    "open": "a code block that is never closed",
    "prose": "a code block with prose in it",
    "several": "two different implementations",
    "huge": "a 50 MB response",
    "drip": "an endless body, one byte at a time",
    "hang": "no response, connection stays open",
    "redirect": "redirects to itself",
    "drop": "closes the connection without a response",
}


def parse_faults(text: str) -> dict[str, float]:
    """Parse fractions of requests by fault.

    Raises:
        UsageError: an unknown fault, or fractions that are invalid or add up to more than 1.
    """
    shares: dict[str, float] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, share = part.partition("=")
        if name not in FAULTS:
            raise UsageError(f"unknown fault {name!r}", hint=f"The faults are: {', '.join(FAULTS)}.")
        try:
            shares[name] = float(share or 1)
        except ValueError:
            raise UsageError(f"{part!r}: the share is not a number") from None
    if not all(0 <= share <= 1 for share in shares.values()) or sum(shares.values()) > 1 + 1e-9:
        raise UsageError(f"{text!r}: shares must be between 0 and 1 and add up to at most 1")
    return shares


def draw_fault(shares: Mapping[str, float], seed: int, model: str, text: str, attempt: int) -> str:
    """Draw the fault of the n-th request to this model for this text; empty for none."""
    drawn = Random(f"{seed} {model} {attempt} {text}").random()
    for name, share in shares.items():
        drawn -= share
        if drawn < 0:
            return name
    return ""
