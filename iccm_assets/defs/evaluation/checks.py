"""Checks of the canary set: unchanged, slices large enough, disjoint from the training pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iccm_assets.defs.check_factory import platform_check

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from iccm_assets.check_result import CheckResult
    from iccm_assets.settings import Settings


@platform_check("canary_set", "Is it the set the last verdict was reached on?")
def digest_is_unchanged(conn: Connection, settings: Settings) -> CheckResult:
    from iccm_assets.curation.canary_set import load_canary_set
    from iccm_assets.evaluation import checks

    last = checks.get_last_verdict(conn)
    digest, version = (last.canary_set_digest, last.version) if last else (None, "")
    return checks.check_canary_set(load_canary_set(settings.canary_set).digest, digest, version)


@platform_check("canary_set", "Are its slices large enough for the gate to see forgetting?")
def slices_have_min_items(conn: Connection, settings: Settings) -> CheckResult:
    from iccm_assets.curation.canary_set import load_canary_set
    from iccm_assets.evaluation import checks

    return checks.check_slice_sizes(load_canary_set(settings.canary_set).slices)


@platform_check(
    "canary_set", "Is the training pool disjoint from it (exact and similar)? Checks the newest rows."
)
def no_train_test_overlap(conn: Connection, settings: Settings) -> CheckResult:
    from iccm_assets.curation import checks as curation_checks
    from iccm_assets.models.embedding import Embedder

    rows, problems = curation_checks.load_contamination(conn, "phase4_training_data", settings)
    similar = curation_checks.find_similar_to_canary_set(conn, settings, Embedder.load(settings).digest)
    overlapping = sorted({*problems["overlapping_canary_set"], *similar})
    return curation_checks.check_contamination(rows, {**problems, "overlapping_canary_set": overlapping})
