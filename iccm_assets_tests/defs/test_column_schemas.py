"""The written-out columns are those of the tables, and lineage names columns that exist (U1)."""

from __future__ import annotations

import pytest
from sqlalchemy.dialects import postgresql

from iccm_assets.curation.canary_set import FIELDS
from iccm_assets.db import tables
from iccm_assets.defs import column_schemas


@pytest.mark.parametrize("asset", column_schemas.TABLES)
def test_columns_types_and_nullability_are_the_tables(asset: str) -> None:
    name, columns = column_schemas.TABLES[asset]
    actual = {
        column.name: column.type.compile(dialect=postgresql.dialect())
        .lower()
        .replace("timestamp with time zone", "timestamptz")
        + ("?" if column.nullable else "")
        for column in getattr(tables, name).columns
    }
    assert {column: kind for column, (kind, _) in columns.items()} == actual
    assert all(description.endswith(".") for _, description in columns.values())


def test_the_canary_sets_columns_are_what_its_lines_must_hold() -> None:
    assert list(column_schemas.CANARY_SET) == [*FIELDS, "test_suite"]


@pytest.mark.parametrize(
    ("asset", "lineage"),
    [
        ("reconstructions", column_schemas.reconstructions_lineage()),
        ("filtered_conversations", column_schemas.filtered_conversations_lineage()),
        ("training_pool", column_schemas.training_pool_lineage()),
    ],
)
def test_lineage_leads_from_columns_that_exist_to_columns_that_exist(asset, lineage) -> None:
    [value] = lineage.values()
    assert value.deps_by_column.keys() <= column_schemas.TABLES[asset][1].keys()
    for deps in value.deps_by_column.values():
        for dep in deps:
            assert dep.column_name in column_schemas.TABLES[dep.asset_key.to_user_string()][1]
