"""Checks of the models: are they what was published, did training change the weights, is lineage complete?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iccm_assets.defs.check_factory import platform_check

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from iccm_assets.check_result import CheckResult
    from iccm_assets.settings import Settings


@platform_check("base_model", "Does the production model match its manifest?")
def production_checksum_matches(conn: Connection, settings: Settings) -> CheckResult:
    from iccm_assets.check_result import CheckResult
    from iccm_assets.registry import versions
    from iccm_assets.training import checks

    production = versions.get_production_version(conn)
    if production is None:
        return CheckResult(False, "no version is in production", "Materialize `base_model`.")
    files = checks.check_files(production.path)
    return checks.check_integrity(production.version, files.damage, files.hashed)


@platform_check("fine_tuned_checkpoint", "Does the newest checkpoint match its manifest?")
def checkpoint_checksum_matches(conn: Connection, settings: Settings) -> CheckResult:
    from iccm_assets.training import checks

    newest = checks.get_latest_checkpoint(conn)
    if newest is None:
        return _nothing_trained()
    files = checks.check_files(newest.path)
    return checks.check_integrity(newest.version, files.damage, files.hashed)


@platform_check("fine_tuned_checkpoint", "Did training change the weights, and not too far?")
def weights_changed(conn: Connection, settings: Settings) -> CheckResult:
    from iccm_assets.training import checks

    newest = checks.get_latest_checkpoint(conn)
    return (
        checks.check_weight_change(newest.version, newest.training.get("weight_change"))
        if newest
        else _nothing_trained()
    )


@platform_check(
    "fine_tuned_checkpoint", "Are its training conversations known, and is none of them erased since?"
)
def lineage_is_complete(conn: Connection, settings: Settings) -> CheckResult:
    from iccm_assets.training import checks

    newest = checks.get_latest_checkpoint(conn)
    if newest is None:
        return _nothing_trained()
    return checks.check_lineage(
        newest.version, newest.example_counts, newest.training.get("counts", {}), newest.erased_conversations
    )


def _nothing_trained() -> CheckResult:
    from iccm_assets.check_result import CheckResult

    return CheckResult(True, "nothing has been trained yet", "")
