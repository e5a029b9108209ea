"""Erased conversations that a version or its ancestors were trained on (V2)."""

from __future__ import annotations

from sqlalchemy import Connection, text

_ERASED_IN_ANCESTRY = text(
    """
    with recursive ancestry (version, parent_version) as (
        select version, parent_version from iccm.model_versions where version = :version
        union
        select m.version, m.parent_version
        from iccm.model_versions m join ancestry on m.version = ancestry.parent_version
    )
    select distinct e.conversation_id from ancestry
    join iccm.phase4_training_runs r on r.candidate_version = ancestry.version
    join iccm.training_run_examples e on e.training_run_id = r.id
    join iccm.conversations c on c.id = e.conversation_id and c.erased_at is not null
    """
)


def find_erased_in_lineage(conn: Connection, version: str | None) -> set[int]:
    """Return the erased conversations that a version, or one of its ancestors, was trained on."""
    return set(conn.execute(_ERASED_IN_ANCESTRY, {"version": version}).scalars())
