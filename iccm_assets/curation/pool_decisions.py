"""What a change of the training pool's rows changes in its decisions (P2, P4).

A row is kept unless a row kept before it is too similar: so a change reaches only rows that are similar to a
row whose decision changed, and those that such a row had removed. They are decided again, until nothing
changes. The decisions that satisfy the rule for all rows are unique (by induction over the order), so the
result is that of one greedy pass over all rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from iccm_assets.curation.duplicate_search import BestMatches, OrderedTexts, find_matches
from iccm_assets.curation.greedy_dedup import find_duplicates
from iccm_assets.curation.text_vectors import Positions

Mask = npt.NDArray[np.bool_]


def update_decisions(
    texts: OrderedTexts, decisions: BestMatches, undecided: Mask, moved: Mask, threshold: float
) -> Mask:
    """Bring the decisions on rows up to date, in place; return which rows may have another one.

    The position of each row is its index. ``decisions`` has the kept row that a removed row duplicates; none
    for a kept row. ``undecided`` rows are new, or their content or order changed; ``moved`` ones are retained
    in any case, but may be compared with other rows than before. All other decisions are right where they
    depend on neither; a removed row whose original is no longer kept must be undecided.
    """
    touched = undecided.copy()
    pending, risen = np.flatnonzero(undecided), np.flatnonzero(moved)
    is_first = True
    while len(pending) or len(risen):
        was_kept = decisions.positions[pending] < 0
        is_kept = _decide(texts, decisions, pending, threshold)
        # In the first round the order of undecided rows may be new: of equal matches another may come first.
        risen = np.union1d(risen, pending[is_kept & (is_first | ~was_kept)])
        evaluated = np.zeros(len(texts), dtype=bool)
        evaluated[pending] = True
        displaced, changed = _compare_with_later(texts, decisions, risen, evaluated | moved, threshold)
        fallen = pending[was_kept & ~is_kept]
        orphaned = np.flatnonzero(np.isin(decisions.positions, fallen) & ~evaluated)
        pending, risen, is_first = np.union1d(displaced, orphaned), np.zeros(0, dtype=np.intp), False
        touched[changed] = touched[pending] = True
    return touched


def _decide(texts: OrderedTexts, decisions: BestMatches, pending: Positions, threshold: float) -> Mask:
    """Decide rows again, against the other kept rows and each other; return which are kept."""
    if not len(pending):
        return np.zeros(0, dtype=bool)
    eligible = decisions.positions < 0
    eligible[pending] = False
    before = texts.part(0, int(pending[-1]) + 1)
    # New rows at the end are compared with a pool of kept rows only: most have no other rows among them.
    first_other = int(np.argmin(np.append(eligible[: len(before)], False)))
    if not eligible[first_other : len(before)].any():
        before = before.part(0, first_other)
    matches = find_duplicates(texts.take(pending), before, threshold, eligible=eligible)
    decisions.positions[pending] = matches.positions
    decisions.similarities[pending] = matches.similarities
    return matches.positions < 0


def _compare_with_later(
    texts: OrderedTexts, decisions: BestMatches, risen: Positions, excluded: Mask, threshold: float
) -> tuple[Positions, Positions]:
    """Compare rows that are kept now with the rows after them.

    Return the kept rows that they displace, and the removed rows that duplicate one of them more closely:
    these have their new match.
    """
    nothing = np.zeros(0, dtype=np.intp)
    if not len(risen):
        return nothing, nothing
    later = np.flatnonzero(~excluded[risen[0] :]) + risen[0]
    if not len(later):
        return nothing, nothing
    start, end = int(later[0]), int(later[-1]) + 1
    matches = BestMatches(end - start)
    find_matches(texts.part(start, end), texts.take(risen), threshold, matches)
    rows = np.flatnonzero((matches.positions >= 0) & ~excluded[start:end])
    is_kept = decisions.positions[rows + start] < 0
    removed = rows[~is_kept]
    changed = decisions.offer(removed + start, matches.positions[removed], matches.similarities[removed])
    return rows[is_kept] + start, changed
