"""Pairs to prefer one text to another: an accepted one, and a worse-scored answer to its source (L12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import sqlalchemy as sa

from iccm_assets.training.dataset import TrainingExample

# Smaller differences are within what the judge's cases tell apart.
MIN_SCORE_GAP = 0.05

# Answers of the same conversation only, so that an erasure takes both texts: those that a version served, and
# those that were sampled. An answer that was cut says nothing about what to prefer.
_WORSE_ANSWERS = sa.text(
    """
    select distinct on (a.conversation_id) a.conversation_id, a.text
    from (
        select r.conversation_id, r.source_sha256, r.text, r.test_pass_rate
        from iccm.requirements r left join iccm.requests q on q.request_id = r.request_id
        where r.kind = 'model' and r.conversation_id = any(:ids)
            and coalesce(q.finish_reason, 'stop') = 'stop'
        union all
        select s.conversation_id, s.source_sha256, s.text, s.test_pass_rate
        from iccm.sampled_answers s where s.conversation_id = any(:ids) and s.rejection is null
    ) as a
    join iccm.requirements b on b.conversation_id = a.conversation_id and b.kind = 'accepted'
        and b.source_sha256 = a.source_sha256
    where a.test_pass_rate <= b.test_pass_rate - :gap and a.text ~ '\\S'
    order by a.conversation_id, a.test_pass_rate, md5(a.text)
    """
)


def add_worse_answers(conn: sa.Connection, examples: Sequence[TrainingExample]) -> list[TrainingExample]:
    """Return the examples of which a worse answer is known, with the worst one."""
    ids = [row.conversation_id for row in examples if row.conversation_id is not None]
    rows = conn.execute(_WORSE_ANSWERS, {"ids": ids, "gap": MIN_SCORE_GAP})
    worse = {row.conversation_id: row.text for row in rows}
    return [
        replace(row, rejected=worse[row.conversation_id]) for row in examples if row.conversation_id in worse
    ]
