"""A stored verdict as the metadata of an evaluation, from its row alone: nothing is measured again."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any

import sqlalchemy as sa

from iccm_assets.check_result import CheckResult
from iccm_assets.db import tables as t
from iccm_assets.errors import InputError
from iccm_assets.evaluation.checks import check_missing_items, find_missing_items
from iccm_assets.evaluation.evaluation_report import (
    describe_rules,
    describe_verdict,
    matrix_rows,
    plot_forgetting_matrix,
)
from iccm_assets.evaluation.gate_evidence import GateEvidence, Verdict
from iccm_assets.reporting.formatting import markdown_image, markdown_table


@dataclass(frozen=True)
class StoredVerdict:
    """One row of ``gate_verdicts``; ``dagster_run_id`` is that of the run which measured it, if one did."""

    id: int
    version: str
    production_version: str
    status: str
    canary_set_digest: str
    verdict: dict[str, Any]
    evidence: dict[str, Any]
    dagster_run_id: str | None

    def read_verdict(self) -> Verdict:
        """Read the verdict; raises ``InputError`` if an earlier release stored it in another form."""
        return Verdict.from_json(self.verdict)


_COLUMNS = [t.gate_verdicts.c[field.name] for field in fields(StoredVerdict)]


def load_verdict(conn: sa.Connection, dagster_run_id: str) -> StoredVerdict | None:
    """Return the newest verdict of a Dagster run or, without one, of all; None where there is none."""
    gv = t.gate_verdicts.c
    is_own = sa.func.coalesce(gv.dagster_run_id == dagster_run_id, False)
    row = conn.execute(sa.select(*_COLUMNS).order_by(is_own.desc(), gv.id.desc()).limit(1)).one_or_none()
    return None if row is None else StoredVerdict(**row._mapping)


def load_newest_verdict(conn: sa.Connection, version: str) -> StoredVerdict | None:
    """Return the newest verdict on a version; None where there is none."""
    gv = t.gate_verdicts.c
    query = sa.select(*_COLUMNS).where(gv.version == version).order_by(gv.id.desc()).limit(1)
    row = conn.execute(query).one_or_none()
    return None if row is None else StoredVerdict(**row._mapping)


def mean_pass_rates(stored: StoredVerdict) -> tuple[float | None, float | None]:
    """Return the mean pass rates of candidate and production; None where nothing was measured."""
    evidence = GateEvidence.from_json(stored.evidence)
    return _mean(item.candidate for item in evidence.items), _mean(item.production for item in evidence.items)


def load_unreported_verdicts(
    conn: sa.Connection, reported_id: int | None, reported_run: str | None
) -> list[StoredVerdict]:
    """Return the verdicts after the reported one, oldest first; without a reported one, the newest.

    The reported one is that of ``reported_id`` or, without an id, of the Dagster run ``reported_run``.
    """
    gv = t.gate_verdicts.c
    newest = conn.execute(sa.select(sa.func.max(gv.id))).scalar_one()
    if newest is None:
        return []
    if reported_id is None and reported_run:
        query = sa.select(sa.func.max(gv.id)).where(gv.dagster_run_id == reported_run)
        reported_id = conn.execute(query).scalar_one()
    # An id above the newest one is that of another database, which this one has replaced.
    after = newest - 1 if reported_id is None or reported_id > newest else reported_id
    rows = conn.execute(sa.select(*_COLUMNS).where(gv.id > after).order_by(gv.id))
    return [StoredVerdict(**row._mapping) for row in rows]


def verdict_metadata(stored: StoredVerdict) -> dict[str, Any]:
    """Return the metadata of the evaluation, in Dagster Pipes form, under the names of a measured one.

    Verdicts whose evidence an earlier release stored in another form have their status only.
    """
    values: dict[str, Any] = {
        "candidate_version": stored.version,
        "production_version": stored.production_version,
        "verdict": stored.status,
        "verdict_id": str(stored.id),
    }
    try:
        verdict, evidence = Verdict.from_json(stored.verdict), GateEvidence.from_json(stored.evidence)
    except InputError as error:
        return {**values, "summary": f"{stored.version}: {stored.status}", "verdict_rules": str(error)}
    rates = {
        "candidate": _mean(item.candidate for item in evidence.items),
        "production": _mean(item.production for item in evidence.items),
    }
    numbers = {
        "improvement": verdict.improvement,
        "candidate_test_pass_rate": rates["candidate"],
        "production_test_pass_rate": rates["production"],
        "candidate_implementation_variance": _mean(item.candidate_variance for item in evidence.items),
    }
    rows = _matrix(stored, evidence)
    texts = {"verdict_rules": describe_rules(verdict), "forgetting_matrix": markdown_table(rows)}
    if rows:
        texts["forgetting_heat_map"] = markdown_image(plot_forgetting_matrix(rows), "forgetting matrix")
    summary = describe_verdict(
        verdict, (stored.version, rates["candidate"]), (stored.production_version, rates["production"])
    )
    return {
        **values,
        "summary": summary,
        **{name: round(value, 6) for name, value in numbers.items() if value is not None},
        **{name: {"type": "md", "raw_value": text} for name, text in texts.items()},
    }


def check_evidence(stored: StoredVerdict) -> CheckResult | None:
    """Check that the evidence has every item; None where it cannot be read."""
    try:
        evidence = GateEvidence.from_json(stored.evidence)
    except InputError:
        return None
    return check_missing_items(stored.version, evidence.expected_items, find_missing_items(evidence))


def _matrix(stored: StoredVerdict, evidence: GateEvidence) -> list[dict[str, Any]]:
    """Return the forgetting matrix of the two versions."""
    rates: dict[str, dict[str, list[float]]] = {}
    for version, name in ((stored.production_version, "production"), (stored.version, "candidate")):
        rates[version] = defaultdict(list)
        for item in evidence.items:
            if (rate := getattr(item, name)) is not None:
                rates[version][item.slice].append(rate)
    means = {
        version: {name: fmean(values) for name, values in by_slice.items()}
        for version, by_slice in rates.items()
    }
    sizes = Counter(item.slice for item in evidence.items)
    return matrix_rows(means, sizes, stored.version, stored.production_version)


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if present else None
