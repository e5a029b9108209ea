"""Simulated developers: a plausible week, the same one for the same seed (X4)."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import UTC, date, datetime, timedelta
from random import Random

import pytest

from iccm_assets.capture.extraction import extract_requirements, extract_source
from iccm_assets.capture.fences import code_blocks
from iccm_assets.simulation.developers.developers import (
    FinishedConversation,
    PlannedSession,
    finish_session,
    plan_conversations,
)
from iccm_assets.simulation.developers.dialogue import add_typo, correct_half
from iccm_assets.simulation.developers.drift import Drift
from iccm_assets.simulation.developers.personas import HABIT_PROBABILITY, HABITS, TRAITS, draw_team
from iccm_assets.simulation.language.canary_split import reserved_signatures
from iccm_assets.simulation.language.families import BASE_FAMILIES, NEW_FAMILIES
from iccm_assets.simulation.language.generator import structural_signature
from iccm_assets.simulation.language.grammar import sentences
from iccm_assets.simulation.language.quick_score import score_requirements

END = date(2026, 3, 1)
NIGHT = datetime(2026, 3, 2, tzinfo=UTC)
NOTHING = "The function `f` shall take `x`. It shall return 0."


@pytest.fixture(scope="module")
def plan() -> list[PlannedSession]:
    return plan_conversations(7, end=END)


@pytest.fixture(scope="module")
def finished(plan: list[PlannedSession]) -> list[tuple[PlannedSession, FinishedConversation]]:
    """Half of the week, finished, with a CET-D that knows only the base families."""
    return [
        (
            session,
            finish_session(session, NOTHING if session.new_domain else session.program.requirements, NIGHT),
        )
        for session in plan[::2]
    ]


def test_a_week_has_two_hundred_sessions_by_forty_users_on_seven_days(plan: list[PlannedSession]) -> None:
    assert len(plan) == len({session.session_id for session in plan}) == 200
    assert len({session.user_id for session in plan}) >= 40
    days = Counter(session.asked_at.astimezone(UTC).date() for session in plan)
    assert set(days) == {END - timedelta(days=back) for back in range(7)}
    assert [session.asked_at for session in plan] == sorted(session.asked_at for session in plan)


def test_a_few_developers_have_most_of_the_sessions(plan: list[PlannedSession]) -> None:
    sessions = sorted(Counter(session.user_id for session in plan).values(), reverse=True)
    assert 8 <= sessions[0] <= 30
    assert sum(sessions[:10]) > 2 * sum(sessions[-20:]) * 10 / 20


def test_habits_belong_to_developers_and_their_shares_are_quotas() -> None:
    people = draw_team(100, Random(1))
    assert Counter(person.habit for person in people) == {
        habit: round(100 * share) for habit, share in HABITS.items()
    }
    traits = Counter(trait for person in people for trait in person.traits)
    assert traits == {trait: round(100 * share) for trait, share in TRAITS.items()}
    vague = next(person for person in people if person.habit == "vague")
    rng = Random(2)
    shown = Counter(vague.draw_behavior(rng)[0] for _ in range(400))
    assert set(shown) == {"vague", "corrects"}
    assert abs(shown["vague"] / 400 - HABIT_PROBABILITY) < 0.1


def test_no_developer_has_two_different_habits() -> None:
    month = plan_conversations(3, n=60, days=28, users=6, end=END)
    habits = defaultdict(set)
    for session in month:
        habits[session.user_id].add(session.habit)
    assert all(len(shown - {"corrects"}) <= 1 for shown in habits.values())


def test_about_half_of_the_traffic_is_new_and_some_of_it_repeats(plan: list[PlannedSession]) -> None:
    assert 0.35 < sum(session.new_domain for session in plan) / len(plan) < 0.65
    again = [session for session in plan if session.repeated_session_id is not None]
    assert 3 <= len(again) <= 30
    by_id = {session.session_id: session for session in plan}
    own = 0
    for session in again:
        earlier = by_id[session.repeated_session_id or ""]
        assert earlier.program.requirements == session.program.requirements
        own += earlier.user_id == session.user_id
    assert own >= 0.5 * len(again)
    assert any(
        by_id[session.repeated_session_id or ""].source_code != session.source_code for session in again
    )


def test_the_same_seed_gives_the_same_week_and_another_name_other_sessions() -> None:
    first = plan_conversations(7, n=20, end=END)
    assert plan_conversations(7, n=20, end=END) == first
    assert plan_conversations(8, n=20, end=END) != first
    named = plan_conversations(7, n=20, end=END, name="7-march")
    assert not {session.session_id for session in named} & {session.session_id for session in first}
    assert [session.program for session in named] == [session.program for session in first]
    assert named[3].example == first[3].example
    assert finish_session(first[0], "nonsense") == finish_session(first[0], "nonsense")


def test_nobody_asks_about_code_of_the_canary_set(plan: list[PlannedSession]) -> None:
    assert not {structural_signature(session.program.document) for session in plan} & reserved_signatures()


def test_enough_conversations_are_usable_for_training(finished) -> None:
    usable = 0
    for _, end in finished:
        if end.test_suite is not None and end.rating != -1:
            rate, variance = score_requirements(end.requirements, end.test_suite)
            usable += rate > 0.75 and variance < 0.04
    assert 55 <= usable <= 88


def test_wrong_answers_are_corrected_and_right_ones_accepted(finished) -> None:
    pairs = [
        (session, end)
        for session, end in finished
        if session.habit == "corrects" and "typos" not in session.traits and not end.is_open
    ]
    assert len(pairs) > 40
    assert all(end.requirements == session.program.requirements for session, end in pairs)
    assert all((end.requirements == end.answer) is not session.new_domain for session, end in pairs)
    assert {end.rating for _, end in finished} == {None, 1, -1}
    assert any(end.test_suite is None for _, end in finished if not end.is_open)


def test_developers_who_accept_anything_keep_wrong_answers(finished) -> None:
    accepted = [(session, end) for session, end in finished if session.habit == "accepts" and not end.is_open]
    assert accepted and all(end.requirements == end.answer for _, end in accepted)
    assert any(
        score_requirements(end.requirements, session.example.test_suite)[0] < 1 for session, end in accepted
    )


def test_abandoned_sessions_stay_open(finished) -> None:
    abandoned = [end for session, end in finished if session.habit == "abandons"]
    assert abandoned
    for end in abandoned:
        assert end.is_open and end.test_suite is None and end.rating is None
        assert end.messages[-1] == {"role": "assistant", "content": end.answer}


def test_a_late_acceptance_is_open_until_it_arrives_and_keeps_its_timestamp(plan) -> None:
    late = [session for session in plan if "late" in session.traits and session.habit != "abandons"]
    assert late
    for session in late[:3]:
        assert timedelta(days=1) <= session.accepted_at - session.asked_at <= timedelta(days=4)
        assert timedelta(0) <= session.delivered_at - session.accepted_at <= timedelta(days=2)
        before = finish_session(session, NOTHING, session.delivered_at - timedelta(seconds=1))
        after = finish_session(session, NOTHING, session.delivered_at)
        assert before.is_open and before.timestamp == session.asked_at and before.requirements == NOTHING
        assert (
            not after.is_open
            and after.timestamp == session.accepted_at
            and after.session_id == before.session_id
        )


def test_a_partial_correction_fixes_one_of_two_mistakes() -> None:
    right = "The function `f` shall take `x`. When `x` is less than 3, it shall return 1. It shall return 2."
    answer = right.replace("less than 3", "less than 4").replace("return 2", "return 5")
    corrected = correct_half(answer, right, Random(1))
    wrong = [
        written
        for written, expected in zip(sentences(corrected), sentences(right), strict=True)
        if written != expected
    ]
    assert len(wrong) == 1 and wrong[0] in sentences(answer)
    assert correct_half(answer.replace("return 5", "return 2"), right, Random(1)) == right
    assert correct_half(right, right, Random(1)) == right


def test_a_typo_swaps_letters_of_a_word_and_spares_names_and_constants() -> None:
    text = "The function `compute_total` shall take `values` and return 'verylongconstant'."
    for seed in range(50):
        typed = add_typo(text, Random(seed))
        assert sorted(typed) == sorted(text)
        for unchanged in ("`compute_total`", "`values`", "'verylongconstant'"):
            assert unchanged in typed
    assert add_typo("`only` 1 2", Random(1)) == "`only` 1 2"


def test_source_and_requirements_are_extracted_from_the_messages_without_named_fields(finished) -> None:
    by_chat = [end for _, end in finished if not end.has_named_fields]
    assert len(by_chat) >= 5
    for end in by_chat:
        messages = list(end.messages)
        assert (extract_source(messages, {}) or "").strip() == end.source_code.strip()
        if "shall" in end.requirements:
            assert extract_requirements(messages, {}) == end.requirements


def test_some_questions_have_small_talk_and_several_code_blocks(plan, finished) -> None:
    assert any(
        len(session.opening_messages) > 1 and not session.opening_messages[0]["content"].isascii()
        for session in plan
    )
    blocks = Counter(len(list(code_blocks(session.opening_messages[-1]["content"]))) for session in plan)
    assert set(blocks) == {1, 2} and blocks[2] >= 5
    for _, end in finished:
        questions = [part["content"] for part in end.messages if part["role"] == "user"]
        assert any(f"```python\n{end.source_code}```" in question for question in questions)


def test_the_mix_drifts_and_domains_appear_on_their_day() -> None:
    name, *others = NEW_FAMILIES
    plan = plan_conversations(1, n=120, days=20, end=END, drift=Drift(0.1, 0.9, ((name, 12),)))
    first = END - timedelta(days=19)
    fresh = [session for session in plan if session.repeated_session_id is None]
    early = [session.new_domain for session in fresh if (session.asked_at.date() - first).days < 7]
    late = [session.new_domain for session in fresh if (session.asked_at.date() - first).days >= 13]
    assert sum(early) / len(early) + 0.3 < sum(late) / len(late)
    days = [(session.asked_at.date() - first).days + 1 for session in fresh if session.program.family == name]
    assert days and min(days) >= 12
    only = plan_conversations(1, n=20, end=END, drift=Drift(1.0, 1.0), new_families=(others or [name])[:1])
    assert {session.program.family for session in only} == {(others or [name])[0]}


def test_before_any_new_domain_appears_sessions_are_about_base_domains() -> None:
    none = Drift(1.0, 1.0, tuple((name, 7) for name in sorted(NEW_FAMILIES)))
    plan = plan_conversations(1, n=12, days=7, end=END, drift=none, base_families=BASE_FAMILIES[:1])
    early = [session for session in plan if session.asked_at.date() < END]
    assert early and {session.program.family for session in early} == {BASE_FAMILIES[0]}
