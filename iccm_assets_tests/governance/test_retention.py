"""Retention deletes only what no rule keeps, and never what serves or is required (V3)."""

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
    models = [StoredDirectory(version.digest, 400) for version in versions]
    datasets = [StoredDirectory(version.dataset, 400) for version in versions if version.dataset]
    prefix = "w" if kind == "model" else "d"
    decisions = decide_retention(versions, needs, models, datasets, NOW, R)
    return next(
        decision for decision in decisions if decision.name == f"{prefix}-{of}" and decision.kind == kind
    )


@pytest.mark.parametrize(
    ("status", "days", "goes"),
    [
        ("candidate", 6.9, False),
        ("candidate", 7.0, False),
        ("candidate", 7.1, True),
        ("gate_failed", 7.1, True),
        ("inconclusive", 7.1, True),
        ("rolled_back", 30.0, False),
        ("rolled_back", 30.1, True),
        ("retired", 4000, False),
        ("production", 4000, False),
        ("canary", 4000, False),
    ],
)
def test_each_status_has_its_retention(status: str, days: float, goes: bool) -> None:
    decision = fate([version("v1", status, days)], "v1")
    assert decision.delete is goes
    assert decision.reason


def test_the_parent_of_production_and_required_versions_are_kept_with_any_status() -> None:
    versions = [
        version("v1", "rolled_back"),
        version("v2", "production", parent="v1"),
        version("v3", "candidate"),
    ]
    assert "it is the parent of v2" in fate(versions, "v1").reason
    assert fate(versions, "v3").delete
    needed = RequiredArtifacts(frozenset({"v3"}), frozenset())
    assert not fate(versions, "v3", needed).delete


def test_of_several_children_in_service_the_first_is_the_reason() -> None:
    versions = [
        version("v1", "rolled_back"),
        version("v2", "production", parent="v1"),
        version("v3", "canary", parent="v1"),
    ]
    assert fate(versions, "v1").reason == "v1: it is the parent of v2, which is production"


def test_a_candidate_that_waits_for_a_live_rollout_is_kept_at_any_age() -> None:
    waits = RetainableVersion("v1", None, "candidate", "w-v1", None, NOW - timedelta(days=400), waits_for=7)
    assert "it has passed and waits for rollout 7" in fate([waits], "v1").reason


def test_a_kept_version_keeps_what_reproduces_it() -> None:
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


def test_shared_weights_are_deleted_only_when_no_version_keeps_them() -> None:
    old, serving = version("v1", "gate_failed"), version("v2", "retired")
    shared = [
        RetainableVersion(version.version, None, version.status, "w-v1", None, version.since)
        for version in (old, serving)
    ]
    assert not fate(shared, "v1").delete


@pytest.mark.parametrize(("days", "goes"), [(6, False), (7, False), (8, True)])
def test_unregistered_files_are_deleted_after_a_week(days: float, goes: bool) -> None:
    decisions = decide_retention(
        [], NOTHING, [StoredDirectory("orphan", days)], [StoredDirectory("set", days)], NOW, R
    )
    assert [decision.delete for decision in decisions] == [goes, goes]


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
        unique_by=lambda version: version.version,
    ),
    st.frozensets(st.sampled_from(NAMES)),
    st.frozensets(st.sampled_from([f"d-{name}" for name in NAMES])),
)
def test_nothing_protected_is_ever_deleted(versions, needed, datasets) -> None:
    models = [StoredDirectory(version.digest, 1000) for version in versions]
    sets = [StoredDirectory(f"d-{name}", 1000) for name in NAMES]
    decisions = decide_retention(versions, RequiredArtifacts(needed, datasets), models, sets, NOW, R)
    deleted = {decision.name for decision in decisions if decision.delete}
    by_name = {version.version: version for version in versions}
    for version in versions:
        if version.status in ("production", "canary", "retired") or version.version in needed:
            assert version.digest not in deleted
            assert version.dataset not in deleted
            if version.parent in by_name:
                assert by_name[version.parent].digest not in deleted
    assert deleted.isdisjoint(datasets)
    assert all(decision.reason for decision in decisions)


def test_the_base_of_an_adapter_stays_as_long_as_the_adapter_whatever_became_of_it() -> None:
    versions = [version("v1", "gate_failed"), version("v2", "retired"), version("v3", "gate_failed")]
    adapter, unneeded = StoredDirectory("w-v2", 400, "w-v1"), StoredDirectory("w-v3", 400, "w-v1")
    models = [StoredDirectory("w-v1", 400), adapter, unneeded]

    def names_to_delete(of: list[RetainableVersion]) -> set[str]:
        return {each.name for each in decide_retention(of, NOTHING, models, [], NOW, R) if each.delete}

    assert names_to_delete(versions) == {"w-v3"}
    versions[1] = version("v2", "rolled_back")
    assert names_to_delete(versions) == {"w-v1", "w-v2", "w-v3"}
