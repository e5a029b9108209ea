"""Samples and pairs counted by a rollout, and the order in which requests were stored.

Revision ID: 0005
Revises: 0004
"""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Run the SQL file next to this one."""
    statements = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(statements, execution_options={"no_parameters": True})


def downgrade() -> None:
    """Drop the samples; a live rollout must then be aborted, because it would count everything again."""
    op.execute("drop index iccm.requirements_scored_answers_idx")
    op.execute("drop table iccm.rollout_pairs")
    op.execute("drop table iccm.rollout_samples")
    op.execute("drop index iccm.requests_rollout_id_assigned_arm_created_at_idx")
    op.execute("drop index iccm.requests_rollout_id_stored_in_idx")
    op.execute("alter table iccm.requests drop column stored_in")
