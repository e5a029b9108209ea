"""Check of the selectable examples: the cap on a user's share leaves enough of them."""

from __future__ import annotations

from sqlalchemy import Connection

from iccm_assets.check_result import CheckResult
from iccm_assets.db.clock import now
from iccm_assets.retraining.example_queries import count_selectable
from iccm_assets.retraining.example_selection import FairShare
from iccm_assets.settings import Settings


def check_user_cap(fair_share: FairShare, min_examples: int) -> CheckResult:
    """Check that the cap on a user's share leaves enough examples for a retrain, where there are enough."""
    note = f"; {fair_share.note}" if fair_share.note else ""
    return CheckResult(
        min(fair_share.rows, min_examples) <= fair_share.size,
        f"{fair_share.size} of {fair_share.rows} new examples can be selected, the weekly retrain needs "
        f"{min_examples}{note}",
        "A few users wrote most of the examples, and no user may dominate a training. Wait for examples of "
        "more users, or raise `ICCM_SELECTION__MAX_USER_SHARE`.",
        severity="warning",
        metrics={
            "selectable": float(fair_share.size),
            "new_examples": float(fair_share.rows),
            "users": float(fair_share.users),
            "max_user_share": float(fair_share.share),
        },
    )


def user_cap_leaves_enough_examples(conn: Connection, settings: Settings) -> CheckResult:
    """Compare what may be selected now with what the weekly retrain needs."""
    return check_user_cap(
        count_selectable(conn, now(conn), settings.selection), settings.triggers.weekly_min_examples
    )
