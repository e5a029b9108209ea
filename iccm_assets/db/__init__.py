"""PostgreSQL access: engine, platform clock, locks, tables, migrations and the embedded server; no domain."""
