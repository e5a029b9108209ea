"""The schema `iccm` and the column types every table is made of."""

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


def identity() -> Column[int]:
    """A bigint key the database gives out."""
    return Column("id", BigInteger, Identity(always=False), primary_key=True)


def moment(name: str, *, default: bool = False, null: bool = True) -> Column[Any]:
    """A timestamptz; with `default`, the platform's clock (S4) fills it and it is never null."""
    if default:
        return Column(name, TIMESTAMP(timezone=True), nullable=False, server_default=NOW)
    return Column(name, TIMESTAMP(timezone=True), nullable=null)


def document(name: str, *, null: bool = False, default: str = "{}") -> Column[Any]:
    """A jsonb value; Python None is SQL NULL, never JSON null."""
    if null:
        return Column(name, JSONB(none_as_null=True))
    return Column(name, JSONB(none_as_null=True), nullable=False, server_default=text(f"'{default}'::jsonb"))


def share(name: str, *, null: bool = True) -> Column[float]:
    """A double precision between 0 and 1; pair it with `within`."""
    return Column(name, Double, nullable=null)


def within(*names: str) -> list[CheckConstraint]:
    """Checks that these shares lie between 0 and 1 (NaN is refused: it sorts above 1)."""
    return [CheckConstraint(f"{name} >= 0 and {name} <= 1", name=name) for name in names]


def one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    """A check that a column holds one of these words."""
    words = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f'"{column}" in ({words})', name=column)


def words(name: str, *, null: bool = True, key: bool = False, default: str | None = None) -> Column[str]:
    """A text column."""
    return Column(
        name,
        Text,
        nullable=null and not key and default is None,
        primary_key=key,
        server_default=None if default is None else text(f"'{default}'"),
    )
