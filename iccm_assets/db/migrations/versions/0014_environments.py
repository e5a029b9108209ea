"""Judge environments: what code in the sandbox may import besides the standard library.

Revision ID: 0014
Revises: 0013
"""

from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Create the table."""
    op.execute(
        """
        create table iccm.environments (
            digest text primary key,
            name text not null,
            packages jsonb not null default '{}'::jsonb,
            created_at timestamptz not null default iccm.now()
        )
        """
    )
    op.execute("comment on table iccm.environments is 'Environment that the judge runs code in.'")


def downgrade() -> None:
    """Drop the table."""
    op.execute("drop table iccm.environments")
