"""The embedded PostgreSQL server that runs when no database URL is configured."""
