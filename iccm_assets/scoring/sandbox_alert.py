"""Alert on a missing sandbox: the judge then gives no verdict; once per day and machine (A2, J3)."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

import sqlalchemy as sa

from iccm_assets.alerts.outbox import raise_alert
from iccm_assets.db.clock import now
from iccm_assets.suites.missing_dependencies import MISSING_DEPENDENCY

if TYPE_CHECKING:
    from iccm_assets.scoring.scoring import ReconstructionScore, Score


def alert_sandbox_missing(conn: sa.Connection, scores: Iterable[Score]) -> None:
    """Raise an alert, in the caller's transaction, if the judge could not run some code."""
    reason = next(filter(None, map(_find_reason, scores)), None)
    if reason is None:
        return
    host = socket.gethostname()
    raise_alert(
        conn,
        f"sandbox:{host}:{now(conn):%Y-%m-%d}",
        "critical",
        "Sandbox layer missing",
        f"{host} gives no verdicts: {reason}. `iccm doctor` says how to fix it. Texts whose test suite"
        " could not be measured are retried; to retry other inconclusive scores, clear their `scored_at`.",
    )


def _find_reason(score: Score) -> str | None:
    if score.unmeasured:
        return score.unmeasured
    return next((member.detail for member in score.members if _could_not_run(member)), None)


def _could_not_run(member: ReconstructionScore) -> bool:
    """Whether the judge lacks a sandbox; one that lacks a package is in order."""
    lacks_package = any(result["verdict"] == MISSING_DEPENDENCY for result in member.results)
    return member.status == "inconclusive" and not lacks_package
