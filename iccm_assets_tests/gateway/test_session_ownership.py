"""A session belongs to the user, else the token, that opened it; nobody else writes to it (C1)."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from iccm_assets.capture.session_ownership import SessionOwner
from iccm_assets.gateway import session_owners
from iccm_assets.gateway.problem_details import ProblemDetail
from iccm_assets.gateway.session_owners import LOOKUP_TIMEOUT_SECONDS, SessionOwners
from iccm_assets.reporting.arm_metrics import load_arm_metrics
from iccm_assets_tests.factories.gateways import (
    SOURCE,
    RunningGateway,
    database_url,
    eventually,
    gateway,
    rows,
)

TOKEN_A, TOKEN_B = "token-a-of-16-characters", "token-b-of-16-characters"
# A busy database has time to answer: after a quarter of a second nobody is refused.
TOKENS: dict[str, Any] = {"ICCM_GATEWAY__TOKENS": f"{TOKEN_A},{TOKEN_B}", "lookup_seconds": 20}
NAME_A = "token-1cc65d33"
SUITE = {"kind": "cases", "cases": [{"call": "add", "args": [1, 2], "expect": 3}]}
CONVERSATION = "select * from iccm.conversations where session_id = :s"


@pytest.fixture(scope="module")
def guarded(url: str, home: Path) -> Iterator[RunningGateway]:
    """A gateway with two tokens."""
    with gateway(url, home / "guarded", **TOKENS) as running:
        yield running


def post(running: RunningGateway, path: str, token: str = TOKEN_A, **body: object) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {token}"}
    return running.client.post(path, json=body, headers=headers)


def ask(running: RunningGateway, session: str, token: str = TOKEN_A, **body: object) -> httpx2.Response:
    return post(running, "/v1/requirements", token, **{"source_code": SOURCE, "session_id": session, **body})


def complete(running: RunningGateway, session: str, token: str = TOKEN_A, **body: object) -> httpx2.Response:
    messages = [{"role": "user", "content": SOURCE}, {"role": "assistant", "content": "It shall add."}]
    return post(running, "/v1/conversations", token, session_id=session, messages=messages, **body)


def assert_refused(response: httpx2.Response, *secrets: str) -> None:
    assert response.status_code == 409, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert not any(secret in response.text for secret in secrets)


def everything(engine: sa.Engine) -> list[str]:
    """All rows of sessions, as text."""
    tables = ("conversations", "requirements", "requests", "feedback")
    return [str(row[0]) for table in tables for row in rows(engine, f"select t::text from iccm.{table} t")]


def stored(engine: sa.Engine, session: str) -> sa.Row:
    return eventually(lambda: rows(engine, CONVERSATION, s=session), what="never stored")[0]


def test_another_user_of_the_same_token_cannot_write_to_a_session(guarded, engine):
    session = "alices"
    request = ask(guarded, session, user_id="alice", tests=SUITE).json()["request_id"]
    stored(engine, session)
    assert complete(guarded, session, user_id="alice", requirements="It shall add two numbers.").is_success
    before = everything(engine)
    for response in (
        ask(guarded, session, user_id="mallory", source_code="def mallory(): ...\n"),
        complete(guarded, session, user_id="mallory", requirements="It shall do what mallory says."),
        post(guarded, "/v1/feedback", request_id=request, user_id="mallory", rating=-1),
        post(guarded, "/v1/feedback", session_id=session, user_id="mallory", rating=-1),
    ):
        assert_refused(response, session, "alice")
    time.sleep(0.5)  # the spool would have been stored by now
    assert everything(engine) == before


def test_the_gateway_that_never_met_the_session_refuses_as_well(guarded, engine, url, home):
    ask(guarded, "met-elsewhere", user_id="alice")
    stored(engine, "met-elsewhere")
    with gateway(url, home / "other", **TOKENS) as other:
        assert_refused(ask(other, "met-elsewhere", user_id="mallory"))
        assert_refused(complete(other, "met-elsewhere", user_id="mallory"))
        assert_refused(post(other, "/v1/feedback", session_id="met-elsewhere", user_id="mallory", rating=1))
        assert ask(other, "met-elsewhere", user_id="alice").status_code == 200


def test_a_user_keeps_the_session_under_another_token(guarded, engine):
    assert ask(guarded, "moved", TOKEN_A, user_id="alice").status_code == 200
    assert ask(guarded, "moved", TOKEN_B, user_id="alice").status_code == 200
    assert complete(guarded, "moved", TOKEN_B, user_id="alice").status_code == 200
    row = stored(engine, "moved")
    assert (row.user_id, row.token_name) == ("alice", NAME_A)


def test_a_session_without_a_user_belongs_to_its_token(guarded, engine):
    request = ask(guarded, "tokens").json()["request_id"]
    assert ask(guarded, "tokens").status_code == 200
    row = stored(engine, "tokens")
    assert (row.user_id, row.token_name) == (None, NAME_A)
    for body in ({"request_id": request}, {"session_id": "tokens"}):
        assert_refused(post(guarded, "/v1/feedback", TOKEN_B, rating=-1, **body), "tokens")
        assert post(guarded, "/v1/feedback", TOKEN_A, rating=1, **body).status_code == 200
    assert_refused(ask(guarded, "tokens", TOKEN_B))
    assert_refused(ask(guarded, "tokens", TOKEN_B, user_id="alice"))
    assert_refused(complete(guarded, "tokens", TOKEN_B, user_id="alice"))
    # Its user may name himself later; from then on it is his.
    assert ask(guarded, "tokens", user_id="bob").status_code == 200
    assert_refused(ask(guarded, "tokens", user_id="carol"))


def test_a_session_opened_by_nobody_takes_its_first_name(served, engine):
    assert served.request("nobodys").status_code == 200
    assert served.request("nobodys", user_id="alice").status_code == 200
    assert_refused(served.request("nobodys", user_id="mallory"))
    assert served.request("nobodys").status_code == 200  # nobody can be told from alice without a token
    owner = "select user_id from iccm.conversations where session_id = 'nobodys'"
    assert eventually(lambda: [row.user_id for row in rows(engine, owner)] == ["alice"])


def test_a_client_that_names_nobody_does_not_learn_the_session_of_a_user(served):
    request = served.request("alices-own", user_id="alice").json()["request_id"]
    for body, session in (
        ({"request_id": request}, None),
        ({"request_id": request, "user_id": "alice"}, "alices-own"),
        ({"session_id": "alices-own"}, "alices-own"),
    ):
        response = served.client.post("/v1/feedback", json={**body, "rating": 1})
        assert response.status_code == 200 and response.json()["session_id"] == session


def test_a_request_id_of_another_token_gets_neither_its_response_nor_its_session(guarded):
    first = ask(guarded, "s-repeated", request_id="repeated")
    assert ask(guarded, "s-repeated", request_id="repeated").json() == first.json()
    body = {"source_code": SOURCE, "request_id": "repeated"}
    assert_refused(post(guarded, "/v1/requirements", TOKEN_B, **body), "s-repeated")
    assert_refused(ask(guarded, "s-repeated", TOKEN_B, request_id="repeated"), "s-repeated")
    unknown = post(guarded, "/v1/feedback", TOKEN_B, request_id="repeated", session_id="guessed", rating=1)
    assert unknown.status_code in {404, 409} and "s-repeated" not in unknown.text


def test_metadata_of_a_client_never_keeps_the_next_response_from_being_stored(guarded, engine):
    for number, counts in enumerate((5, "abc", [1, [2]], {"EMAIL": "x"}, {"EMAIL": {"a": 1}}, None)):
        session = f"counted-{number}"
        assert ask(guarded, session, metadata={"redacted": counts}).status_code == 200
        stored(engine, session)
        assert ask(guarded, session, source_code="def two(): return 'a@b.org'\n").status_code == 200
        row = eventually(
            lambda name=session: [r for r in rows(engine, CONVERSATION, s=name) if len(r.content) == 4]
        )
        assert row[0].metadata["redacted"] == {"EMAIL": 1}


def test_a_request_id_used_again_elsewhere_rates_no_response_of_another_session(guarded, engine, url, home):
    def rate_and_read(running: RunningGateway, token: str, session: str, rating: int) -> tuple[int, int]:
        body = {"request_id": "used-again", "session_id": session, "rating": rating}
        assert post(running, "/v1/feedback", token, **body).status_code == 200
        query = "select 1 from iccm.feedback where session_id = :s"
        eventually(lambda: rows(engine, query, s=session), what="never stored")
        with engine.connect() as conn:
            since = datetime(2000, 1, 1, tzinfo=UTC)
            metrics = load_arm_metrics(conn, since)
        return sum(arm.thumbs_up for arm in metrics), sum(arm.thumbs_down for arm in metrics)

    ask(guarded, "used-first", request_id="used-again")
    stored(engine, "used-first")
    up, down = rate_and_read(guarded, TOKEN_A, "used-first", 1)
    with gateway(url, home / "again", **TOKENS) as other:
        assert ask(other, "used-second", TOKEN_B, request_id="used-again").status_code == 200
        assert rate_and_read(other, TOKEN_B, "used-second", -1) == (up, down)


def test_of_two_users_who_write_at_once_exactly_one_owns_the_session(guarded, engine):
    sessions = [f"race-{number}" for number in range(12)]

    def write(session: str, user: str, token: str) -> tuple[str, str, int]:
        source = f"def of_{user}(): ...\n"
        return session, user, ask(guarded, session, token, user_id=user, source_code=source).status_code

    with ThreadPoolExecutor(max_workers=8) as pool:
        jobs = [
            pool.submit(write, session, user, token)
            for session in sessions
            for user, token in (("alice", TOKEN_A), ("bob", TOKEN_B))
        ]
        outcomes = [job.result() for job in jobs]
    for session in sessions:
        by_status = {status: user for name, user, status in outcomes if name == session}
        assert by_status.keys() == {200, 409}
        row = stored(engine, session)
        assert row.user_id == by_status[200] and f"of_{by_status[409]}" not in str(row.content)


def test_two_gateways_at_once_agree_when_the_responses_are_stored(fresh, tmp_path):
    hold, url = tmp_path / "hold", database_url(fresh)
    with (
        gateway(url, tmp_path / "one", hold=hold, **TOKENS) as left,
        gateway(url, tmp_path / "two", hold=hold, **TOKENS) as right,
        ThreadPoolExecutor() as pool,
    ):
        hold.touch()  # both accept the request before either response exists
        jobs = {
            user: pool.submit(ask, running, "both", user_id=user, source_code=f"def of_{user}(): ...\n")
            for running, user in ((left, "alice"), (right, "bob"))
        }
        time.sleep(1.0)
        hold.unlink()
        assert [job.result().status_code for job in jobs.values()] == [200, 200]
        dead = [tmp_path / name / "spool" / "dead_letters.jsonl" for name in ("one", "two")]
        [path] = eventually(lambda: [path for path in dead if path.exists()], what="nothing was refused")
        owner = stored(fresh, "both").user_id
        running, loser = (left, "alice") if path == dead[0] else (right, "bob")
        assert {owner, loser} == {"alice", "bob"}
        [letter] = map(json.loads, path.read_text().splitlines())
        assert letter["row"]["user_id"] == loser and "another user or token" in letter["reason"]
        assert not any(f"of_{loser}" in row for row in everything(fresh))
        # The request itself is counted, of no session; its gateway knows better from now on.
        query = "select session_id, status from iccm.requests where user_id = :u"
        assert [tuple(row) for row in rows(fresh, query, u=loser)] == [(None, "ok")]
        assert_refused(ask(running, "both", user_id=loser))
        assert ask(running, "both", user_id=owner).status_code == 200


def test_a_database_that_does_not_answer_delays_a_request_by_no_more_than_the_timeout():
    released = threading.Event()

    def hang(sessions):
        released.wait(60)
        return {}

    async def check() -> list[float]:
        owners, seconds = SessionOwners(hang), []
        for number in range(5):
            started = time.monotonic()
            await owners.check(f"s-{number}", SessionOwner("alice"))
            seconds.append(time.monotonic() - started)
        released.set()
        with pytest.raises(ProblemDetail):
            await owners.check("s-1", SessionOwner("mallory"))
        return seconds

    first, *others = asyncio.run(check())
    assert LOOKUP_TIMEOUT_SECONDS <= first < 30 and min(others) < first / 5


def test_a_database_that_fails_refuses_nobody_and_is_read_again():
    answers = iter([RuntimeError("away"), {"s-2": SessionOwner("alice")}])

    def load(sessions):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def check() -> None:
        owners = SessionOwners(load)
        await owners.check("s-1", SessionOwner("mallory"))
        with pytest.raises(ProblemDetail):
            await owners.check("s-2", SessionOwner("mallory"))
        await owners.check("s-2", SessionOwner("alice"))

    asyncio.run(check())


def test_owners_of_many_sessions_are_read_by_few_queries(monkeypatch):
    monkeypatch.setattr(session_owners, "LOOKUP_TIMEOUT_SECONDS", 60.0)
    queries: list[int] = []

    def load(sessions):
        queries.append(len(sessions))
        time.sleep(0.02)
        return {}

    async def check() -> None:
        owners = SessionOwners(load)
        await asyncio.gather(*(owners.check(f"s-{n}", SessionOwner("alice")) for n in range(200)))
        await asyncio.gather(*(owners.check(f"s-{n}", SessionOwner("alice")) for n in range(200)))

    asyncio.run(check())
    assert sum(queries) == 200 and len(queries) <= 3
