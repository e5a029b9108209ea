"""Measure the sensors' ticks with a million conversations in the table.

    python -m benchmarks.ticks [--conversations 1000000] [--rounds 5]

A temporary embedded server gets this many conversations of a year, a tenth of them in the training pool,
generated inside PostgreSQL; then each sensor is evaluated on an ephemeral Dagster instance. Prints the
slowest tick of each, and the plan of the one query that looks at examples.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import dagster as dg
import sqlalchemy as sa

FILL = """
insert into iccm.model_versions (version, status, digest, path) values ('v1', 'production', 'd', '/m');
insert into iccm.conversations (session_id, user_id, "timestamp", origin)
select 's' || n, 'u' || n % 5000, iccm.now() - (n % 365) * interval '1 day' - interval '2 hours', 'import'
from generate_series(1, {n}) n;
insert into iccm.filtered_conversations (conversation_id, day, session_id, user_id, source_code, requirements,
    test_pass_rate, implementation_variance, quality_score, content_sha256, evidence, test_suite_origin)
select id, ("timestamp" at time zone 'UTC')::date, session_id, user_id, 'def f(): ...', 'f shall return.',
    1, 0, 1, md5(session_id), 'cases', 'attached'
from iccm.conversations where id % 10 = 0;
insert into iccm.phase4_training_data (conversation_id, day, session_id, user_id, source_code, requirements,
    test_pass_rate, implementation_variance, quality_score, content_sha256, evidence, test_suite_origin,
    embedding)
select conversation_id, day, session_id, user_id, source_code, requirements, test_pass_rate,
    implementation_variance, quality_score, content_sha256, evidence, test_suite_origin,
    array_fill(0, array[384])::vector
from iccm.filtered_conversations;
insert into iccm.phase4_training_runs (trigger, trigger_key, status, candidate_version, training_timestamp)
values ('manual', 'manual:bench', 'gate_passed', 'v1', iccm.now() - interval '10 days');
insert into iccm.training_run_examples (training_run_id, conversation_id, role)
select (select id from iccm.phase4_training_runs), conversation_id, 'new'
from iccm.phase4_training_data limit 1000;
insert into iccm.quality_measurements (version, set, n, mean, standard_error, baseline_mean, judge_version)
select 'v1', case when n % 2 = 0 then 'canary_set' else 'production_holdout' end, 240, 0.8, 0.01, 0.81, '1'
from generate_series(1, 3000) n
"""

# Dropped during the inserts: building an index afterwards takes a fraction of the time.
INDEXES = """
select indexname, indexdef from pg_indexes
where schemaname = 'iccm' and tablename in ('conversations', 'filtered_conversations', 'phase4_training_data')
  and indexdef not like '% UNIQUE %'
"""


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--conversations", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    from iccm_assets.db.database import create_engine_for, upgrade
    from iccm_assets.db.embedded.embedded_server import EmbeddedServer

    with tempfile.TemporaryDirectory(prefix="iccm-ticks-") as home:
        server = EmbeddedServer(Path(home), durable=False)
        try:
            url = server.ensure_running()
            os.environ |= {"ICCM_DATABASE_URL": url, "ICCM_HOME": home}
            engine = create_engine_for(url)
            upgrade(engine)
            started = time.perf_counter()
            with engine.begin() as conn:
                indexes = conn.execute(sa.text(INDEXES)).all()
                for name, _ in indexes:
                    conn.execute(sa.text(f"drop index iccm.{name}"))
                for statement in FILL.format(n=options.conversations).split(";"):
                    conn.execute(sa.text(statement.replace("::", "\\:\\:")))
                for _, definition in indexes:
                    conn.execute(sa.text(definition))
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
                conn.execute(sa.text("vacuum analyze"))
            say(f"{options.conversations} conversations in {time.perf_counter() - started:.0f} s")
            measure(options.rounds)
            explain(engine)
        finally:
            server.stop()


def measure(rounds: int) -> None:
    """Print the slowest of some ticks of each sensor, after one that opens connections."""
    from iccm_assets.defs.automation import sensors
    from iccm_assets.defs.automation.sensors import rollout_controller_sensor
    from iccm_assets.defs.resources import PlatformResource

    evaluated = (
        sensors.new_data_threshold_sensor,
        sensors.quality_degradation_sensor,
        sensors.retrain_dispatch_sensor,
        rollout_controller_sensor,
    )
    with dg.DagsterInstance.ephemeral() as instance:
        for sensor in evaluated:
            seconds, outcome = [], ""
            for _ in range(rounds + 1):
                context = dg.build_sensor_context(
                    instance=instance, resources={"platform": PlatformResource()}
                )
                started = time.perf_counter()
                result = sensor.evaluate_tick(context)
                seconds.append(time.perf_counter() - started)
                outcome = outcome or result.skip_message or f"{len(result.run_requests or [])} run(s)"
            say(
                f"{sensor.name:28} slowest {max(seconds[1:]):.3f} s, first {seconds[0]:.3f} s: {outcome[:70]}"
            )


def explain(engine: sa.Engine) -> None:
    """Print the plan and the duration of counting the selectable examples."""
    from iccm_assets.db.clock import now
    from iccm_assets.retraining import example_queries
    from iccm_assets.settings import get_settings

    with engine.connect() as conn:
        at, started = now(conn), time.perf_counter()
        counted = example_queries.count_selectable(conn, at, get_settings().selection)
        say(f"{counted.size} selectable examples counted in {time.perf_counter() - started:.3f} s")
        plan = sa.text(
            "explain (analyze, costs off, timing off, summary on) "
            f"{example_queries.COUNT_SELECTABLE_SQL.text}"
        )
        span = {"first_day": at.date(), "base": None, "start": at, "end": at}
        span |= {"first_day": (at - timedelta(days=30)).date(), "start": at - timedelta(days=10)}
        say("\n".join(row[0] for row in conn.execute(plan, span)))


if __name__ == "__main__":
    main()
