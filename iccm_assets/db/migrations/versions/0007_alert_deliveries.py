"""Deliveries per alert channel, so that a failing channel delays no other.

Revision ID: 0007
Revises: 0006
"""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute(
        """
        create table iccm.alert_deliveries (
            key text not null,
            channel text not null,
            attempts integer default 0 not null,
            tried_at timestamptz,
            delivered_at timestamptz,
            last_error text,
            constraint alert_deliveries_pkey primary key (key, channel),
            constraint alert_deliveries_attempts_check check (attempts >= 0),
            constraint alert_deliveries_key_fkey foreign key (key)
                references iccm.alerts (key) on delete cascade
        )
        """
    )
    op.execute(
        "create index alert_deliveries_undelivered_idx on iccm.alert_deliveries (channel)"
        " where delivered_at is null"
    )
    op.execute(
        "comment on table iccm.alert_deliveries is"
        " 'What is owed to one channel: locked, sent and marked in one transaction (A1).'"
    )


def downgrade() -> None:
    op.execute("drop table iccm.alert_deliveries")
