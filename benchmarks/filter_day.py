"""Measure whether filtering a day follows the rows of the day, not the size of the tables.

    python -m benchmarks.filter_day [--conversations 200000] [--factor 5] [--rounds 5]

Two databases of one temporary embedded server hold the same day of 2 740 conversations, among so many
others and among ``factor`` times as many, each with two scored texts, and with ratings. The day is read as
``filter_day`` reads it (the same statement, cursor and settings), in turn from either. Prints the pages that
each plan reads, the CPU seconds of client and server (median of the rounds), and their ratios. Exits with 1
if the timestamp index is not used, or if a ratio is above 1.3.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import sqlalchemy as sa

DAY = date(2026, 6, 1)
DAY_ROWS = 2_740
MAX_RATIO = 1.3

# The day's rows are the same in both databases; the others are spread over the year around it.
FILL = """
insert into iccm.conversations (session_id, user_id, "timestamp", origin, content)
select 's' || n, 'u' || n % 5000,
    case when n <= {day_rows} then timestamptz '{day} 00:00+00' + n * interval '30 seconds'
        else timestamptz '2026-01-01 00:00+00' + ((n * 7919) % 151) * interval '1 day'
            + n % 86000 * interval '1 second' end,
    'simulated', jsonb_build_array(
        jsonb_build_object('role', 'user', 'content', repeat('def f(): return 1' || chr(10), 40)),
        jsonb_build_object('role', 'assistant', 'content', repeat('f shall return 1. ', 20)))
from (select (i * 48271::bigint) % {n} + 1 as n from generate_series(1, {n}) i) as shuffled;
insert into iccm.requirements (session_id, conversation_id, kind, text, test_pass_rate,
    implementation_variance, scored_at)
select c.session_id, c.id, kind, repeat('f shall return 1. ', 20), 0.9, 0.01, iccm.now()
from iccm.conversations c, unnest(array['model', 'accepted']) as kind;
insert into iccm.reconstructions (requirement_id, reconstructor, test_pass_rate, status)
select id, name, 0.9, 'scored' from iccm.requirements, unnest(array['builtin/plain', 'openai/a']) as name
where kind = 'accepted';
insert into iccm.feedback (session_id, rating)
select session_id, case when id % 5 = 0 then -1 else 1 end from iccm.conversations where id % 3 = 0
"""


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Fill two databases, measure in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--conversations", type=int, default=200_000)
    parser.add_argument("--factor", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    from iccm_assets.db.database import create_engine_for, upgrade
    from iccm_assets.db.embedded.embedded_server import EmbeddedServer

    with tempfile.TemporaryDirectory(prefix="iccm-filter-") as home:
        server = EmbeddedServer(Path(home), durable=False)
        try:
            small = create_engine_for(server.ensure_running())
            upgrade(small)
            fill(small, options.conversations)
            with small.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
                conn.execute(sa.text("create database large"))
            large = create_engine_for(small.url.set(database="large").render_as_string(hide_password=False))
            upgrade(large)
            fill(large, options.conversations * options.factor)
            sys.exit(0 if compare(small, large, options.rounds) else 1)
        finally:
            server.stop()


def fill(engine: sa.Engine, conversations: int) -> None:
    """Insert the conversations with their texts and ratings."""
    started = time.perf_counter()
    statements = FILL.format(n=conversations, day_rows=DAY_ROWS, day=DAY)
    with engine.begin() as conn:
        for statement in statements.split(";"):
            conn.execute(sa.text(re.sub(r"::(?=\w)", r"\\:\\:", statement)))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(sa.text("vacuum analyze"))
    say(f"{conversations} conversations in {time.perf_counter() - started:.0f} s")


def compare(small: sa.Engine, large: sa.Engine, rounds: int) -> bool:
    """Measure both in turn; return whether the cost follows the day."""
    plans = [explain(engine) for engine in (small, large)]
    for name, plan in zip(("small", "large"), plans, strict=True):
        say(f"--- {name}\n{plan}")
    pages = [count_pages(plan) for plan in plans]
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for engine, measured in zip((small, large), seconds, strict=True):
            measured.append(read_day(engine))
    medians = [statistics.median(measured[1:]) for measured in seconds]
    page_ratio, cpu_ratio = pages[1] / pages[0], medians[1] / medians[0]
    say(f"pages: {pages[0]} and {pages[1]}, ratio {page_ratio:.2f}")
    say(f"CPU seconds: {medians[0]:.3f} and {medians[1]:.3f}, ratio {cpu_ratio:.2f}")
    by_index = all("conversations_timestamp_idx" in plan for plan in plans)
    return by_index and page_ratio <= MAX_RATIO and cpu_ratio <= MAX_RATIO


def explain(engine: sa.Engine) -> str:
    """Return the plan of the cursor that the filter uses, with the pages it reads."""
    from iccm_assets.curation import filtering

    with engine.begin() as conn:
        conn.execute(filtering._PLAN_FOR_ALL_ROWS)
        options = "analyze, buffers, costs off, timing off"
        statement = f"explain ({options}) declare c cursor for {filtering._CONVERSATIONS.text}"
        return "\n".join(conn.execute(sa.text(statement), filtering._range(DAY, DAY)).scalars())


def count_pages(plan: str) -> int:
    """Return the pages that the outermost node of a plan read, from memory or not."""
    line = next(line for line in plan.splitlines() if "Buffers:" in line)
    return sum(int(count) for count in re.findall(r"(?:hit|read)=(\d+)", line))


def read_day(engine: sa.Engine) -> float:
    """Read the day like the filter; return the CPU seconds of this process and of the server's."""
    from iccm_assets.curation import filtering

    with engine.begin() as conn:
        backend = conn.execute(sa.text("select pg_backend_pid()")).scalar_one()
        started = time.process_time() + cpu_seconds(backend)
        rows = sum(1 for _ in filtering._load_conversations(conn, DAY))
        used = time.process_time() + cpu_seconds(backend) - started
    if rows < DAY_ROWS:
        raise SystemExit(f"the day has {rows} rows, {DAY_ROWS} expected")
    return used


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
