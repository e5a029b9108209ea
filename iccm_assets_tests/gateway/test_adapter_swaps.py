"""Swaps of adapters under load lose no request and mix none, in process and on a model server (L11)."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from iccm_assets.gateway import model_pool
from iccm_assets.models import generation
from iccm_assets.models.shared_weights import list_shared_bases
from iccm_assets.registry.model_store import ModelStore, StoredModel
from iccm_assets.settings import load_settings
from iccm_assets_tests.factories.adapter_servers import BASE, AdapterServer, serve_adapters
from iccm_assets_tests.factories.adapters import printable_llama, publish_adapter, publish_base
from iccm_assets_tests.factories.architectures import SOURCES
from iccm_assets_tests.factories.swapped_arms import SwappedArms

ASKED = SOURCES[:4]
ADAPTERS = 6
LOAD = 0.6


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[StoredModel]:
    """A base model and its adapters in the store of a home."""
    store = ModelStore(tmp_path_factory.mktemp("home"))
    base = publish_base(store, printable_llama)
    return [base, *(publish_adapter(store, base, seed) for seed in range(ADAPTERS))]


@pytest.fixture
def server(models: list[StoredModel]) -> Iterator[AdapterServer]:
    with serve_adapters(models[0]) as running:
        yield running


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unload after 0.2 s instead of a minute; switch between threads as a gateway's process does."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.001)
    monkeypatch.setattr(model_pool, "UNLOAD_SECONDS", 0.2)
    monkeypatch.setattr(model_pool, "POLL_SECONDS", 0.05)
    yield
    sys.setswitchinterval(interval)


def make_arms(models: list[StoredModel], tmp_path: Path, replicas: int = 1, **gateway: Any) -> SwappedArms:
    (tmp_path / "models").symlink_to(models[0].path.parent)
    settings = load_settings(
        home=tmp_path,
        # Whatever the load of the machine, no request waits for longer or finds a full queue.
        gateway={
            "threads": 1, "queue_size": 4096, "timeout_seconds": 240, "canary_timeout_seconds": 200,
            **gateway,
        },
        evaluation={"max_new_tokens": 8},
        capture={"redact": False},
    )  # fmt: skip
    return SwappedArms(settings, models, replicas)


async def swap_under_load(arms: SwappedArms, swaps: int) -> list[Any]:
    """Swap through all adapters in turn at 60 % of the measured capacity; return all outcomes."""
    names = [f"v{1 + number % ADAPTERS}" for number in range(swaps)]
    await arms.start("v0")
    capacity = await arms.measure_capacity(ASKED, 60)
    async with arms.load(ASKED, LOAD * capacity) as outcomes:
        for number, (old, new) in enumerate(pairwise(["v0", *names]), 1):
            await arms.swap(number, old, new)
    return outcomes


def check_records(arms: SwappedArms, outcomes: list[Any]) -> Counter[str]:
    """Check that each request was answered, recorded once, and reproduces from its recorded digest."""
    failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert not failed, (len(failed), failed[:3])
    records = arms.read_records()
    assert len(records) == arms.sent
    expected = arms.reproduce(ASKED)
    # Any two versions differ in their answer to any source: a mixed answer would be seen.
    assert len(set(expected.values())) == len(expected)
    texts = {record["row"]["request_id"]: record["response"]["text"] for record in records}
    assert len(texts) == arms.sent
    for outcome in outcomes:
        assert texts[outcome.answer.request_id] == outcome.answer.requirements
    served: Counter[str] = Counter()
    for record in records:
        row, response = record["row"], record["response"]
        assert (row["status"], row["arm"]) == ("ok", row["assigned_arm"])
        digest = arms.locations[row["model_version"]].digest
        assert response["text"] == expected[digest, response["source"]]
        served[row["arm"]] += 1
        served[row["model_version"]] += 1
    return served


def check_swaps(arms: SwappedArms, outcomes: list[Any], swaps: int) -> None:
    served = check_records(arms, outcomes)
    assert served["canary"] >= swaps / 3
    assert all(served[name] for name in arms.locations)


def run_in_process(models: list[StoredModel], tmp_path: Path, swaps: int) -> None:
    gc.collect()
    is_held = models[0].manifest.base_digest in {key.digest for key in list_shared_bases()}
    arms = make_arms(models, tmp_path)
    try:
        with patch.object(generation, "_load_weights", wraps=generation._load_weights) as reading:
            outcomes = asyncio.run(swap_under_load(arms, swaps))
        # The base, once for all versions that came and went, unless another test holds it.
        assert reading.call_count == (not is_held)
    finally:
        arms.close()
    check_swaps(arms, outcomes, swaps)


def make_server_arms(models, server: AdapterServer, tmp_path: Path, replicas: int) -> SwappedArms:
    return make_arms(
        models, tmp_path, replicas, backend="openai", openai_urls={"*": f"{server.url}#{BASE}"},
        openai_models_path=server.root,
    )  # fmt: skip


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.05)


def run_on_server(models, server: AdapterServer, tmp_path: Path, swaps: int, replicas: int = 1) -> None:
    arms = make_server_arms(models, server, tmp_path, replicas)

    async def swap() -> list[Any]:
        outcomes = await swap_under_load(arms, swaps)
        last = arms.sync.routing.production
        for _ in range(400):
            if server.adapters == {arms.locations[last].digest}:
                break
            arms.require(last)  # as the next readings of the routing do
            await asyncio.sleep(0.05)
        return outcomes

    try:
        outcomes = asyncio.run(swap())
    finally:
        arms.close()
    check_swaps(arms, outcomes, swaps)
    # The last version is left, and each of the others was loaded and unloaded over and over.
    assert len(server.adapters) == 1
    done = Counter(verb for verb, _, status in server.calls.elements() if status == 200)
    assert done["load"] == done["unload"] + 1
    assert done["load"] >= min(swaps, ADAPTERS)


def test_swaps_in_process_lose_and_mix_no_request(models, tmp_path) -> None:
    run_in_process(models, tmp_path, 12)


@pytest.mark.slow
def test_swaps_of_two_replicas_on_a_model_server_lose_and_mix_no_request(models, server, tmp_path) -> None:
    run_on_server(models, server, tmp_path, 12, replicas=2)


def test_an_adapter_stays_loaded_while_a_request_of_another_replica_waits(models, server, tmp_path) -> None:
    arms = make_server_arms(models, server, tmp_path, 2)
    idle, waiting = arms.pools
    digest = arms.locations["v1"].digest

    def withdraw() -> bool:
        arms.require("v0")  # as each reading of the routing does
        return "v1" not in idle.ready

    async def ask_and_withdraw() -> Any:
        await arms.start("v1")
        arms.require("v0", "v1")
        await wait_until(lambda: all("v0" in pool.ready for pool in arms.pools))
        with server.busy():
            asking = asyncio.create_task(arms.ask(ASKED[0]))
            await wait_until(lambda: waiting.ready["v1"].pending == 1)
            await wait_until(withdraw)
            for _ in range(20):  # the other replica reads the routing, and could unload the adapter
                assert withdraw()
                await asyncio.sleep(0.05)
            assert digest in server.adapters and not server.calls["unload", digest, 200]
        outcome = await asking
        await wait_until(lambda: withdraw() and not server.adapters)
        return outcome

    try:
        outcome = asyncio.run(ask_and_withdraw())
    finally:
        arms.close()
    assert outcome.answer.model_version == "v1"
    assert server.calls["load", digest, 200] == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_swaps_in_process_lose_and_mix_no_request(models, tmp_path) -> None:
    run_in_process(models, tmp_path, 200)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_swaps_on_a_model_server_lose_and_mix_no_request(models, server, tmp_path) -> None:
    run_on_server(models, server, tmp_path, 200)
