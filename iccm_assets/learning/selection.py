"""Which pool rows a retraining learns from (T7): the pure choice. ``proposal`` feeds it from the database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction

from iccm_assets.settings import Selection as SelectionSettings

REASONS = ("selected", "outside_window", "user_cap", "limit")


@dataclass(frozen=True)
class PoolRow:
    """One example of the training pool that no ancestor of production has learned from."""

    conversation_id: int
    session_id: str
    user_id: str | None
    timestamp: datetime
    quality_score: float
    failed_first: bool = False

    @property
    def owner(self) -> str:
        """Whose example this is: the user, or the session where there is no user."""
        return f"user:{self.user_id}" if self.user_id else f"session:{self.session_id}"


@dataclass(frozen=True)
class Window:
    """The time span examples are taken from: after ``start``, up to ``end``."""

    start: datetime
    end: datetime

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= moment <= self.end


@dataclass(frozen=True)
class Selection:
    """The examples of one retraining, in the order they were chosen.

    ``selectable`` is how many could be chosen were there no limit (what T1 and T3 count); ``counts`` says
    what became of every row given, by reason, and adds up to their number.
    """

    chosen: tuple[PoolRow, ...]
    window: Window
    selectable: int
    counts: dict[str, int]

    @property
    def reason(self) -> str:
        """The choice in one line."""
        left = ", ".join(f"{self.counts[name]} {name}" for name in REASONS[1:] if self.counts[name])
        days = (self.window.end - self.window.start).total_seconds() / 86400
        total = sum(self.counts.values())
        story = f"{len(self.chosen)} of {total} new pool rows of {days:.1f} days"
        return f"{story} ({left})" if left else story


def window(now: datetime, last_training_at: datetime | None, settings: SelectionSettings) -> Window:
    """The last ``window_days``, back to the last training if that is longer ago, never past the maximum."""
    earliest = now - timedelta(days=settings.max_window_days)
    wanted = now - timedelta(days=settings.window_days)
    since = earliest if last_training_at is None else min(wanted, last_training_at)
    return Window(max(earliest, since), now)


def largest_selection(counts: Iterable[int], limit: int, settings: SelectionSettings) -> tuple[int, int]:
    """How many examples can be chosen, and how many of one user.

    The largest n <= ``limit`` for which users with ``counts`` examples can fill n places, each with at most
    ``max_per_user`` and at most ``max_user_share`` of n. The condition is not monotone in n, so it is tried
    from the top.
    """
    per_user = Counter(counts)
    share = Fraction(str(settings.max_user_share))
    most = sum(min(count, settings.max_per_user) * users for count, users in per_user.items())
    for n in range(min(limit, most), 0, -1):
        cap = min(settings.max_per_user, int(n * share))
        if sum(min(count, cap) * users for count, users in per_user.items()) >= n:
            return n, cap
    return 0, 0


def select(
    rows: Sequence[PoolRow],
    now: datetime,
    last_training_at: datetime | None,
    settings: SelectionSettings,
    emergency: bool = False,
) -> Selection:
    """T7: the best rows of the window under the limit and the per-user cap.

    Best ``quality_score`` first, ties by the newest conversation: many scores are perfect, and a selection
    that was refused must not come again unchanged when there are newer examples. In an emergency the rows
    whose first answer had failed come first.
    """
    span = window(now, last_training_at, settings)
    inside = [row for row in rows if row.timestamp in span]
    owned = Counter(row.owner for row in inside)
    limit = settings.emergency_max_examples if emergency else settings.max_examples
    selectable, _ = largest_selection(owned.values(), len(inside), settings)
    size, cap = largest_selection(owned.values(), limit, settings)
    counts = dict.fromkeys(REASONS, 0)
    counts["outside_window"] = len(rows) - len(inside)
    chosen: list[PoolRow] = []
    taken: Counter[str] = Counter()
    for row in sorted(inside, key=lambda row: _preference(row, emergency)):
        fate = _fate(taken[row.owner] >= cap, len(chosen) >= size, size >= limit)
        counts[fate] += 1
        if fate == "selected":
            taken[row.owner] += 1
            chosen.append(row)
    return Selection(tuple(chosen), span, selectable, counts)


def _preference(row: PoolRow, emergency: bool) -> tuple[bool, float, float, int]:
    failed_first = emergency and not row.failed_first
    return (failed_first, -row.quality_score, -row.timestamp.timestamp(), -row.conversation_id)


def _fate(user_full: bool, all_full: bool, at_limit: bool) -> str:
    """Why a row is in or out; below the limit it is always the cap that stops the selection growing."""
    if user_full or (all_full and not at_limit):
        return "user_cap"
    return "limit" if all_full else "selected"
