import threading
from datetime import UTC, date, datetime, timedelta

import pytest
import sqlalchemy as sa

from iccm_assets.capture.conversations import Conversation, ModelResponse, upsert_conversation
from iccm_assets.curation.filtering import filter_day, find_changed_days
from iccm_assets.db import tables as t
from iccm_assets.errors import InputError
from iccm_assets.settings import load_settings
from iccm_assets_tests.factories.training_pools import (
    HELD_OUT,
    SESSIONS,
    SUITE,
    HashEmbedder,
    day,
    dump_tables,
    write_canary_set,
)


@pytest.fixture
def canary_settings(engine, settings, tmp_path):
    path = write_canary_set(
        tmp_path / "canary.jsonl",
        [{"item": "leaky", "source_code": "def f(x): return x - 99", "requirements": "leaky shall be 99."}],
    )
    return load_settings(home=settings.home, database_url=settings.database_url, canary_set=path)


def at(on, hour=12):
    return datetime(on.year, on.month, on.day, hour, tzinfo=UTC)


def put_conversation(engine, session_id, on=None, rate=0.9, variance=0.0, **changes):
    """Insert a conversation with scores; return its id."""
    number = abs(hash(session_id)) % 10**6
    values = {
        "session_id": session_id,
        "user_id": "u",
        "timestamp": at(day(0)) if on is None else on if isinstance(on, datetime) else at(on),
        "messages": [{"role": "user", "content": f"```python\ndef f(x): return x + {number}\n```"}],
        "requirements": f"{session_id} shall add {number}.",
        "origin": "simulated",
        "test_suite": SUITE,
        **changes,
    }
    with engine.begin() as conn:
        conversation_id = upsert_conversation(conn, Conversation(**values))
        if rate is not None:
            conn.execute(
                t.requirements.update()
                .where(t.requirements.c.session_id == session_id, t.requirements.c.kind == "accepted")
                .values(test_pass_rate=rate, implementation_variance=variance, scored_at=sa.func.iccm.now())
            )
        return conversation_id


def kept_ids(engine, on=None):
    with engine.connect() as conn:
        f = t.filtered_conversations.c
        query = sa.select(f.conversation_id).order_by(f.conversation_id)
        return list(conn.execute(query if on is None else query.where(f.day == on)).scalars())


def rejection_reasons(engine):
    with engine.connect() as conn:
        return {
            row.conversation_id: (row.stage, row.reason)
            for row in conn.execute(sa.text("select * from iccm.phase4_rejections"))
        }


def test_every_conversation_of_a_day_is_kept_or_rejected_with_a_reason(engine, canary_settings):
    good = put_conversation(engine, SESSIONS[0], responses=(ModelResponse("r1", "bad response", "v1"),))
    low = put_conversation(engine, SESSIONS[1], rate=0.75)
    high = put_conversation(engine, SESSIONS[2], variance=0.04)
    unscored = put_conversation(engine, SESSIONS[3], rate=None)
    disliked = put_conversation(engine, SESSIONS[4], rating=-1)
    held_out = put_conversation(engine, HELD_OUT)
    leaked = put_conversation(engine, SESSIONS[5], source_code="def g(y): return y - 99")
    similar = put_conversation(engine, SESSIONS[6], requirements="leaky shall be 99, or so.")
    nonsense = put_conversation(
        engine, SESSIONS[7], messages={"no": "messages"}, rate=None, requirements=None
    )
    erased = put_conversation(engine, SESSIONS[8])
    disliked_response = put_conversation(
        engine,
        SESSIONS[9],
        responses=(ModelResponse("r9", "x", rating=-1), ModelResponse("r10", "y", rating=1)),
    )
    with engine.begin() as conn:
        conn.execute(
            sa.text("update iccm.conversations set erased_at = iccm.now() where id = :id"), {"id": erased}
        )
    report = filter_day(engine, day(0), canary_settings, HashEmbedder(disturbance=0.2))
    assert kept_ids(engine) == [good]
    assert rejection_reasons(engine) == {
        low: ("filter", "low_test_pass_rate"),
        high: ("filter", "high_implementation_variance"),
        unscored: ("filter", "not_scored"),
        disliked: ("filter", "negative_feedback"),
        disliked_response: ("filter", "negative_feedback"),
        held_out: ("policy", "held_out"),
        leaked: ("policy", "canary_leak"),
        similar: ("policy", "canary_leak"),
        nonsense: ("filter", "no_messages"),
        erased: ("policy", "erased"),
    }
    assert (report.conversations, report.kept, sum(report.rejected.values())) == (11, 1, 10)
    assert report.rejected["canary_leak"] == report.rejected["negative_feedback"] == 2
    with engine.connect() as conn:
        row = conn.execute(sa.text("select * from iccm.filtered_conversations")).one()
        leak = conn.execute(
            sa.text("select detail, similarity from iccm.phase4_rejections where conversation_id = :id"),
            {"id": similar},
        ).one()
    assert (row.day, row.quality_score, row.failed_first, row.user_id) == (day(0), 0.9, False, "u")
    assert "item leaky" in leak.detail and leak.similarity >= 0.9


def add_member_scores(engine, session_id, **rates):
    """Insert the scores of the members of one conversation's accepted text; a name's `__` is a `/`."""
    with engine.begin() as conn:
        query = sa.select(t.requirements.c.id).where(t.requirements.c.session_id == session_id)
        number = conn.execute(query).scalar_one()
        for name, rate in rates.items():
            conn.execute(
                t.reconstructions.insert().values(
                    requirement_id=number,
                    reconstructor=name.replace("__", "/"),
                    test_pass_rate=rate,
                    status="missing" if rate is None else "scored",
                )
            )


def test_scores_of_builtin_alone_teach_only_if_the_conversation_is_simulated(engine, canary_settings):
    simulated = put_conversation(engine, SESSIONS[0])
    marked = put_conversation(engine, SESSIONS[1], origin="gateway", metadata={"simulated": True})
    real = put_conversation(engine, SESSIONS[2], origin="gateway")
    # A text is no mark, and neither is what the user says about it elsewhere in the metadata.
    text = put_conversation(engine, SESSIONS[3], origin="import", metadata={"simulated": "true"})
    for session in SESSIONS[:4]:
        add_member_scores(engine, session, builtin__strict=1.0, builtin__literal=0.8)
    other = put_conversation(engine, SESSIONS[4], origin="gateway")
    add_member_scores(engine, SESSIONS[4], builtin__strict=1.0, openai=0.8)
    missing = put_conversation(engine, SESSIONS[5], origin="gateway")
    add_member_scores(engine, SESSIONS[5], builtin__strict=1.0, builtin__literal=0.8, openai=None)
    filter_day(engine, day(0), canary_settings, HashEmbedder(disturbance=0.2))
    assert kept_ids(engine) == sorted([simulated, marked, other])
    reason = ("filter", "builtin_only")
    assert rejection_reasons(engine) == {real: reason, text: reason, missing: reason}


def test_a_bad_first_response_that_was_corrected_is_marked(engine, canary_settings):
    put_conversation(
        engine,
        SESSIONS[0],
        responses=(ModelResponse("r1", "first", "v1"), ModelResponse("r2", "second", "v1")),
    )
    with engine.begin() as conn:
        conn.execute(
            sa.text(
                "update iccm.requirements set test_pass_rate = 0.5, scored_at = iccm.now() "
                "where request_id = 'r1'"
            )
        )
    filter_day(engine, day(0), canary_settings, HashEmbedder())
    with engine.connect() as conn:
        assert conn.execute(
            sa.text("select failed_first from iccm.filtered_conversations")
        ).scalars().all() == [True]


def test_many_reconstructions_and_ratings_give_one_row(engine, canary_settings):
    put_conversation(
        engine,
        SESSIONS[0],
        rating=1,
        responses=tuple(ModelResponse(f"r{n}", "x", rating=1) for n in range(5)),
    )
    with engine.begin() as conn:
        for reader in "abc":
            conn.execute(
                sa.text(
                    "insert into iccm.reconstructions (requirement_id, reconstructor, status) "
                    "select id, :reader, 'scored' from iccm.requirements"
                ),
                {"reader": reader},
            )
    assert filter_day(engine, day(0), canary_settings, HashEmbedder()).kept == 1
    assert len(kept_ids(engine)) == 1


def test_a_day_ends_at_midnight_utc(engine, canary_settings):
    first = put_conversation(engine, SESSIONS[0], at(day(0), 0))
    last = put_conversation(engine, SESSIONS[1], at(day(1), 0) - timedelta(microseconds=1))
    put_conversation(engine, SESSIONS[2], at(day(1), 0))
    put_conversation(engine, SESSIONS[3], at(day(0), 0) - timedelta(microseconds=1))
    filter_day(engine, day(0), canary_settings, HashEmbedder())
    assert kept_ids(engine) == [first, last]


def test_running_a_day_again_changes_nothing_and_another_day_is_left_alone(engine, canary_settings):
    for n in range(6):
        put_conversation(engine, SESSIONS[n], day(n % 2), rate=0.9 if n < 4 else 0.1)
    embedder = HashEmbedder()
    for n in (0, 1):
        filter_day(engine, day(n), canary_settings, embedder)
    tables = (t.filtered_conversations, t.phase4_rejections, t.embeddings)
    before, encoded = dump_tables(engine, *tables), list(embedder.encoded)
    filter_day(engine, day(0), canary_settings, embedder)
    assert dump_tables(engine, *tables) == before
    assert embedder.encoded == encoded


def test_the_filter_keeps_rejections_of_the_deduplication(engine, canary_settings):
    removed, other = put_conversation(engine, SESSIONS[0]), put_conversation(engine, SESSIONS[1])
    with engine.begin() as conn:
        conn.execute(
            t.phase4_rejections.insert().values(
                conversation_id=removed,
                stage="dedup",
                day=day(0),
                reason="near_duplicate",
                duplicate_of=other,
            )
        )
    filter_day(engine, day(0), canary_settings, HashEmbedder())
    assert rejection_reasons(engine) == {removed: ("dedup", "near_duplicate")}


def test_a_late_score_a_dislike_and_an_erasure_change_the_day(engine, canary_settings):
    late = put_conversation(engine, SESSIONS[0], rate=None)
    liked = put_conversation(engine, SESSIONS[1])
    erased = put_conversation(engine, SESSIONS[2])
    filter_day(engine, day(0), canary_settings, HashEmbedder())
    assert kept_ids(engine) == [liked, erased]
    put_conversation(engine, SESSIONS[0])
    put_conversation(engine, SESSIONS[1], rating=-1)
    with engine.begin() as conn:
        conn.execute(
            sa.text("update iccm.conversations set erased_at = iccm.now() where id = :id"), {"id": erased}
        )
    filter_day(engine, day(0), canary_settings, HashEmbedder())
    assert kept_ids(engine) == [late]


def test_a_conversation_that_moved_to_another_day_is_filtered_once(engine, canary_settings):
    moved = put_conversation(engine, SESSIONS[0], day(0))
    filter_day(engine, day(0), canary_settings, HashEmbedder())
    put_conversation(engine, SESSIONS[0], day(1))
    filter_day(engine, day(1), canary_settings, HashEmbedder())
    assert kept_ids(engine, day(0)) == [] and kept_ids(engine, day(1)) == [moved]


def test_an_empty_day_is_filtered_without_an_error(engine, canary_settings):
    report = filter_day(engine, day(0), canary_settings, HashEmbedder())
    assert (report.conversations, report.kept, report.rejected) == (0, 0, {})


def test_without_a_readable_canary_set_nothing_passes(engine, canary_settings, settings):
    put_conversation(engine, SESSIONS[0])
    broken = load_settings(home=settings.home, database_url=settings.database_url, canary_set="/no/such/file")
    with pytest.raises(InputError, match="canary set /no/such/file"):
        filter_day(engine, day(0), broken, HashEmbedder())
    assert kept_ids(engine) == []


def test_filtering_a_day_concurrently_keeps_every_row_once(engine, canary_settings):
    for n in range(5):
        put_conversation(engine, SESSIONS[n])
    failures = []

    def run():
        try:
            filter_day(engine, day(0), canary_settings, HashEmbedder())
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and len(kept_ids(engine)) == 5


MANY = """
    insert into iccm.conversations (session_id, "timestamp", origin)
    select 'x' || n, '2026-01-01'::timestamptz + n * interval '20 seconds', 'simulated'
    from generate_series(1, 200000) n;
    insert into iccm.requirements (session_id, kind, text)
    select 'x' || n, 'accepted', 'f shall return.' from generate_series(1, 200000) n;
    insert into iccm.feedback (session_id, rating)
    select 'x' || n, case when n % 5 = 0 then -1 else 1 end from generate_series(1, 200000, 3) n;
    analyze iccm.conversations, iccm.requirements, iccm.feedback
"""


@pytest.mark.slow
def test_the_days_cursor_reads_an_index_range_and_not_the_tables(engine, canary_settings):
    """What runs is explained: a cursor, in the transaction and with the settings of the filter."""
    from iccm_assets.curation import filtering

    filtered_day = date(2026, 2, 1)
    with engine.begin() as conn:
        for statement in MANY.split(";"):
            conn.execute(sa.text(statement.replace("::", r"\:\:")))
        next(filtering._load_conversations(conn, filtered_day))
        plan = conn.execute(
            sa.text(f"explain declare explained cursor for {filtering._CONVERSATIONS.text}"),
            filtering._range(filtered_day, filtered_day),
        ).scalars()
        text = "\n".join(plan)
    for table in ("conversations", "requirements", "feedback"):
        assert f"Seq Scan on {table}" not in text, text
    assert "conversations_timestamp_idx" in text and "conversations_pkey" not in text, text


def changed(engine) -> list[date]:
    with engine.connect() as conn:
        return find_changed_days(conn, day(0), day(6))


def test_only_days_whose_inputs_changed_are_returned(engine, canary_settings):
    for n in range(4):
        put_conversation(engine, SESSIONS[n], day(n))
    assert changed(engine) == [day(0), day(1), day(2), day(3)]
    for n in range(7):
        filter_day(engine, day(n), canary_settings, HashEmbedder())
    assert changed(engine) == [], "what was written before the filter ran, however shortly, is no change"
    with engine.begin() as conn:
        conn.execute(
            sa.text("update iccm.requirements set scored_at = iccm.now() where session_id = :s"),
            {"s": SESSIONS[1]},
        )
        conn.execute(
            sa.text("insert into iccm.feedback (session_id, rating) values (:s, 1)"), {"s": SESSIONS[3]}
        )
        conn.execute(
            sa.text(
                """
                update iccm.conversations set "timestamp" = "timestamp" + interval '5 days'
                where session_id = :s
                """
            ),
            {"s": SESSIONS[0]},
        )
        assert find_changed_days(conn, day(0), day(6)) == [day(0), day(1), day(3), day(5)]
        assert find_changed_days(conn, day(1), day(2)) == [day(1)]
    for n in (0, 1, 3, 5):
        filter_day(engine, day(n), canary_settings, HashEmbedder())
    assert changed(engine) == []


def test_a_transaction_that_commits_after_the_filter_changes_its_day_whatever_time_it_wrote(
    engine, canary_settings
):
    put_conversation(engine, SESSIONS[0], day(0))
    put_conversation(engine, SESSIONS[1], day(1))
    with engine.connect() as late:
        hour_ago = "iccm.now() - interval '1 hour'"
        late.execute(
            sa.text(
                f"insert into iccm.feedback (session_id, rating, created_at) values (:s, -1, {hour_ago})"
            ),
            {"s": SESSIONS[1]},
        )
        for n in range(2):
            filter_day(engine, day(n), canary_settings, HashEmbedder())
        assert changed(engine) == []
        late.commit()
    assert changed(engine) == [day(1)]


def test_a_day_whose_only_conversation_was_deleted_is_filtered_again(engine, canary_settings):
    put_conversation(engine, SESSIONS[0], day(0))
    filter_day(engine, day(0), canary_settings, HashEmbedder())
    with engine.begin() as conn:
        conn.execute(sa.text("delete from iccm.phase4_rejections; delete from iccm.filtered_conversations"))
        conn.execute(sa.text("delete from iccm.requirements; delete from iccm.conversations"))
    assert changed(engine) == [day(0)]
    filter_day(engine, day(0), canary_settings, HashEmbedder())
    assert changed(engine) == []
