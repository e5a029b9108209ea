"""Which versions were trained on erased data, and from which base to retrain: a pure decision (V2)."""

from __future__ import annotations

import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.governance.replacement_plan import VersionNode, plan_replacements
from iccm_assets.governance.replacement_queries import load_replacement_plan
from iccm_assets.reporting.lineage import load_version_lineage
from iccm_assets_tests.factories.platform_rows import conversation, training_run, version

LINE = [
    VersionNode("v1", None, "retired"),
    VersionNode("v2", "v1", "retired"),
    VersionNode("v3", "v2", "retired"),
    VersionNode("v4", "v3", "production"),
    VersionNode("v5", "v2", "gate_failed"),
]


def test_versions_trained_on_it_and_their_descendants_are_affected() -> None:
    plan = plan_replacements(LINE, {"v3": 2}, {"v3"}, 7)
    assert [(version.version, version.examples, version.inherited_from) for version in plan.versions] == [
        ("v3", 2, None),
        ("v4", 0, "v3"),
    ]
    assert [version.in_service for version in plan.versions] == [False, True]


def test_the_replacement_starts_from_the_last_clean_ancestor() -> None:
    [replacement] = plan_replacements(LINE, {"v3": 2}, {"v3"}, 7).replacements
    assert (replacement.version, replacement.base) == ("v4", "v2")
    assert replacement.retrain == "iccm retrain --base v2 --reason 'erasure 7'"
    assert replacement.reason == "v2 is the last clean ancestor, 2 steps back"


def test_a_base_is_clean_of_earlier_erasures_too() -> None:
    [replacement] = plan_replacements(LINE, {"v3": 2}, {"v3", "v2"}, 7).replacements
    assert replacement.base == "v1"


def test_a_clean_ancestor_without_files_is_skipped() -> None:
    nodes = [VersionNode(n.version, n.parent, n.status, n.version != "v2") for n in LINE]
    [replacement] = plan_replacements(nodes, {"v3": 2}, {"v3"}, 7).replacements
    assert replacement.base == "v1"
    without_files = [VersionNode(n.version, n.parent, n.status, False) for n in LINE]
    [without] = plan_replacements(without_files, {"v3": 2}, {"v3"}, 7).replacements
    assert (without.base, without.retrain) == (None, None) and "2 clean ancestors" in without.reason


def test_nothing_in_service_needs_no_replacement() -> None:
    plan = plan_replacements(LINE, {"v5": 1}, {"v5"}, 7)
    assert [version.version for version in plan.versions] == ["v5"] and plan.replacements == ()
    assert plan_replacements(LINE, {}, set(), None).versions == ()


@given(st.data())
def test_no_base_and_no_ancestor_of_it_was_trained_on_anything_erased(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 12))
    nodes: list[VersionNode] = []
    for number in range(size):
        parent = data.draw(st.sampled_from([None, *(node.version for node in nodes)]))
        status = data.draw(st.sampled_from(["production", "canary", "retired"]))
        nodes.append(VersionNode(f"v{number}", parent, status, data.draw(st.booleans())))
    names = [node.version for node in nodes]
    learned = data.draw(st.dictionaries(st.sampled_from(names), st.integers(1, 5)))
    tainted = set(learned) | data.draw(st.sets(st.sampled_from(names)))
    parents = {node.version: node.parent for node in nodes}

    def line(version: str | None) -> list[str]:
        return [] if version is None else [version, *line(parents[version])]

    plan = plan_replacements(nodes, learned, tainted, 1)
    assert {version.version for version in plan.versions} == {
        name for name in names if set(line(name)) & set(learned)
    }
    for replacement in plan.replacements:
        if replacement.base is not None:
            assert not set(line(replacement.base)) & tainted
            assert replacement.base in line(replacement.version)


def test_a_version_that_two_training_runs_produced_counts_each_conversation_once(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        version(conn, "v1", status="production")
        version(conn, "v2", "v1", status="inconclusive")
        for number in (1, 2, 3):
            conversation(conn, number)
        for run in (1, 2):
            training_run(conn, run, "v2", examples={1: "new", 2: "new", 3: "new"})
        [affected] = load_replacement_plan(conn, [1, 2], 7).versions
        line = load_version_lineage(conn, "v2").ancestry
    assert (affected.version, affected.examples) == ("v2", 2)
    assert line[0].examples == 3
