"""Checks of the daily volume, its content and the spool; pure functions, no I/O. (U4, M3, G5)"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import dropwhile
from statistics import median

from iccm_assets.findings import Finding, named

# Below this many conversations a day, a quiet day proves nothing.
FEWEST_USUAL = 10
QUIET_SHARE = 0.2
UNREADABLE_SHARE = 0.02
OLDEST_SEGMENT_SECONDS = 900.0


def arrivals(before: Sequence[int], yesterday: int) -> Finding:
    """Compare yesterday's conversations with the median of the days before, from the first that had any."""
    before = list(dropwhile(lambda count: count == 0, before))
    baseline = median(before) if before else 0.0
    text = f"{yesterday} conversations yesterday, usually {baseline:g} (median of {len(before)} days)"
    recovery = (
        "Is the gateway up (`GET /readyz`, `iccm status`), and do developers still reach it? See "
        "`spool_is_flushed`: responses may wait on the gateway's disk. Late deliveries count for their own "
        "day, and the daily job takes that day again."
    )
    quiet = baseline >= FEWEST_USUAL and yesterday < QUIET_SHARE * baseline
    return Finding(
        not quiet,
        text,
        recovery,
        error=yesterday == 0,
        numbers={"yesterday": float(yesterday), "baseline": float(baseline)},
    )


def readable(recent: int, unreadable: Sequence[int]) -> Finding:
    """Judge the share of the ``recent`` conversations whose content is no list of messages (ids)."""
    text = f"{len(unreadable)} of {recent} recent conversations hold no readable messages"
    recovery = (
        "They are rejected as `no_messages` and nothing else is affected. Find who writes them by `origin` "
        "and `created_at` of the ids named here; posting a session again to `/v1/conversations` replaces it."
    )
    passed = len(unreadable) / max(recent, 1) <= UNREADABLE_SHARE
    return Finding(
        passed,
        text,
        recovery,
        error=False,
        numbers={"scanned": float(recent), "invalid": float(len(unreadable))},
        ids=named(list(unreadable)),
    )


def spool(refused: int, waiting_bytes: int, oldest_seconds: float) -> Finding:
    """Judge what the gateways of this machine could not store: dead letters, and pending segments."""
    text = f"{refused} records rejected by the database, {waiting_bytes} bytes pending"
    if waiting_bytes:
        text += f", the oldest for {oldest_seconds:.0f} s"
    recovery = (
        "Rejected: `$ICCM_HOME/spool/dead_letters.jsonl` holds each record with its error; fix the cause, "
        "post the sessions again, then move the file away. Pending: nothing is lost; start a gateway (`iccm "
        "serve`), which flushes the segments of dead ones too, or read in its log why the database rejects."
    )
    passed = not refused and oldest_seconds <= OLDEST_SEGMENT_SECONDS
    return Finding(
        passed,
        text,
        recovery,
        error=refused > 0,
        numbers={"dead_letters": float(refused), "pending_bytes": float(waiting_bytes)},
    )
