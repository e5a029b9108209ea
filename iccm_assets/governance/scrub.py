"""The physical half of an erasure: what is gone from every row goes from the files too (V2).

PostgreSQL keeps the bytes of a deleted row in its page until the table is rewritten, in the write-ahead log
until its file is removed, and values of columns in the planner's statistics. On the embedded server, which
is ours alone, all three are dealt with. Every step may be repeated: a scrub that was killed is finished by
the next erasure, of whatever subject.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from iccm_assets.curation.embeddings import TextEmbedder
from iccm_assets.curation.pool import fold_days
from iccm_assets.errors import DatabaseError, IccmError
from iccm_assets.governance.erasure import drop_vectors
from iccm_assets.governance.snapshots import drop_unregistered, strip_snapshots
from iccm_assets.models.embedding import Embedder
from iccm_assets.settings import Settings

TABLES = (
    "conversations",
    "requirements",
    "reconstructions",
    "feedback",
    "requests",
    "filtered_conversations",
    "phase4_training_data",
    "phase4_rejections",
    "embeddings",
    "canary_results",
)
# A rewrite shuts readers and writers out; waiting for it in the queue would shut out those behind it too.
LOCK_TIMEOUT = "20s"
SNAPSHOT_SECONDS = 60.0
_MOST_WAL_FILES = 200
Progress = Callable[[str], None]


@dataclass
class Scrub:
    """What was done, and ``remains``: what is beyond the platform's reach. ``seconds`` by step."""

    snapshots: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    refolded_days: int = 0
    rewritten: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    remains: list[str] = field(default_factory=list)


def scrub(
    engine: sa.Engine,
    settings: Settings,
    hashes: Sequence[str] = (),
    *,
    rewrite: bool | None = None,
    embedder: TextEmbedder | None = None,
    progress: Progress = lambda step: None,
) -> Scrub:
    """Take everything that was ever erased out of the files; marks every erasure scrubbed that was not.

    ``hashes``: of the texts erased just now, whose vectors are taken out once more after the refold, in
    case a filter under way had embedded them again. ``rewrite``: whether tables are rewritten; by default
    on the embedded server only. Raises ``DatabaseError`` when a table cannot be had: nothing comes back
    then, and running it again goes on.
    """
    embedded = settings.database_url is None
    rewrite = embedded if rewrite is None else rewrite
    done = Scrub(rewritten=rewrite)
    with _timed(done, "files", progress):
        _files(engine, settings, done)
    with _timed(done, "training pool", progress):
        _refold(engine, settings, embedder, done)
        with engine.begin() as conn:
            drop_vectors(conn, hashes)
    with _timed(done, "tables", progress), _autocommit(engine) as conn:
        _wait_for_readers(conn)
        _vacuum(conn, rewrite, statistics=embedded)
    if embedded:
        with _timed(done, "write-ahead log", progress), _autocommit(engine) as conn:
            _renew_wal(conn)
    else:
        done.remains.append("backups and archived write-ahead log of your PostgreSQL server")
        if not rewrite:
            done.remains.append(
                "free space in the server's table files, until it is used again (--rewrite-tables rewrites them)"
            )
    done.remains.append("backups and file-system snapshots of $ICCM_HOME, and freed blocks of its disk")
    with engine.begin() as conn:
        conn.execute(
            sa.text(
                "update iccm.erasures set physically_erased_at = iccm.now(), physical_erasure = :report"
                " where physically_erased_at is null"
            ).bindparams(sa.bindparam("report", type_=JSONB)),
            {"report": asdict(done)},
        )
    return done


@contextmanager
def _timed(done: Scrub, step: str, progress: Progress) -> Iterator[None]:
    progress(step)
    started = time.monotonic()
    yield
    done.seconds[step] = round(time.monotonic() - started, 3)


@contextmanager
def _autocommit(engine: sa.Engine) -> Iterator[sa.Connection]:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(sa.text(f"set lock_timeout = '{LOCK_TIMEOUT}'"))
        try:
            yield conn
        except sa.exc.DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != "55P03":
                raise
            raise DatabaseError(
                f"a table was in use for {LOCK_TIMEOUT}; no row holds the erased text, files still may",
                hint="Run the same command again.",
            ) from None
        finally:
            conn.execute(sa.text("reset lock_timeout"))


def _files(engine: sa.Engine, settings: Settings, done: Scrub) -> None:
    with engine.connect() as conn:
        erased = conn.execute(sa.text("select id from iccm.conversations where erased_at is not null"))
        done.snapshots = strip_snapshots(settings.home, set(erased.scalars()))
        registered = conn.execute(sa.text("select digest from iccm.model_versions"))
        done.models = drop_unregistered(settings.home, set(registered.scalars()))


def _refold(engine: sa.Engine, settings: Settings, embedder: TextEmbedder | None, done: Scrub) -> None:
    """What the erased examples had displaced comes back into the pool (P4)."""
    with engine.connect() as conn:
        if not conn.execute(sa.text("select exists (select from iccm.pool_days)")).scalar_one():
            return
    try:
        embedder = embedder or Embedder.load(settings)
        done.refolded_days = fold_days(engine, [], settings, embedder).refolded_days
    except IccmError as error:  # the next daily run folds again by itself
        done.remains.append(f"the training pool is to be folded anew by the next daily run ({error.message})")


_BLOCKERS = sa.text(
    """
    select pid, xact_start from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid()
        and greatest(age(backend_xmin), age(backend_xid)) > age(cast(:horizon as xid))
    order by xact_start
    """
)


def _wait_for_readers(conn: sa.Connection) -> None:
    """Even a rewrite keeps a deleted row that an open transaction may still read."""
    horizon = conn.execute(
        sa.text("select (pg_snapshot_xmax(pg_current_snapshot())::text::bigint % 4294967296)::text")
    ).scalar_one()
    deadline = time.monotonic() + SNAPSHOT_SECONDS
    while blockers := conn.execute(_BLOCKERS, {"horizon": horizon}).all():
        if time.monotonic() > deadline:
            first = blockers[0]
            raise DatabaseError(
                f"a transaction open since {first.xact_start:%Y-%m-%d %H:%M:%S} (server process {first.pid}) "
                "may still read what was erased; no row holds it, files still do",
                hint="End it and run the same command again.",
            )
        time.sleep(0.1)


def _vacuum(conn: sa.Connection, rewrite: bool, *, statistics: bool) -> None:
    mode = "vacuum (full)" if rewrite else "vacuum"
    if statistics:
        _forget_statistics(conn)
    for table in TABLES:
        conn.execute(sa.text(f"{mode} iccm.{table}"))
    if statistics:
        _forget_statistics(conn)  # once more: autovacuum may have analysed what was there before
        conn.execute(sa.text("vacuum (full) pg_catalog.pg_statistic"))
    for table in TABLES:
        conn.execute(sa.text(f"analyze iccm.{table}"))


def _forget_statistics(conn: sa.Connection) -> None:
    conn.execute(
        sa.text(
            """
            delete from pg_catalog.pg_statistic where starelid in (
                select oid from pg_class where relnamespace = 'iccm'::regnamespace and relname = any(:tables))
            """
        ),
        {"tables": list(TABLES)},
    )


def _renew_wal(conn: sa.Connection) -> None:
    """Until none of today's files of the log is left, those prepared for later use included."""
    if conn.execute(sa.text("show wal_recycle")).scalar_one() != "off":
        conn.execute(sa.text("alter system set wal_recycle = off"))
        conn.execute(sa.text("select pg_reload_conf()"))
    old = _wal_files(conn)
    for _ in range(_MOST_WAL_FILES):
        conn.execute(sa.text("checkpoint"))
        conn.execute(sa.text("select pg_switch_wal()"))
        conn.execute(sa.text("checkpoint"))
        if not old & _wal_files(conn):
            return
    raise DatabaseError(
        f"{len(old & _wal_files(conn))} old files of the write-ahead log stay, held by a replication slot",
        hint="Remove the slot and run the same command again.",
    )


def _wal_files(conn: sa.Connection) -> set[str]:
    return set(
        conn.execute(sa.text("select name from pg_ls_waldir() where name ~ '^[0-9A-F]{24}$'")).scalars()
    )
