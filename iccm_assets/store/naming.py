"""Model versions as a person names them: by name, as `production`, or by the start of a digest."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from iccm_assets.errors import VersionNotFoundError

PRODUCTION = "production"
MAX_LISTED_VERSIONS = 8

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


def resolve_version(conn: Connection, name: str) -> str:
    """Resolve a version's name; raises ``VersionNotFoundError``, which lists the versions there are."""
    if name == PRODUCTION:
        production = conn.execute(_SERVING).scalar_one_or_none()
        if production is None:
            raise VersionNotFoundError(
                "there is no version in production yet", hint="`iccm retrain` starts with the base model."
            )
        return str(production)
    # PostgreSQL text cannot hold NUL: the driver would raise instead of finding nothing.
    valid = name and "\x00" not in name
    matches = conn.execute(_MATCHES, {"given": name}).scalars().all() if valid else []
    if matches and (len(matches) == 1 or matches[0] == name):
        return str(matches[0])
    raise _not_found(name, matches, conn.execute(_VERSIONS).scalars().all())


def _not_found(name: str, matches: Sequence[str], versions: Sequence[str]) -> VersionNotFoundError:
    listed = ", ".join(versions[:MAX_LISTED_VERSIONS]) or "none yet"
    more = f" and {len(versions) - MAX_LISTED_VERSIONS} older" if len(versions) > MAX_LISTED_VERSIONS else ""
    ambiguous = f": more than one digest starts with it ({', '.join(matches)})" if matches else ""
    return VersionNotFoundError(f"{name!r}{ambiguous}", hint=f"There are: {listed}{more}.")
