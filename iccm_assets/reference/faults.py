"""Faults the reference endpoint can be told to have, each as real endpoints have it (O1).

`parse_faults("slow=0.1,429=0.1,hang")` gives the share of requests each befalls; a name without a share
befalls them all. Which request gets which fault depends on the seed, the model, the text and how often it
was asked before, and on nothing else: not on the order in which requests arrive.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from iccm_assets.errors import InputError

FAULTS = {
    "slow": "answers, but late",
    "429": "rate limit, with Retry-After",
    "500": "internal error",
    "half": "promises a longer body than it sends",
    "short": "cuts the JSON and closes, without having promised a length",
    "garbage": "bytes that are no UTF-8",
    "html": "an HTML page with status 200",
    "empty": "a completion without choices",
    "silent": "an empty message",
    "length": "half the code, finish_reason length",
    "filter": "finish_reason content_filter",
    "refusal": "an apology, no code",
    "open": "a code block that is never closed",
    "prose": "a code block with prose in it",
    "several": "two different implementations",
    "huge": "a reply that does not end before 50 MB",
    "drip": "a body that never ends, a byte at a time",
    "hang": "never answers",
    "redirect": "redirects to itself",
    "drop": "closes the connection without an answer",
}


def parse_faults(text: str) -> dict[str, float]:
    """Shares of requests by fault.

    Raises:
        InputError: an unknown fault, or shares that are no shares or add up to more than 1.
    """
    shares: dict[str, float] = {}
    for part in (one.strip() for one in text.split(",")):
        if not part:
            continue
        name, _, share = part.partition("=")
        if name not in FAULTS:
            raise InputError(f"unknown fault {name!r}", hint=f"There are: {', '.join(FAULTS)}.")
        try:
            shares[name] = float(share or 1)
        except ValueError:
            raise InputError(f"{part!r}: the share is not a number") from None
    if not all(0 <= share <= 1 for share in shares.values()) or sum(shares.values()) > 1 + 1e-9:
        raise InputError(f"{text!r}: shares lie between 0 and 1 and add up to at most 1")
    return shares


def fault_of(shares: Mapping[str, float], seed: int, model: str, text: str, time: int) -> str:
    """The fault of the `time`-th request of this model for this text; empty for none."""
    drawn = Random(f"{seed} {model} {time} {text}").random()
    for name, share in shares.items():
        drawn -= share
        if drawn < 0:
            return name
    return ""
