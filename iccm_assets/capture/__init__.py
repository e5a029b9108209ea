"""Capture conversations: sanitize and redact them, extract source and requirements, store them."""
