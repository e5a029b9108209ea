"""Models are unloaded after their last request, and adapters once no replica has them loaded (G3, L11)."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from iccm_assets.gateway import model_pool
from iccm_assets.gateway.model_pool import ModelPool
from iccm_assets.gateway.routing import ModelLocation
from iccm_assets.gateway.routing_sync import RoutingSync
from iccm_assets.gateway.tokens import TokenStore
from iccm_assets_tests.factories.gateways import database_url, eventually, version

OLD, NEW, OTHER = (ModelLocation(name, f"models/{name}", f"d-{name}") for name in ("v1", "v2", "v3"))


class StubBackend:
    def __init__(self) -> None:
        self.pending, self.is_closed = 0, False

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A pool of backends without models; ``cleaned`` has the digests that the servers kept, each time."""
    monkeypatch.setattr(model_pool, "UNLOAD_SECONDS", 0.05)
    monkeypatch.setattr(model_pool, "POLL_SECONDS", 0.02)
    backends: dict[str, StubBackend] = {}
    cleaned: list[Collection[str]] = []

    def load(location: ModelLocation) -> Any:
        backends[location.version] = StubBackend()
        return backends[location.version]

    running = ModelPool(load, cleaned.append)
    yield SimpleNamespace(pool=running, backends=backends, cleaned=cleaned)
    running.close()


def test_a_model_stays_ready_until_its_last_request_and_its_adapter_is_then_unloaded(pool) -> None:
    """So the other replicas, which read what is ready, know that its adapter is in use."""
    pool.pool.set_required([OLD, NEW])
    eventually(lambda: set(pool.pool.ready) == {"v1", "v2"})
    pool.backends["v1"].pending = 1
    pool.pool.set_required([NEW])
    time.sleep(0.2)
    assert set(pool.pool.ready) == {"v1", "v2"}
    assert not pool.backends["v1"].is_closed and pool.cleaned[-1] == {"d-v1", "d-v2"}
    pool.backends["v1"].pending = 0
    eventually(lambda: pool.backends["v1"].is_closed and pool.cleaned[-1] == {"d-v2"})
    assert set(pool.pool.ready) == {"v2"} and not pool.backends["v2"].is_closed


def test_a_model_that_is_required_again_before_its_last_request_is_kept(pool) -> None:
    pool.pool.set_required([OLD, NEW])
    eventually(lambda: set(pool.pool.ready) == {"v1", "v2"})
    first = pool.backends["v1"]
    first.pending = 1
    pool.pool.set_required([NEW])
    time.sleep(0.2)
    pool.pool.set_required([OLD, NEW])
    first.pending = 0
    time.sleep(0.2)
    assert pool.pool.ready["v1"] is pool.backends["v1"] is first and not first.is_closed
    assert pool.cleaned == [{"d-v1", "d-v2"}]


def test_a_request_that_hangs_does_not_keep_its_model_for_ever(pool, monkeypatch) -> None:
    monkeypatch.setattr(model_pool, "MAX_UNUSED_SECONDS", 0.2)
    pool.pool.set_required([OLD, NEW])
    eventually(lambda: set(pool.pool.ready) == {"v1", "v2"})
    pool.backends["v1"].pending = 1
    pool.pool.set_required([NEW])
    eventually(lambda: pool.backends["v1"].is_closed and pool.cleaned[-1] == {"d-v2"})


def test_an_adapter_that_another_replica_has_loaded_stays_on_the_servers(pool) -> None:
    pool.pool.set_required([NEW], [OTHER])
    eventually(lambda: pool.cleaned and pool.cleaned[-1] == {"d-v2", "d-v3"})
    pool.pool.set_required([NEW])
    eventually(lambda: pool.cleaned[-1] == {"d-v2"})


def test_servers_that_could_not_be_cleaned_are_cleaned_later(pool, monkeypatch, caplog) -> None:
    monkeypatch.setattr(model_pool, "RETRY_SECONDS", 0.1)
    failures = iter([OSError("away"), None])
    attempts: list[Collection[str]] = []

    def clean(in_use: Collection[str]) -> None:
        attempts.append(in_use)
        if error := next(failures):
            raise error

    running = ModelPool(lambda location: StubBackend(), clean)  # type: ignore[arg-type, return-value]
    running.set_required([NEW])
    eventually(lambda: len(attempts) == 2)
    running.close()
    assert "unused adapters stay on a model server for now: away" in caplog.text


def test_what_other_replicas_have_loaded_is_known_from_the_database(fresh: sa.Engine) -> None:
    """Of a version that is in no arm any more the digest is needed, too."""
    with fresh.begin() as conn:
        version(conn, "v3", "rolled_back")
        conn.execute(
            sa.text(
                "insert into iccm.gateway_replicas (replica, address, ready_versions, failed_versions)"
                " values ('other', 'http://other', array['v1', 'v3'], cast(:failed as jsonb))"
            ),
            {"failed": json.dumps({})},
        )
    calls: list[tuple[list[str], list[str]]] = []

    def set_required(required: list[ModelLocation], elsewhere: list[ModelLocation]) -> None:
        calls.append(([model.digest for model in required], [model.digest for model in elsewhere]))

    models = SimpleNamespace(startup_complete=False, ready={}, failed={}, set_required=set_required)
    sync = RoutingSync(
        lambda: database_url(fresh), "own", "http://own", models,  # type: ignore[arg-type]
        on_refresh=lambda: None, poll_seconds=0.1, keep_previous_warm=True, tokens=TokenStore(),
    )  # fmt: skip
    sync.start()
    eventually(lambda: calls)
    sync.stop()
    assert calls[0] == (["d-v1"], ["d-v1", "d-v3"])
    assert sync.routing is not None and sync.routing.ready_everywhere == {"v1", "v3"}
