"""Hashed names of what an erasure erased: a restored backup is erased by them again.

Revision ID: 0019
Revises: 0018
"""

from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    """Add the column; the tombstones of earlier erasures have the hashes of their sessions."""
    op.execute("alter table iccm.erasures add column hashed_names jsonb not null default '{}'")
    op.execute(
        """
        update iccm.erasures e set hashed_names = jsonb_build_object('sessions', coalesce((
            select jsonb_agg(c.session_id order by c.id) from iccm.conversations c
            where c.id = any(e.conversations) and c.erased_at is not null), '[]'))
        """
    )


def downgrade() -> None:
    """Drop the column."""
    op.execute("alter table iccm.erasures drop column hashed_names")
