"""The suites of the packaged world test their sources: honest conversations keep their evidence (D5)."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from random import Random
from typing import Any

import pytest

from iccm_assets.settings import PACKAGED_CANARY_SET, Settings, load_settings
from iccm_assets.simulation.developers.developers import plan_conversations
from iccm_assets.suites.suite_strength import measure_suite
from iccm_assets.suites.test_suites import parse_suite

# Points of yield that self-check and strength may cost.
MAX_LOSS = 0.02


def canary_suites() -> list[tuple[str, Any]]:
    rows = map(json.loads, gzip.decompress(PACKAGED_CANARY_SET.read_bytes()).decode().splitlines())
    return [(row["source_code"], row["test_suite"]) for row in rows]


def traffic_suites(seed: int) -> list[tuple[str, Any]]:
    sessions = plan_conversations(seed, n=80, end=date(2026, 3, 1))
    return [(session.example.source_code, session.example.test_suite) for session in sessions]


def count_statuses(suites: Iterable[tuple[str, Any]], settings: Settings) -> Counter[str]:
    with ThreadPoolExecutor(settings.judge.workers) as pool:
        measured = pool.map(lambda pair: measure_suite(pair[0], parse_suite(pair[1]), settings), suites)
        return Counter(measurement.status for measurement in measured)


@pytest.fixture
def platform_settings(tmp_path: Any) -> Settings:
    return load_settings(home=tmp_path)


def test_a_sample_of_the_canary_set_and_of_the_traffic_is_usable(platform_settings: Settings) -> None:
    rng = Random(11)
    sample = rng.sample(canary_suites(), 12) + rng.sample(traffic_suites(1), 12)
    assert count_statuses(sample, platform_settings) == {"usable": 24}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_honest_traffic_loses_at_most_two_points_of_yield(platform_settings: Settings, seed: int) -> None:
    counts = count_statuses(traffic_suites(seed), platform_settings)
    assert counts["usable"] >= (1 - MAX_LOSS) * counts.total(), counts


@pytest.mark.slow
def test_nearly_all_of_the_canary_set_is_usable(platform_settings: Settings) -> None:
    counts = count_statuses(canary_suites(), platform_settings)
    assert counts["usable"] >= (1 - MAX_LOSS) * counts.total(), counts
