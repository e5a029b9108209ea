"""Erasure of conversations from rows and files, replacement of affected models, and retention."""
