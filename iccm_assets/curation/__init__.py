"""Curation: filter, decontamination, deduplication and the training pool."""
