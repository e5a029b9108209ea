"""Relative paths: a version's files are named relative to the home, which may move.

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

from iccm_assets.settings import get_settings

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Cut the home off the paths of models in a store, whichever home they were stored from."""
    op.execute(
        "update iccm.model_versions set path = 'models/' || digest "
        "where right(path, length(digest) + 8) = '/models/' || digest"
    )
    op.execute(
        "update iccm.rollback_events set new_model_path = v.path from iccm.model_versions v "
        "where v.version = from_version and v.path = 'models/' || v.digest "
        "and right(new_model_path, length(v.path) + 1) = '/' || v.path"
    )


def downgrade() -> None:
    """Put the home of this process before the relative paths."""
    home = str(get_settings().home)
    for table, column in (("model_versions", "path"), ("rollback_events", "new_model_path")):
        op.execute(
            sa.text(
                f"update iccm.{table} set {column} = :home || '/' || {column} where {column} like 'models/%'"
            ).bindparams(home=home)
        )
