"""Checks of the daily volume, its content and the spool; pure functions, no I/O. (U4, M3, G5)"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import dropwhile
from statistics import median

from iccm_assets.findings import CheckResult, sample_ids

# Below this many conversations a day, a quiet day proves nothing.
MIN_BASELINE = 10
LOW_VOLUME_RATIO = 0.2
MAX_INVALID_RATIO = 0.02
MAX_SEGMENT_AGE_SECONDS = 900.0


def check_daily_volume(previous_days: Sequence[int], yesterday: int) -> CheckResult:
    """Compare yesterday's conversations with the median of the days before, from the first that had any."""
    previous_days = list(dropwhile(lambda count: count == 0, previous_days))
    baseline = median(previous_days) if previous_days else 0.0
    text = f"{yesterday} conversations yesterday, usually {baseline:g} (median of {len(previous_days)} days)"
    recovery = (
        "Is the gateway up (`GET /readyz`, `iccm status`), and do developers still reach it? See "
        "`spool_is_flushed`: responses may wait on the gateway's disk. Late deliveries count for their own "
        "day, and the daily job takes that day again."
    )
    quiet = baseline >= MIN_BASELINE and yesterday < LOW_VOLUME_RATIO * baseline
    return CheckResult(
        not quiet,
        text,
        recovery,
        error=yesterday == 0,
        metrics={"yesterday": float(yesterday), "baseline": float(baseline)},
    )


def check_content(scanned: int, invalid_ids: Sequence[int]) -> CheckResult:
    """Judge the share of the ``recent`` conversations whose content is no list of messages (ids)."""
    text = f"{len(invalid_ids)} of {scanned} recent conversations hold no readable messages"
    recovery = (
        "They are rejected as `no_messages` and nothing else is affected. Find who writes them by `origin` "
        "and `created_at` of the ids named here; posting a session again to `/v1/conversations` replaces it."
    )
    passed = len(invalid_ids) / max(scanned, 1) <= MAX_INVALID_RATIO
    return CheckResult(
        passed,
        text,
        recovery,
        error=False,
        metrics={"scanned": float(scanned), "invalid": float(len(invalid_ids))},
        sample_ids=sample_ids(list(invalid_ids)),
    )


def check_spool(dead_letters: int, pending_bytes: int, oldest_seconds: float) -> CheckResult:
    """Judge what the gateways of this machine could not store: dead letters, and pending segments."""
    text = f"{dead_letters} records rejected by the database, {pending_bytes} bytes pending"
    if pending_bytes:
        text += f", the oldest for {oldest_seconds:.0f} s"
    recovery = (
        "Rejected: `$ICCM_HOME/spool/dead_letters.jsonl` holds each record with its error; fix the cause, "
        "post the sessions again, then move the file away. Pending: nothing is lost; start a gateway (`iccm "
        "serve`), which flushes the segments of dead ones too, or read in its log why the database rejects."
    )
    passed = not dead_letters and oldest_seconds <= MAX_SEGMENT_AGE_SECONDS
    return CheckResult(
        passed,
        text,
        recovery,
        error=dead_letters > 0,
        metrics={"dead_letters": float(dead_letters), "pending_bytes": float(pending_bytes)},
    )
