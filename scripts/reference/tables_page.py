"""The tables of the schema `iccm`: columns, constraints and comments."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from iccm_assets.db import tables
from iccm_assets.defs import column_schemas
from scripts.reference.markdown import code, codes, page, prose, section, table

INTRODUCTION = """
All tables are in the schema `iccm` of the platform's PostgreSQL database. `iccm db shell` opens a shell in
it, and `iccm db upgrade` migrates it. A type with `?` may be null. Reading is safe; writing is for the
platform.
"""
DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


def render() -> str:
    """Return the page."""
    by_name = sorted(tables.metadata.tables.values(), key=lambda item: item.name)
    return page("Tables", INTRODUCTION, *map(_table, by_name))


def _table(item: sa.Table) -> str:
    described = getattr(column_schemas, item.name.removeprefix("phase4_").upper(), {})
    rows = [
        (
            code(column.name),
            column.type.compile(dialect=DIALECT).lower() + ("?" if column.nullable else ""),
            _default(column),
            prose(column.comment or described.get(column.name, ("", ""))[1]),
        )
        for column in item.columns
    ]
    rules = "\n".join(f"- {line}" for line in sorted(_constraints(item)))
    return section(
        item.name, prose(item.comment), table(("column", "type", "default", "meaning"), rows), rules
    )


def _default(column: sa.Column[object]) -> str:
    if column.identity is not None:
        return "numbered"
    default = column.server_default
    return code(default.arg) if isinstance(default, sa.DefaultClause) else ""


def _constraints(item: sa.Table) -> list[str]:
    lines = []
    for constraint in item.constraints:
        match constraint:
            case sa.PrimaryKeyConstraint():
                lines.append(f"primary key: {_columns(constraint.columns)}")
            case sa.UniqueConstraint():
                lines.append(f"unique: {_columns(constraint.columns)}")
            case sa.ForeignKeyConstraint():
                target = ", ".join(element.target_fullname for element in constraint.elements)
                lines.append(f"foreign key: {_columns(constraint.columns)} to {code(target)}")
            case sa.CheckConstraint():
                lines.append(f"check: {code(' '.join(str(constraint.sqltext).split()))}")
    for index in item.indexes:
        where = index.dialect_options["postgresql"]["where"]
        suffix = "" if where is None else f" where {code(where)}"
        kind = "unique index" if index.unique else "index"
        names = [getattr(expression, "name", expression) for expression in index.expressions]
        lines.append(f"{kind}: {codes(names)}{suffix}")
    return lines


def _columns(columns: Iterable[sa.Column[Any]]) -> str:
    return codes(column.name for column in columns)
