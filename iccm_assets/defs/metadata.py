"""Plain values as Dagster metadata: tables, images, worker replies and the results of checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

if TYPE_CHECKING:
    from iccm_assets.check_result import CheckResult

_COLUMN_TYPES = {bool: "bool", int: "int", float: "float"}


def table_metadata(rows: Sequence[Mapping[str, Any]], empty: str = "none") -> dg.MetadataValue:
    """Rows of equal keys as a table; the text ``empty`` where there are none."""
    if not rows:
        return dg.MetadataValue.text(empty)
    columns = []
    for name in rows[0]:
        types = (_COLUMN_TYPES.get(type(row[name])) for row in rows)
        columns.append(dg.TableColumn(name, next(filter(None, types), "string")))
    return dg.MetadataValue.table(
        [dg.TableRecord(dict(row)) for row in rows], schema=dg.TableSchema(columns=columns)
    )


def worker_metadata(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metadata a worker replied with; raises the error that it replied with instead."""
    from iccm_assets.errors import IccmError

    reply = next(iter(messages), {})
    if "metadata" not in reply:
        raise IccmError.from_dict(reply.get("error") or {"name": "IccmError", "detail": "", "hint": ""})
    return {
        name: dg.MetadataValue.md(value["raw_value"]) if isinstance(value, dict) else value
        for name, value in reply["metadata"].items()
    }


def to_asset_check_result(check: CheckResult, check_name: str | None = None) -> dg.AssetCheckResult:
    """A check result as Dagster shows it, with its recovery text if it has one.

    ``check_name`` is needed where an asset returns the results of its own checks.
    """
    severity = dg.AssetCheckSeverity.ERROR if check.severity == "error" else dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(
        check_name=check_name,
        passed=check.passed,
        severity=severity,
        description=check.description
        if check.passed
        else f"{check.description}. What to do: {check.recovery}",
        metadata={
            **({"recovery": dg.MetadataValue.text(check.recovery)} if check.recovery else {}),
            **dict(check.metrics),
            **(
                {"sample_ids": dg.MetadataValue.text(", ".join(check.sample_ids))} if check.sample_ids else {}
            ),
        },
    )
