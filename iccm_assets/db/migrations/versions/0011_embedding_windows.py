"""Embedding windows: texts longer than the embedder's window have several vectors; kinds of differences.

Revision ID: 0011
Revises: 0010
"""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the columns; a text embedded before has no windows yet and is embedded again when it is needed."""
    op.execute("alter table iccm.embeddings add column further_windows bytea")
    op.execute("alter table iccm.phase4_training_data add column further_windows bytea default '' not null")
    op.execute("alter table iccm.phase4_rejections add column differences text[]")


def downgrade() -> None:
    """Drop the columns."""
    op.execute("alter table iccm.phase4_rejections drop column differences")
    op.execute("alter table iccm.phase4_training_data drop column further_windows")
    op.execute("alter table iccm.embeddings drop column further_windows")
