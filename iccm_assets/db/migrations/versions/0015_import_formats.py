"""Conversations that come from Codex rollouts and OpenAI chat files.

Revision ID: 0015
Revises: 0014
"""

from alembic import op

revision = "0015"
down_revision = "0014"

_NAME = "conversations_origin_check"
_TABLE = "alter table iccm.conversations"
_OLD = "'gateway', 'claude-code', 'simulated', 'import'"


def upgrade() -> None:
    """Allow the two origins."""
    op.execute(f"{_TABLE} drop constraint {_NAME}")
    op.execute(f"{_TABLE} add constraint {_NAME} check (origin in ({_OLD}, 'codex', 'openai'))")


def downgrade() -> None:
    """Label these conversations as imported, and allow the older origins only."""
    op.execute("update iccm.conversations set origin = 'import' where origin in ('codex', 'openai')")
    op.execute(f"{_TABLE} drop constraint {_NAME}")
    op.execute(f"{_TABLE} add constraint {_NAME} check (origin in ({_OLD}))")
