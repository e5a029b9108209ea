"""Emptying a platform for a demo, unless it holds what people said."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iccm_assets.errors import NotAllowed
from iccm_assets.settings import Settings
from iccm_assets.store.replicas import HEARTBEAT_SECONDS, live_replicas

if TYPE_CHECKING:
    import sqlalchemy as sa

ELSEWHERE = "Give the demo a home of its own: ICCM_HOME=/some/other/folder iccm demo."


def start_fresh(settings: Settings) -> None:
    """Empty the platform's database, Dagster's, and the files below home that they speak of.

    Raises ``NotAllowed``, before anything is touched, when there are conversations that nobody simulated, in
    the database or still in a gateway's spool, and while a gateway serves from this database.
    """
    import sqlalchemy as sa

    from iccm_assets.learning.directories import remove_tree
    from iccm_assets.store.database import dagster_url, database_url, engine_for

    engine = engine_for(database_url(settings))
    _refuse_what_is_real(engine, settings)
    with engine.begin() as conn:
        conn.execute(sa.text("set local lock_timeout = '20s'"))
        conn.execute(sa.text("drop schema if exists iccm cascade"))
    dagster = engine_for(dagster_url(settings))
    with dagster.begin() as conn:
        conn.execute(sa.text("set local lock_timeout = '20s'"))
        conn.execute(sa.text("drop schema if exists public cascade"))
        conn.execute(sa.text("create schema public"))
    engine.dispose()
    dagster.dispose()
    for name in ("models", "datasets", "spool"):
        remove_tree(settings.home / name)
    shutil.rmtree(settings.home / "dagster" / "storage", ignore_errors=True)


def _refuse_what_is_real(engine: sa.Engine, settings: Settings) -> None:
    deadline = time.monotonic() + HEARTBEAT_SECONDS + 1
    while (serving := live_gateways(engine)) and time.monotonic() < deadline:
        time.sleep(0.5)  # one that was killed a moment ago is dead only when its heartbeat is old
    if serving:
        raise NotAllowed(
            f"{len(serving)} gateways serve from this database ({', '.join(serving)})",
            hint=f"Stop them. {ELSEWHERE}",
        )
    real = real_conversations(engine)
    if real:
        raise NotAllowed(
            f"this database holds {real} conversations that were not simulated, the demo would delete them",
            hint=ELSEWHERE,
        )
    waiting = real_answers(settings.home / "spool")
    if waiting:
        raise NotAllowed(
            f"{settings.home / 'spool'} holds {waiting} answers of a gateway that are not stored yet",
            hint=f"`iccm serve` stores them. {ELSEWHERE}",
        )


def real_conversations(engine: sa.Engine) -> int:
    """Conversations that nobody simulated: neither captured in process nor marked by simulated developers."""
    import sqlalchemy as sa

    with engine.connect() as conn:
        if conn.execute(sa.text("select to_regclass('iccm.conversations')")).scalar_one() is None:
            return 0
        counted = """
            select count(*) from iccm.conversations
            where origin <> 'simulated' and metadata -> 'simulated' is distinct from 'true'::jsonb
        """
        return int(conn.execute(sa.text(counted)).scalar_one())


def real_answers(spool: Path) -> int:
    """Records in the spool that are not of simulated developers; one that cannot be read counts, too."""
    from iccm_assets.gateway.spool import SUFFIX, read_segment

    if not spool.is_dir():
        return 0
    real = sum(1 for _ in spool.glob(f"*/*{SUFFIX}.damaged"))
    for segment in spool.glob(f"*/*{SUFFIX}"):
        real += sum(not _simulated(one) for one in read_segment(segment))
    refused = spool / "refused.jsonl"
    if refused.exists():
        lines = refused.read_text(encoding="utf-8").splitlines()
        real += sum(not _simulated(json.loads(line)) for line in lines if line.strip())
    return real


def _simulated(record: dict[str, Any]) -> bool:
    """An answer says so itself; a rating or a refused request holds nothing anybody wrote without it."""
    if record["type"] == "feedback":
        return record["row"]["comment"] is None
    return "said" not in record or record["said"]["metadata"].get("simulated") is True


def live_gateways(engine: sa.Engine) -> list[str]:
    """Addresses, or names, of the gateway processes with a fresh heartbeat in this database."""
    import sqlalchemy as sa

    with engine.connect() as conn:
        if conn.execute(sa.text("select to_regclass('iccm.gateway_replicas')")).scalar_one() is None:
            return []
        return [one.address or one.replica for one in live_replicas(conn)]
