"""What was erased: ids, counts and times, never content."""

from __future__ import annotations

from sqlalchemy import ARRAY, BigInteger, Column, Index, Table, Text, text

from iccm_assets.store.tables.base import document, identity, metadata, moment, one_of, words

SUBJECTS = ("conversation", "session", "user")

erasures = Table(
    "erasures",
    metadata,
    identity(),
    words("subject", null=False),
    words("subject_sha256", null=False),
    Column("conversations", ARRAY(BigInteger), nullable=False),
    document("counts"),
    # The versions that had learned from them then, each by its own run or by descent.
    Column("versions", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]")),
    words("actor", null=False),
    moment("erased_at", default=True),
    # Null: gone from every row, but its bytes may still lie in files; erasing again finishes that.
    moment("scrubbed_at"),
    document("scrub"),
    one_of("subject", SUBJECTS),
    Index(None, "subject_sha256"),
    comment="One erasure, without what was erased (V2).",
)
