"""Select the pool rows of a retraining: pure functions; ``example_queries`` reads the rows (T7)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction

from iccm_assets.settings import SelectionSettings

REASONS = ("selected", "outside_window", "user_cap", "limit")


@dataclass(frozen=True)
class PoolRow:
    """One example of the training pool that no ancestor of production was trained on."""

    conversation_id: int
    session_id: str
    user_id: str | None
    timestamp: datetime
    quality_score: float
    failed_first: bool = False

    @property
    def owner(self) -> str:
        """The user, or the session if there is no user."""
        return f"user:{self.user_id}" if self.user_id else f"session:{self.session_id}"


@dataclass(frozen=True)
class TimeWindow:
    """The time span of the examples, both ends included."""

    start: datetime
    end: datetime

    def __contains__(self, timestamp: datetime) -> bool:
        return self.start <= timestamp <= self.end


@dataclass(frozen=True)
class ExampleSelection:
    """The examples of one retraining, in the order of the selection.

    ``selectable`` is the number without a limit (the triggers count it); ``counts`` is the number of rows by
    reason, selected or not, and adds up to all rows.
    """

    selected: tuple[PoolRow, ...]
    window: TimeWindow
    selectable: int
    counts: dict[str, int]

    @property
    def reason(self) -> str:
        """The selection in one line."""
        excluded = ", ".join(f"{self.counts[name]} {name}" for name in REASONS[1:] if self.counts[name])
        days = (self.window.end - self.window.start) / timedelta(days=1)
        summary = f"{len(self.selected)} of {sum(self.counts.values())} new pool rows of {days:.1f} days"
        return f"{summary} ({excluded})" if excluded else summary


def selection_window(
    now: datetime, last_training_at: datetime | None, settings: SelectionSettings
) -> TimeWindow:
    """Return the last ``window_days``, or back to the last training if that is longer, up to the maximum."""
    earliest = now - timedelta(days=settings.max_window_days)
    start = min(now - timedelta(days=settings.window_days), last_training_at or earliest)
    return TimeWindow(max(earliest, start), now)


def max_fair_selection(counts: Iterable[int], limit: int, settings: SelectionSettings) -> tuple[int, int]:
    """Return how many examples can be selected, and how many of one user.

    The largest n <= ``limit`` for which users with ``counts`` examples can fill n places, each with at
    most ``max_per_user`` and at most ``max_user_share`` of n. The condition is not monotone in n, so the
    search goes down from the maximum.
    """
    users_by_count = Counter(counts)
    share = Fraction(str(settings.max_user_share))

    def places(cap: int) -> int:
        return sum(min(count, cap) * users for count, users in users_by_count.items())

    for n in range(min(limit, places(settings.max_per_user)), 0, -1):
        cap = min(settings.max_per_user, int(n * share))
        if places(cap) >= n:
            return n, cap
    return 0, 0


def select_examples(
    rows: Sequence[PoolRow],
    now: datetime,
    last_training_at: datetime | None,
    settings: SelectionSettings,
    emergency: bool = False,
) -> ExampleSelection:
    """Select the best rows of the window under the limit and the per-user cap (T7).

    Best ``quality_score`` first, ties by the newest conversation: many scores are perfect, and a rejected
    selection must not return unchanged when there are newer examples. In an emergency, rows whose first
    response failed come first.
    """
    window = selection_window(now, last_training_at, settings)
    inside = [row for row in rows if row.timestamp in window]
    per_owner = Counter(row.owner for row in inside)
    limit = settings.emergency_max_examples if emergency else settings.max_examples
    selectable, _ = max_fair_selection(per_owner.values(), len(inside), settings)
    size, cap = max_fair_selection(per_owner.values(), limit, settings)
    counts = dict.fromkeys(REASONS, 0)
    counts["outside_window"] = len(rows) - len(inside)
    chosen: list[PoolRow] = []
    chosen_by_owner: Counter[str] = Counter()
    for row in sorted(inside, key=lambda row: _sort_key(row, emergency)):
        # Below the limit only the per-user cap can stop the selection.
        if chosen_by_owner[row.owner] >= cap or (len(chosen) >= size and size < limit):
            counts["user_cap"] += 1
        elif len(chosen) >= size:
            counts["limit"] += 1
        else:
            chosen_by_owner[row.owner] += 1
            chosen.append(row)
    counts["selected"] = len(chosen)
    return ExampleSelection(tuple(chosen), window, selectable, counts)


def _sort_key(row: PoolRow, emergency: bool) -> tuple[bool, float, float, int]:
    is_behind_failed_rows = emergency and not row.failed_first
    return (is_behind_failed_rows, -row.quality_score, -row.timestamp.timestamp(), -row.conversation_id)
