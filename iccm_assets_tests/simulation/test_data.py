"""The shipped files: rebuilt from the seed byte for byte, and disjoint from each other (X2, X3)."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from iccm_assets.settings import PACKAGED_AUDIT_SET, PACKAGED_CANARY_SET, PACKAGED_MODEL, PACKAGED_REHEARSAL
from iccm_assets.simulation.base_model.build import (
    draw_audit_rows,
    draw_canary_rows,
    draw_rehearsal_rows,
    encode_rows,
)
from iccm_assets.simulation.developers.developers import plan_conversations
from iccm_assets.simulation.language.families import BASE_FAMILIES, NEW_FAMILIES
from iccm_assets.simulation.language.generator import structural_signature
from iccm_assets.simulation.language.grammar import parse
from iccm_assets.simulation.language.quick_score import score_requirements


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


SETS = {PACKAGED_CANARY_SET: draw_canary_rows, PACKAGED_AUDIT_SET: draw_audit_rows}


@pytest.fixture(scope="module", params=SETS, ids=["canary", "audit"])
def evaluation_set(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return read_rows(request.param)


@pytest.fixture(scope="module")
def rehearsal() -> list[dict[str, Any]]:
    return read_rows(PACKAGED_REHEARSAL)


def normalised(text: str) -> str:
    return " ".join(text.split()).lower()


@pytest.mark.slow
@pytest.mark.parametrize("path", SETS, ids=["canary", "audit"])
def test_the_canary_and_the_audit_set_are_reproduced_from_their_seeds(path: Path) -> None:
    """The audit set is drawn without anything that the base model was trained on (X3)."""
    assert gzip.decompress(encode_rows(SETS[path]())) == gzip.decompress(path.read_bytes())


def test_the_rehearsal_sample_is_reproduced_from_its_seed() -> None:
    assert gzip.decompress(encode_rows(draw_rehearsal_rows())) == gzip.decompress(
        PACKAGED_REHEARSAL.read_bytes()
    )


def test_each_set_is_large_enough_and_every_item_can_be_solved(evaluation_set: list[dict[str, Any]]) -> None:
    slices = Counter(row["slice"] for row in evaluation_set)
    assert len(evaluation_set) == len({row["item"] for row in evaluation_set}) >= 600
    assert set(slices) == {*BASE_FAMILIES, *NEW_FAMILIES}
    assert len(slices) >= 15 and min(slices.values()) >= 40
    assert all(
        score_requirements(row["requirements"], row["test_suite"]) == (1.0, 0.0) for row in evaluation_set
    )


def test_the_rehearsal_sample_is_base_only_and_balanced(rehearsal: list[dict[str, Any]]) -> None:
    slices = Counter(row["slice"] for row in rehearsal)
    assert len(rehearsal) >= 600
    assert set(slices) == set(BASE_FAMILIES)
    assert max(slices.values()) - min(slices.values()) <= len(rehearsal) // 50


@pytest.mark.slow
def test_each_set_is_disjoint_from_the_other_the_rehearsal_sample_and_traffic(
    evaluation_set: list[dict[str, Any]], rehearsal: list[dict[str, Any]]
) -> None:
    [other_set] = [rows for rows in map(read_rows, SETS) if rows != evaluation_set]
    traffic = [
        session.example
        for seed in (1, 2, 3)
        for session in plan_conversations(seed, n=80, end=date(2026, 3, 1))
    ]
    texts = {normalised(row["requirements"]) for row in evaluation_set}
    sources = {normalised(row["source_code"]) for row in evaluation_set}
    shapes = {structural_signature(parse(row["requirements"])) for row in evaluation_set}
    for others in ([(row["source_code"], row["requirements"]) for row in (*rehearsal, *other_set)],
                   [(session.source_code, session.requirements) for session in traffic]):  # fmt: skip
        assert not texts & {normalised(requirements) for _, requirements in others}
        assert not sources & {normalised(source) for source, _ in others}
        assert not shapes & {structural_signature(parse(requirements)) for _, requirements in others}


def test_the_base_model_is_small_and_holds_no_pickle() -> None:
    files = [path for path in PACKAGED_MODEL.rglob("*") if path.is_file()]
    assert {"model.safetensors", "tokenizer.json", "config.json", "generation_config.json"} <= {
        path.name for path in files
    }
    assert sum(path.stat().st_size for path in files) < 6_000_000
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pkl"}]
