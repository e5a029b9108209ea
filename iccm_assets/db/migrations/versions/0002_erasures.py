"""Erasures, the base a retraining was asked to start from, and guards against erased rows coming back.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Run the SQL file beside this one."""
    statements = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(statements, execution_options={"no_parameters": True})


def downgrade() -> None:
    """Take the table, the column and the guards away; erased rows stay erased."""
    for table, trigger in (
        ("filtered_conversations", "filtered_conversations_leave_out_erased"),
        ("phase4_training_data", "phase4_training_data_leave_out_erased"),
        ("canary_results", "canary_results_leave_out_erased"),
        ("training_run_examples", "training_run_examples_refuse_erased"),
    ):
        op.execute(f"drop trigger {trigger} on iccm.{table}")
    op.execute("drop function iccm.leave_out_erased(), iccm.leave_out_erased_item()")
    op.execute("drop function iccm.refuse_erased_example()")
    op.execute("alter table iccm.phase4_training_runs drop column requested_base")
    op.execute("drop table iccm.erasures")
