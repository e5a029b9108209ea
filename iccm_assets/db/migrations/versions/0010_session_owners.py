"""Session owners: the token that opened a session without a user id.

Revision ID: 0010
Revises: 0009
"""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the column."""
    op.execute("alter table iccm.conversations add column token_name text")


def downgrade() -> None:
    """Drop the column."""
    op.execute("alter table iccm.conversations drop column token_name")
