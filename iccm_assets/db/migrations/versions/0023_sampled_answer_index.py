"""Index of the answers that examples are: retention looks each old answer up in the lineage.

Revision ID: 0023
Revises: 0022
"""

from alembic import op

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    """Create the index; few examples are answers of a model."""
    op.execute(
        "create index training_run_examples_sampled_answer_id_idx on iccm.training_run_examples"
        " (sampled_answer_id) where sampled_answer_id is not null"
    )


def downgrade() -> None:
    """Drop the index."""
    op.execute("drop index iccm.training_run_examples_sampled_answer_id_idx")
