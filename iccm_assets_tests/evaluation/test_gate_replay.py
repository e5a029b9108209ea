"""Replay of stored evidence (E5): the same bytes with the same gate, the expected changes with another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.errors import InputError
from iccm_assets.evaluation.gate_replay import load_gate, replay_gate
from iccm_assets.settings import EvaluationSettings
from iccm_assets_tests.factories import verdicts

GATE = EvaluationSettings()


def with_numbers(**numbers: Any) -> EvaluationSettings:
    return EvaluationSettings(**{**GATE.model_dump(), **numbers})


def test_the_same_gate_reproduces_ten_verdicts_byte_for_byte(engine: sa.Engine) -> None:
    names = verdicts.store_verdicts(engine, GATE)
    before = verdicts.read_tables(engine)
    replay = replay_gate(engine, GATE)
    assert {verdict.version: verdict.before for verdict in replay.replayed} == verdicts.EXPECTED_STATUS
    assert [verdict.version for verdict in replay.replayed] == names and len(names) == 10
    assert (replay.changed_verdicts, replay.unreadable) == ((), ())
    assert all(
        verdict.identical and verdict.reproduces and verdict.gate_changed == {} for verdict in replay.replayed
    )
    with engine.connect() as conn:
        stored = conn.execute(sa.select(t.gate_verdicts.c.verdict).order_by(t.gate_verdicts.c.id)).scalars()
        for row, verdict in zip(stored, replay.replayed, strict=True):
            replayed_verdict = json.dumps(json.loads(verdict.verdict.to_json()), sort_keys=True)
            assert json.dumps(row, sort_keys=True) == replayed_verdict
    assert verdicts.read_tables(engine) == before


@pytest.mark.parametrize(
    ("numbers", "flips"),
    [
        ({"max_slice_drop": 0.21}, {"forgetful": ("fail", "pass")}),
        ({"confidence": 0.55}, {"chance": ("inconclusive", "pass")}),
        ({"max_latency_ratio": 1.6}, {"slow": ("fail", "pass")}),
        ({"max_variance_ratio": 3.0, "variance_floor": 0.05}, {"spread": ("fail", "pass")}),
        ({"min_slice_items": 31}, {"forgetful": ("fail", "pass")}),
        ({"max_pass_rate_drop": 0.5}, {}),
        (
            {"max_slice_drop": 0.25, "max_latency_ratio": 1.6, "confidence": 0.55},
            {
                "forgetful": ("fail", "pass"),
                "slow": ("fail", "pass"),
                "chance": ("inconclusive", "pass"),
            },
        ),
        (
            {"confidence": 0.9999999},
            {
                "better": ("pass", "inconclusive"),
                "spread": ("fail", "pass"),
            },
        ),
    ],
    ids=str,
)
def test_another_gate_changes_exactly_the_affected_verdicts(
    engine: sa.Engine, numbers: dict[str, Any], flips: dict[str, tuple[str, str]]
) -> None:
    verdicts.store_verdicts(engine, GATE)
    replay = replay_gate(engine, with_numbers(**numbers))
    changed = {verdict.version: (verdict.before, verdict.after) for verdict in replay.changed_verdicts}
    assert changed == flips
    assert all(verdict.reproduces for verdict in replay.replayed)
    assert all(set(verdict.gate_changed) == set(numbers) for verdict in replay.replayed)


def test_an_emergency_is_replayed_with_its_own_bound(engine: sa.Engine) -> None:
    verdicts.store_verdicts(engine, GATE, emergency=True)
    replay = replay_gate(engine, GATE)
    assert not replay.changed_verdicts and all(verdict.identical for verdict in replay.replayed)
    assert {verdict.version: verdict.after for verdict in replay.replayed}["equal"] == "pass"


def test_one_version_is_replayed_alone_and_its_newest_verdict_is_marked(engine: sa.Engine) -> None:
    verdicts.store_verdicts(engine, GATE)
    with engine.begin() as conn:
        gv = t.gate_verdicts
        row = conn.execute(sa.select(gv).where(gv.c.version == "better")).mappings().one()
        conn.execute(gv.insert().values({name: row[name] for name in row if name != "id"}))
    replay = replay_gate(engine, GATE, "better")
    assert [(verdict.version, verdict.newest) for verdict in replay.replayed] == [
        ("better", False),
        ("better", True),
    ]


DAMAGES: dict[str, tuple[str, str]] = {
    "gone": ("evidence = '{}'", "candidate_version: Field required and 3 more"),
    "cut": ("evidence = evidence - 'expected_items'", "expected_items: Field required"),
    "older schema": (
        'evidence = jsonb_set(evidence, \'{items,0}\', \'{"item": "a", "score": 1}\')',
        "items.0.slice: Field required",
    ),
    "newer schema": ("evidence = evidence || '{\"orchestra\": 3}'", "orchestra: Unexpected"),
    "a text for a number": (
        "evidence = jsonb_set(evidence, '{items,0,candidate}', '\"0.5\"')",
        "items.0.candidate: Input should be a valid number",
    ),
    "outside": ("evidence = jsonb_set(evidence, '{items,0,candidate}', '7')", "outside 0..1"),
    "a list": ("evidence = '[]'", "should be an object"),
    "null": ("evidence = 'null'", "should be an object"),
    "another version's": (
        "evidence = jsonb_set(evidence, '{candidate_version}', '\"v7\"')",
        "its evidence is about v7",
    ),
    "verdict gone": ("verdict = '{}'", "stored gate verdict: status: Field required"),
    "verdict turned": ("status = 'fail'", "its verdict says pass, the row is about better and says fail"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_unreadable_evidence_is_named_and_the_rest_is_replayed(engine: sa.Engine, damage: str) -> None:
    verdicts.store_verdicts(engine, GATE)
    change, words = DAMAGES[damage]
    with engine.begin() as conn:
        conn.execute(sa.text(f"update iccm.gate_verdicts set {change} where version = 'better'"))
    replay = replay_gate(engine, GATE)
    assert [(verdict.version, words in verdict.reason) for verdict in replay.unreadable] == [("better", True)]
    assert len(replay.replayed) == 9 and not replay.changed_verdicts


def test_evidence_or_a_gate_changed_since_is_detected(engine: sa.Engine) -> None:
    verdicts.store_verdicts(engine, GATE)
    with engine.begin() as conn:
        for change in (
            "evidence = jsonb_set(evidence, '{items,3,candidate}', '0.25') where version = 'better'",
            "gate = gate || '{\"wishes\": 1}' where version = 'equal'",
            "gate = gate - 'min_slice_items' where version = 'slow'",
        ):
            conn.execute(sa.text(f"update iccm.gate_verdicts set {change}"))
    replayed = {verdict.version: verdict for verdict in replay_gate(engine, GATE).replayed}
    assert (replayed["better"].reproduces, replayed["better"].identical, replayed["better"].changed) == (
        False,
        False,
        False,
    )
    assert (replayed["equal"].reproduces, replayed["equal"].identical) == (None, True)
    assert (replayed["slow"].reproduces, replayed["slow"].identical) == (True, True)


def test_a_gate_is_read_from_a_file_and_overridden_by_assignments(tmp_path: Path) -> None:
    plain, group, recorded = (tmp_path / name for name in ("a.toml", "b.json", "c.json"))
    plain.write_text("max_slice_drop = 0.1\nmin_slice_items = 25\n")
    group.write_text('{"evaluation": {"max_slice_drop": 0.1}, "training": {"epochs": 2}}')
    recorded.write_text(with_numbers(confidence=0.95, batch_size=2).model_dump_json())
    assert load_gate(GATE, plain, []) == with_numbers(max_slice_drop=0.1, min_slice_items=25)
    assert load_gate(GATE, group, ["confidence=0.8"]) == with_numbers(max_slice_drop=0.1, confidence=0.8)
    assert load_gate(GATE, recorded, []) == with_numbers(confidence=0.95)
    assert load_gate(GATE, plain, [" max_slice_drop = 0.2"]).max_slice_drop == 0.2
    assert load_gate(GATE, None, []) == GATE


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"max_slice_drop = ", "Invalid value"),
        (b"\xff\xfe\x00", "utf-8"),
        (b"max_slice_drops = 0.1", "the gate has no number max_slice_drops"),
        (b"max_slice_drop = 2", "less than or equal to 1"),
        (b"max_slice_drop = nan", "finite"),
        (b'confidence = "sure"', "valid number"),
        (b"x = " + b"[" * 100_000, "gate.toml"),
        (b"#" * (2 << 20), "larger than 1 MiB"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_gate_is_an_error_in_one_line(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "gate.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_gate(GATE, path, [])
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("max_slice_drop", "is not name=value"),
        ("=1", "the gate has no number"),
        ("batch_size=4", "the gate has no number batch_size. The gate's numbers: confidence"),
        ("confidence=1", "less than 1"),
        ("confidence=0.2", "greater than 0.5"),
        ("min_slice_items=2.5", "valid integer"),
        ("max_slice_drop=inf", "finite"),
        ("max_slice_drop=", "valid number"),
    ],
)
def test_an_assignment_that_is_no_number_of_the_gate_is_an_error_in_one_line(
    assignment: str, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        load_gate(GATE, None, [assignment])
    assert words in str(caught.value) and "\n" not in str(caught.value)
