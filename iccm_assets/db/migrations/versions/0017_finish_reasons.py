"""How the answer of a request ended: answers that were cut are no evidence, or no good ones.

Revision ID: 0017
Revises: 0016
"""

from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Add the column; how older answers ended is unknown."""
    op.execute("alter table iccm.requests add column finish_reason text")
    op.execute(
        "alter table iccm.requests add constraint requests_finish_reason_check"
        " check (finish_reason in ('stop', 'length', 'truncated'))"
    )


def downgrade() -> None:
    """Drop the column."""
    op.execute("alter table iccm.requests drop column finish_reason")
