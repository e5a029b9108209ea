"""Simulated developers: a plausible week, the same one for the same seed (X4)."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, timedelta

import pytest

from iccm_assets.reference.canary import reserved_shapes
from iccm_assets.reference.developers import FinishedConversation, PlannedSession, finish, plan_conversations
from iccm_assets.reference.generator import shape
from iccm_assets.reference.trial import score

END = date(2026, 3, 1)


@pytest.fixture(scope="module")
def plan() -> list[PlannedSession]:
    return plan_conversations(7, end=END)


@pytest.fixture(scope="module")
def finished(plan: list[PlannedSession]) -> list[FinishedConversation]:
    """As if CET-D knew the base families and nothing else."""
    nothing = "The function `f` shall take `x`. It shall return 0."
    return [finish(one, nothing if one.new_domain else one.example.requirements) for one in plan]


def test_a_week_has_two_hundred_sessions_by_forty_users_on_seven_days(plan: list[PlannedSession]) -> None:
    assert len(plan) == len({one.session_id for one in plan}) == 200
    assert len({one.user_id for one in plan}) >= 40
    days = Counter(one.timestamp.astimezone(UTC).date() for one in plan)
    assert set(days) == {END - timedelta(days=back) for back in range(7)}
    assert [one.timestamp for one in plan] == sorted(one.timestamp for one in plan)
    assert max(Counter(one.user_id for one in plan).values()) <= 20


def test_about_half_of_the_traffic_is_new_and_some_of_it_repeats(plan: list[PlannedSession]) -> None:
    assert 0.35 < sum(one.new_domain for one in plan) / len(plan) < 0.65
    assert 3 <= sum(one.repeats is not None for one in plan) <= 30
    assert len({one.habit for one in plan}) == 6


def test_the_mix_of_domains_can_drift() -> None:
    only_new = plan_conversations(1, n=30, end=END, new_domain_share=1.0)
    only_old = plan_conversations(1, n=30, end=END, new_domain_share=0.0, base_families=("tiers",))
    assert all(one.new_domain for one in only_new)
    assert {one.example.family for one in only_old} == {"tiers"}


def test_the_same_seed_gives_the_same_week(plan: list[PlannedSession]) -> None:
    assert plan_conversations(7, n=20, end=END) == plan_conversations(7, n=20, end=END)
    assert plan_conversations(8, n=20, end=END) != plan_conversations(7, n=20, end=END)
    assert finish(plan[0], "nonsense") == finish(plan[0], "nonsense")


def test_nobody_asks_about_a_function_of_the_canary_set(plan: list[PlannedSession]) -> None:
    assert not {shape(one.example.document) for one in plan} & reserved_shapes()


def test_enough_conversations_can_be_learnt_from(finished: list[FinishedConversation]) -> None:
    usable = 0
    for one in finished:
        if one.test_suite is not None and one.rating != -1:
            rate, variance = score(one.requirements, one.test_suite)
            usable += rate > 0.75 and variance < 0.04
    assert 120 <= usable <= 190


def test_wrong_answers_are_mostly_corrected_and_right_ones_kept(plan, finished) -> None:
    pairs = [(one, end) for one, end in zip(plan, finished, strict=True) if one.habit == "corrects"]
    assert all(end.requirements == one.example.requirements for one, end in pairs)
    assert all((end.requirements == end.answer) is not one.new_domain for one, end in pairs)
    assert {end.rating for end in finished} == {None, 1, -1}
    assert any(end.test_suite is None for end in finished)


def test_the_conversation_holds_source_answer_and_what_was_accepted(
    finished: list[FinishedConversation],
) -> None:
    for one in finished:
        assert f"```python\n{one.source_code}```" in one.messages[0]["content"]
        assert one.messages[1] == {"role": "assistant", "content": one.answer}
        assert [part["content"] for part in one.messages if part["role"] == "assistant"][
            -1
        ] == one.requirements
