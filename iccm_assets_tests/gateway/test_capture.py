"""Stored traffic: requests, responses, one conversation per session, completions, ratings (C1, C2)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from iccm_assets_tests.factories.gateways import SOURCE, database_url, eventually, gateway, rows

MODEL = "from iccm.requirements where kind = 'model' and session_id = :s"
ACCEPTED = "select * from iccm.requirements where kind = 'accepted' and session_id = :s"
CONVERSATION = "select * from iccm.conversations where session_id = :s"
FEEDBACK = "select * from iccm.feedback where session_id = :s"
REQUEST = "select * from iccm.requests where session_id = :s"
SUITE = {"kind": "cases", "cases": [{"call": "add", "args": [1, 2], "expect": 3}]}


def test_a_response_is_stored_with_its_request_and_extends_the_conversation(served, engine):
    first = served.request("s-1", user_id="u-1", tests=SUITE).json()
    assert first["requirements"].startswith("The function `add` shall")
    assert (first["session_id"], first["model_version"], first["arm"]) == ("s-1", "v1", "production")
    served.request("s-1", source_code="def sub(a, b):\n    return a - b\n")
    stored = eventually(lambda: len(rows(engine, f"select {MODEL}", s="s-1")) == 2)
    assert stored
    [row] = rows(engine, CONVERSATION, s="s-1")
    assert [message["role"] for message in row.content] == ["user", "assistant"] * 2
    assert row.content[0]["content"] == SOURCE and row.user_id == "u-1" and row.origin == "gateway"
    with_tests, without = rows(engine, f"select * {MODEL} order by id", s="s-1")
    assert with_tests.test_suite == SUITE and without.test_suite is None
    assert with_tests.source_sha256 != without.source_sha256 and with_tests.conversation_id == row.id
    # The accepted text is the response about the second source; the first source's tests do not belong to it.
    [accepted] = rows(engine, ACCEPTED, s="s-1")
    assert accepted.source_sha256 == without.source_sha256 and accepted.test_suite is None
    request = rows(engine, "select * from iccm.requests where request_id = :id", id=first["request_id"])[0]
    assert (request.status, request.arm, request.assigned_arm, request.output_tokens) == (
        "ok", "production", "production", 12,
    )  # fmt: skip


def test_a_response_is_cleaned_before_it_is_sent_so_that_it_can_be_stored(fresh, tmp_path):
    cleaned = "v1 shall hold a NUL \ufffd and half a pair \ufffd."
    with gateway(database_url(fresh), tmp_path, faults={"v1": "unstorable"}) as running:
        response = running.request("s-u")
        assert (response.status_code, response.json()["requirements"]) == (200, cleaned)
        assert eventually(lambda: rows(fresh, f"select text {MODEL}", s="s-u"))[0][0] == cleaned
        messages = [{"role": "user", "content": SOURCE}, {"role": "assistant", "content": cleaned}]
        body = {"session_id": "s-u", "messages": messages, "requirements": cleaned}
        assert running.client.post("/v1/conversations", json=body).status_code < 300


def test_secrets_do_not_reach_the_database(served, engine):
    secret = "AKIAQ3EGVWTNPZ5RXK7M"
    source = f"KEY = '{secret}'\n# mail jane.doe@example.com\n"
    response = served.request("s-2", source_code=source, user_id="jane.doe@example.com")
    assert response.status_code == 200
    eventually(lambda: rows(engine, REQUEST, s="s-2"))
    everything = rows(engine, "select c::text from iccm.conversations c") + rows(
        engine, "select r::text from iccm.requests r"
    )
    assert not any(secret in row[0] or "jane.doe" in row[0] for row in everything)


def test_completing_a_session_replaces_the_conversation_and_keeps_its_tests(served, engine):
    request = served.request("s-3", tests=SUITE).json()["request_id"]
    eventually(lambda: rows(engine, REQUEST, s="s-3"))
    yesterday = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    body = {
        "session_id": "s-3",
        "messages": [
            {"role": "user", "content": "please"},
            {"role": "assistant", "content": "It shall add."},
        ],
        "requirements": "The function `add` shall return the sum of its arguments.",
        "rating": 1,
        "timestamp": yesterday,
    }
    first = served.client.post("/v1/conversations", json=body)
    again = served.client.post("/v1/conversations", json={**body, "rating": -1})
    assert first.status_code == 200 and first.json() == again.json()
    [row] = rows(engine, CONVERSATION, s="s-3")
    assert row.id == first.json()["conversation_id"] and len(row.content) == 2
    assert row.timestamp == datetime.fromisoformat(yesterday)
    [accepted] = rows(engine, ACCEPTED, s="s-3")
    assert accepted.text == body["requirements"] and accepted.test_suite == SUITE
    assert [row.rating for row in rows(engine, FEEDBACK, s="s-3")] == [-1]
    # A later request of the session is stored and does not undo the completion.
    served.request("s-3", request_id="later")
    eventually(lambda: rows(engine, "select from iccm.requirements where request_id = 'later'"))
    assert len(rows(engine, CONVERSATION, s="s-3")[0].content) == 2
    assert rows(engine, "select conversation_id from iccm.requirements where request_id = :id", id=request)


def test_an_unknown_session_can_be_completed_but_not_in_the_future(served, engine):
    body = {"session_id": "late", "messages": [{"role": "user", "content": "hello"}]}
    assert served.client.post("/v1/conversations", json=body).status_code == 200
    future = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    rejected = served.client.post("/v1/conversations", json={**body, "timestamp": future})
    assert rejected.status_code == 422 and "later than now" in rejected.json()["detail"]
    naive = served.client.post("/v1/conversations", json={**body, "timestamp": "2026-03-01T12:00:00"})
    assert naive.status_code == 422


def test_a_repeated_request_id_gets_the_same_response_and_is_stored_once(served, engine):
    first, again = served.request("s-4", request_id="r-1"), served.request("s-4", request_id="r-1")
    assert first.json() == again.json()
    other = served.request("s-4", request_id="r-1", source_code="pass\n")
    assert other.status_code == 409
    eventually(lambda: rows(engine, "select from iccm.requests where request_id = 'r-1'"))
    assert len(rows(engine, "select from iccm.requirements where request_id = 'r-1'")) == 1


def test_a_rating_is_recorded_at_once_and_one_of_an_unknown_session_is_rejected(served, engine):
    request = served.request("s-5").json()["request_id"]
    for rating in (1, -1):
        response = served.client.post("/v1/feedback", json={"request_id": request, "rating": rating})
        assert response.json() == {"session_id": "s-5", "request_id": request}
    stored = eventually(lambda: rows(engine, f"{FEEDBACK} and rating = -1", s="s-5"))
    assert (stored[0].session_id, stored[0].request_id) == ("s-5", request)
    assert len(rows(engine, FEEDBACK, s="s-5")) == 1
    unknown = served.client.post("/v1/feedback", json={"session_id": "nobody", "rating": 1})
    assert unknown.status_code == 404 and unknown.headers["content-type"] == "application/problem+json"


def test_an_erased_session_is_not_recorded_again(served, engine):
    from iccm_assets.capture.conversations import erased_session_key

    with engine.begin() as conn:
        conn.exec_driver_sql(
            "insert into iccm.conversations (session_id, origin, erased_at)"
            " values (%s, 'gateway', iccm.now())",
            (erased_session_key("gone"),),
        )
    assert served.request("gone").status_code == 200
    served.request("kept")
    eventually(lambda: rows(engine, "select from iccm.requests where session_id = 'kept'"))
    assert not rows(engine, "select from iccm.requests where session_id = 'gone'")
    rejected = served.client.post("/v1/conversations", json={"session_id": "gone", "messages": []})
    assert rejected.status_code == 410


def test_tests_sent_on_completion_are_added_to_the_responses_about_that_source(served, engine) -> None:
    served.request("s-late")
    served.request("s-late", source_code="def sub(a, b):\n    return a - b\n")
    eventually(lambda: len(rows(engine, "select from iccm.requests where session_id = 's-late'")) == 2)
    completed = served.client.post(
        "/v1/conversations",
        json={
            "session_id": "s-late",
            "messages": [{"role": "user", "content": "?"}],
            "requirements": "add shall return the sum of a and b.",
            "source_code": SOURCE,
            "tests": SUITE,
        },
    )
    assert completed.status_code == 200
    stored = rows(
        engine,
        """
        select kind, test_suite from iccm.requirements where session_id = 's-late' order by kind, id
        """,
    )
    assert [(kind, suite is not None) for kind, suite in stored] == [
        ("accepted", True), ("model", True), ("model", False),
    ]  # fmt: skip
