"""Live scoring: evidence first, each answer once, nothing stays pending forever (R11, U2)."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.errors import InputError
from iccm_assets.reporting.arm_metrics import load_arm_metrics
from iccm_assets.scoring import scoring_pass
from iccm_assets.scoring.live_scoring import score_live_responses
from iccm_assets.scoring.orchestra import LocalReconstructor, Orchestra, Reconstruction
from iccm_assets.scoring.scoring_queue import (
    claim_rows,
    count_rows,
    unscored_live_responses,
    unscored_requirements,
)
from iccm_assets.settings import Settings
from iccm_assets.suites.suite_runner import JUDGE_VERSION
from iccm_assets_tests.factories.scorable_rows import (
    NOW,
    SOURCE,
    load_model_rows,
    make_orchestra,
    make_text,
    put_conversation,
    serve_request,
)


class UnavailableMember:
    """A member that does not answer until ``available`` is set."""

    name = identity = "unavailable"
    available = False

    def reconstruct(self, requirements: str) -> Reconstruction:
        return (
            Reconstruction(self.name, "answered", SOURCE)
            if self.available
            else Reconstruction(self.name, "missing")
        )


@pytest.fixture
def rollout(engine: sa.Engine) -> int:
    with engine.begin() as conn:
        for version, status in (("v1", "production"), ("v2", "canary")):
            conn.execute(
                t.model_versions.insert().values(version=version, status=status, digest=version, path=version)
            )
        opened = t.rollouts.insert().values(candidate="v2", production="v1", weight=0.5)
        return int(conn.execute(opened.returning(t.rollouts.c.id)).scalar_one())


def test_gateway_answers_are_scored_on_their_tests_or_on_a_recorded_suite(
    engine: sa.Engine, settings: Settings
) -> None:
    serve_request(engine, settings, "with", "s1")
    serve_request(engine, settings, "without", "s2", tests=None)
    put_conversation(engine, settings, "not live")
    assert count_rows(engine, unscored_live_responses()) == 1
    progress: list[int] = []
    report = score_live_responses(engine, make_orchestra(), settings, progress=progress.append)
    assert (report.scored.scored, report.scored.inconclusive, report.remaining, sum(progress)) == (2, 0, 0, 2)
    rows = load_model_rows(engine)
    assert [rows[name].test_suite_origin for name in ("with", "without")] == ["attached", "recorded"]
    row = rows["with"]
    assert (row.test_pass_rate, row.implementation_variance, row.api_compatibility) == (1.0, 0.0, 1.0)
    assert row.scored_at is not None and row.judge_version == JUDGE_VERSION
    assert count_rows(engine, unscored_requirements()) == 2  # accepted texts are scored by the daily pass
    again = score_live_responses(engine, make_orchestra(), settings).scored
    assert (again.scored, again.inconclusive, again.invalid_suites) == (0, 0, 0)


def test_first_answers_of_sessions_come_first_and_those_of_the_live_rollout_before_others(
    engine: sa.Engine, settings: Settings, rollout: int
) -> None:
    serve_request(engine, settings, "early", "a", minutes_ago=30)
    serve_request(engine, settings, "live-1", "b", rollout=rollout, minutes_ago=20)
    serve_request(engine, settings, "live-1-again", "b", rollout=rollout, minutes_ago=19)
    serve_request(engine, settings, "untested", "c", rollout=rollout, tests=None, minutes_ago=18)
    serve_request(engine, settings, "live-2", "c", rollout=rollout, arm="canary", minutes_ago=17)
    serve_request(engine, settings, "early-again", "a", minutes_ago=16)
    requests: list[str] = []
    score_live_responses(engine, make_orchestra(requests.append), settings)
    order = list(dict.fromkeys(text.split("number ")[1].rstrip(".") for text in requests))
    assert order == ["live-1", "untested", "early", "live-1-again", "live-2", "early-again"]


@pytest.mark.parametrize("text", ["", " \n", "\u200b\ufeff\u00a0", "\u2800\u3164\n"])
def test_a_blank_answer_scores_zero_and_no_member_is_asked(
    engine: sa.Engine, settings: Settings, text: str
) -> None:
    serve_request(engine, settings, "r", "s", text=text)
    requests: list[str] = []
    report = score_live_responses(engine, make_orchestra(requests.append), settings)
    row = load_model_rows(engine)["r"]
    assert (row.test_pass_rate, row.implementation_variance, row.api_compatibility) == (0.0, 0.0, 0.0)
    assert row.scored_at is not None and not requests
    assert (report.scored.scored, report.scored.answers["unreadable"], report.remaining) == (1, 2, 0)


@pytest.mark.parametrize(
    "text",
    [
        "1. The function `f` MUST return twice its argument.",
        "Die Funktion `f` muss das Doppelte liefern.",
        "Scenario: doubling\n  When f is called with 3\n  Then the result is 6",
        "f(x) = 2x",
        "I cannot help with that.",
        "x",
    ],
)
def test_an_answer_that_is_not_blank_is_scored_by_the_orchestra_whatever_its_wording(
    engine: sa.Engine, settings: Settings, text: str
) -> None:
    serve_request(engine, settings, "r", "s", text=text)
    requests: list[str] = []
    score_live_responses(engine, make_orchestra(requests.append), settings)
    assert load_model_rows(engine)["r"].test_pass_rate == 1.0
    assert requests == [text, text]


def test_a_text_the_reconstructors_cannot_parse_scores_zero(engine: sa.Engine, settings: Settings) -> None:
    def reject(text: str) -> str:
        raise InputError("no function in it")

    serve_request(engine, settings, "r", "s")
    score_live_responses(
        engine,
        Orchestra((LocalReconstructor("a", reject), LocalReconstructor("b", reject)), quorum=2),
        settings,
    )
    assert load_model_rows(engine)["r"].test_pass_rate == 0.0


def test_an_inconclusive_answer_is_marked_as_tried_and_no_longer_pending(
    engine: sa.Engine, settings: Settings
) -> None:
    serve_request(engine, settings, "broken", "s1", tests={"kind": "cases", "cases": [{"nonsense": 1}]})
    report = score_live_responses(engine, make_orchestra(), settings)
    assert (report.scored.invalid_suites, report.remaining) == (1, 0)
    row = load_model_rows(engine)["broken"]
    assert row.test_pass_rate is None and row.scored_at is not None and "reason" in row.evidence


def test_a_member_that_was_missing_is_asked_again_and_the_others_are_not(
    engine: sa.Engine, settings: Settings
) -> None:
    requests: list[str] = []
    reader, unavailable = make_orchestra(requests.append).members[0], UnavailableMember()
    both = Orchestra((reader, unavailable), quorum=2)
    serve_request(engine, settings, "r", "s")
    assert score_live_responses(engine, both, settings).scored.inconclusive == 1
    assert load_model_rows(engine)["r"].scored_at is not None
    unavailable.available = True
    assert score_live_responses(engine, both, settings).scored.scored == 1
    assert (load_model_rows(engine)["r"].test_pass_rate, len(requests)) == (1.0, 1)


def test_an_answer_without_a_stored_conversation_is_inconclusive(
    engine: sa.Engine, settings: Settings
) -> None:
    """Nothing is left to measure its suite on."""
    serve_request(engine, settings, "r", "s")
    with engine.begin() as conn:
        conn.execute(t.requirements.update().values(conversation_id=None))
    report = score_live_responses(engine, make_orchestra(), settings)
    assert (report.scored.inconclusive, report.remaining) == (1, 0)


def test_an_erased_session_is_not_scored(engine: sa.Engine, settings: Settings) -> None:
    serve_request(engine, settings, "r", "s")
    with engine.begin() as conn:
        conn.execute(t.conversations.update().values(erased_at=NOW))
    assert count_rows(engine, unscored_live_responses()) == 0


def test_after_the_time_budget_no_text_is_started_and_the_next_pass_continues(
    engine: sa.Engine, settings: Settings
) -> None:
    for number in range(40):
        serve_request(engine, settings, f"r{number}", f"s{number}")
    first = score_live_responses(
        engine, make_orchestra(lambda text: time.sleep(0.2)), settings, time_budget_seconds=1.0
    )
    assert 0 < first.scored.scored < 40 and first.remaining == 40 - first.scored.scored
    assert score_live_responses(engine, make_orchestra(), settings).scored.scored == first.remaining
    assert {row.test_pass_rate for row in load_model_rows(engine).values()} == {1.0}


def test_a_pass_that_fails_has_stored_its_scores(engine: sa.Engine, settings: Settings) -> None:
    for number in range(30):
        serve_request(engine, settings, f"r{number}", f"s{number}")
    texts: list[str] = []

    def fail_late(text: str) -> None:
        texts.append(text)
        if len(texts) > 40:
            raise RuntimeError("the machine")

    with pytest.raises(RuntimeError, match="the machine"):
        score_live_responses(engine, make_orchestra(fail_late), settings)
    done = sum(row.scored_at is not None for row in load_model_rows(engine).values())
    assert 0 < done < 30
    assert score_live_responses(engine, make_orchestra(), settings).scored.scored == 30 - done


@pytest.mark.slow
def test_concurrent_scorers_share_the_work_and_score_nothing_twice(
    engine: sa.Engine, settings: Settings
) -> None:
    for number in range(60):
        serve_request(engine, settings, f"r{number}", f"s{number}")
    with engine.begin() as conn:  # otherwise each text exists twice: as an answer and as accepted
        conn.execute(t.requirements.delete().where(t.requirements.c.kind == "accepted"))
    requests: Counter[str] = Counter()
    mutex, barrier = threading.Lock(), threading.Barrier(3)

    def record(text: str) -> None:
        with mutex:
            requests[text] += 1

    def work(number: int) -> int:
        barrier.wait(timeout=60)
        if number == 0:  # the daily asset's pass, concurrent with two live ones
            return scoring_pass.score_unscored(engine, make_orchestra(record), settings).scored
        return score_live_responses(engine, make_orchestra(record), settings).scored.scored

    with ThreadPoolExecutor(3) as pool:
        shares = list(pool.map(work, range(3)))
    assert sum(shares) == 60 and all(shares), shares
    assert len(requests) == 60 and set(requests.values()) == {2}  # two members, once each
    assert {row.test_pass_rate for row in load_model_rows(engine).values()} == {1.0}


def test_a_claim_never_waits_and_ends_with_its_connection(engine: sa.Engine, settings: Settings) -> None:
    serve_request(engine, settings, "r", "s")
    with engine.connect() as conn:
        rows = conn.execute(unscored_live_responses()).all()
    with claim_rows(engine) as first:
        assert len(first.acquire(rows)) == 1
        with claim_rows(engine) as second:
            assert second.acquire(rows) == []
        assert score_live_responses(engine, make_orchestra(), settings).remaining == 1
        # The row itself is free: a developer may change it meanwhile.
        with engine.begin() as conn:
            conn.execute(sa.text("set local lock_timeout = '2s'"))
            conn.execute(t.requirements.update().values(text=make_text("changed")))
    with claim_rows(engine) as third:
        assert third.acquire(rows) == []  # the row changed since it was read
    assert score_live_responses(engine, make_orchestra(), settings).scored.scored == 1


def test_arm_metrics_count_a_session_once_and_exclude_sessions_of_both_arms(
    engine: sa.Engine, settings: Settings, rollout: int
) -> None:
    for number in range(3):
        serve_request(engine, settings, f"p{number}", f"sp{number}", rollout=rollout)
    serve_request(engine, settings, "c0", "sc0", rollout=rollout, arm="canary", text=" ", minutes_ago=9)
    serve_request(engine, settings, "c0-again", "sc0", rollout=rollout, arm="canary", minutes_ago=8)
    serve_request(engine, settings, "c1", "sc1", rollout=rollout, arm="canary", status="fallback")
    serve_request(engine, settings, "c2", "sc2", rollout=rollout, arm="canary", status="timeout")
    serve_request(engine, settings, "c3", "sp0", rollout=rollout, arm="canary")
    with engine.begin() as conn:
        conn.execute(t.feedback.insert().values(session_id="sc0", request_id="c0", rating=-1))
        conn.execute(t.feedback.insert().values(session_id="sp1", rating=1))
    report = score_live_responses(engine, make_orchestra(), settings)
    production, canary = report.arms
    assert (production.arm, production.version, production.requests, production.errors) == (
        "production", "v1", 3, 0,
    )  # fmt: skip
    assert (production.scored_sessions, production.pass_rate, production.thumbs_up) == (2, 1.0, 1)
    assert (canary.arm, canary.version, canary.requests, canary.errors) == ("canary", "v2", 5, 2)
    assert canary.error_rate == pytest.approx(0.4)
    assert (canary.scored_sessions, canary.pass_rate, canary.thumbs_down) == (1, 0.0, 1)
    assert canary.latency_p50_ms == canary.latency_p99_ms == 100.0
    with engine.connect() as conn:
        assert load_arm_metrics(conn, NOW + timedelta(minutes=1)) == []


def test_an_answer_at_the_token_limit_scores_zero_and_one_to_a_part_of_a_source_is_no_evidence(
    engine: sa.Engine, settings: Settings
) -> None:
    """Also where the same text was scored otherwise in the same session (L10)."""
    for number, reason in enumerate(("stop", "length", "truncated", None)):
        serve_request(engine, settings, str(reason), "s", text="f doubles.", finish_reason=reason)
        assert number == len(load_model_rows(engine)) - 1
    requests: list[str] = []
    report = score_live_responses(engine, make_orchestra(requests.append), settings)
    rows = load_model_rows(engine)
    assert {name: row.test_pass_rate for name, row in rows.items()} == {
        "stop": 1.0, "length": 0.0, "truncated": None, "None": 1.0,
    }  # fmt: skip
    assert rows["truncated"].scored_at is not None and report.remaining == 0
    counts = report.scored.counts()
    assert counts["texts_with_unusable_suite"] == counts["texts_inconclusive"] == 1
    assert len(requests) == 2  # of two members for one text
    serve_request(engine, settings, "later", "s", text="f doubles.")
    assert score_live_responses(engine, make_orchestra(requests.append), settings).scored.reused == 1
    assert load_model_rows(engine)["later"].test_pass_rate == 1.0


def test_an_answer_accepted_unchanged_reuses_its_score(engine: sa.Engine, settings: Settings) -> None:
    serve_request(engine, settings, "r", "s")
    requests: list[str] = []
    both = make_orchestra(requests.append)
    score_live_responses(engine, both, settings)
    serve_request(
        engine, settings, "other", "s", text=make_text("other")
    )  # now the accepted text of the session
    report = scoring_pass.score_unscored(engine, both, settings)
    assert (report.scored, report.reused, len(requests)) == (2, 0, 4)
    serve_request(engine, settings, "r2", "s2")
    score_live_responses(engine, both, settings)
    report = scoring_pass.score_unscored(engine, both, settings)
    assert (report.scored, report.reused, len(requests)) == (1, 1, 6)
    r, rc = t.requirements.c, t.reconstructions.c
    with engine.connect() as conn:
        answer, accepted = conn.execute(
            sa.select(t.requirements).where(r.session_id == "s2").order_by(r.kind.desc())
        ).all()
        query = sa.select(rc.reconstructor, rc.status, rc.implementation_code, rc.results, rc.test_pass_rate)
        members = [
            conn.execute(query.where(rc.requirement_id == row.id).order_by(rc.id)).all()
            for row in (answer, accepted)
        ]
    assert (answer.kind, accepted.kind) == ("model", "accepted")
    assert accepted.test_pass_rate == accepted.api_compatibility == 1.0 and accepted.scored_at is not None
    assert members[0] == members[1] and len(members[0]) == 2
