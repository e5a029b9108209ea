"""Checks of the models: are they what was published, did training change the weights, is lineage complete?"""

from iccm_assets.defs.check_factory import platform_check


@platform_check("base_model", "Does the production model match its manifest?")
def production_checksum_matches(conn, settings):
    from iccm_assets.findings import Finding
    from iccm_assets.learning import facts, health, versions

    production = versions.production(conn)
    if production is None:
        return Finding(False, "no version is in production", "Materialize `base_model`.")
    files = facts.look_at(production.path)
    return health.intact(production.version, files.damage, files.hashed)


@platform_check("fine_tuned_checkpoint", "Does the newest checkpoint match its manifest?")
def checkpoint_checksum_matches(conn, settings):
    from iccm_assets.learning import facts, health

    newest = facts.newest_trained(conn)
    if newest is None:
        return _nothing_trained()
    files = facts.look_at(newest.path)
    return health.intact(newest.version, files.damage, files.hashed)


@platform_check("fine_tuned_checkpoint", "Did training change the weights, and not too far?")
def weights_changed(conn, settings):
    from iccm_assets.learning import facts, health

    newest = facts.newest_trained(conn)
    return health.moved(newest.version, newest.training.get("movement")) if newest else _nothing_trained()


@platform_check(
    "fine_tuned_checkpoint", "Are its training conversations known, and is none of them erased since?"
)
def lineage_is_complete(conn, settings):
    from iccm_assets.learning import facts, health

    newest = facts.newest_trained(conn)
    if newest is None:
        return _nothing_trained()
    return health.taught(newest.version, newest.recorded, newest.training.get("counts", {}), newest.erased)


def _nothing_trained():
    from iccm_assets.findings import Finding

    return Finding(True, "nothing has been trained yet", "")
