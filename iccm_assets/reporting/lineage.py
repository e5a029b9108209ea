"""Lineage in both directions: from a version to its conversations, from a conversation to its versions (V1).

A version was trained on a conversation *directly* when its own run used it (``new``, ``rehearsal``, or
``validation``, which selects the best epoch). It *inherited* the conversation when only the run of one of its
ancestors used it. Every query follows keys and indexes: its cost depends on the size of the result, not on
the number of conversations.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import Connection, TextClause, text

from iccm_assets.errors import RecordNotFoundError
from iccm_assets.registry.versions import resolve_path, resolve_version
from iccm_assets.reporting.traffic_history import ServingPeriod, serving_periods

# A row by column name.
LineageRow = dict[str, Any]


@dataclass(frozen=True)
class Ancestor:
    """A version and the number of ``generations`` from the version whose ancestry is shown (0)."""

    version: str
    status: str
    generations: int
    examples: int


@dataclass(frozen=True)
class TrainingConversation:
    """A conversation that the version's own run used, with its role and the suite that its score comes from.

    ``evidence`` is the kind of the suite: ``cases``, or ``pytest``, the weaker one.
    """

    conversation_id: int
    session_id: str
    role: str
    day: date | None
    quality_score: float | None
    erased: bool
    evidence: str | None
    test_suite_origin: str | None


@dataclass(frozen=True)
class VersionLineage:
    """Origin of a version and the decisions about it.

    ``ancestry`` starts with the version itself. ``run`` is the training run that produced it, ``verdicts``
    are its gate verdicts, ``traffic`` its deployment events (``forced``: a person overruled the gate),
    ``rollbacks`` the rollbacks from or to it: rows with the columns of their tables, oldest first.
    """

    version: str
    status: str
    digest: str
    path: str
    base_digest: str | None
    parent_version: str | None
    created_at: datetime
    deployed_at: datetime | None
    run: LineageRow | None
    ancestry: tuple[Ancestor, ...]
    conversations: tuple[TrainingConversation, ...]
    verdicts: tuple[LineageRow, ...]
    traffic: tuple[LineageRow, ...]
    rollbacks: tuple[LineageRow, ...]
    periods: tuple[ServingPeriod, ...]

    @property
    def roles(self) -> dict[str, int]:
        """Number of conversations used by the version's own run, by role."""
        return dict(Counter(conversation.role for conversation in self.conversations))

    @property
    def evidence(self) -> dict[str, int]:
        """Number of conversations used by the version's own run, by kind of evidence; erased: unknown."""
        return dict(Counter(conversation.evidence or "unknown" for conversation in self.conversations))


@dataclass(frozen=True)
class Rejection:
    """Why one stage rejected a conversation."""

    stage: str
    reason: str
    detail: str | None
    duplicate_of: int | None
    similarity: float | None


@dataclass(frozen=True)
class TrainingUse:
    """A training run that used a conversation."""

    training_run_id: int
    role: str
    status: str
    candidate_version: str | None


@dataclass(frozen=True)
class TrainedVersion:
    """A version trained on a conversation.

    ``how`` is ``directly``, with the ``role`` in its own run and 0 ``generations``, or ``inherited`` from the
    nearest ancestor trained on it, that many generations back.
    """

    version: str
    status: str
    how: str
    role: str | None
    generations: int


@dataclass(frozen=True)
class ConversationLineage:
    """Path of one conversation through filter, pool, training runs and versions.

    ``evidence``, ``test_suite_origin``, ``suite_status`` and ``suite_strength`` describe the suite of the
    accepted text, ``environment`` is the digest of the judge environment it ran in (None: the standard
    library alone), ``inconclusive_reason`` says why it has no pass rate.
    """

    conversation_id: int
    session_id: str
    timestamp: datetime
    origin: str
    erased_at: datetime | None
    test_pass_rate: float | None
    implementation_variance: float | None
    evidence: str | None
    test_suite_origin: str | None
    suite_status: str | None
    suite_strength: float | None
    environment: str | None
    inconclusive_reason: str | None
    filtered: bool
    quality_score: float | None
    in_pool: bool
    pinned: bool
    rejections: tuple[Rejection, ...]
    uses: tuple[TrainingUse, ...]
    versions: tuple[TrainedVersion, ...]


_VERSION = text(
    """
    select version, status, digest, path, base_digest, parent_version, created_at, deployed_at
    from iccm.model_versions where version = :version
    """
)
_RUN = text(
    """
    select id, trigger, trigger_key, status, base_version, dataset_digest, improvement, training_timestamp,
           notes
    from iccm.phase4_training_runs where candidate_version = :version order by id desc limit 1
    """
)
_ANCESTRY = text(
    """
    with recursive line (version, status, parent_version, generations) as (
        select version, status, parent_version, 0 from iccm.model_versions where version = :version
        union all
        select m.version, m.status, m.parent_version, line.generations + 1
        from iccm.model_versions m join line on m.version = line.parent_version
    )
    select version, status, generations,
           (select count(distinct e.conversation_id) from iccm.training_run_examples e
            join iccm.phase4_training_runs r on r.id = e.training_run_id
            where r.candidate_version = line.version and e.role in ('new', 'validation')) as examples
    from line order by generations
    """
)
_TRAINING_CONVERSATIONS = text(
    """
    select distinct e.conversation_id, c.session_id, e.role, t.day, t.quality_score,
           c.erased_at is not null as erased, t.evidence, t.test_suite_origin
    from iccm.training_run_examples e
    join iccm.phase4_training_runs r on r.id = e.training_run_id
    join iccm.conversations c on c.id = e.conversation_id
    left join iccm.phase4_training_data t on t.conversation_id = e.conversation_id
    where r.candidate_version = :version
    order by e.role, e.conversation_id
    """
)
_VERDICTS = text(
    """
    select id, status, improvement, production_version, training_run_id, canary_set_digest, orchestra,
           judge_version, verdict, created_at
    from iccm.gate_verdicts where version = :version order by id
    """
)
_TRAFFIC = text(
    """
    select d."timestamp", d.rollout_id, d.event_type, d.version, d.weight, d.from_state, d.to_state, d.actor,
           d.notes, coalesce(d.evidence ->> 'forced' = 'true', false) or d.event_type = 'forced' as forced
    from iccm.deployment_events d left join iccm.rollouts o on o.id = d.rollout_id
    where d.version = :version or o.candidate = :version
    order by d."timestamp", d.id
    """
)
_ROLLBACKS = text(
    """
    select "timestamp", rollout_id, from_version, to_version, reason, actor, notes
    from iccm.rollback_events where from_version = :version or to_version = :version order by "timestamp", id
    """
)
_CONVERSATION = text(
    """
    select c.id as conversation_id, c.session_id, c."timestamp", c.origin, c.erased_at,
           a.test_pass_rate, a.implementation_variance,
           coalesce(t.test_suite_origin, f.test_suite_origin, a.test_suite_origin) as test_suite_origin,
           coalesce(t.evidence, f.evidence, a.test_suite ->> 'kind') as evidence,
           a.evidence ->> 'suite' as suite_status,
           (a.evidence ->> 'strength')::double precision as suite_strength,
           a.evidence ->> 'environment' as environment,
           a.evidence ->> 'reason' as inconclusive_reason,
           f.conversation_id is not null as filtered, t.conversation_id is not null as in_pool,
           coalesce(t.quality_score, f.quality_score) as quality_score, coalesce(t.pinned, false) as pinned
    from iccm.conversations c
    left join iccm.filtered_conversations f on f.conversation_id = c.id
    left join iccm.phase4_training_data t on t.conversation_id = c.id
    left join lateral (
        select r.test_pass_rate, r.implementation_variance, r.test_suite, r.test_suite_origin, r.evidence
        from iccm.requirements r
        where r.conversation_id = c.id and r.kind = 'accepted' order by r.id desc limit 1) a on true
    where c.id = :id
    """
)
_REJECTIONS = text(
    """
    select stage, reason, detail, duplicate_of, similarity
    from iccm.phase4_rejections where conversation_id = :id order by stage
    """
)
_USES = text(
    """
    select e.training_run_id, e.role, r.status, r.candidate_version
    from iccm.training_run_examples e join iccm.phase4_training_runs r on r.id = e.training_run_id
    where e.conversation_id = :id order by e.training_run_id
    """
)
_TRAINED_VERSIONS = text(
    """
    with recursive direct as (
        select r.candidate_version as version, min(e.role) as role
        from iccm.training_run_examples e join iccm.phase4_training_runs r on r.id = e.training_run_id
        where e.conversation_id = :id and r.candidate_version is not null
        group by r.candidate_version
    ),
    trained (version, generations) as (
        select version, 0 from direct
        union
        select m.version, l.generations + 1
        from iccm.model_versions m join trained l on m.parent_version = l.version
        where m.version not in (select version from direct)
    )
    select m.version, m.status, case when d.version is null then 'inherited' else 'directly' end as how,
           d.role, min(l.generations) as generations
    from trained l join iccm.model_versions m using (version) left join direct d using (version)
    group by m.version, m.status, m.created_at, d.version, d.role
    order by min(l.generations), m.created_at, m.version
    """
)
_BY_SESSION = text("select id from iccm.conversations where session_id = :session")


def load_version_lineage(conn: Connection, name: str) -> VersionLineage:
    """Load the lineage of a version, given by name, as `production` or by the start of its digest.

    Raises ``VersionNotFoundError``.
    """
    version = resolve_version(conn, name)

    def load(query: TextClause) -> list[LineageRow]:
        return [dict(row) for row in conn.execute(query, {"version": version}).mappings()]

    columns = load(_VERSION)[0]
    return VersionLineage(
        **{**columns, "path": resolve_path(columns["path"])},
        run=next(iter(load(_RUN)), None),
        ancestry=tuple(Ancestor(**row) for row in load(_ANCESTRY)),
        conversations=tuple(TrainingConversation(**row) for row in load(_TRAINING_CONVERSATIONS)),
        verdicts=tuple(load(_VERDICTS)),
        traffic=tuple(load(_TRAFFIC)),
        rollbacks=tuple(load(_ROLLBACKS)),
        periods=tuple(serving_periods(conn, version)),
    )


def find_conversation(conn: Connection, session: str) -> int:
    """Return the id of a session's conversation; raises ``RecordNotFoundError`` if there is none."""
    # PostgreSQL text cannot hold NUL: the driver would raise instead of finding nothing.
    valid = "\x00" not in session
    conversation_id = conn.execute(_BY_SESSION, {"session": session}).scalar_one_or_none() if valid else None
    if conversation_id is None:
        raise RecordNotFoundError(f"there is no session {session!r}")
    return int(conversation_id)


def load_conversation_lineage(conn: Connection, conversation_id: int) -> ConversationLineage:
    """Load the lineage of a conversation; raises ``RecordNotFoundError`` if it is unknown."""
    key = {"id": conversation_id}
    # A larger number does not fit in bigint: the driver would raise instead of finding nothing.
    valid = abs(conversation_id) < 2**63
    conversation = conn.execute(_CONVERSATION, key).mappings().one_or_none() if valid else None
    if conversation is None:
        raise RecordNotFoundError(f"there is no conversation {conversation_id}")
    return ConversationLineage(
        **conversation,
        rejections=tuple(Rejection(*row) for row in conn.execute(_REJECTIONS, key)),
        uses=tuple(TrainingUse(*row) for row in conn.execute(_USES, key)),
        versions=tuple(TrainedVersion(*row) for row in conn.execute(_TRAINED_VERSIONS, key)),
    )
