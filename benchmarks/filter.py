"""The filter of a day against a naive query, and among five times as many conversations.

Two databases of a temporary embedded server hold the same day of 2,740 conversations, among so many others
and among five times as many, each with two scored texts, and with ratings. The day is read as ``filter_day``
reads it: the same statement, cursor and settings.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import date
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.harness import (
    WALL,
    Comparison,
    Measured,
    Options,
    Target,
    expect,
    measure,
    read_cpu_seconds,
)
from iccm_assets.curation import filtering
from iccm_assets.db.database import create_engine_for, upgrade
from iccm_assets.db.embedded.embedded_server import EmbeddedServer

DAY = date(2026, 6, 1)
DAY_ROWS = 2_740
FACTOR = 5
MAX_GROWTH = 1.3
MIN_POOL = 280_000  # PostgreSQL hashes fewer ids, and the naive query is no worse than another
MAX_TIMES = 120  # the naive query is stopped after so many times the filter's duration

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


# The ids of a training pool of other days.
FILL_POOL = """
create table pool_ids as select g as conversation_id from generate_series(10000001, 10000000 + {n}) as g;
analyze pool_ids
"""
NAIVE = """
select c.id, c.content, a.text from iccm.conversations c
join iccm.requirements a on a.session_id = c.session_id and a.kind = 'accepted'
where c."timestamp" >= :start and c."timestamp" < :end
  and c.id not in (select conversation_id from pool_ids) order by c.id
"""


def compare(options: Options) -> Iterator[Comparison]:
    """Yield both comparisons; the table has ``options.conversations`` rows, 60,000 or 200,000 by default."""
    conversations = options.conversations or (60_000 if options.quick else 200_000)
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="iccm-filter-")))
        server = EmbeddedServer(home, durable=False)
        stack.callback(server.stop)
        small = create_engine_for(server.ensure_running())
        with small.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.execute(sa.text("create database large"))
        large = create_engine_for(small.url.set(database="large").render_as_string(hide_password=False))
        for engine, count in ((small, conversations), (large, conversations * FACTOR)):
            upgrade(engine)
            fill(engine, FILL.format(n=count, day_rows=DAY_ROWS, day=DAY))
            stack.callback(engine.dispose)
        fill(large, FILL_POOL.format(n=max(MIN_POOL, conversations * FACTOR // 3)))
        pages = [count_pages(explain(engine)) for engine in (small, large)]
        growth = f"{pages[0]:,} and {pages[1]:,} pages"

        def check_growth(results: dict[str, list[int]]) -> str:
            expect(len({len(ids) for ids in results.values()}) == 1, "not the same day")
            expect(pages[1] <= MAX_GROWTH * pages[0], f"the plan reads {growth}")
            return f"the plan reads {growth}"

        few = f"among {conversations:,}"
        yield Comparison(
            f"a day among {conversations * FACTOR:,} conversations",
            {"iccm": read_day(large), few: read_day(small)},
            check_growth,
            [Target(few, 1 / MAX_GROWTH)],
        )
        name = f"not in ({max(MIN_POOL, conversations * FACTOR // 3):,} ids)"
        yield Comparison(
            f"a day among {conversations * FACTOR:,} conversations, without those of a pool",
            {"iccm": read_day(large), name: read_naively(large)},
            lambda results: expect(results["iccm"] == read_hashed(large), "other conversations"),
            [Target(name, 100, WALL)],
            1,
        )


def fill(engine: sa.Engine, statements: str) -> None:
    """Run the statements."""
    with engine.begin() as conn:
        for statement in statements.split(";"):
            conn.execute(sa.text(re.sub(r"::(?=\w)", r"\\:\\:", statement)))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(sa.text("vacuum analyze"))


def explain(engine: sa.Engine) -> str:
    """Return the plan of the cursor that the filter uses, with the pages it reads."""
    with engine.begin() as conn:
        conn.execute(filtering._PLAN_FOR_ALL_ROWS)
        options = "analyze, buffers, costs off, timing off"
        statement = f"explain ({options}) declare c cursor for {filtering._CONVERSATIONS.text}"
        return "\n".join(conn.execute(sa.text(statement), filtering._range(DAY, DAY)).scalars())


def count_pages(plan: str) -> int:
    """Return the pages that the outermost node of a plan read, from memory or not."""
    expect("conversations_timestamp_idx" in plan, "the filter does not use the index of timestamps")
    line = next(line for line in plan.splitlines() if "Buffers:" in line)
    return sum(int(count) for count in re.findall(r"(?:hit|read)=(\d+)", line))


def read_day(engine: sa.Engine) -> Callable[[], Measured]:
    """Return a contender that reads the day as the filter does and returns its ids."""

    def read(conn: sa.Connection) -> list[int]:
        return [row.conversation_id for row in filtering._load_conversations(conn, DAY)]

    return lambda: measure_with_server(engine, read)


def read_naively(engine: sa.Engine) -> Callable[[], Measured]:
    """Return a contender that runs the naive query, for at most so many times the filter's duration."""

    def read(conn: sa.Connection) -> list[int] | None:
        try:
            return list(conn.execute(sa.text(NAIVE), filtering._range(DAY, DAY)).scalars())
        except sa.exc.OperationalError:  # the timeout
            return None

    max_times = chain([1], repeat(MAX_TIMES))  # a query that is stopped needs no long warm-up

    def call() -> Measured:
        milliseconds = int(1000 * next(max_times) * read_day(engine)().costs[WALL])
        measured = measure_with_server(engine, read, f"set local statement_timeout = {milliseconds}")
        return Measured(measured.result, measured.costs, was_stopped=measured.result is None)

    return call


def read_hashed(engine: sa.Engine) -> list[int]:
    """Return the result of the naive query, with memory enough for a hash of the ids."""
    with engine.begin() as conn:
        conn.execute(sa.text("set local work_mem = '256MB'"))
        return list(conn.execute(sa.text(NAIVE), filtering._range(DAY, DAY)).scalars())


def measure_with_server(
    engine: sa.Engine, read: Callable[[sa.Connection], Any], setting: str = ""
) -> Measured:
    """Measure a transaction, the CPU seconds of its server process included."""
    with engine.connect() as conn, conn.begin() as transaction:
        clock = ~int(conn.execute(sa.text("select pg_backend_pid()")).scalar_one()) << 3 | 2
        if setting:
            conn.execute(sa.text(setting))
        measured = measure(lambda: read(conn), lambda: read_cpu_seconds() + time.clock_gettime(clock))
        transaction.rollback()
        return measured
