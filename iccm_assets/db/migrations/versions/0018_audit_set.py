"""Scores on the audit set: what was learned over weeks is measured on items that no decision uses.

Revision ID: 0018
Revises: 0017
"""

from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Allow the set."""
    _allow("'canary_set', 'production_holdout', 'audit_set'")


def downgrade() -> None:
    """Delete the scores on the set: they are a cache."""
    op.execute("delete from iccm.canary_results where set = 'audit_set'")
    _allow("'canary_set', 'production_holdout'")


def _allow(names: str) -> None:
    op.execute("alter table iccm.canary_results drop constraint canary_results_set_check")
    op.execute(
        f"alter table iccm.canary_results add constraint canary_results_set_check check (set in ({names}))"
    )
