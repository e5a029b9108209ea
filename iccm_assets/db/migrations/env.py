"""Alembic's entry: runs the migrations on the connection that db.database hands over."""

from __future__ import annotations

from alembic import context

from iccm_assets.db.tables import SCHEMA, metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise RuntimeError("migrations run through `iccm db upgrade`, which takes the lock they need")

# Alembic's own table lives in the schema too, so the schema must be there first.
connection.exec_driver_sql(f"create schema if not exists {SCHEMA}")
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table_schema=SCHEMA,
    include_schemas=True,
    include_name=lambda name, kind, parents: kind != "schema" or name == SCHEMA,
    compare_type=True,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
