"""Physical erasure: erase from the files what was deleted from the rows.

PostgreSQL keeps the bytes of a deleted row in its page until the table is rewritten, in the write-ahead log
until its file is removed, and values of columns in the planner's statistics. On the embedded server all three
are erased. Every step may be repeated: the next erasure, of any subject, finishes one that was killed (V2).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import sqlalchemy as sa

from iccm_assets.curation.embeddings import TextEmbedder
from iccm_assets.curation.training_pool import rebuild_pool
from iccm_assets.db import tables as t
from iccm_assets.errors import DatabaseError, IccmError
from iccm_assets.governance.captured_session_erasure import erase_captured_sessions
from iccm_assets.governance.dataset_erasure import delete_unregistered_models, rewrite_datasets
from iccm_assets.governance.erasure import DataSubject, delete_embeddings
from iccm_assets.governance.erasure_ledger import record_erasures
from iccm_assets.governance.spool_erasure import erase_from_spool
from iccm_assets.models.embedding import Embedder
from iccm_assets.settings import Settings
from iccm_assets.storage_cache import open_storage

TABLES = (
    "conversations",
    "requirements",
    "test_suites",
    "reconstructions",
    "feedback",
    "requests",
    "filtered_conversations",
    "phase4_training_data",
    "phase4_rejections",
    "embeddings",
    "canary_results",
)
# A rewrite blocks readers and writers, and while it waits for its lock it blocks those behind it, too.
LOCK_TIMEOUT = "20s"
SNAPSHOT_TIMEOUT_SECONDS = 60.0
_MAX_WAL_FILES = 200
Progress = Callable[[str], None]


@dataclass
class PhysicalErasureReport:
    """What was erased, and ``out_of_reach``: what the platform cannot erase itself. ``seconds`` by step."""

    snapshots: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    rebuilt_days: int = 0
    rewritten: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    out_of_reach: list[str] = field(default_factory=list)


def erase_from_files(
    engine: sa.Engine,
    settings: Settings,
    hashes: Sequence[str] = (),
    *,
    subject: DataSubject | None = None,
    rewrite: bool | None = None,
    embedder: TextEmbedder | None = None,
    progress: Progress = lambda step: None,
) -> PhysicalErasureReport:
    """Erase from the files everything that was ever erased; mark every unfinished erasure as finished.

    ``hashes``: of the texts erased just now, whose embeddings are deleted once more after the rebuild, in
    case a running filter had embedded them again. ``subject``: whose records are deleted from this machine's
    spool even where their session was never stored. ``rewrite``: whether tables are rewritten; by default on
    the embedded server only. Raises ``DatabaseError`` when a table cannot be locked: no erased row returns
    then, and repeating the command continues.
    """
    embedded = settings.database_url is None
    rewrite = embedded if rewrite is None else rewrite
    report = PhysicalErasureReport(rewritten=rewrite)
    with _timed(report, "files", progress):
        report.out_of_reach += record_erasures(engine, settings.home)
        _rewrite_files(engine, settings, report)
        report.out_of_reach += erase_from_spool(engine, settings.home / "spool", subject)
        report.out_of_reach += erase_captured_sessions(engine, settings.home, subject)
    with _timed(report, "training pool", progress):
        _rebuild_pool(engine, settings, embedder, report)
        with engine.begin() as conn:
            delete_embeddings(conn, hashes)
            conn.execute(_DELETE_ORPHANED_SUITES)
    with _timed(report, "tables", progress), _autocommit(engine) as conn:
        _wait_for_readers(conn)
        _vacuum(conn, rewrite, statistics=embedded)
    if embedded:
        with _timed(report, "write-ahead log", progress), _autocommit(engine) as conn:
            _renew_wal(conn)
    else:
        report.out_of_reach.append("backups and archived write-ahead log of your PostgreSQL server")
        if not rewrite:
            report.out_of_reach.append(
                "free space in the server's table files until reuse (--rewrite-tables rewrites them)"
            )
    report.out_of_reach.append(
        "backups and file-system snapshots of $ICCM_HOME, and freed blocks of its disk"
    )
    unfinished = t.erasures.update().where(t.erasures.c.physically_erased_at.is_(None))
    finished = {"physically_erased_at": sa.func.iccm.now(), "physical_erasure": asdict(report)}
    with engine.begin() as conn:
        conn.execute(unfinished.values(finished))
    return report


@contextmanager
def _timed(report: PhysicalErasureReport, step: str, progress: Progress) -> Iterator[None]:
    progress(step)
    started = time.monotonic()
    yield
    report.seconds[step] = round(time.monotonic() - started, 3)


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


# A recording that was running during the erasure may have stored its suite afterwards, and the session may
# have had other suites before.
_DELETE_ORPHANED_SUITES = sa.text(
    """
    delete from iccm.test_suites s where not exists (
        select from iccm.requirements r where r.source_sha256 = s.source_sha256
            and (s.origin = 'recorded' or r.test_suite = s.suite))
    """
)


def _rewrite_files(engine: sa.Engine, settings: Settings, report: PhysicalErasureReport) -> None:
    storage = open_storage(settings)
    if storage is not None:
        report.out_of_reach.append(
            f"former versions of objects, if {settings.storage} keeps any, and training sets in other homes"
            " until their next training or maintenance"
        )
    with engine.connect() as conn:
        erased = conn.execute(sa.text("select id from iccm.conversations where erased_at is not null"))
        report.snapshots = rewrite_datasets(settings.home, set(erased.scalars()), storage)
        registered = conn.execute(sa.text("select digest from iccm.model_versions"))
        report.models = delete_unregistered_models(settings.home, set(registered.scalars()), storage)


def _rebuild_pool(
    engine: sa.Engine, settings: Settings, embedder: TextEmbedder | None, report: PhysicalErasureReport
) -> None:
    """Rebuild the pool, so that examples which the erased ones had displaced return."""
    with engine.connect() as conn:
        if not conn.execute(sa.text("select exists (select from iccm.pool_days)")).scalar_one():
            return
    try:
        embedder = embedder or Embedder.load(settings)
        report.rebuilt_days = rebuild_pool(engine, [], settings, embedder).rebuilt_days
    except IccmError as error:  # the next daily run rebuilds the pool
        report.out_of_reach.append(f"the next daily run has to rebuild the training pool ({error.message})")


_BLOCKERS = sa.text(
    """
    select pid, xact_start from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid()
        and greatest(age(backend_xmin), age(backend_xid)) > age(cast(:horizon as xid))
    order by xact_start
    """
)


def _wait_for_readers(conn: sa.Connection) -> None:
    """Wait for older transactions: even a rewrite keeps a deleted row that one of them may still read."""
    horizon = conn.execute(
        sa.text("select (pg_snapshot_xmax(pg_current_snapshot())::text::bigint % 4294967296)::text")
    ).scalar_one()
    deadline = time.monotonic() + SNAPSHOT_TIMEOUT_SECONDS
    while blockers := conn.execute(_BLOCKERS, {"horizon": horizon}).all():
        if time.monotonic() > deadline:
            first = blockers[0]
            raise DatabaseError(
                f"a transaction open since {first.xact_start:%Y-%m-%d %H:%M:%S} (server process {first.pid}) "
                "may still read what was erased; no row holds it, files still do",
                hint="End it and run the same command again.",
            )
        time.sleep(0.1)


_DELETE_STATISTICS = """
    delete from pg_catalog.pg_statistic where starelid in (
        select oid from pg_class where relnamespace = 'iccm'::regnamespace and relname = any(:tables))
"""


def _vacuum(conn: sa.Connection, rewrite: bool, *, statistics: bool) -> None:
    mode = "vacuum (full)" if rewrite else "vacuum"
    statements = [f"{mode} iccm.{table}" for table in TABLES]
    if statistics:
        # Once more afterwards: autovacuum may have analyzed the old contents in between.
        rewrite_statistics = "vacuum (full) pg_catalog.pg_statistic"
        statements = [_DELETE_STATISTICS, *statements, _DELETE_STATISTICS, rewrite_statistics]
    for statement in (*statements, *(f"analyze iccm.{table}" for table in TABLES)):
        conn.execute(sa.text(statement), {"tables": list(TABLES)} if ":tables" in statement else {})


def _renew_wal(conn: sa.Connection) -> None:
    """Switch files until all present files of the log are removed, also those prepared for later use."""
    if conn.execute(sa.text("show wal_recycle")).scalar_one() != "off":
        conn.execute(sa.text("alter system set wal_recycle = off"))
        conn.execute(sa.text("select pg_reload_conf()"))
    old = _wal_files(conn)
    for _ in range(_MAX_WAL_FILES):
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
