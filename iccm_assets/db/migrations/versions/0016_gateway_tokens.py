"""Named tokens of the gateway's clients, with scopes, expiry and rotation.

Revision ID: 0016
Revises: 0015
"""

from alembic import op

revision = "0016"
down_revision = "0015"

_SCOPES = "'requirements', 'conversations', 'feedback', 'metrics', 'review', 'admin'"


def upgrade() -> None:
    """Create the table."""
    op.execute(
        f"""
        create table iccm.gateway_tokens (
            name text primary key,
            hash text not null,
            previous_hash text,
            previous_until timestamptz,
            scopes text[] not null,
            created_at timestamptz not null default iccm.now(),
            rotated_at timestamptz,
            expires_at timestamptz,
            revoked_at timestamptz,
            last_used_at timestamptz,
            use_count bigint not null default 0,
            constraint gateway_tokens_hash_key unique (hash),
            constraint gateway_tokens_hash_check check (hash ~ '^[0-9a-f]{{64}}$'),
            constraint gateway_tokens_name_check check (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{{0,59}}$'),
            constraint gateway_tokens_scopes_check
                check (cardinality(scopes) > 0 and scopes <@ array[{_SCOPES}])
        )
        """
    )
    op.execute(
        "comment on table iccm.gateway_tokens is 'Token of a client of the gateway; its hash, not itself.'"
    )


def downgrade() -> None:
    """Drop the table."""
    op.execute("drop table iccm.gateway_tokens")
