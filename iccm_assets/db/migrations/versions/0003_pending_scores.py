"""Index of pending scores: texts without a score, and inconclusive ones that are retried.

Revision ID: 0003
Revises: 0002
"""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute("drop index iccm.requirements_unscored_idx")
    op.execute(
        "create index requirements_without_score_idx on iccm.requirements (id)"
        " where test_pass_rate is null and test_suite is not null"
    )


def downgrade() -> None:
    op.execute("drop index iccm.requirements_without_score_idx")
    op.execute(
        "create index requirements_unscored_idx on iccm.requirements (created_at)"
        " where scored_at is null and test_suite is not null"
    )
