"""Checks of volume, content and spool: what fails, what warns, what passes (U4)."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from iccm_assets.capture import checks
from iccm_assets.capture.conversations import Conversation, upsert_conversation
from iccm_assets.db import tables as t

DAY = datetime(2026, 3, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("before", "yesterday", "passed", "error"),
    [
        ([30] * 14, 28, True, False),
        ([30] * 14, 5, False, False),
        ([30] * 14, 0, False, True),
        ([0] * 14, 0, True, True),
        ([3] * 14, 0, True, True),
        ([], 0, True, True),
        ([30] * 7 + [0] * 7, 0, False, True),
        ([0] * 9 + [12] * 5, 0, False, True),
    ],
)
def test_a_quiet_day_fails_only_where_days_usually_have_conversations(
    before, yesterday, passed, error
) -> None:
    result = checks.check_daily_volume(before, yesterday)
    assert result.passed is passed
    if not passed:
        assert (result.severity == "error") is error
    assert f"{yesterday} conversations yesterday" in result.description


def test_one_invalid_conversation_in_a_hundred_passes_and_three_are_named() -> None:
    assert checks.check_content(100, [7]).passed
    result = checks.check_content(100, [7, 8, 9])
    assert not result.passed and result.sample_ids == ("7", "8", "9")
    assert checks.check_content(0, []).passed


def test_a_dead_letter_is_an_error_and_a_pending_segment_a_warning() -> None:
    assert checks.check_spool(0, 0, 0).passed
    assert checks.check_spool(0, 100, 30).passed
    pending = checks.check_spool(0, 100, 3600)
    assert not pending.passed and pending.severity == "warning" and "3600 s" in pending.description
    rejected = checks.check_spool(2, 0, 0)
    assert not rejected.passed and rejected.severity == "error" and "dead_letters.jsonl" in rejected.recovery


def put(conn: sa.Connection, session: str, **more: object) -> int:
    values = {
        "session_id": session,
        "user_id": "u",
        "timestamp": DAY + timedelta(hours=5),
        "messages": [{"role": "user", "content": "hello"}],
        "origin": "gateway",
        **more,
    }
    return upsert_conversation(conn, Conversation(**values))


def test_conversations_are_counted_by_day_and_origin_including_empty_days(engine: sa.Engine) -> None:
    suite = {"kind": "cases", "cases": [{"call": "f", "args": [], "expect": 1}]}
    with engine.begin() as conn:
        put(conn, "a", requirements="It shall be.", test_suite=suite)
        put(conn, "b", origin="import", user_id="v")
        put(conn, "c", timestamp=DAY + timedelta(days=2, hours=23))
        first, empty, last = checks.load_daily_volumes(conn, DAY.date(), (DAY + timedelta(days=2)).date())
    assert (first.total, first.by_origin) == (2, {"gateway": 1, "import": 1})
    assert first.with_test_suite == 1 and first.users == 2
    assert (empty.total, empty.by_origin) == (0, {})
    assert [day.total for day in (first, empty, last)] == [2, 0, 1]


def test_content_without_messages_is_invalid_and_erased_rows_are_not_examined(
    engine: sa.Engine,
) -> None:
    c = t.conversations
    with engine.begin() as conn:
        put(conn, "fine")
        broken = [put(conn, f"b{n}") for n in range(5)]
        contents = ({"role": "user"}, [], ["x"], [{"role": "user", "content": 5}], "text")
        for id_, content in zip(broken, contents, strict=True):
            conn.execute(c.update().where(c.c.id == id_).values(content=content))
        erased = put(conn, "erased")
        conn.execute(c.update().where(c.c.id == erased).values(content=[], erased_at=DAY))
        scanned, invalid = checks.find_invalid_conversations(conn, DAY)
    assert scanned == 6 and sorted(invalid) == sorted(broken)


def test_the_spool_is_measured_by_its_oldest_segment(tmp_path: Path) -> None:
    assert checks.get_spool_state(tmp_path / "none") == (0, 0, 0.0)
    for replica, age in (("a", 10), ("b", 4000)):
        (tmp_path / replica).mkdir()
        segment = tmp_path / replica / "1.log"
        segment.write_bytes(b"x" * 50)
        os.utime(segment, (time.time() - age,) * 2)
    (tmp_path / "a" / "2.log").touch()
    (tmp_path / "dead_letters.jsonl").write_text("{}\n{}\n", encoding="utf-8")
    dead_letters, pending_bytes, oldest_seconds = checks.get_spool_state(tmp_path)
    assert (dead_letters, pending_bytes) == (2, 100)
    assert 3990 < oldest_seconds < 4300
