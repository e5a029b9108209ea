from dataclasses import replace

import pytest

from iccm_assets.capture.conversations import sha256_of_source
from iccm_assets.curation.decontamination import Contamination
from iccm_assets.curation.filter_policy import (
    Kept,
    Rejected,
    ScoredConversation,
    apply_filter,
    is_in_holdout,
    reject_contaminated,
)
from iccm_assets.settings import CurationSettings

CURATION = CurationSettings()
HELD_OUT = next(f"s{n}" for n in range(100) if is_in_holdout(f"s{n}", 0.15))
MESSAGES = [
    {"role": "user", "content": "```python\nx = 1\n```"},
    {"role": "assistant", "content": "x shall be 1."},
]
GOOD = ScoredConversation(
    conversation_id=7,
    session_id=next(f"s{n}" for n in range(100) if not is_in_holdout(f"s{n}", 0.15)),
    user_id="u",
    content=MESSAGES,
    metadata={},
    requirements="x shall be 1.",
    source_sha256=sha256_of_source("x = 1"),
    has_test_suite=True,
    scored=True,
    test_pass_rate=0.9,
    implementation_variance=0.02,
    first_response="x shall be 2.",
    first_test_pass_rate=0.5,
    evidence="cases",
    test_suite_origin="attached",
)


def test_a_well_scored_conversation_is_kept_with_its_quality():
    kept = apply_filter(GOOD, CURATION)
    assert kept == Kept(
        7,
        GOOD.session_id,
        "u",
        "x = 1",
        "x shall be 1.",
        0.9,
        0.02,
        pytest.approx(0.89),
        True,
        "cases",
        "attached",
    )


@pytest.mark.parametrize(
    ("change", "stage", "reason"),
    [
        ({"erased": True}, "policy", "erased"),
        ({"session_id": HELD_OUT}, "policy", "held_out"),
        ({"content": None}, "filter", "no_messages"),
        ({"content": "text"}, "filter", "no_messages"),
        ({"content": [{"role": 1}, None, 3.5]}, "filter", "no_messages"),
        ({"requirements": None}, "filter", "no_requirements"),
        ({"requirements": " \n"}, "filter", "no_requirements"),
        ({"content": MESSAGES[1:]}, "filter", "no_source_code"),
        ({"source_sha256": None}, "filter", "no_source_code"),
        ({"source_sha256": sha256_of_source("x = 2")}, "filter", "no_source_code"),
        ({"negative_feedback": True}, "filter", "negative_feedback"),
        ({"scored": False, "test_pass_rate": None}, "filter", "not_scored"),
        ({"scored": False, "has_test_suite": False, "test_pass_rate": None}, "filter", "no_test_suite"),
        ({"test_pass_rate": None}, "filter", "inconclusive"),
        ({"implementation_variance": None}, "filter", "inconclusive"),
        ({"test_pass_rate": None, "suite_status": "weak"}, "filter", "weak_suite"),
        ({"test_pass_rate": None, "suite_status": "mismatch"}, "filter", "suite_mismatch"),
        ({"test_pass_rate": None, "suite_status": "none"}, "filter", "unmeasured_suite"),
        ({"builtin_only": True}, "filter", "builtin_only"),
        ({"builtin_only": True, "test_pass_rate": 0.0}, "filter", "builtin_only"),
        ({"builtin_only": True, "test_pass_rate": None}, "filter", "inconclusive"),
        ({"test_pass_rate": 0.75}, "filter", "low_test_pass_rate"),
        ({"test_pass_rate": 0.0}, "filter", "low_test_pass_rate"),
        ({"test_pass_rate": float("nan")}, "filter", "low_test_pass_rate"),
        ({"implementation_variance": 0.04}, "filter", "high_implementation_variance"),
        ({"implementation_variance": float("nan")}, "filter", "high_implementation_variance"),
    ],
)
def test_every_rejection_has_its_reason(change, stage, reason):
    decision = apply_filter(replace(GOOD, **change), CURATION)
    assert isinstance(decision, Rejected)
    assert (decision.conversation_id, decision.stage, decision.reason) == (7, stage, reason)


def test_builtin_scores_teach_only_where_the_conversation_is_simulated():
    simulated = replace(GOOD, builtin_only=True, simulated=True)
    assert isinstance(apply_filter(simulated, CURATION), Kept)
    assert isinstance(apply_filter(replace(simulated, builtin_only=False, simulated=False), CURATION), Kept)


@pytest.mark.parametrize(
    ("curation", "evidence", "origin", "reason"),
    [
        ({}, "pytest", "recorded", None),
        ({"evidence": "cases"}, "cases", "collected", None),
        ({"evidence": "cases"}, "pytest", "attached", "evidence_kind"),
        ({"evidence": "pytest"}, "cases", "attached", "evidence_kind"),
        ({"suite_origins": "attached, recorded"}, "cases", "recorded", None),
        ({"suite_origins": "attached, recorded"}, "cases", "collected", "suite_origin"),
        ({}, None, "attached", "evidence_kind"),
        ({}, "cases", None, "suite_origin"),
    ],
)
def test_only_the_allowed_kinds_and_origins_of_suites_teach(curation, evidence, origin, reason):
    changed = replace(GOOD, evidence=evidence, test_suite_origin=origin)
    decision = apply_filter(changed, CurationSettings(**curation))
    if reason is None:
        assert isinstance(decision, Kept)
        assert (decision.evidence, decision.test_suite_origin) == (evidence, origin)
    else:
        assert isinstance(decision, Rejected)
        assert (decision.stage, decision.reason) == ("policy", reason)


def test_a_suite_that_is_no_evidence_says_what_is_wrong_with_it():
    changed = replace(GOOD, test_pass_rate=None, suite_status="weak", suite_problem="a stub passes it")
    decision = apply_filter(changed, CURATION)
    assert isinstance(decision, Rejected)
    assert (decision.reason, decision.detail) == ("weak_suite", "a stub passes it")


def test_the_limits_are_strict_and_the_detail_gives_the_numbers():
    assert isinstance(
        apply_filter(replace(GOOD, test_pass_rate=0.7500001, implementation_variance=0.0399999), CURATION),
        Kept,
    )
    assert apply_filter(replace(GOOD, test_pass_rate=0.75), CURATION).detail == "0.7500 is not above 0.75"
    assert (
        apply_filter(replace(GOOD, implementation_variance=0.05), CURATION).detail
        == "0.0500 is not below 0.04"
    )


def test_the_source_may_be_in_the_metadata():
    changed = replace(GOOD, metadata={"source_code": "y = 2"}, source_sha256=sha256_of_source("y = 2"))
    assert apply_filter(changed, CURATION).source_code == "y = 2"


@pytest.mark.parametrize(
    ("change", "failed_first"),
    [
        ({"first_test_pass_rate": 0.75}, True),
        ({"first_test_pass_rate": 0.76}, False),
        ({"first_test_pass_rate": None}, False),
        ({"first_response": None, "first_test_pass_rate": None}, False),
        ({"first_response": "x shall be 1."}, False),
    ],
)
def test_failed_first_means_a_bad_first_response_that_was_corrected(change, failed_first):
    assert apply_filter(replace(GOOD, **change), CURATION).failed_first is failed_first


def test_a_leak_is_a_policy_rejection_with_item_and_similarity():
    rejected = reject_contaminated(
        apply_filter(GOOD, CURATION), Contamination("item-3", "requirements as similar", 0.93)
    )
    assert (rejected.stage, rejected.reason, rejected.similarity) == ("policy", "canary_leak", 0.93)
    assert rejected.detail == "requirements as similar as canary-set item item-3 (0.930000)"


def test_the_holdout_is_stable_and_has_the_configured_size():
    sessions = [f"session-{n}" for n in range(20_000)]
    held_out = {session for session in sessions if is_in_holdout(session, 0.15)}
    assert 0.14 < len(held_out) / len(sessions) < 0.16
    assert (
        held_out
        == {session for session in sessions if is_in_holdout(session, 0.15)}
        < {session for session in sessions if is_in_holdout(session, 0.3)}
    )
    assert not any(is_in_holdout(session, 0.0) for session in sessions)
    assert is_in_holdout("é\n🙂", 0.999999)


# From the first reason to the last: whoever looks for one conversation gets the one that matters most.
PRECEDENCE = [
    ({"erased": True}, "erased"),
    ({"session_id": HELD_OUT}, "held_out"),
    ({"content": None}, "no_messages"),
    ({"requirements": None}, "no_requirements"),
    ({"source_sha256": None}, "no_source_code"),
    ({"negative_feedback": True}, "negative_feedback"),
    ({"scored": False}, "not_scored"),
    ({"test_pass_rate": None}, "inconclusive"),
    ({"evidence": None}, "evidence_kind"),
    ({"test_suite_origin": None}, "suite_origin"),
    ({"builtin_only": True}, "builtin_only"),
    ({"test_pass_rate": 0.1}, "low_test_pass_rate"),
    ({"implementation_variance": 0.2}, "high_implementation_variance"),
]


@pytest.mark.parametrize("first", range(len(PRECEDENCE)), ids=[reason for _, reason in PRECEDENCE])
def test_of_several_reasons_the_first_is_given(first):
    changes, reason = PRECEDENCE[first]
    for later, _ in PRECEDENCE[first + 1 :]:
        decision = apply_filter(replace(GOOD, **{**later, **changes}), CURATION)
        assert isinstance(decision, Rejected) and decision.reason == reason, later


def test_the_quality_is_the_pass_rate_less_the_weighted_variance():
    curation = CurationSettings(variance_weight=2.0)
    kept = apply_filter(replace(GOOD, test_pass_rate=0.8, implementation_variance=0.03), curation)
    assert kept.quality_score == pytest.approx(0.74)


def test_a_suite_of_an_unknown_status_is_inconclusive_without_a_detail():
    for status in (None, "usable", "odd"):
        changed = replace(GOOD, test_pass_rate=None, suite_status=status, suite_problem="?")
        decision = apply_filter(changed, CURATION)
        assert (decision.reason, decision.detail) == ("inconclusive", None)
    invalid = replace(GOOD, implementation_variance=None, suite_status="invalid", suite_problem="no JSON")
    assert apply_filter(invalid, CURATION).reason == "invalid_suite"


def test_the_holdout_never_changes_for_a_session():
    # A session that was held out once must stay so in every release: it may have judged a version.
    assert [n for n in range(60) if is_in_holdout(f"s{n}", 0.15)] == [8, 22, 38, 43, 49]
    assert all(is_in_holdout(f"s{n}", 1.0) for n in range(60))


def test_a_conversation_that_nothing_is_known_about_has_no_suite():
    text_only = ScoredConversation(
        7, GOOD.session_id, "u", MESSAGES, {}, requirements="x", source_sha256=GOOD.source_sha256
    )
    assert apply_filter(text_only, CURATION).reason == "no_test_suite"
