"""What is thrown away: only what no rule keeps, and never what serves or is needed (V3)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.governance.retention import (
    RequiredArtifacts,
    RetainableVersion,
    RetentionDecision,
    StoredDirectory,
    decide_retention,
)
from iccm_assets.settings import RetentionSettings

NOW = datetime(2026, 3, 1, 4, 0, tzinfo=UTC)
R = RetentionSettings()
NOTHING = RequiredArtifacts(frozenset(), frozenset())


def version(name: str, status: str, days: float = 400, parent: str | None = None) -> RetainableVersion:
    return RetainableVersion(name, parent, status, f"w-{name}", f"d-{name}", NOW - timedelta(days=days))


def fate(
    versions: list[RetainableVersion], of: str, needs: RequiredArtifacts = NOTHING, kind: str = "model"
) -> RetentionDecision:
    models = [StoredDirectory(one.digest, 400) for one in versions]
    datasets = [StoredDirectory(one.dataset, 400) for one in versions if one.dataset]
    prefix = "w" if kind == "model" else "d"
    found = decide_retention(versions, needs, models, datasets, NOW, R)
    return next(one for one in found if one.name == f"{prefix}-{of}" and one.kind == kind)


@pytest.mark.parametrize(
    ("status", "days", "goes"),
    [
        ("candidate", 6.9, False),
        ("candidate", 7.1, True),
        ("gate_failed", 7.1, True),
        ("inconclusive", 7.1, True),
        ("rolled_back", 29.9, False),
        ("rolled_back", 30.1, True),
        ("retired", 4000, False),
        ("production", 4000, False),
        ("canary", 4000, False),
    ],
)
def test_each_status_has_its_time(status: str, days: float, goes: bool) -> None:
    found = fate([version("v1", status, days)], "v1")
    assert found.delete is goes
    assert found.reason


def test_the_parent_of_production_and_what_is_needed_stay_whatever_they_are() -> None:
    versions = [
        version("v1", "rolled_back"),
        version("v2", "production", parent="v1"),
        version("v3", "candidate"),
    ]
    assert "it is the parent of v2" in fate(versions, "v1").reason
    assert fate(versions, "v3").delete
    needed = RequiredArtifacts(frozenset({"v3"}), frozenset())
    assert not fate(versions, "v3", needed).delete


def test_a_candidate_that_waits_for_a_live_rollout_stays_whatever_its_age() -> None:
    waits = RetainableVersion("v1", None, "candidate", "w-v1", None, NOW - timedelta(days=400), waits_for=7)
    assert "it has passed and waits for rollout 7" in fate([waits], "v1").reason


def test_what_a_kept_version_is_made_again_from_stays_with_it() -> None:
    versions = [
        version("v1", "gate_failed"),
        version("v2", "retired", parent="v1"),
        version("v3", "gate_failed"),
    ]
    assert "v2 is reproduced from it" in fate(versions, "v1").reason
    assert "v2 was trained on it" in fate(versions, "v2", kind="training set").reason
    assert fate(versions, "v3", kind="training set").delete
    kept = RequiredArtifacts(frozenset(), frozenset({"d-v3"}))
    assert not fate(versions, "v3", kept, kind="training set").delete


def test_weights_that_two_versions_share_go_only_when_both_may() -> None:
    old, serving = version("v1", "gate_failed"), version("v2", "retired")
    shared = [
        RetainableVersion(one.version, None, one.status, "w-v1", None, one.since) for one in (old, serving)
    ]
    assert not fate(shared, "v1").delete


@pytest.mark.parametrize(("days", "goes"), [(6, False), (8, True)])
def test_what_no_version_names_goes_after_a_week(days: float, goes: bool) -> None:
    found = decide_retention(
        [], NOTHING, [StoredDirectory("orphan", days)], [StoredDirectory("set", days)], NOW, R
    )
    assert [one.delete for one in found] == [goes, goes]


NAMES = [f"v{n}" for n in range(6)]
STATUSES = ["candidate", "gate_failed", "inconclusive", "canary", "production", "retired", "rolled_back"]


@given(
    st.lists(
        st.builds(
            version,
            st.sampled_from(NAMES),
            st.sampled_from(STATUSES),
            st.floats(0, 500),
            st.none() | st.sampled_from(NAMES),
        ),
        unique_by=lambda one: one.version,
    ),
    st.frozensets(st.sampled_from(NAMES)),
    st.frozensets(st.sampled_from([f"d-{name}" for name in NAMES])),
)
def test_nothing_protected_is_ever_removed(versions, needed, datasets) -> None:
    models = [StoredDirectory(one.digest, 1000) for one in versions]
    sets = [StoredDirectory(f"d-{name}", 1000) for name in NAMES]
    found = decide_retention(versions, RequiredArtifacts(needed, datasets), models, sets, NOW, R)
    gone = {one.name for one in found if one.delete}
    by_name = {one.version: one for one in versions}
    for one in versions:
        if one.status in ("production", "canary", "retired") or one.version in needed:
            assert one.digest not in gone
            assert one.dataset not in gone
            if one.parent in by_name:
                assert by_name[one.parent].digest not in gone
    assert gone.isdisjoint(datasets)
    assert all(one.reason for one in found)
