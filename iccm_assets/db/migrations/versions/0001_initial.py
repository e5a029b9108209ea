"""Initial schema.

Revision ID: 0001
Revises:
"""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the schema from the SQL file next to this one."""
    statements = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    op.get_bind().exec_driver_sql(statements, execution_options={"no_parameters": True})


def downgrade() -> None:
    """Drop every table; the schema stays for Alembic's own table, the extension for other users."""
    bind = op.get_bind()
    names = bind.exec_driver_sql(
        "select tablename from pg_tables where schemaname = 'iccm' and tablename <> 'alembic_version'"
    ).scalars()
    for name in names.all():
        op.execute(f'drop table iccm."{name}" cascade')
    op.execute("drop function iccm.now(), iccm.refuse_change()")
