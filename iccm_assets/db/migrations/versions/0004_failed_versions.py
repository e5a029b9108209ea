"""Versions that a gateway process failed to load, with reasons.

Revision ID: 0004
Revises: 0003
"""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute(
        "alter table iccm.gateway_replicas add column failed_versions jsonb default '{}'::jsonb not null"
    )


def downgrade() -> None:
    op.execute("alter table iccm.gateway_replicas drop column failed_versions")
