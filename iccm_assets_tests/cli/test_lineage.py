"""`iccm lineage` and `iccm status` as text and as JSON."""

from __future__ import annotations

import json

import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.db.clock import now
from iccm_assets.errors import InputError, VersionNotFoundError
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.commands import Run
from iccm_assets_tests.factories.platform_rows import conversation, training_run, version


@pytest.fixture
def history(platform: Settings, engine: sa.Engine) -> Settings:
    """A platform with a base, a production version trained on 1 to 3, and a rejected candidate."""
    with engine.begin() as conn:
        today = now(conn)
        for number in range(1, 6):
            conversation(conn, number, at=today, user=f"u{number}")
        version(conn, "v1-base", status="retired")
        version(conn, "v2-good", "v1-base", status="production")
        version(conn, "v3-bad", "v2-good", status="gate_failed")
        training_run(conn, 1, "v2-good", examples={1: "new", 2: "new", 3: "validation"}, improvement=0.031)
        training_run(
            conn, 2, "v3-bad", examples={4: "new"}, status="gate_failed", notes="asked\n[gate] fell by 0.1"
        )
        values = {
            "version": "v2-good",
            "production_version": "v1-base",
            "status": "pass",
            "improvement": 0.031,
        }
        digests = {"canary_set_digest": "c", "orchestra": "o", "judge_version": "j"}
        verdict = {"reasons": ["improvement: +0.0310 [240 items]"]}
        conn.execute(t.gate_verdicts.insert().values(**values, **digests, verdict=verdict))
        event = {"event_type": "promoted", "version": "v2-good", "weight": 1.0, "actor": "user:ann"}
        conn.execute(t.deployment_events.insert().values(**event, to_state="production"))
    return platform


def test_a_version_is_traced_to_its_conversations(run: Run, history: Settings) -> None:
    for name in ("v2-good", "production", "digest-v2"):
        lineage = json.loads(run("lineage", name, "--json").stdout)
        assert lineage["version"] == "v2-good"
    assert [row["conversation_id"] for row in lineage["conversations"]] == [1, 2, 3]
    assert lineage["roles"] == {"new": 2, "validation": 1}
    assert [row["version"] for row in lineage["ancestry"]] == ["v2-good", "v1-base"]
    printed = run("lineage", "production").stdout
    assert "2 new, 1 validation; evidence: 3 cases" in printed
    assert lineage["evidence"] == {"cases": 3}
    assert {(row["evidence"], row["test_suite_origin"]) for row in lineage["conversations"]} == {
        ("cases", "attached")
    }
    assert "improvement: +0.0310 [240 items]" in printed
    assert "user:ann" in printed


def test_a_conversation_is_traced_to_its_versions(run: Run, history: Settings) -> None:
    lineage = json.loads(run("lineage", "--conversation", "1", "--json").stdout)
    assert [row["version"] for row in lineage["versions"]] == ["v2-good", "v3-bad"]
    assert "in the training pool" in run("lineage", "--conversation", "1").stdout
    assert "No version was trained on it." in run("lineage", "--conversation", "5").stdout


def test_a_conversation_of_a_day_that_was_not_run_is_not_called_rejected(
    run: Run, history: Settings, engine: sa.Engine
) -> None:
    values = {"session_id": "s-new", "origin": "import", "id": 78}
    rejection = {"conversation_id": 78, "stage": "filter", "reason": "no_test_suite"}
    with engine.begin() as conn:
        conn.execute(t.conversations.insert().values(**values, timestamp=now(conn)))
        day = now(conn).date()
    assert "not scored, not filtered yet, not in the pool" in run("lineage", "--conversation", "78").stdout
    with engine.begin() as conn:
        conn.execute(t.phase4_rejections.insert().values(**rejection, day=day))
    assert "not scored, did not pass the filter" in run("lineage", "--conversation", "78").stdout


def test_a_conversation_says_on_what_suite_it_was_scored(
    run: Run, history: Settings, engine: sa.Engine
) -> None:
    evidence = {"kind": "pytest", "suite": "weak", "strength": 0.25, "reason": "a stub passes [it]"}
    suite = {"kind": "pytest", "files": {}}
    with engine.begin() as conn:
        number = 77
        values = {"session_id": "s-weak", "origin": "import", "timestamp": now(conn), "id": number}
        conn.execute(t.conversations.insert().values(values))
        conn.execute(
            t.requirements.insert().values(
                session_id="s-weak", conversation_id=number, kind="accepted", text="x", test_suite=suite,
                test_suite_origin="collected", evidence=evidence, scored_at=now(conn),
            )
        )  # fmt: skip
    printed = run("lineage", "--conversation", str(number)).stdout
    assert "collected test suite of kind pytest, the weaker evidence, weak, strength 0.25" in printed
    assert "a stub passes [it]" in printed and "not scored" in printed
    lineage = json.loads(run("lineage", "--session", "s-weak", "--json").stdout)
    names = ("evidence", "test_suite_origin", "suite_status", "suite_strength", "inconclusive_reason")
    assert [lineage[name] for name in names] == ["pytest", "collected", "weak", 0.25, "a stub passes [it]"]


def test_the_first_rows_are_listed_and_all_of_them_on_request(
    run: Run, history: Settings, engine: sa.Engine
) -> None:
    with engine.begin() as conn:
        for number in range(6, 40):
            conversation(conn, number, at=now(conn))
            example = {"training_run_id": 1, "conversation_id": number, "role": "rehearsal"}
            conn.execute(t.training_run_examples.insert().values(**example))
    printed = run("lineage", "production").stdout
    assert "Rehearsed: 34 conversations, the first 10 (--all lists all 34)" in printed
    assert " s15 " in printed and " s39 " not in printed
    assert " s39 " in run("lineage", "production", "--all").stdout


def test_nothing_is_truncated_in_a_narrow_terminal(
    run: Run, history: Settings, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    reason = "forced by a person: " + "the release of the reader for the new domain cannot wait " * 3
    event = {
        "event_type": "forced",
        "version": "v2-good",
        "weight": 1.0,
        "actor": "user:ann",
        "notes": reason,
    }
    with engine.begin() as conn:
        conn.execute(t.deployment_events.insert().values(**event, to_state="production"))
    printed = run("lineage", "production").stdout
    assert f"forced v2-good at 100% - → production by user:ann: {reason}" in printed
    assert "…" not in printed
    for arguments in (("lineage", "production"), ("lineage", "--conversation", "1"), ("status",)):
        table_lines = [line for line in run(*arguments).stdout.splitlines() if "  " in line]
        assert table_lines and max(len(line) for line in table_lines if reason not in line) <= 80


def test_a_session_is_traced_like_its_conversation(run: Run, history: Settings) -> None:
    by_session = json.loads(run("lineage", "--session", "s1", "--json").stdout)
    assert by_session == json.loads(run("lineage", "--conversation", "1", "--json").stdout)
    assert [row["how"] for row in by_session["versions"]] == ["directly", "inherited"]


def test_invalid_arguments_are_reported_in_one_line(run: Run, history: Settings) -> None:
    with pytest.raises(InputError, match="either a VERSION or --conversation ID or --session ID"):
        run("lineage")
    with pytest.raises(InputError, match="either a VERSION or --conversation ID or --session ID"):
        run("lineage", "production", "--conversation", "1")
    with pytest.raises(InputError, match="no conversation 99"):
        run("lineage", "--conversation", "99")
    with pytest.raises(VersionNotFoundError, match=r"'v9'. There are: v3-bad, v2-good, v1-base\."):
        run("lineage", "v9")


def test_status_shows_production_retrains_and_days(run: Run, history: Settings) -> None:
    status = json.loads(run("status", "--json").stdout)
    assert status["production"]["version"] == "v2-good"
    assert [row["status"] for row in status["retrains"]] == ["gate_failed", "gate_passed"]
    assert status["rows"]["conversations"] == 5
    assert (status["days"][0]["captured"], status["days"][0]["filtered"], status["days"][0]["pool"]) == (
        5,
        5,
        5,
    )
    assert len(status["days"]) == 7
    assert status["selectable"]["examples"] == 2
    assert status["rollout"] is None
    printed = run("status").stdout
    assert "v2-good is in production" in printed
    assert "[gate] fell by 0.1" in printed
    assert "2 of 50 new examples for the weekly retrain: selected 2 of 2 new rows" in printed
    assert "with 2 users no cap applies" in " ".join(printed.split())


def test_status_of_an_empty_platform_is_not_an_error(run: Run, platform: Settings) -> None:
    status = json.loads(run("status", "--json").stdout)
    assert (status["production"], status["days"], status["retrains"]) == (None, [], [])
    assert "No version in production yet." in run("status").stdout
    with pytest.raises(VersionNotFoundError, match="no version in production yet"):
        run("lineage", "production")
