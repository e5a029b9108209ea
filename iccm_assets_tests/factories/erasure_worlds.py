"""A small platform with one user's text in every place it can reach, and a search for it."""

from __future__ import annotations

import gzip
import io
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path

import sqlalchemy as sa

from iccm_assets.capture.conversations import Conversation, ModelResponse, upsert_conversation
from iccm_assets.curation.filter_policy import is_in_holdout
from iccm_assets.curation.filtering import filter_day
from iccm_assets.curation.training_pool import rebuild_pool
from iccm_assets.db import tables as t
from iccm_assets.db.database import connect, create_engine_for
from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets.registry import training_runs, versions
from iccm_assets.retraining import pipeline, triggers
from iccm_assets.settings import PACKAGED_CANARY_SET, Settings, load_settings
from iccm_assets.training.dataset import EXAMPLES_FILE
from iccm_assets_tests.factories.training_pools import HashEmbedder

DAY = datetime.now(UTC).date() - timedelta(days=1)
SUBJECTS = (
    "volcano eruptions over a century", "prices of second-hand bicycles", "verses of a medieval poem",
    "calories of a vegetarian menu", "orbits of small satellites", "chess openings by popularity",
    "pollen counts in early spring", "the tuning of a church organ",
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """A home with its server, its engine and its settings."""

    home: Path
    engine: sa.Engine
    settings: Settings


EMBEDDER = HashEmbedder(disturbance=3.0)


@contextmanager
def small_world(home: Path, database_url: str | None = None) -> Iterator[World]:
    """A platform with a base model in production; without a URL with an embedded server of its own."""
    canary_set = home / "canary.jsonl"
    model = home / "models" / "base"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}", encoding="utf-8")
    first = gzip.decompress(PACKAGED_CANARY_SET.read_bytes()).decode().split("\n", 1)[0]
    canary_set.write_text(first + "\n", encoding="utf-8")
    settings = load_settings(
        home=home,
        database_url=database_url,
        canary_set=str(canary_set),
        rehearsal="",
        triggers={"min_examples": 2},
        selection={"max_user_share": 1.0},
    )
    server = EmbeddedServer(home, durable=False)
    if database_url is None:
        server.ensure_running()
    try:
        engine = connect(settings)
        with engine.begin() as conn:
            versions.register_version(
                conn, digest="base" * 16, path=str(model), parent=None, status="production"
            )
        yield World(home, engine, settings)
        engine.dispose()
    finally:
        if database_url is None:
            server.stop()


def marker(what: str) -> str:
    """A text that occurs nowhere else, in letters and digits only."""
    return f"zq{what}{secrets.token_hex(8)}zq"


def session(name: str, user: str, subject: str, words: str, day: date = DAY) -> Conversation:
    """A conversation whose every field holds ``words``."""
    source = f"def {words}_f(x):\n    # {words} {subject}\n    return x"
    text = f"The function `{words}_f` shall take `x` and return the {words} {subject}."
    return Conversation(
        session_id=name,
        user_id=user,
        timestamp=datetime(day.year, day.month, day.day, 12, tzinfo=UTC),
        messages=[
            # Long and hard to compress as well: stored out of line, in pieces.
            {"role": "user", "content": f"{words}: {subject}\n```python\n{source}\n```" + long_text(words)},
            {"role": "assistant", "content": f"{text} {words} shall hold."},
        ],
        metadata={"project": words, "note": long_text(words)},
        requirements=text,
        source_code=source,
        test_suite={"kind": "cases", "cases": [{"call": f"{words}_f", "args": [words], "expect": words}]},
        responses=(
            ModelResponse(
                f"{name}/1", f"{text} {words} answered.", model_version="v1", comment=words, rating=1
            ),
        ),
        rating=1,
        comment=f"{words} works",
    )


def long_text(words: str) -> str:
    return f"\n{words} " + " ".join(f"{secrets.token_hex(12)} {words}" for _ in range(120))


def score(engine: sa.Engine) -> None:
    """Scores for all requirements, on measured suites, with re-implementations that quote them."""
    with engine.begin() as conn:
        conn.execute(
            sa.text(
                """
                insert into iccm.test_suites
                    (source_sha256, origin, suite, digest, generator_version, status, reason)
                select distinct source_sha256, 'attached', test_suite, md5(test_suite::text), '1', 'usable',
                    test_suite::text
                from iccm.requirements where test_suite is not null
                on conflict do nothing
                """
            )
        )
        conn.execute(
            sa.text(
                """
                update iccm.requirements set test_pass_rate = 1, implementation_variance = 0,
                    scored_at = iccm.now(), evidence = jsonb_build_object('reason', text)
                """
            )
        )
        conn.execute(
            sa.text(
                """
                insert into iccm.reconstructions
                    (requirement_id, reconstructor, implementation_code, results, status, reason)
                select id, 'a', text, jsonb_build_array(text), 'scored', text from iccm.requirements
                """
            )
        )


def curate(world: World) -> None:
    """Filter the day and fold it into the pool."""
    filter_day(world.engine, DAY, world.settings, EMBEDDER)
    rebuild_pool(world.engine, [DAY], world.settings, EMBEDDER)


def learn(world: World, parent: str | None = None, *, status: str = "candidate", name: str) -> str:
    """Register a version trained on the pool, without training: its snapshot, lineage and pins."""
    with world.engine.begin() as conn:
        run = training_runs.create_run(conn, triggers.manual_trigger(name), parent)
    assert run is not None
    with pipeline.run_attempt(world.engine, run, f"dagster-{name}") as claimed:
        assert not isinstance(claimed, pipeline.SkippedRun)
        plan = pipeline.prepare_training(world.engine, world.settings, claimed)
        assert isinstance(plan, pipeline.TrainingPlan), plan
        with world.engine.begin() as conn:
            made = versions.register_version(
                conn, digest=name * 8, path=plan.base.path, parent=plan.base.version, status=status
            )
            training_runs.finish_run(
                conn, claimed.id, claimed.fence, "gate_passed", candidate_version=made.version
            )
            ids = [
                example.conversation_id
                for example in plan.dataset.examples
                if example.conversation_id is not None
            ]
            pool = t.phase4_training_data
            conn.execute(pool.update().where(pool.c.conversation_id.in_(ids)).values(pinned=True))
    return made.version


def populated(world: World, words: str) -> dict[str, list[int]]:
    """Conversations of ``mallory`` (who holds ``words``) and of others, curated; ids by user."""
    ids: dict[str, list[int]] = {"mallory": [], "others": []}
    # Sessions held out of training (F3) teach nothing: names are chosen that are not.
    share = world.settings.curation.holdout_fraction
    names = (name for n in count() if not is_in_holdout(name := f"{words}-{n}", share))
    others = (name for n in count() if not is_in_holdout(name := f"session-{n}", share))
    with world.engine.begin() as conn:
        for number, subject in enumerate(SUBJECTS):
            of_subject = number % 2 == 0
            word = words if of_subject else f"plain{number}"
            user = f"mallory-{words}" if of_subject else f"user{number}"
            name = next(names) if of_subject else next(others)
            ids["mallory" if of_subject else "others"].append(
                upsert_conversation(conn, session(name, user, subject, word))
            )
    score(world.engine)
    curate(world)
    return ids


def traces(home: Path, engine: sa.Engine, *words: str, whole_server: bool = True) -> list[str]:
    """Return where these texts occur: in files byte by byte, in unpacked snapshots, and in rows.

    Without ``whole_server`` only the rows of the engine's database are searched.
    """
    sought = [word.encode() for word in words]
    places = [
        str(path.relative_to(home))
        for path in sorted(home.rglob("*"))
        if path.is_file() and any(word in content for content in _contents(path) for word in sought)
    ]
    with engine.connect() as conn:
        names = (
            "select datname from pg_database where datallowconn and (:all or datname = current_database())"
        )
        databases = conn.execute(sa.text(names), {"all": whole_server}).scalars().all()
    for database in databases:
        url = engine.url.set(database=database, drivername="postgresql")
        other = create_engine_for(url.render_as_string(hide_password=False))
        with other.connect() as conn:
            places += [f"{database}.{table}" for table in _tables_with(conn, words)]
        other.dispose()
    return places


def _contents(path: Path) -> Iterator[bytes]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # the server removes files of its own while we look
        return
    yield content
    if path.name == EXAMPLES_FILE:
        import pyarrow.parquet as pq

        rows = pq.read_table(io.BytesIO(content)).to_pylist()
        yield "\n".join(str(value) for row in rows for value in row.values()).encode()


def _tables_with(conn: sa.Connection, words: tuple[str, ...]) -> Iterator[str]:
    """Yield tables that hold the words; system catalogs too, whose statistics hold values of columns."""
    names = conn.execute(
        sa.text("select oid::regclass::text from pg_class where relkind in ('r', 'm') order by 1")
    ).scalars()
    for name in names.all():
        query = sa.text(
            f"select exists (select from {name} x cross join unnest(cast(:words as text[])) w(word)"
            " where strpos(x::text, w.word) > 0)"
        )
        if conn.execute(query, {"words": list(words)}).scalar_one():
            yield name
