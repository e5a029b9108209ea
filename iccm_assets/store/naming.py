"""Model versions as a person names them: by name, as `production`, or by the start of a digest."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from iccm_assets.errors import VersionNotFound

PRODUCTION = "production"
LISTED = 8

# Digests are hexadecimal; left() and length() compare literally, whereas `like` would interpret % and _.
_MATCHES = text(
    """
    select version from iccm.model_versions
    where version = :given or left(digest, length(cast(:given as text))) = :given
    order by version = :given desc limit 3
    """
)
_SERVING = text("select version from iccm.model_versions where status = 'production'")
_VERSIONS = text("select version from iccm.model_versions order by created_at desc, version desc")


def version_named(conn: Connection, given: str) -> str:
    """Resolve a version's name; raises ``VersionNotFoundError``, which lists the versions there are."""
    if given == PRODUCTION:
        production = conn.execute(_SERVING).scalar_one_or_none()
        if production is None:
            raise VersionNotFound(
                "there is no version in production yet", hint="`iccm retrain` starts with the base model."
            )
        return str(production)
    # PostgreSQL text cannot hold NUL: the driver would raise instead of finding nothing.
    valid = given and "\x00" not in given
    matches = conn.execute(_MATCHES, {"given": given}).scalars().all() if valid else []
    if matches and (len(matches) == 1 or matches[0] == given):
        return str(matches[0])
    raise _not_found(given, matches, conn.execute(_VERSIONS).scalars().all())


def _not_found(name: str, matches: Sequence[str], versions: Sequence[str]) -> VersionNotFound:
    listed = ", ".join(versions[:LISTED]) or "none yet"
    more = f" and {len(versions) - LISTED} older" if len(versions) > LISTED else ""
    ambiguous = f": more than one digest starts with it ({', '.join(matches)})" if matches else ""
    return VersionNotFound(f"{name!r}{ambiguous}", hint=f"There are: {listed}{more}.")
