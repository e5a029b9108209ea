"""Erasures, the requested base of a retraining, and triggers that keep erased rows out.

Revision ID: 0002
Revises: 0001
"""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Run the SQL file next to this one."""
    statements = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(statements, execution_options={"no_parameters": True})


def downgrade() -> None:
    """Drop the table, the column and the triggers; erased rows stay erased."""
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
