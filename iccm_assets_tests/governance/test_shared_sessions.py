"""Erasing a user leaves no byte of theirs, also where two users wrote to one session (C1, V2)."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.errors import InputError
from iccm_assets.gateway.dead_letters import append_dead_letter, dead_letters_path
from iccm_assets.gateway.spool import Spool, read_segment
from iccm_assets.governance.erasure import DataSubject, erase
from iccm_assets.governance.physical_erasure import erase_from_files
from iccm_assets_tests.factories.erasure_worlds import EMBEDDER, World, marker, traces
from iccm_assets_tests.factories.gateways import eventually, gateway

TOKENS = ("token-a-of-16-characters", "token-b-of-16-characters")


def url(world: World) -> str:
    return world.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)


def source(words: str) -> str:
    return f"def {words}_f(x):\n    return x + '{words}'\n"


def erased(world: World, user: str) -> list[int]:
    """Erase a user as the command does."""
    subject = DataSubject("user", user)
    done = erase(world.engine, subject, actor="test")
    erase_from_files(world.engine, world.settings, done.hashes, subject=subject, embedder=EMBEDDER)
    return list(done.conversations)


def test_no_byte_of_either_of_two_users_of_one_session_remains(own_world: World) -> None:
    """Through HTTP, under two tokens, at once; the losers' words are nowhere, the winners' go by erasure."""
    words = {"alice": marker("alice"), "bob": marker("bob")}
    with gateway(url(own_world), own_world.home, ICCM_GATEWAY__TOKENS=",".join(TOKENS)) as running:

        def write(session: str, user: str, token: str) -> httpx2.Response:
            body = {"source_code": source(words[user]), "session_id": session, "user_id": words[user]}
            suite = {"kind": "cases", "cases": [{"call": "f", "args": [words[user]], "expect": 1}]}
            headers = {"Authorization": f"Bearer {token}"}
            return running.client.post("/v1/requirements", json={**body, "tests": suite}, headers=headers)

        writers = list(zip(words, TOKENS, strict=True))
        with ThreadPoolExecutor() as pool:
            jobs = [pool.submit(write, f"s-{n}", *writer) for n in range(4) for writer in writers]
            assert sorted(job.result().status_code for job in jobs) == [200] * 4 + [409] * 4
        for user, token in writers:  # each has a session in any case, and comments on it
            response = write(f"own-{user}", user, token)
            feedback = {"request_id": response.json()["request_id"], "user_id": words[user], "rating": 1}
            posted = running.client.post(
                "/v1/feedback",
                json={**feedback, "comment": words[user]},
                headers={"Authorization": f"Bearer {token}"},
            )
            assert posted.status_code == 200
        eventually(lambda: count(own_world, "conversations") == 6 and count(own_world, "feedback") == 2)
        assert erased(own_world, words["alice"])
        assert traces(own_world.home, own_world.engine, words["alice"]) == []
        assert traces(own_world.home, own_world.engine, words["bob"]) != []
        assert erased(own_world, words["bob"])
        assert traces(own_world.home, own_world.engine, *words.values()) == []


def count(world: World, table: str) -> int:
    with world.engine.connect() as conn:
        return int(conn.execute(sa.text(f"select count(*) from iccm.{table}")).scalar_one())


@pytest.mark.parametrize("user", ["alice", "mallory"])
def test_a_session_that_was_taken_over_before_sessions_had_owners_is_erased_for_both(
    world: World, user: str
) -> None:
    content = [{"role": "user", "content": name} for name in ("alice's secret", "mallory's secret")]
    with world.engine.begin() as conn:
        conversation = t.conversations.insert().values(
            session_id="victim-2", user_id="mallory", origin="gateway", content=content
        )
        conn.execute(conversation)
        for name in ("alice", "mallory"):
            conn.execute(
                t.requests.insert().values(
                    request_id=f"r-{name}", session_id="victim-2", user_id=name, status="ok"
                )
            )
            conn.execute(
                t.requirements.insert().values(
                    session_id="victim-2", kind="model", request_id=f"r-{name}", text=f"{name}'s secret",
                    source_sha256=name,
                )
            )  # fmt: skip
            conn.execute(
                t.test_suites.insert().values(
                    source_sha256=name, origin="attached", digest="d", generator_version="1",
                    status="usable", suite=[name],
                )
            )  # fmt: skip
    assert len(erased(world, user)) == 1
    for table in ("conversations", "requirements", "requests", "test_suites"):
        with world.engine.connect() as conn:
            left = conn.execute(sa.text(f"select x::text from iccm.{table} x")).scalars().all()
        assert not any(f"{user}'s secret" in row or f"{user}," in row for row in left), table


def test_a_user_whose_id_holds_personal_data_is_found_by_it(world: World) -> None:
    from iccm_assets.capture.conversations import Conversation, upsert_conversation

    with world.engine.begin() as conn:
        content = [{"role": "user", "content": "secret"}]
        upsert_conversation(conn, Conversation("s-1", content, user_id="jane.doe@example.org"))
    assert len(erased(world, "jane.doe@example.org")) == 1


def test_records_of_an_erased_user_leave_the_spool(world: World) -> None:
    def record(user: str, session: str) -> dict[str, object]:
        return {"type": "request", "row": {"user_id": user, "session_id": session}, "text": f"{user}'s"}

    root: Path = world.home / "spool"
    dead = Spool(root, "dead-gateway", 1 << 20)
    for user in ("alice", "bob"):
        append_dead_letter(root, {**record(user, "shared"), "reason": "another owner"})
        dead.append(record(user, f"of-{user}"))
    dead.release()
    with world.engine.begin() as conn:
        values = {"request_id": "r", "user_id": "alice", "status": "ok"}
        conn.execute(t.requests.insert().values(values))
    erased(world, "alice")
    letters = [json.loads(line) for line in dead_letters_path(root).read_text().splitlines()]
    segments = [record for path in root.glob("*/*.log") for record in read_segment(path)]
    assert [letter["row"]["user_id"] for letter in letters] == ["bob"]
    assert [record["row"]["user_id"] for record in segments] == ["bob"]
    assert not any(b"alice" in path.read_bytes() for path in root.rglob("*") if path.is_file())


def test_erasing_an_unknown_user_says_that_there_is_none(world: World) -> None:
    with pytest.raises(InputError, match="there is no user 'nobody'"):
        erase(world.engine, DataSubject("user", "nobody"), actor="test")
