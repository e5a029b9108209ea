"""Lineage both ways (V1): what a version came from, and where a conversation went.

A version has learned from a conversation *directly* when its own run used it (``new``, ``rehearsal``, or
``validation``, which chose the epoch that was kept), and has *inherited* it when only the run of a version
it descends from did. Every question follows keys and indexes: its cost is that of its answer, whatever the
number of conversations.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import Connection, text

from iccm_assets.errors import InputError
from iccm_assets.store.naming import version_named
from iccm_assets.store.traffic import Period, periods

PRODUCTION_LINE = """
    line (version, parent_version) AS (
        SELECT version, parent_version FROM iccm.model_versions WHERE status = 'production'
        UNION
        SELECT m.version, m.parent_version
        FROM iccm.model_versions m JOIN line ON m.version = line.parent_version
    )
"""
"""A recursive CTE: production and every version it descends from."""


@dataclass(frozen=True)
class Ancestor:
    """A version in a line of descent, ``generations`` steps from where the line starts (0)."""

    version: str
    status: str
    generations: int
    examples: int


@dataclass(frozen=True)
class Taught:
    """A conversation a version's own run used, and as what."""

    conversation_id: int
    session_id: str
    role: str
    day: date | None
    quality_score: float | None
    erased: bool


@dataclass(frozen=True)
class Run:
    """The training run a version came from."""

    id: int
    trigger: str
    trigger_key: str
    status: str
    base_version: str | None
    dataset_digest: str | None
    improvement: float | None
    training_timestamp: datetime | None
    notes: str | None


@dataclass(frozen=True)
class GateDecision:
    """A stored verdict on a version, with its reasons."""

    id: int
    status: str
    improvement: float | None
    production_version: str
    training_run_id: int | None
    canary_set_digest: str
    orchestra: str
    judge_version: str
    verdict: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True)
class TrafficDecision:
    """A deployment event that concerns a version; ``forced`` where a person overruled the gate (E4)."""

    timestamp: datetime
    rollout_id: int | None
    event_type: str
    version: str | None
    weight: float | None
    from_state: str | None
    to_state: str | None
    actor: str
    notes: str | None
    forced: bool


@dataclass(frozen=True)
class Rollback:
    """A rollback from or to a version (R8)."""

    timestamp: datetime
    rollout_id: int | None
    from_version: str | None
    to_version: str | None
    reason: str
    actor: str
    notes: str | None


@dataclass(frozen=True)
class VersionLineage:
    """Where a version came from and what was decided about it. ``line`` starts with the version itself."""

    version: str
    status: str
    digest: str
    path: str
    parent_version: str | None
    created_at: datetime
    deployed_at: datetime | None
    run: Run | None
    line: tuple[Ancestor, ...]
    conversations: tuple[Taught, ...]
    verdicts: tuple[GateDecision, ...]
    traffic: tuple[TrafficDecision, ...]
    rollbacks: tuple[Rollback, ...]
    periods: tuple[Period, ...]

    @property
    def roles(self) -> dict[str, int]:
        """How many conversations the version's own run used, by role."""
        counts: dict[str, int] = {}
        for one in self.conversations:
            counts[one.role] = counts.get(one.role, 0) + 1
        return counts


@dataclass(frozen=True)
class Left:
    """Why a conversation was left out at one stage."""

    stage: str
    reason: str
    detail: str | None
    duplicate_of: int | None
    similarity: float | None


@dataclass(frozen=True)
class Use:
    """A training run that used a conversation."""

    training_run_id: int
    role: str
    status: str
    candidate_version: str | None


@dataclass(frozen=True)
class Learner:
    """A version that learned from a conversation.

    ``how`` is ``directly``, with the ``role`` in its own run and 0 ``generations``, or ``inherited``, from
    the nearest ancestor that did, so many generations back.
    """

    version: str
    status: str
    how: str
    role: str | None
    generations: int


@dataclass(frozen=True)
class ConversationLineage:
    """Where one conversation went."""

    conversation_id: int
    session_id: str
    timestamp: datetime
    origin: str
    erased_at: datetime | None
    test_pass_rate: float | None
    implementation_variance: float | None
    filtered: bool
    quality_score: float | None
    in_pool: bool
    pinned: bool
    left_out: tuple[Left, ...]
    uses: tuple[Use, ...]
    versions: tuple[Learner, ...]


_VERSION = text(
    """
    SELECT version, status, digest, path, parent_version, created_at, deployed_at
    FROM iccm.model_versions WHERE version = :version
    """
)
_RUN = text(
    """
    SELECT id, trigger, trigger_key, status, base_version, dataset_digest, improvement, training_timestamp,
           notes
    FROM iccm.phase4_training_runs WHERE candidate_version = :version ORDER BY id DESC LIMIT 1
    """
)
_LINE = text(
    """
    WITH RECURSIVE line (version, status, parent_version, generations) AS (
        SELECT version, status, parent_version, 0 FROM iccm.model_versions WHERE version = :version
        UNION ALL
        SELECT m.version, m.status, m.parent_version, line.generations + 1
        FROM iccm.model_versions m JOIN line ON m.version = line.parent_version
    )
    SELECT version, status, generations,
           (SELECT count(DISTINCT e.conversation_id) FROM iccm.training_run_examples e
            JOIN iccm.phase4_training_runs r ON r.id = e.training_run_id
            WHERE r.candidate_version = line.version AND e.role IN ('new', 'validation')) AS examples
    FROM line ORDER BY generations
    """
)
_TAUGHT = text(
    """
    SELECT DISTINCT e.conversation_id, c.session_id, e.role, t.day, t.quality_score,
           c.erased_at IS NOT NULL AS erased
    FROM iccm.training_run_examples e
    JOIN iccm.phase4_training_runs r ON r.id = e.training_run_id
    JOIN iccm.conversations c ON c.id = e.conversation_id
    LEFT JOIN iccm.phase4_training_data t ON t.conversation_id = e.conversation_id
    WHERE r.candidate_version = :version
    ORDER BY e.role, e.conversation_id
    """
)
_VERDICTS = text(
    """
    SELECT id, status, improvement, production_version, training_run_id, canary_set_digest, orchestra,
           judge_version, verdict, created_at
    FROM iccm.gate_verdicts WHERE version = :version ORDER BY id
    """
)
_TRAFFIC = text(
    """
    SELECT d."timestamp", d.rollout_id, d.event_type, d.version, d.weight, d.from_state, d.to_state, d.actor,
           d.notes, coalesce(d.evidence ->> 'forced' = 'true', false) OR d.event_type = 'forced' AS forced
    FROM iccm.deployment_events d LEFT JOIN iccm.rollouts o ON o.id = d.rollout_id
    WHERE d.version = :version OR o.candidate = :version
    ORDER BY d."timestamp", d.id
    """
)
_ROLLBACKS = text(
    """
    SELECT "timestamp", rollout_id, from_version, to_version, reason, actor, notes
    FROM iccm.rollback_events WHERE from_version = :version OR to_version = :version ORDER BY "timestamp", id
    """
)
_CONVERSATION = text(
    """
    SELECT c.id AS conversation_id, c.session_id, c."timestamp", c.origin, c.erased_at,
           a.test_pass_rate, a.implementation_variance,
           f.conversation_id IS NOT NULL AS filtered, t.conversation_id IS NOT NULL AS in_pool,
           coalesce(t.quality_score, f.quality_score) AS quality_score, coalesce(t.pinned, false) AS pinned
    FROM iccm.conversations c
    LEFT JOIN iccm.filtered_conversations f ON f.conversation_id = c.id
    LEFT JOIN iccm.phase4_training_data t ON t.conversation_id = c.id
    LEFT JOIN LATERAL (
        SELECT r.test_pass_rate, r.implementation_variance FROM iccm.requirements r
        WHERE r.conversation_id = c.id AND r.kind = 'accepted' ORDER BY r.id DESC LIMIT 1) a ON true
    WHERE c.id = :id
    """
)
_LEFT = text(
    """
    SELECT stage, reason, detail, duplicate_of, similarity
    FROM iccm.phase4_rejections WHERE conversation_id = :id ORDER BY stage
    """
)
_USES = text(
    """
    SELECT e.training_run_id, e.role, r.status, r.candidate_version
    FROM iccm.training_run_examples e JOIN iccm.phase4_training_runs r ON r.id = e.training_run_id
    WHERE e.conversation_id = :id ORDER BY e.training_run_id
    """
)
_LEARNERS = text(
    """
    WITH RECURSIVE direct AS (
        SELECT r.candidate_version AS version, min(e.role) AS role
        FROM iccm.training_run_examples e JOIN iccm.phase4_training_runs r ON r.id = e.training_run_id
        WHERE e.conversation_id = :id AND r.candidate_version IS NOT NULL
        GROUP BY r.candidate_version
    ),
    learners (version, generations) AS (
        SELECT version, 0 FROM direct
        UNION
        SELECT m.version, l.generations + 1
        FROM iccm.model_versions m JOIN learners l ON m.parent_version = l.version
        WHERE m.version NOT IN (SELECT version FROM direct)
    )
    SELECT m.version, m.status, CASE WHEN d.version IS NULL THEN 'inherited' ELSE 'directly' END AS how,
           d.role, min(l.generations) AS generations
    FROM learners l JOIN iccm.model_versions m USING (version) LEFT JOIN direct d USING (version)
    GROUP BY m.version, m.status, m.created_at, d.version, d.role
    ORDER BY min(l.generations), m.created_at, m.version
    """
)
_OF_SESSION = text("SELECT id FROM iccm.conversations WHERE session_id = :session")


def version_lineage(conn: Connection, given: str) -> VersionLineage:
    """Where a version (or `production`, or the start of a digest) came from and what was decided about it.

    Raises ``VersionNotFound``.
    """
    of_version = {"version": version_named(conn, given)}
    found = conn.execute(_VERSION, of_version).mappings().one()
    run = conn.execute(_RUN, of_version).mappings().one_or_none()
    return VersionLineage(
        **found,
        run=None if run is None else Run(**run),
        line=tuple(Ancestor(*row) for row in conn.execute(_LINE, of_version)),
        conversations=tuple(Taught(*row) for row in conn.execute(_TAUGHT, of_version)),
        verdicts=tuple(GateDecision(*row) for row in conn.execute(_VERDICTS, of_version)),
        traffic=tuple(TrafficDecision(*row) for row in conn.execute(_TRAFFIC, of_version)),
        rollbacks=tuple(Rollback(*row) for row in conn.execute(_ROLLBACKS, of_version)),
        periods=tuple(periods(conn, of_version["version"])),
    )


def conversation_of(conn: Connection, session: str) -> int:
    """The conversation of a session; ``InputError`` when there is none."""
    # PostgreSQL stores no NUL, so none can be asked for either.
    known = "\x00" not in session
    found = conn.execute(_OF_SESSION, {"session": session}).scalar_one_or_none() if known else None
    if found is None:
        raise InputError(f"there is no session {session!r}")
    return int(found)


def conversation_lineage(conn: Connection, conversation_id: int) -> ConversationLineage:
    """Where a conversation went, up to the versions that learned from it; ``InputError`` when unknown."""
    of_one = {"id": conversation_id}
    # bigint holds no more; asking for more would be the driver's error, not an answer.
    known = abs(conversation_id) < 2**63
    found = conn.execute(_CONVERSATION, of_one).mappings().one_or_none() if known else None
    if found is None:
        raise InputError(f"there is no conversation {conversation_id}")
    return ConversationLineage(
        **found,
        left_out=tuple(Left(*row) for row in conn.execute(_LEFT, of_one)),
        uses=tuple(Use(*row) for row in conn.execute(_USES, of_one)),
        versions=tuple(Learner(*row) for row in conn.execute(_LEARNERS, of_one)),
    )
