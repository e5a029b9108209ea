"""What a person may call a model version: its name, `production`, or the start of its digest."""

from __future__ import annotations

from sqlalchemy import Connection, text

from iccm_assets.errors import VersionNotFound

PRODUCTION = "production"
LISTED = 8

# Digests are hexadecimal; left() and length() compare literally, where LIKE would read % and _.
_NAMED = text(
    """
    SELECT version FROM iccm.model_versions
    WHERE version = :given OR left(digest, length(CAST(:given AS text))) = :given
    ORDER BY version = :given DESC LIMIT 3
    """
)
_SERVING = text("SELECT version FROM iccm.model_versions WHERE status = 'production'")
_KNOWN = text("SELECT version FROM iccm.model_versions ORDER BY created_at DESC, version DESC")


def version_named(conn: Connection, given: str) -> str:
    """The version a person means; raises ``VersionNotFound``, which says which versions there are."""
    if given == PRODUCTION:
        serving = conn.execute(_SERVING).scalar_one_or_none()
        if serving is None:
            raise VersionNotFound(
                "there is no version in production yet", hint="`iccm retrain` starts with the base model."
            )
        return str(serving)
    # PostgreSQL stores no NUL, so none can be asked for either.
    found = conn.execute(_NAMED, {"given": given}).scalars().all() if given and "\x00" not in given else []
    if found and (len(found) == 1 or found[0] == given):
        return str(found[0])
    known = conn.execute(_KNOWN).scalars().all()
    listed = ", ".join(known[:LISTED]) or "none yet"
    more = f" and {len(known) - LISTED} older" if len(known) > LISTED else ""
    several = f": more than one digest starts with it ({', '.join(found)})" if found else ""
    raise VersionNotFound(f"{given!r}{several}", hint=f"There are: {listed}{more}.")
