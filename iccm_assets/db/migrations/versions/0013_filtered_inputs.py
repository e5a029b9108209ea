"""Filtered inputs: a digest of the inputs that a day's filtered rows are made of.

Days that were filtered before have none, so the next daily run filters those of the last week again.

Revision ID: 0013
Revises: 0012
"""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add the column."""
    op.execute("alter table iccm.filtered_days add column fingerprint text")


def downgrade() -> None:
    """Drop the column."""
    op.execute("alter table iccm.filtered_days drop column fingerprint")
