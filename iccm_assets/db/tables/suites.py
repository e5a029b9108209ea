"""Measured test suites: whether a suite tests its source, and how well."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, Integer, Table, Text, UniqueConstraint

from iccm_assets.db.tables.base import (
    enum_check,
    fraction_column,
    id_column,
    jsonb_column,
    metadata,
    range_check,
    text_column,
    timestamp_column,
)

# The kind of a suite is the kind of evidence it gives: `pytest` is the weaker one (J1).
EVIDENCE_KINDS = ("cases", "pytest")
SUITE_ORIGINS = ("attached", "collected", "recorded")
# `weak`: code that does nothing, or does something else, passes it; `mismatch`: its own source fails it;
# `none`: it could not be run on its source.
SUITE_STATUSES = ("usable", "weak", "mismatch", "none")

environments = Table(
    "environments",
    metadata,
    Column("digest", Text, primary_key=True),
    text_column("name", null=False),
    jsonb_column("packages"),
    timestamp_column("created_at", default=True),
    comment="Environment that the judge runs code in.",
)

# The origin is part of the key: it decides how strong a suite has to be (D5).
test_suites = Table(
    "test_suites",
    metadata,
    id_column(),
    text_column("source_sha256", null=False),
    text_column("origin", null=False),
    jsonb_column("suite", null=True),
    text_column("digest", null=False),
    fraction_column("strength"),
    fraction_column("branch_coverage"),
    Column("counted_mutants", Integer),
    Column("undecided_mutants", Integer),
    text_column("environment"),
    text_column("generator_version", null=False),
    text_column("status", null=False),
    text_column("reason"),
    timestamp_column("created_at", default=True),
    enum_check("origin", SUITE_ORIGINS),
    enum_check("status", SUITE_STATUSES),
    *range_check("strength", "branch_coverage"),
    CheckConstraint("counted_mutants >= 0 and undecided_mutants >= 0", name="counts"),
    UniqueConstraint(
        "source_sha256",
        "digest",
        "origin",
        "generator_version",
        "environment",
        name="test_suites_measured_once",
        postgresql_nulls_not_distinct=True,
    ),
    comment="Measured test suite of one source.",
)
