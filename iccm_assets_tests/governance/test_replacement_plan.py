"""Who learned from what was erased, and from where to train anew: a pure decision (V2)."""

from __future__ import annotations

import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.governance.replacement_queries import load_replacement_plan
from iccm_assets.governance.replacement_plan import VersionNode, plan_replacements
from iccm_assets.reporting.lineage import load_version_lineage
from iccm_assets_tests.retraining.factories import conversation, training_run, version

LINE = [
    VersionNode("v1", None, "retired"),
    VersionNode("v2", "v1", "retired"),
    VersionNode("v3", "v2", "retired"),
    VersionNode("v4", "v3", "production"),
    VersionNode("v5", "v2", "gate_failed"),
]


def test_versions_that_learned_or_descend_from_one_that_did_are_affected() -> None:
    plan = plan_replacements(LINE, {"v3": 2}, {"v3"}, 7)
    assert [(one.version, one.examples, one.inherited_from) for one in plan.versions] == [
        ("v3", 2, None),
        ("v4", 0, "v3"),
    ]
    assert [one.in_service for one in plan.versions] == [False, True]


def test_the_replacement_starts_from_the_last_clean_ancestor() -> None:
    [replacement] = plan_replacements(LINE, {"v3": 2}, {"v3"}, 7).replacements
    assert (replacement.version, replacement.base) == ("v4", "v2")
    assert replacement.retrain == "iccm retrain --base v2 --reason 'erasure 7'"
    assert replacement.reason == "v2 is the last clean ancestor, 2 steps back"


def test_a_base_is_clean_of_earlier_erasures_too() -> None:
    [replacement] = plan_replacements(LINE, {"v3": 2}, {"v3", "v2"}, 7).replacements
    assert replacement.base == "v1"


def test_a_clean_ancestor_whose_files_are_gone_is_passed_over() -> None:
    nodes = [VersionNode(n.version, n.parent, n.status, n.version != "v2") for n in LINE]
    [replacement] = plan_replacements(nodes, {"v3": 2}, {"v3"}, 7).replacements
    assert replacement.base == "v1"
    gone = [VersionNode(n.version, n.parent, n.status, False) for n in LINE]
    [without] = plan_replacements(gone, {"v3": 2}, {"v3"}, 7).replacements
    assert (without.base, without.retrain) == (None, None) and "2 clean ancestors" in without.reason


def test_nothing_in_service_needs_no_replacement() -> None:
    plan = plan_replacements(LINE, {"v5": 1}, {"v5"}, 7)
    assert [one.version for one in plan.versions] == ["v5"] and plan.replacements == ()
    assert plan_replacements(LINE, {}, set(), None).versions == ()


@given(st.data())
def test_no_base_and_no_ancestor_of_it_has_learned_anything_erased(data: st.DataObject) -> None:
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
    assert {one.version for one in plan.versions} == {
        name for name in names if set(line(name)) & set(learned)
    }
    for one in plan.replacements:
        if one.base is not None:
            assert not set(line(one.base)) & tainted
            assert one.base in line(one.version)


def test_a_version_that_two_trainings_came_to_learned_from_each_conversation_once(engine: sa.Engine) -> None:
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
