"""Empty a platform for a demo, unless it holds real conversations."""

from __future__ import annotations

import json
import shutil
import time
from itertools import chain
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, text

from iccm_assets.atomic_directories import remove_tree
from iccm_assets.db.database import create_engine_for, dagster_url, database_url
from iccm_assets.db.replicas import HEARTBEAT_SECONDS, load_live_replicas
from iccm_assets.errors import OperationNotAllowedError
from iccm_assets.gateway.dead_letters import dead_letters_path
from iccm_assets.gateway.spool import SEGMENT_SUFFIX, read_segment
from iccm_assets.reporting.real_traffic import IS_REAL
from iccm_assets.settings import Settings

OTHER_HOME_HINT = "Give the demo its own home: ICCM_HOME=/some/other/folder iccm demo."


def reset_platform(settings: Settings) -> None:
    """Empty the platform's database, Dagster's database, and their files below the home directory.

    Raises ``OperationNotAllowedError``, before anything is changed, if the database or a gateway's spool
    holds conversations that were not simulated, and while a gateway serves from this database.
    """
    engine = create_engine_for(database_url(settings))
    _refuse_real_data(engine, settings)
    _reset_schemas(engine, "drop schema if exists iccm cascade")
    dagster = create_engine_for(dagster_url(settings))
    _reset_schemas(dagster, "drop schema if exists public cascade", "create schema public")
    for name in ("models", "datasets", "spool"):
        remove_tree(settings.home / name)
    shutil.rmtree(settings.home / "dagster" / "storage", ignore_errors=True)


def _reset_schemas(engine: Engine, *statements: str) -> None:
    with engine.begin() as conn:
        for statement in ("set local lock_timeout = '20s'", *statements):
            conn.execute(text(statement))
    engine.dispose()


def _refuse_real_data(engine: Engine, settings: Settings) -> None:
    deadline = time.monotonic() + HEARTBEAT_SECONDS + 1
    while (gateways := list_live_gateways(engine)) and time.monotonic() < deadline:
        time.sleep(0.5)  # a gateway killed just now counts as live until its heartbeat is old
    if gateways:
        raise OperationNotAllowedError(
            f"{len(gateways)} gateways serve from this database ({', '.join(gateways)})",
            hint=f"Stop them. {OTHER_HOME_HINT}",
        )
    if conversations := count_real_conversations(engine):
        raise OperationNotAllowedError(
            f"this database holds {conversations} conversations that were not simulated;"
            " the demo would delete them",
            hint=OTHER_HOME_HINT,
        )
    spool = settings.home / "spool"
    if responses := count_real_responses(spool):
        raise OperationNotAllowedError(
            f"{spool} holds {responses} responses of a gateway that are not stored yet",
            hint=f"`iccm serve` stores them. {OTHER_HOME_HINT}",
        )


def count_real_conversations(engine: Engine) -> int:
    """Count conversations that are neither simulated in process nor marked by simulated developers."""
    query = f"select count(*) from iccm.conversations where {IS_REAL}"
    with engine.connect() as conn:
        return conn.execute(text(query)).scalar_one() if _has_table(conn, "conversations") else 0


def count_real_responses(spool: Path) -> int:
    """Count records in the spool that are not of simulated developers, unreadable segments included."""
    records = chain.from_iterable(read_segment(segment) for segment in spool.glob(f"*/*{SEGMENT_SUFFIX}"))
    dead_letters = dead_letters_path(spool)
    lines = dead_letters.read_text(encoding="utf-8").splitlines() if dead_letters.exists() else []
    rejected = (json.loads(line) for line in lines if line.strip())
    unreadable = sum(1 for _ in spool.glob(f"*/*{SEGMENT_SUFFIX}.damaged"))
    return unreadable + sum(not _is_simulated(record) for record in chain(records, rejected))


def _is_simulated(record: dict[str, Any]) -> bool:
    """Feedback without a comment, and a failed request, hold no text of a real person."""
    if record["type"] == "feedback":
        return record["row"]["comment"] is None
    return "response" not in record or record["response"]["metadata"].get("simulated") is True


def list_live_gateways(engine: Engine) -> list[str]:
    """List addresses, or names, of the gateway processes with a fresh heartbeat in this database."""
    with engine.connect() as conn:
        replicas = load_live_replicas(conn) if _has_table(conn, "gateway_replicas") else []
    return [replica.address or replica.replica for replica in replicas]


def _has_table(conn: Connection, name: str) -> bool:
    return conn.execute(text("select to_regclass('iccm.' || :name)"), {"name": name}).scalar_one() is not None
