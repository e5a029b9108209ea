"""Checks of `production_quality`."""

from iccm_assets.defs.check_factory import platform_check


@platform_check("production_quality", "Was production measured recently, and is it as good as when deployed?")
def production_quality_is_stable(conn, settings):
    from iccm_assets.findings import Finding
    from iccm_assets.judging import facts, health

    latest = facts.quality(conn)
    if latest is None:
        return Finding(True, "nothing is in production yet", "")
    dropped = [name for name, drop in latest.falls.items() if drop > health.FALL]
    return health.quality_is_known(latest.version, latest.hours, latest.holdout, dropped)
