"""Versions that are adapters: their kind, and the digest of the model that they change.

Revision ID: 0022
Revises: 0021
"""

from alembic import op

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    """Add the columns; what is registered so far is a whole model."""
    op.execute(
        """
        alter table iccm.model_versions
            add column kind text not null default 'full',
            add column base_digest text,
            add constraint model_versions_kind_check check (kind in ('full', 'adapter')),
            add constraint model_versions_base_digest_check
                check ((kind = 'adapter') = (base_digest is not null))
        """
    )


def downgrade() -> None:
    """Drop the columns."""
    op.execute("alter table iccm.model_versions drop column kind, drop column base_digest")
