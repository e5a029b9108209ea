"""The split is a pure function: the same everywhere, fair, and only ever growing (G2)."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.gateway.routing import assign_arm, session_bucket

KNOWN = [0.576281328, 0.209709079, 0.683481781]
SESSIONS = [f"session-{number}" for number in range(10_000)]


def test_ten_percent_are_ten_percent_of_ten_thousand_sessions():
    for rollout in range(1, 21):
        share = sum(assign_arm(rollout, session, 0.1) == "canary" for session in SESSIONS) / len(SESSIONS)
        assert abs(share - 0.1) <= 0.01


def test_raising_the_weight_moves_no_session_back_to_production():
    small = {session for session in SESSIONS if assign_arm(7, session, 0.1) == "canary"}
    half = {session for session in SESSIONS if assign_arm(7, session, 0.5) == "canary"}
    assert small < half and all(assign_arm(7, session, 1.0) == "canary" for session in SESSIONS)
    assert not any(assign_arm(7, session, 0.0) == "canary" for session in SESSIONS)


def test_another_rollout_draws_other_sessions():
    first = {session for session in SESSIONS if assign_arm(1, session, 0.1) == "canary"}
    second = {session for session in SESSIONS if assign_arm(2, session, 0.1) == "canary"}
    expected = 0.01 * len(SESSIONS)
    assert abs(len(first & second) - expected) < 5 * math.sqrt(expected)


def test_the_bucket_of_a_session_never_changes():
    # Replicas of different releases must agree: these numbers are part of the interface.
    assert [round(session_bucket(1, session), 9) for session in ("a", "b", "session-1")] == KNOWN


@given(st.integers(min_value=0), st.text(), st.floats(0, 1))
def test_every_session_has_a_bucket_and_weights_are_monotone(rollout, name, weight):
    assert 0 <= session_bucket(rollout, name) < 1
    if assign_arm(rollout, name, weight) == "canary":
        assert assign_arm(rollout, name, 1.0) == "canary"
