"""Select the pool rows of a retraining: pure functions; ``example_queries`` reads the rows (T7)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction

from iccm_assets.settings import SelectionSettings

# The smallest cap is this many times the equal share of a user: a small team has fewer users than the cap's
# setting allows for, and learns nevertheless.
EQUAL_SHARES_PER_USER = 2
REASONS = ("selected", "outside_window", "user_cap", "limit")


def name_owner(user_id: str | None, token_name: str | None) -> str:
    """Return who a conversation belongs to: the user, else the token, else `anonymous`."""
    if user_id:
        return f"user:{user_id}"
    return f"token:{token_name}" if token_name else "anonymous"


@dataclass(frozen=True)
class PoolRow:
    """One example of the training pool that no ancestor of production was trained on."""

    conversation_id: int
    session_id: str
    user_id: str | None
    timestamp: datetime
    quality_score: float
    failed_first: bool
    token_name: str | None

    @property
    def owner(self) -> str:
        """The user, else the token; all rows without either have the same owner."""
        return name_owner(self.user_id, self.token_name)


@dataclass(frozen=True)
class TimeWindow:
    """The time span of the examples, both ends included."""

    start: datetime
    end: datetime

    def __contains__(self, timestamp: datetime) -> bool:
        return self.start <= timestamp <= self.end


@dataclass(frozen=True)
class FairShare:
    """How many of ``rows`` rows can be selected when no user has more than ``share`` of the selection.

    ``size`` is that number, ``max_per_user`` the cap in rows; ``usual_share`` is the cap of a large team.
    """

    size: int
    max_per_user: int
    share: Fraction
    usual_share: Fraction
    users: int
    rows: int

    @property
    def note(self) -> str:
        """The effect of the cap: how many rows it leaves, and whether it is wide; empty without an effect."""
        users = f"{self.users} user{'' if self.users == 1 else 's'}"
        share = f"{float(self.share):.0%}"
        parts = []
        if self.size < self.rows:
            parts.append(f"the cap of {share} ({users}) leaves {self.size} of {self.rows} rows")
        if self.rows and self.share == 1 > self.usual_share:
            parts.append(f"with {users} no cap applies")
        elif self.rows and self.share > self.usual_share:
            usual = f"{float(self.usual_share):.0%}"
            parts.append(f"with {users} the cap is wide: {share} of the examples instead of {usual}")
        return "; ".join(parts)


@dataclass(frozen=True)
class ExampleSelection:
    """The examples of one retraining, in the order of the selection.

    ``selectable`` counts them without a limit (the triggers use it); ``counts`` is the number of rows by
    reason, selected or not, and adds up to all rows.
    """

    selected: tuple[PoolRow, ...]
    window: TimeWindow
    fair_share: FairShare
    counts: dict[str, int]

    @property
    def selectable(self) -> int:
        """Number of examples without the limit."""
        return self.fair_share.size

    @property
    def reason(self) -> str:
        """The selection in one line, with the effect of the cap."""
        return "; ".join(part for part in (self._summary, self.fair_share.note) if part)

    @property
    def _summary(self) -> str:
        excluded = ", ".join(f"{self.counts[name]} {name}" for name in REASONS[1:] if self.counts[name])
        days = (self.window.end - self.window.start) / timedelta(days=1)
        share = f"{len(self.selected)} of {sum(self.counts.values())}"
        summary = f"selected {share} new rows of the last {days:.4g} days"
        return f"{summary} ({excluded})" if excluded else summary


def selection_window(
    now: datetime, last_training_at: datetime | None, settings: SelectionSettings
) -> TimeWindow:
    """Return the last ``window_days``, or back to the last training if that is longer, up to the maximum."""
    earliest = now - timedelta(days=settings.max_window_days)
    start = min(now - timedelta(days=settings.window_days), last_training_at or earliest)
    return TimeWindow(max(earliest, start), now)


def max_fair_selection(counts: Iterable[int], limit: int | None, settings: SelectionSettings) -> FairShare:
    """Return how many examples can be selected, and how many of one user.

    The size is the largest n <= ``limit`` for which users with ``counts`` examples can fill n places, each
    with at most ``max_user_share`` of n, or twice an equal share where that is more (but always one example).
    """
    users_by_count = Counter(count for count in counts if count)
    users, rows = users_by_count.total(), sum(count * users for count, users in users_by_count.items())
    usual = Fraction(str(settings.max_user_share))
    share = max(usual, Fraction(EQUAL_SHARES_PER_USER, max(users, EQUAL_SHARES_PER_USER)))
    size, cap = rows if limit is None else min(limit, rows), 0
    while size:
        cap = max(1, int(size * share))
        places = sum(min(count, cap) * users for count, users in users_by_count.items())
        if places >= size:
            break
        # A smaller selection has no larger cap, so that no size between the two can be filled either.
        size = places
    return FairShare(size, cap, share, usual, users, rows)


def select_examples(
    rows: Sequence[PoolRow],
    now: datetime,
    last_training_at: datetime | None,
    settings: SelectionSettings,
    emergency: bool = False,
) -> ExampleSelection:
    """Select the best rows of the window under the limit and the cap on a user's share (T7).

    Best ``quality_score`` first, ties by the newest conversation: many scores are perfect, and a rejected
    selection must not return unchanged when there are newer examples. In an emergency, rows whose first
    response failed come first.
    """
    window = selection_window(now, last_training_at, settings)
    inside = [row for row in rows if row.timestamp in window]
    per_owner = Counter(row.owner for row in inside)
    limit = settings.emergency_max_examples if emergency else settings.max_examples
    unlimited = max_fair_selection(per_owner.values(), None, settings)
    limited = max_fair_selection(per_owner.values(), limit, settings)
    size, cap = limited.size, limited.max_per_user
    counts = dict.fromkeys(REASONS, 0)
    counts["outside_window"] = len(rows) - len(inside)
    chosen: list[PoolRow] = []
    chosen_by_owner: Counter[str] = Counter()
    for row in sorted(inside, key=lambda row: _sort_key(row, emergency)):
        if len(chosen) >= size:
            # Below the limit only the cap can stop the selection.
            counts["limit" if size == limit else "user_cap"] += 1
        elif chosen_by_owner[row.owner] >= cap:
            counts["user_cap"] += 1
        else:
            chosen_by_owner[row.owner] += 1
            chosen.append(row)
    counts["selected"] = len(chosen)
    return ExampleSelection(tuple(chosen), window, unlimited, counts)


def _sort_key(row: PoolRow, emergency: bool) -> tuple[bool, float, float, int]:
    is_behind_failed_rows = emergency and not row.failed_first
    return (is_behind_failed_rows, -row.quality_score, -row.timestamp.timestamp(), -row.conversation_id)
