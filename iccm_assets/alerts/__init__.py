"""Alerts: an outbox in the database, and the dispatcher that sends it to channels."""
