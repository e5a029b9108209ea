import copy
import threading
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from iccm_assets.capture.conversations import Conversation, ModelResponse, upsert_conversation
from iccm_assets.db import tables as t
from iccm_assets.errors import InputError, OperationNotAllowedError, SessionOwnershipError
from iccm_assets.settings import load_settings

SUITE = {"kind": "cases", "cases": [{"call": "f", "args": [1], "expect": 2}]}
BASE = Conversation(
    session_id="s1",
    user_id="u1",
    timestamp=datetime(2026, 3, 1, 12, tzinfo=UTC),
    messages=[
        {"role": "user", "content": "```python\ndef f(x):\n    return x + 1\n```"},
        {"role": "assistant", "content": "f shall return x."},
        {"role": "user", "content": "plus one"},
        {"role": "assistant", "content": "f shall return x plus one."},
    ],
    origin="simulated",
    test_suite=SUITE,
    responses=(
        ModelResponse("r1", "f shall return x.", "v1", "production", rating=-1),
        ModelResponse("r2", "f shall return x plus one.", "v1"),
    ),
    rating=1,
)


def put(engine, conversation, **kwargs):
    with engine.begin() as conn:
        return upsert_conversation(conn, conversation, **kwargs)


def rows(engine, table, *columns):
    with engine.connect() as conn:
        selected = [table.c[name] for name in columns] or [table]
        key = table.c.id
        return [tuple(row) for row in conn.execute(sa.select(*selected).order_by(key))]


def all_rows(engine):
    return [rows(engine, table) for table in (t.conversations, t.requirements, t.reconstructions, t.feedback)]


def score(engine):
    with engine.begin() as conn:
        conn.execute(
            t.requirements.update().values(
                test_pass_rate=0.9, implementation_variance=0.01, scored_at=sa.func.now()
            )
        )
        conn.execute(
            sa.text(
                "insert into iccm.reconstructions (requirement_id, reconstructor, status) "
                "select id, 'x', 'scored' from iccm.requirements"
            )
        )


def test_a_session_becomes_one_row_with_its_answers_and_the_accepted_text(engine):
    conversation_id = put(engine, BASE)
    assert rows(engine, t.conversations, "id", "session_id", "user_id", "timestamp", "origin") == [
        (conversation_id, "s1", "u1", BASE.timestamp, "simulated")
    ]
    stored = rows(engine, t.requirements, "kind", "text", "request_id", "model_version", "arm", "test_suite")
    assert sorted(stored) == [
        ("accepted", "f shall return x plus one.", None, None, None, SUITE),
        ("model", "f shall return x plus one.", "r2", "v1", None, SUITE),
        ("model", "f shall return x.", "r1", "v1", "production", SUITE),
    ]
    assert len(set(rows(engine, t.requirements, "source_sha256"))) == 1
    assert sorted(rows(engine, t.feedback, "request_id", "rating"), key=str) == [("r1", -1), (None, 1)]


def test_posting_the_same_session_again_changes_nothing(engine):
    put(engine, BASE)
    score(engine)
    before = all_rows(engine)
    assert put(engine, copy.deepcopy(BASE)) == before[0][0][0]
    assert put(engine, replace(BASE, timestamp=None, user_id=None)) == before[0][0][0]
    assert all_rows(engine) == before


@pytest.mark.parametrize(
    "change",
    [
        {"requirements": "f shall do something else."},
        {"source_code": "def f(x): return 1 + x"},
        {"test_suite": {"kind": "cases", "cases": [{"call": "f", "args": [1], "expect": 2.0}]}},
        {"test_suite": None},
    ],
)
def test_a_changed_text_source_or_suite_clears_the_scores_that_rested_on_it(engine, change):
    first = put(engine, BASE)
    score(engine)
    before = rows(engine, t.conversations, "updated_at")
    assert put(engine, replace(BASE, **change)) == first
    scores = dict(rows(engine, t.requirements, "request_id", "test_pass_rate"))
    assert scores[None] is None
    assert scores["r1"] == (0.9 if "requirements" in change else None)
    assert len(rows(engine, t.reconstructions)) == sum(value is not None for value in scores.values())
    assert rows(engine, t.conversations, "updated_at") > before


def test_replacing_without_requirements_removes_the_accepted_row_and_keeps_the_answers(engine):
    put(engine, BASE)
    score(engine)
    put(engine, replace(BASE, messages=[{"role": "user", "content": "never mind"}], responses=()))
    assert sorted(rows(engine, t.requirements, "request_id")) == [("r1",), ("r2",)]


def test_a_later_rating_replaces_the_earlier_one(engine):
    put(engine, BASE)
    put(engine, replace(BASE, rating=-1, comment="no"))
    put(engine, replace(BASE, rating=None))
    assert ("s1", None, -1, "no") in rows(engine, t.feedback, "session_id", "request_id", "rating", "comment")
    assert len(rows(engine, t.feedback)) == 2


@pytest.mark.parametrize(
    "messages", [None, 7, "text", {}, [1, None, {"role": 3}], [{"content": "x"}], [[[]]]]
)
def test_content_that_is_no_conversation_is_stored_too(engine, messages):
    put(engine, Conversation("s1", messages))
    assert rows(engine, t.conversations, "content") == [(messages,)]
    assert rows(engine, t.requirements) == []


def test_what_postgresql_cannot_hold_is_replaced_and_counted(engine):
    bad = Conversation(
        "s1",
        [{"role": "user", "content": "a\x00b\ud800"}, {"role": "assistant", "content": "it shall stop\x00."}],
        metadata={"k\x00": float("nan"), "n": 3},
        responses=(ModelResponse("r1", "x\udfff"),),
        comment="\x00",
        rating=1,
    )
    put(engine, bad)
    assert rows(engine, t.conversations, "content")[0][0][0]["content"] == "a\ufffdb\ufffd"
    metadata = rows(engine, t.conversations, "metadata")[0][0]
    assert metadata == {"k\ufffd": "nan", "n": 3, "cleaned": {"nul": 4, "lone_surrogate": 2, "not_finite": 1}}
    assert ("accepted", "it shall stop\ufffd.") in rows(engine, t.requirements, "kind", "text")
    before = all_rows(engine)
    put(engine, bad)
    assert all_rows(engine) == before


def test_numbers_in_a_test_suite_keep_their_type(engine):
    cases = {"cases": [1, 1.0, 1e16, 1e-7, float("inf"), True, 10**30]}
    put(engine, replace(BASE, test_suite=cases))
    stored = rows(engine, t.requirements, "test_suite")[0][0]["cases"]
    assert stored == [1, 1.0, {"$float": "1e+16"}, 1e-7, {"$float": "inf"}, True, 10**30]
    assert [type(number) for number in stored] == [int, float, dict, float, dict, bool, int]


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"session_id": ""}, "session_id"),
        ({"session_id": "a\x00"}, "session_id"),
        ({"session_id": "x" * 513}, "session_id"),
        ({"session_id": 3}, "session_id"),
        ({"user_id": "\n"}, "user_id"),
        ({"timestamp": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001
        ({"rating": 2}, "rating"),
        ({"rating": True}, "rating"),
        ({"origin": "elsewhere"}, "origin"),
        ({"metadata": [1]}, "metadata"),
        ({"messages": deep(200)}, "deeper"),
        ({"messages": [{"role": object()}]}, "not JSON"),
        ({"messages": [10**5000]}, "not JSON"),
        ({"messages": ["x" * (5 * 2**20)]}, "MiB"),
        ({"responses": (ModelResponse("r1", "x", arm="left"),)}, "arm"),
        ({"responses": (ModelResponse("", "x"),)}, "request_id"),
    ],
)
def test_what_cannot_be_stored_is_rejected_in_one_line(engine, change, words):
    with pytest.raises(InputError, match=words) as caught:
        put(engine, replace(BASE, **change))
    assert "\n" not in str(caught.value)
    assert rows(engine, t.conversations) == []


def test_a_request_of_another_session_is_not_taken_over(engine):
    put(engine, BASE)
    with pytest.raises(InputError, match="belongs to another session"):
        put(engine, replace(BASE, session_id="s2"))
    assert len(rows(engine, t.conversations)) == 1


def test_an_erased_session_does_not_come_back(engine):
    put(engine, BASE)
    with engine.begin() as conn:
        conn.execute(t.conversations.update().values(erased_at=sa.func.now(), content=[], metadata={}))
    with pytest.raises(OperationNotAllowedError, match="erased"):
        put(engine, BASE)
    assert rows(engine, t.conversations, "content") == [([],)]


def test_concurrent_posts_of_one_session_leave_one_row(engine):
    failures = []

    def post(n):
        try:
            put(engine, replace(BASE, requirements=f"It shall be {n % 2}."))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=post, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(rows(engine, t.conversations)) == 1
    assert len(rows(engine, t.requirements)) == 3


SECRET = "zq7-Xw2!kd"


def secret_given_away_once() -> Conversation:
    """Only the source says that it is a password; everything else merely repeats it."""
    return replace(
        BASE,
        user_id="jane@example.org",
        requirements=f"It shall hide {SECRET}.",
        source_code=f"password = '{SECRET}'",
        metadata={SECRET: [SECRET], f"{SECRET} ": 1},
        messages=[{"role": "user", "content": SECRET}],
        test_suite={"cases": [{"args": [SECRET]}]},
        responses=(ModelResponse("r1", f"f shall take {SECRET}.", rating=1, comment=SECRET),),
        comment=SECRET,
    )


def test_a_secret_identified_in_one_place_is_replaced_in_all_of_them(engine):
    put(engine, secret_given_away_once())
    stored = str(all_rows(engine))
    assert SECRET not in stored and "jane" not in stored
    ((metadata, user),) = rows(engine, t.conversations, "metadata", "user_id")
    assert metadata["redacted"] == {"PASSWORD": 10} and metadata["redacted_in_suite"] == {"PASSWORD": 1}
    assert metadata["source_code"] == "password = '<PASSWORD>'"
    assert (metadata["<PASSWORD>"], metadata["<PASSWORD> "]) == (["<PASSWORD>"], 1)
    assert set(rows(engine, t.requirements, "kind", "text", "test_suite")[0][2]["cases"][0]["args"]) == {
        "<PASSWORD>"
    }
    assert user.startswith("user-")


def test_storing_a_redacted_conversation_again_changes_nothing(engine):
    put(engine, secret_given_away_once())
    before = all_rows(engine)
    put(engine, secret_given_away_once())
    assert all_rows(engine) == before


def test_redaction_can_be_switched_off(engine):
    put(engine, secret_given_away_once(), settings=load_settings(capture={"redact": False}))
    assert SECRET in str(all_rows(engine))
    assert rows(engine, t.conversations, "user_id") == [("jane@example.org",)]


@pytest.mark.parametrize(
    ("owner", "writer", "allowed"),
    [
        (("alice", "a"), ("alice", "a"), True),
        (("alice", "a"), ("alice", "b"), True),  # a user may have several tokens
        (("alice", "a"), ("bob", "a"), False),
        (("alice", "a"), (None, "a"), True),
        (("alice", "a"), (None, "b"), False),
        (("alice", "a"), (None, None), False),
        (("alice", None), (None, None), True),  # without tokens, nobody can be told from alice
        (("alice", None), (None, "a"), False),
        ((None, "a"), (None, "a"), True),
        ((None, "a"), ("alice", "a"), True),
        ((None, "a"), (None, "b"), False),
        ((None, "a"), ("alice", "b"), False),
        ((None, "a"), (None, None), False),
        ((None, None), (None, None), True),
        ((None, None), ("alice", None), True),
        ((None, None), (None, "a"), True),
    ],
)
def test_only_the_user_or_else_the_token_that_opened_a_session_writes_to_it(engine, owner, writer, allowed):
    put(engine, replace(BASE, user_id=owner[0], token_name=owner[1], responses=()))
    before = all_rows(engine)
    later = replace(BASE, user_id=writer[0], token_name=writer[1], requirements="It is theirs.", responses=())
    if allowed:
        put(engine, later)
        user_id, token_name = owner[0] or writer[0], owner[1] if owner != (None, None) else writer[1]
        assert rows(engine, t.conversations, "user_id", "token_name") == [(user_id, token_name)]
    else:
        with pytest.raises(SessionOwnershipError):
            put(engine, later)
        assert all_rows(engine) == before


def test_of_two_users_who_open_a_session_at_once_one_owns_it(engine):
    outcomes: list[str] = []

    def open_session(user: str) -> None:
        try:
            put(engine, replace(BASE, user_id=user, responses=()))
            outcomes.append(user)
        except SessionOwnershipError:
            outcomes.append("refused")

    threads = [threading.Thread(target=open_session, args=(f"user-{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [(owner,)] = rows(engine, t.conversations, "user_id")
    assert sorted(outcomes) == sorted([owner] + ["refused"] * 5)
