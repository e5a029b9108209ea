"""Which packages may use a schema: one release goes on working after the next one's migrations.

So processes are upgraded one after another: the schema first, then each of them. The schema carries the
oldest revision that it still serves, as the comment of its table of revisions; a package whose own newest
revision is older than that is refused.
"""

from __future__ import annotations

import re

from sqlalchemy import Connection, text

# The newest revision of the oldest package that can use the schema as this package migrates it. A migration
# that only adds (tables, columns that are null or have a default) leaves it; one that renames, removes or
# restricts raises it to its own number. A test compares the schemas (S1).
OLDEST_REVISION = "0020"

_COMMENT = "Revision of the schema. It serves packages whose newest revision is at least {revision}."
_PATTERN = re.compile(r"at least (\d{4})\.$")
_READ = text("select obj_description(to_regclass('iccm.alembic_version'))")


def store_oldest_revision(conn: Connection) -> None:
    """Write into the schema which packages may use it."""
    comment = _COMMENT.format(revision=OLDEST_REVISION)
    conn.execute(text(f"comment on table iccm.alembic_version is '{comment}'"))


def load_oldest_revision(conn: Connection) -> str | None:
    """Return the oldest revision that the schema serves; None if it does not say, which is its own then."""
    match = _PATTERN.search(conn.execute(_READ).scalar_one() or "")
    return match[1] if match else None
