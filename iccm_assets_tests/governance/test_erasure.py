"""Logical erasure: every row at once, no row of other users, and nothing comes back (V2)."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import sqlalchemy as sa

from iccm_assets.capture.conversations import Conversation, upsert_conversation
from iccm_assets.curation.filtering import filter_day
from iccm_assets.curation.training_pool import rebuild_pool
from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.errors import InputError, OperationNotAllowedError, StaleFenceError, TrainingError
from iccm_assets.governance.erasure import DataSubject, ErasureResult, erase
from iccm_assets.governance.physical_erasure import erase_from_files
from iccm_assets.registry import training_runs
from iccm_assets.registry.affected_versions import find_erased_in_lineage
from iccm_assets.retraining import example_queries, pipeline, triggers
from iccm_assets.training.dataset import DatasetStore
from iccm_assets_tests.factories.erasure_worlds import (
    DAY,
    EMBEDDER,
    World,
    curate,
    learn,
    populated,
    score,
    session,
)

USER = DataSubject("user", "mallory-w")


def erase_user(world: World, **options: Any) -> ErasureResult:
    return erase(world.engine, USER, actor="test", **options)


def rows(world: World, query: str, **values: Any) -> list[tuple[Any, ...]]:
    with world.engine.connect() as conn:
        return [tuple(row) for row in conn.execute(sa.text(query), values)]


def everything(world: World, but: list[int]) -> list[tuple[Any, ...]]:
    """Return all rows that hold text, of all conversations but these."""
    return rows(
        world,
        """
        select 'c', c.id::text, to_jsonb(c)::text from iccm.conversations c where not c.id = any(:but)
        union all select 'r', r.id::text, to_jsonb(r)::text from iccm.requirements r
            where not r.conversation_id = any(:but)
        union all select 'n', n.id::text, to_jsonb(n)::text from iccm.reconstructions n
            join iccm.requirements r on r.id = n.requirement_id where not r.conversation_id = any(:but)
        union all select 'f', f.id::text, to_jsonb(f)::text from iccm.feedback f
            join iccm.conversations c on c.session_id = f.session_id where not c.id = any(:but)
        union all select 'p', p.conversation_id::text, (to_jsonb(p) - 'pinned')::text
            from iccm.phase4_training_data p where not p.conversation_id = any(:but)
        order by 1, 2
        """,
        but=but,
    )


def test_a_tombstone_remains_and_nobody_else_loses_anything(world: World) -> None:
    ids = populated(world, "w")
    others = everything(world, ids["mallory"])
    done = erase_user(world)
    assert list(done.conversations) == ids["mallory"] and done.newly_erased == 4
    assert done.counts["requirements"] == 8 and done.counts["reconstructions"] == 8
    assert everything(world, ids["mallory"]) == others
    left = rows(
        world,
        "select session_id, user_id, content, metadata from iccm.conversations where erased_at is not null",
    )
    assert all(name.startswith("erased:") for name, *_ in left)
    assert [row[1:] for row in left] == [(None, [], {})] * 4


def test_a_dry_run_reports_exactly_what_would_be_erased_and_changes_nothing(world: World) -> None:
    populated(world, "w")
    before = everything(world, [])
    preview = erase_user(world, dry_run=True)
    assert everything(world, []) == before and rows(world, "select count(*) from iccm.erasures") == [(0,)]
    done = erase_user(world)
    assert (preview.counts, preview.conversations, preview.plan.versions) == (
        done.counts,
        done.conversations,
        done.plan.versions,
    )


def test_one_conversation_or_one_session_is_erased_alone(world: World) -> None:
    first, second, *_ = populated(world, "w")["mallory"]
    [[name]] = rows(world, "select session_id from iccm.conversations where id = :id", id=second)
    assert erase(world.engine, DataSubject("conversation", str(first)), actor="t").conversations == (first,)
    assert erase(world.engine, DataSubject("session", name), actor="t").conversations == (second,)
    assert rows(world, "select count(*) from iccm.conversations where user_id = 'mallory-w'") == [(2,)]


def test_erasing_again_erases_later_rows_and_recomputes_the_plan(world: World) -> None:
    ids = populated(world, "w")["mallory"]
    erase_user(world)
    again = erase_user(world)
    assert (again.newly_erased, list(again.conversations)) == (0, ids) and again.erased_before is not None
    with world.engine.begin() as conn:
        late = upsert_conversation(conn, session("w-late", USER.value, "late subject", "w"))
    assert list(erase_user(world).conversations) == [*ids, late]
    assert len(rows(world, "select id from iccm.erasures")) == 2


def test_suites_that_a_session_had_before_are_erased_too(world: World) -> None:
    own, shared = session("w-1", USER.value, "first", "w"), session("o-1", "other", "second", "plain")
    with world.engine.begin() as conn:
        for posted in (own, shared):
            upsert_conversation(conn, posted)
        query = sa.select(t.requirements.c.source_sha256).where(t.requirements.c.session_id == "o-1").limit(1)
        # Of an earlier source of this session, and of the source that another user has, too.
        for source in ("earlier", conn.execute(query).scalar_one()):
            earlier = {"suite": ["w"], "digest": "d", "generator_version": "1", "status": "weak"}
            conn.execute(t.test_suites.insert().values(source_sha256=source, origin="attached", **earlier))
    score(world.engine)
    assert rows(world, "select count(*) from iccm.test_suites") == [(4,)]
    erase_user(world)
    erase_from_files(world.engine, world.settings, rewrite=False, embedder=EMBEDDER)
    assert rows(world, "select suite from iccm.test_suites") == [(shared.test_suite,)]


def test_an_erased_session_cannot_be_posted_again(world: World) -> None:
    populated(world, "w")
    posted = session("w-again", USER.value, "again", "w")
    with world.engine.begin() as conn:
        upsert_conversation(conn, posted)
    erase_user(world)
    with pytest.raises(OperationNotAllowedError, match="was erased"), world.engine.begin() as conn:
        upsert_conversation(conn, posted)
    with pytest.raises(InputError, match="may not begin with erased:"), world.engine.begin() as conn:
        upsert_conversation(conn, Conversation(session_id="erased:abc", messages=[]))


def test_a_session_posted_while_it_is_erased_does_not_come_back(world: World) -> None:
    posted = session("w-race", USER.value, "race", "w")
    with world.engine.begin() as conn:
        upsert_conversation(conn, posted)
    outcome: list[BaseException | int] = []

    def post() -> None:
        try:
            with world.engine.begin() as conn:
                outcome.append(upsert_conversation(conn, posted))
        except OperationNotAllowedError as error:
            outcome.append(error)

    with world.engine.begin() as conn:
        conn.execute(sa.text("select from iccm.conversations for update"))
        eraser = threading.Thread(target=lambda: erase_user(world))
        eraser.start()
        _until_waiting(world, 1)
        poster = threading.Thread(target=post)
        poster.start()
        _until_waiting(world, 2)
    eraser.join()
    poster.join()
    live = rows(world, "select count(*) from iccm.conversations where erased_at is null")
    # Whoever was first, either nothing is left, or what was posted had come before the erasure.
    assert live == [(0,)], outcome


def _until_waiting(world: World, sessions: int) -> None:
    waiting = """
        select count(*) from pg_stat_activity
        where wait_event_type = 'Lock' and datname = current_database()
    """
    for _ in range(600):
        if rows(world, waiting)[0][0] >= sessions:
            return
        time.sleep(0.05)
    raise AssertionError("nobody waits")


def test_requests_keep_their_numbers_under_hashed_names(world: World) -> None:
    populated(world, "w")
    with world.engine.begin() as conn:
        conn.execute(
            t.requests.insert(),
            [
                {"request_id": "q1", "session_id": "only-asked", "user_id": USER.value, "status": "ok",
                 "latency_ms": 12.5, "error": None},
                {"request_id": "q2", "session_id": "session-1", "user_id": USER.value, "status": "error",
                 "latency_ms": 3.0, "error": "w said"},
                {"request_id": "q3", "session_id": "session-1", "user_id": "user1", "status": "ok",
                 "latency_ms": 1.0, "error": None},
            ],
        )  # fmt: skip
    erase_user(world)
    requests = rows(
        world, "select status, latency_ms, user_id, error, request_id from iccm.requests order by 2 desc"
    )
    assert [row[:4] for row in requests] == [
        ("ok", 12.5, None, None),
        ("error", 3.0, None, None),
        ("ok", 1.0, "user1", None),
    ]
    assert [row[4].startswith("erased:") for row in requests] == [True, True, False]
    assert rows(world, "select count(*) from iccm.conversations where erased_at is null") == [(4,)]


def test_a_running_filter_fold_or_evaluation_brings_nothing_back(world: World) -> None:
    ids = populated(world, "w")["mallory"]
    filtered = rows(world, "select * from iccm.filtered_conversations where conversation_id = :id", id=ids[0])
    columns = [column.name for column in t.filtered_conversations.c]
    erase_user(world)
    row = dict(zip(columns, filtered[0], strict=True))
    result = {
        "version": "v1", "model_digest": "d", "set": "production_holdout", "canary_set_digest": "h",
        "item": f"conversation:{ids[0]}", "slice": "s", "reconstructor": "a", "orchestra": "o",
        "judge_version": "1", "decoding": "greedy", "requirements": "w", "status": "scored",
    }  # fmt: skip
    with world.engine.begin() as conn:
        conn.execute(t.filtered_conversations.insert().values(row))
        conn.execute(t.phase4_training_data.insert().values(**row, embedding=[0.0] * 384))
        conn.execute(t.canary_results.insert().values(result))
        conn.execute(t.canary_results.insert().values({**result, "item": "conversation:2"}))
    assert rows(
        world, "select count(*) from iccm.filtered_conversations where conversation_id = :id", id=ids[0]
    ) == [(0,)]
    assert rows(
        world, "select count(*) from iccm.phase4_training_data where conversation_id = :id", id=ids[0]
    ) == [(0,)]
    assert rows(world, "select item from iccm.canary_results") == [("conversation:2",)]


def test_the_filter_and_the_fold_have_nothing_to_do_afterwards(world: World) -> None:
    populated(world, "w")
    erase_user(world)
    erase_from_files(world.engine, world.settings, embedder=EMBEDDER)
    state = """
        select 'f', conversation_id, '', 0 from iccm.filtered_conversations
        union all select 'p', conversation_id, '', 0 from iccm.phase4_training_data
        union all select stage, conversation_id, reason, duplicate_of from iccm.phase4_rejections
        union all select 'd' || day, kept, rejected::text, 0 from iccm.filtered_days order by 1, 2
    """
    before = rows(world, state)
    filter_day(world.engine, DAY, world.settings, EMBEDDER)
    report = rebuild_pool(world.engine, [DAY], world.settings, EMBEDDER)
    assert rows(world, state) == before and report.changed_rows == 0


def test_a_duplicate_displaced_by_an_erased_example_returns_to_the_pool_with_its_vector(world: World) -> None:
    populated(world, "w")
    with world.engine.begin() as conn:
        erased = upsert_conversation(conn, session("twin-5", USER.value, "twins", "twin"))
        twin = upsert_conversation(conn, session("twin-7", "user9", "twins", "twin"))
    with world.engine.begin() as conn:
        conn.execute(sa.text("delete from iccm.reconstructions"))
    score(world.engine)
    curate(world)
    pooled = "select conversation_id from iccm.phase4_training_data where conversation_id = any(:ids)"
    assert rows(world, pooled, ids=[erased, twin]) == [(erased,)]
    done = erase_user(world)
    erase_from_files(world.engine, world.settings, done.hashes, embedder=EMBEDDER)
    assert rows(world, pooled, ids=[erased, twin]) == [(twin,)]


def test_a_running_training_run_is_stopped_and_cannot_publish(world: World) -> None:
    populated(world, "w")
    with world.engine.begin() as conn:
        run = training_runs.create_run(conn, triggers.manual_trigger("held"))
    assert run is not None
    with pytest.raises(StaleFenceError), pipeline.run_attempt(world.engine, run, "d1") as claimed:
        plan = pipeline.prepare_training(world.engine, world.settings, claimed)
        assert isinstance(plan, pipeline.TrainingPlan)
        assert erase_user(world).stopped_runs == (run.id,)
        with world.engine.begin() as conn:
            training_runs.heartbeat(conn, run.id, claimed.fence)
    [[status, error]] = rows(world, "select status, error from iccm.phase4_training_runs")
    assert status == "failed" and "erasure" in error
    with pipeline.run_attempt(world.engine, run, "d2") as claimed:
        plan = pipeline.prepare_training(world.engine, world.settings, claimed)
    assert len(rows(world, "select from iccm.training_run_examples")) == 4


def test_a_dataset_assembled_before_the_erasure_is_neither_trained_on_nor_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    populated(world, "w")
    with world.engine.begin() as conn:
        run = training_runs.create_run(conn, triggers.manual_trigger("late"))
    assert run is not None
    real = DatasetStore.write

    def write(store: DatasetStore, dataset: Any) -> Any:
        erase_user(world)
        return real(store, dataset)

    monkeypatch.setattr(DatasetStore, "write", write)
    refused = pytest.raises(TrainingError, match="4 selected conversations were erased")
    with refused, pipeline.run_attempt(world.engine, run, "d1") as claimed:
        pipeline.prepare_training(world.engine, world.settings, claimed)
    assert not list((world.home / "datasets").glob("[0-9a-f]*"))


def test_versions_in_service_are_alerted_once_and_a_clean_version_can_be_trained(world: World) -> None:
    ids = populated(world, "w")
    base = rows(world, "select version from iccm.model_versions")[0][0]
    with world.engine.begin() as conn:
        conn.execute(t.model_versions.update().values(status="retired"))
    taught = learn(world, base, status="production", name="bbbbbbbb")
    done = erase_user(world)
    [replacement] = done.plan.replacements
    assert (replacement.version, replacement.base) == (taught, base)
    erase_user(world)
    assert [key for (key,) in rows(world, "select key from iccm.alerts")] == [
        f"erased_data:{taught}:{done.erasure}"
    ]
    with world.engine.connect() as conn:
        assert find_erased_in_lineage(conn, taught) == set(ids["mallory"])
        # Production has used up what is left of the pool, the clean ancestor has not.
        settings = world.settings.selection
        assert example_queries.propose_selection(conn, now(conn), settings).selected == ()
        chosen = example_queries.propose_selection(conn, now(conn), settings, base=base).selected
        assert {row.conversation_id for row in chosen} == set(ids["others"])
    anew = learn(world, base, name="cccccccc")
    with world.engine.connect() as conn:
        assert find_erased_in_lineage(conn, anew) == set()
    assert rows(world, "select parent_version from iccm.model_versions where version = :v", v=anew) == [
        (base,)
    ]


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("user", "", "is named by"),
        ("user", "   ", "is named by"),
        ("user", "x" * 600, "is named by"),
        ("session", "a\x00b", "is named by"),
        ("conversation", "1; drop table iccm.conversations", "is named by its number"),
        ("conversation", "-1", "is named by its number"),
        ("conversation", "9" * 40, "is named by its number"),
        ("conversation", "٣", "is named by its number"),
    ],
)
def test_an_impossible_subject_is_refused(kind: Any, value: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DataSubject(kind, value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("user", "' or 1=1 --"), ("user", "%"), ("session", "nobody"), ("conversation", "404")],
)
def test_an_unknown_subject_is_an_error_and_nothing_is_recorded(world: World, kind: Any, value: str) -> None:
    with pytest.raises(InputError, match=f"there is no {kind}"):
        erase(world.engine, DataSubject(kind, value), actor="t")
    assert rows(world, "select count(*) from iccm.erasures") == [(0,)]
