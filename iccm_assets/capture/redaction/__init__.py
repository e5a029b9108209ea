"""Redact secrets and personal data from texts."""
