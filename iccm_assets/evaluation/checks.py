"""Checks of the canary set and of the newest verdict's evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from iccm_assets.check_result import CheckResult, sample_ids
from iccm_assets.curation import checks as curation_checks
from iccm_assets.curation.canary_set import load_canary_set
from iccm_assets.evaluation.gate_evidence import GateEvidence
from iccm_assets.models.embedding import Embedder
from iccm_assets.settings import Settings

# From this size on the gate judges a slice for forgetting.
MIN_SLICE_ITEMS = 20


@dataclass(frozen=True)
class LastVerdict:
    """The newest row of ``gate_verdicts``; ``missing`` are items without reliable scores."""

    version: str
    canary_set_digest: str
    items: int
    missing: list[str]


def get_last_verdict(conn: sa.Connection) -> LastVerdict | None:
    """Load the newest verdict, with the items of its evidence that are not reliable."""
    row = conn.execute(
        sa.text(
            "select version, canary_set_digest, evidence from iccm.gate_verdicts order by id desc limit 1"
        )
    ).one_or_none()
    if row is None:
        return None
    evidence = GateEvidence.from_json(row.evidence)
    return LastVerdict(
        row.version, row.canary_set_digest, evidence.expected_items, find_missing_items(evidence)
    )


def find_missing_items(evidence: GateEvidence) -> list[str]:
    """Return the items without reliable scores of both versions; those never measured have no name."""
    missing = [item.item for item in evidence.items if not item.reliable]
    return missing + ["never measured"] * (evidence.expected_items - len(evidence.items))


def check_canary_set(digest: str, last_digest: str | None, last_version: str) -> CheckResult:
    """Check that the canary set is the one of the last verdict, which was on ``last_version``."""
    verdict = (
        f"the last verdict ({last_version}) used {last_digest}" if last_digest else "there is no verdict yet"
    )
    return CheckResult(
        last_digest in (None, digest),
        f"canary set {digest}; {verdict}",
        "The canary set is frozen: scores on another one cannot be compared with the baseline. Restore the "
        "previous file (`ICCM_CANARY_SET`). If it was replaced on purpose, measure production again: `iccm "
        "evaluate production`, and materialize the days again to check the pool against the new set.",
    )


def check_slice_sizes(slices: Mapping[str, int]) -> CheckResult:
    """Check that the gate can judge slices for forgetting."""
    small = sorted(name for name, items in slices.items() if items < MIN_SLICE_ITEMS)
    names = f" ({', '.join(small)}): the gate does not judge those for forgetting" if small else ""
    return CheckResult(
        len(slices) > len(small),
        f"{len(slices)} slices, {sum(slices.values())} items; {len(small)} below {MIN_SLICE_ITEMS} items"
        + names,
        f"Only slices of at least {MIN_SLICE_ITEMS} items are judged one by one; others count in the mean. "
        "Add items to a new version of the canary set, and measure production on it again.",
        severity="warning",
        metrics={"slices": float(len(slices)), "small_slices": float(len(small))},
    )


def check_missing_items(version: str, items: int, missing: Sequence[str]) -> CheckResult:
    """Check that every canary item has scores that the judge trusts, in the newest verdict's evidence."""
    return CheckResult(
        not missing,
        f"{version}: {len(missing)} of {items} items have no reliable score for both versions",
        "The verdict is inconclusive while an item is missing. Each item's `unreliable_reason` is in "
        "`gate_verdicts.evidence`. Fix what stopped the judge (`iccm doctor`, `iccm orchestra check`) and "
        f"run `iccm evaluate {version}`: existing scores are kept.",
        metrics={"items": float(items), "missing": float(len(missing))},
        sample_ids=sample_ids(list(missing)),
    )


def no_missing_items(conn: sa.Connection, settings: Settings) -> CheckResult:
    """Check the evidence of the newest verdict."""
    last = get_last_verdict(conn)
    if last is None:
        return CheckResult(True, "no version has been evaluated yet", "")
    return check_missing_items(last.version, last.items, last.missing)


def digest_is_unchanged(conn: sa.Connection, settings: Settings) -> CheckResult:
    """Compare the canary set with that of the last verdict."""
    last = get_last_verdict(conn)
    digest, version = (last.canary_set_digest, last.version) if last else (None, "")
    return check_canary_set(load_canary_set(settings.canary_set).digest, digest, version)


def slices_have_min_items(conn: sa.Connection, settings: Settings) -> CheckResult:
    """Count the items of each slice."""
    return check_slice_sizes(load_canary_set(settings.canary_set).slices)


def no_train_test_overlap(conn: sa.Connection, settings: Settings) -> CheckResult:
    """Look for canary items, exact or similar, among the newest rows of the pool."""
    rows, problems = curation_checks.load_contamination(conn, "phase4_training_data", settings)
    similar = curation_checks.find_similar_to_canary_set(conn, settings, Embedder.load(settings).digest)
    overlapping = sorted({*problems["overlapping_canary_set"], *similar})
    return curation_checks.check_contamination(rows, {**problems, "overlapping_canary_set": overlapping})
