"""The schema `iccm` and the column types and checks of its tables."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Column, Double, Identity, MetaData, Text, text
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

SCHEMA = "iccm"

# Length of a sentence-transformers/all-MiniLM-L6-v2 vector (P1).
EMBEDDING_DIMENSIONS = 384

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    },
)

NOW = text("iccm.now()")


def id_column() -> Column[int]:
    """Return the bigint key column `id`, numbered by the database."""
    return Column("id", BigInteger, Identity(always=False), primary_key=True)


def timestamp_column(name: str, *, default: bool = False, null: bool = True) -> Column[Any]:
    """Return a timestamptz column; with `default` it is filled from the platform clock and never null."""
    return Column(
        name,
        TIMESTAMP(timezone=True),
        nullable=null and not default,
        server_default=NOW if default else None,
    )


def jsonb_column(name: str, *, null: bool = False, default: str = "{}") -> Column[Any]:
    """Return a jsonb column; Python None is SQL NULL, never JSON null."""
    return Column(
        name,
        JSONB(none_as_null=True),
        nullable=null,
        server_default=None if null else text(f"'{default}'::jsonb"),
    )


def fraction_column(name: str, *, null: bool = True) -> Column[float]:
    """Return a double precision column for a value from 0 to 1; pair it with `range_check`."""
    return Column(name, Double, nullable=null)


def range_check(*names: str) -> list[CheckConstraint]:
    """Return checks that these columns lie from 0 to 1 (NaN fails: it sorts above 1)."""
    return [CheckConstraint(f"{name} >= 0 and {name} <= 1", name=name) for name in names]


def enum_check(column: str, values: tuple[str, ...]) -> CheckConstraint:
    """Return a check that a column holds one of these values."""
    allowed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f'"{column}" in ({allowed})', name=column)


def text_column(
    name: str, *, null: bool = True, key: bool = False, default: str | None = None
) -> Column[str]:
    """Return a text column."""
    return Column(
        name,
        Text,
        nullable=null and not key and default is None,
        primary_key=key,
        server_default=None if default is None else text(f"'{default}'"),
    )
