"""Plain values as Dagster shows them: tables, pictures, and the findings of checks (U3, U4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

if TYPE_CHECKING:
    from iccm_assets.findings import Finding


def table(rows: Sequence[Mapping[str, Any]], empty: str = "none") -> dg.MetadataValue:
    """Rows of equal keys as a table of the UI; no rows are said in words."""
    if not rows:
        return dg.MetadataValue.text(empty)
    kinds = {bool: "bool", int: "int", float: "float"}
    columns = [
        dg.TableColumn(name, next((kinds[type(r[name])] for r in rows if type(r[name]) in kinds), "string"))
        for name in rows[0]
    ]
    return dg.MetadataValue.table(
        [dg.TableRecord(dict(row)) for row in rows], schema=dg.TableSchema(columns=columns)
    )


def result(finding: Finding, check_name: str | None = None) -> dg.AssetCheckResult:
    """A finding as the result of an asset check, with its recovery always at hand.

    ``check_name`` is for an asset that tells the results of its own checks.
    """
    severity = dg.AssetCheckSeverity.ERROR if finding.error else dg.AssetCheckSeverity.WARN
    told = finding.text if finding.passed else f"{finding.text}. What to do: {finding.recovery}"
    return dg.AssetCheckResult(
        check_name=check_name,
        passed=finding.passed,
        severity=severity,
        description=told,
        metadata={
            "recovery": dg.MetadataValue.text(finding.recovery),
            **dict(finding.numbers),
            **({"named": dg.MetadataValue.text(", ".join(finding.ids))} if finding.ids else {}),
        },
    )
