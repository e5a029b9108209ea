"""Plain values as Dagster metadata: tables, images, worker replies and the results of checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

if TYPE_CHECKING:
    from iccm_assets.check_result import CheckResult

MAX_PLAIN_TEXT = 80  # characters
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


def to_metadata(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values as metadata: lists of rows become tables, and Markdown of the Pipes form its text."""

    def convert(value: Any) -> Any:
        if isinstance(value, list):
            return table_metadata(value)
        return dg.MetadataValue.md(value["raw_value"]) if isinstance(value, dict) else value

    return {name: convert(value) for name, value in values.items()}


def with_markdown(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with long texts as Markdown, which the UI wraps; it cuts off or spills plain text."""
    return {
        name: dg.MetadataValue.md(value) if isinstance(value, str) and len(value) > MAX_PLAIN_TEXT else value
        for name, value in values.items()
    }


def worker_metadata(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metadata a worker replied with; raises the error that it replied with instead."""
    from iccm_assets.errors import IccmError

    reply = next(iter(messages), {})
    if "metadata" not in reply:
        raise IccmError.from_dict(reply.get("error") or {"name": "IccmError", "detail": "", "hint": ""})
    return to_metadata(reply["metadata"])


def to_asset_check_result(check: CheckResult, check_name: str | None = None) -> dg.AssetCheckResult:
    """A check result as Dagster shows it; the recovery text only where there is something to recover.

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
            **({"recovery": dg.MetadataValue.md(check.recovery)} if not check.passed else {}),
            **dict(check.metrics),
            **(
                {"sample_ids": dg.MetadataValue.text(", ".join(check.sample_ids))} if check.sample_ids else {}
            ),
        },
    )
