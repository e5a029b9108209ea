"""Scores and answers in the database: load what can be used again, and store a new score."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.scoring.orchestra import Orchestra
from iccm_assets.scoring.reconstruction import Reconstruction
from iccm_assets.scoring.scoring import ReconstructionScore, Score
from iccm_assets.scoring.scoring_queue import row_version
from iccm_assets.suites.suite_runner import JUDGE_VERSION

# Stored statuses of members that answered; the judge then decided among these.
ANSWERED = ("scored", "suspect", "inconclusive")


def load_answers(conn: sa.Connection, requirement_ids: Sequence[int]) -> dict[int, dict[str, Reconstruction]]:
    """Load earlier answers of this orchestra's members, by requirements id and member name."""
    rc = t.reconstructions.c
    rows = conn.execute(
        sa.select(rc.requirement_id, rc.reconstructor, rc.status, rc.implementation_code, rc.reason).where(
            rc.requirement_id.in_(requirement_ids), rc.status != "missing"
        )
    )
    answers: dict[int, dict[str, Reconstruction]] = defaultdict(dict)
    for row in rows:
        answers[row.requirement_id][row.reconstructor] = Reconstruction(
            row.reconstructor,
            "answered" if row.status in ANSWERED else "unreadable",
            row.implementation_code or "",
            row.reason or "",
        )
    return answers


_REUSABLE = sa.text(
    """
    select distinct on (p.id) p.id as pending, s.id, s.test_pass_rate, s.implementation_variance,
        s.api_compatibility, s.evidence
    from iccm.requirements p join iccm.requirements s using (session_id, text)
        left join iccm.requests q on q.request_id = s.request_id
    where p.id = any(:ids) and s.id <> p.id and s.test_pass_rate is not null
        and s.orchestra = :orchestra and s.judge_version = :judge
        and coalesce(q.finish_reason, 'stop') = 'stop'
        and s.source_sha256 is not distinct from p.source_sha256 and s.test_suite::text = p.test_suite::text
        and s.test_suite_origin is not distinct from p.test_suite_origin
    order by p.id, s.id
    """
)


def load_reusable_scores(conn: sa.Connection, ids: Sequence[int], orchestra: Orchestra) -> dict[int, Score]:
    """Load scores of the same text, source and suite in the same session, by this orchestra and judge."""
    values = {"ids": list(ids), "orchestra": orchestra.digest, "judge": JUDGE_VERSION}
    rows = conn.execute(_REUSABLE, values).all()
    rc = t.reconstructions.c
    query = sa.select(t.reconstructions).where(rc.requirement_id.in_([row.id for row in rows]))
    members: dict[int, list[ReconstructionScore]] = defaultdict(list)
    for member in conn.execute(query.order_by(rc.id)):
        members[member.requirement_id].append(
            ReconstructionScore(
                reconstructor=member.reconstructor,
                status=member.status,
                implementation=member.implementation_code or "",
                test_pass_rate=member.test_pass_rate,
                results=tuple(member.results),
                api_compatibility=None,
                duration_ms=member.duration_ms or 0.0,
                detail=member.reason or "",
            )
        )
    return {
        row.pending: Score(
            row.test_pass_rate,
            row.implementation_variance,
            row.api_compatibility,
            tuple(members[row.id]),
            suite=row.evidence or {},
        )
        for row in rows
        if row.id in members
    }


def store_score(conn: sa.Connection, row: Any, score: Score, orchestra: Orchestra) -> None:
    """Store a score, unless the row changed since it was read: then the next pass scores it.

    A retry that is inconclusive again keeps `scored_at`: the data of its day did not change, so the day need
    not be filtered again.
    """
    r, timestamp = t.requirements, now(conn)
    kind = row.test_suite.get("kind") if isinstance(row.test_suite, Mapping) else None
    kind = kind if kind in t.EVIDENCE_KINDS else None
    stored = conn.execute(
        r.update()
        .where(r.c.id == row.id, row_version() == row.row_version)
        .values(
            test_pass_rate=score.test_pass_rate,
            implementation_variance=score.implementation_variance,
            api_compatibility=score.api_compatibility,
            judge_version=JUDGE_VERSION,
            orchestra=orchestra.digest,
            evidence={"kind": kind, **score.suite, **_inconclusive(score, row.evidence, timestamp)},
            scored_at=(
                timestamp if score.test_pass_rate is not None else sa.func.coalesce(r.c.scored_at, timestamp)
            ),
        )
    )
    if stored.rowcount == 0:
        return
    rc, names = t.reconstructions, [member.reconstructor for member in score.members]
    conn.execute(rc.delete().where(rc.c.requirement_id == row.id, rc.c.reconstructor.not_in(names)))
    for member in score.members:
        values = {
            "implementation_code": member.implementation,
            "test_pass_rate": member.test_pass_rate,
            "results": list(member.results),
            "status": member.status,
            "reason": member.detail or None,
            "duration_ms": member.duration_ms,
            "judge_version": JUDGE_VERSION,
            "evidence": kind,
        }
        statement = insert(rc).values(requirement_id=row.id, reconstructor=member.reconstructor, **values)
        conn.execute(
            statement.on_conflict_do_update(index_elements=["requirement_id", "reconstructor"], set_=values)
        )


def _inconclusive(score: Score, previous: Mapping[str, Any] | None, timestamp: datetime) -> dict[str, Any]:
    """Return why a score is inconclusive and, if members were missing, how often it was tried."""
    if not score.reason:
        return {}
    missing = sum(member.status == "missing" for member in score.members)
    if not missing:
        return {"reason": score.reason}
    return {
        "reason": score.reason,
        "missing": missing,
        "attempts": int((previous or {}).get("attempts", 0)) + 1,
        "tried_at": timestamp.isoformat(),
    }
