"""Dispatch number and time of a training run, and its requested window.

Revision ID: 0006
Revises: 0005
"""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute(
        "alter table iccm.phase4_training_runs"
        " add column dispatch bigint default 0 not null,"
        " add column dispatched_at timestamptz,"
        " add column requested_window_days integer,"
        " add constraint phase4_training_runs_dispatch_check check (dispatch >= 0),"
        " add constraint phase4_training_runs_requested_window_days_check check (requested_window_days >= 1)"
    )


def downgrade() -> None:
    op.execute(
        "alter table iccm.phase4_training_runs"
        " drop column dispatch, drop column dispatched_at, drop column requested_window_days"
    )
