"""Erasures: ids, counts and times, never content."""

from __future__ import annotations

from sqlalchemy import ARRAY, BigInteger, Column, Index, Table, Text, text

from iccm_assets.db.tables.base import (
    enum_check,
    id_column,
    jsonb_column,
    metadata,
    text_column,
    timestamp_column,
)

SUBJECTS = ("conversation", "session", "user")

erasures = Table(
    "erasures",
    metadata,
    id_column(),
    text_column("subject", null=False),
    text_column("subject_sha256", null=False),
    Column("conversations", ARRAY(BigInteger), nullable=False),
    jsonb_column("counts"),
    # The versions trained on them at that time, by their own run or through an ancestor.
    Column("versions", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]")),
    text_column("actor", null=False),
    timestamp_column("erased_at", default=True),
    # Null: erased from every row, but the bytes may still be in files; the next erasure finishes that.
    timestamp_column("physically_erased_at"),
    jsonb_column("physical_erasure"),
    # sessions: as in the tombstones; users: sha256 of `user:` and each id the user may be stored under.
    jsonb_column("hashed_names"),
    enum_check("subject", SUBJECTS),
    Index(None, "subject_sha256"),
    comment="Erasure: ids, counts and times, without the erased content.",
)
