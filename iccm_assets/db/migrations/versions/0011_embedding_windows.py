"""Embedding windows: texts longer than the embedder's window have several vectors.

Revision ID: 0011
Revises: 0010
"""

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Change nothing yet."""


def downgrade() -> None:
    """Change nothing."""
