"""Is what should arrive arriving? Decisions about arrivals, their content and the spool (U4, M3, G5)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import dropwhile
from statistics import median

from iccm_assets.findings import Finding, named

# Below this many conversations a day, a quiet day says nothing.
FEWEST_USUAL = 10
QUIET_SHARE = 0.2
UNREADABLE_SHARE = 0.02
OLDEST_SEGMENT_SECONDS = 900.0


def arrivals(before: Sequence[int], yesterday: int) -> Finding:
    """Yesterday's conversations against the median of the days ``before`` it, from the first that had any."""
    before = list(dropwhile(lambda count: count == 0, before))
    usual = median(before) if before else 0.0
    numbers = {"yesterday": float(yesterday), "usual": float(usual)}
    recovery = (
        "Is the gateway up (`GET /readyz`, `iccm status`), and do developers still reach it? Look at "
        "`spool_is_delivered`: answers may wait on the gateway's disk. Late deliveries land on their own "
        "day, and the daily job takes that day again."
    )
    told = f"{yesterday} conversations yesterday, usually {usual:g} (median of {len(before)} days)"
    quiet = usual >= FEWEST_USUAL and yesterday < QUIET_SHARE * usual
    return Finding(not quiet, told, recovery, error=yesterday == 0, numbers=numbers)


def readable(recent: int, unreadable: Sequence[int]) -> Finding:
    """Of the ``recent`` conversations, those (ids) whose content is no list of messages (M3)."""
    share = len(unreadable) / recent if recent else 0.0
    told = f"{len(unreadable)} of {recent} recent conversations hold no readable messages"
    recovery = (
        "They are rejected as `no_messages` and nothing else is affected. Find who writes them by `origin` "
        "and `created_at` of the ids named here; posting a session again to `/v1/conversations` replaces it."
    )
    return Finding(
        share <= UNREADABLE_SHARE,
        told,
        recovery,
        error=False,
        numbers={"recent": float(recent), "unreadable": float(len(unreadable))},
        ids=named(list(unreadable)),
    )


def spool(refused: int, waiting_bytes: int, oldest_seconds: float) -> Finding:
    """What the gateways of this machine could not deliver: refused records, and segments that wait."""
    stuck = oldest_seconds > OLDEST_SEGMENT_SECONDS
    told = f"{refused} records refused by the database, {waiting_bytes} bytes wait"
    if waiting_bytes:
        told += f", the oldest for {oldest_seconds:.0f} s"
    recovery = (
        "Refused: `$ICCM_HOME/spool/refused.jsonl` holds each record with its error; mend the cause, post "
        "the sessions again, then move the file away. Waiting: nothing is lost; start a gateway (`iccm "
        "serve`), it delivers what dead ones left, or look at its log for why the database refuses."
    )
    return Finding(
        not refused and not stuck,
        told,
        recovery,
        error=refused > 0,
        numbers={"refused": float(refused), "waiting_bytes": float(waiting_bytes)},
    )
