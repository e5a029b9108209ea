"""Production measured through the gateway: its own response, which counts as no traffic (T8)."""

from __future__ import annotations

import httpx2
import pytest
import sqlalchemy as sa

from iccm_assets.errors import IccmError
from iccm_assets.gateway.batching import BackendResponse, DynamicBatcher
from iccm_assets.monitoring import serving_path
from iccm_assets.monitoring.serving_path import open_serving_path
from iccm_assets.registry import versions
from iccm_assets.settings import load_settings
from iccm_assets_tests.factories.gateways import (
    SOURCE,
    database_url,
    eventually,
    gateway,
    rollout,
    rows,
    set_weight,
)

COUNTED = "select (select count(*) from iccm.requests) + (select count(*) from iccm.conversations)"


def make_settings(engine: sa.Engine, home, **more):
    return load_settings(home=home, database_url=database_url(engine), **more)


def production(engine: sa.Engine):
    with engine.connect() as conn:
        return versions.get_production_version(conn)


def loading(version):
    """A loader whose responses name the loaded version."""
    return DynamicBatcher(
        version.version,
        lambda sources, listeners: [
            BackendResponse(f"loaded {version.version} {source}") for source in sources
        ],
        batch_size=4,
        batch_timeout_seconds=0,
        queue_size=8,
        stall_timeout_seconds=30,
    )


def test_a_probe_is_served_by_production_and_not_recorded(served, engine) -> None:
    before = served.client.get("/metrics").text
    [[counted]] = rows(engine, COUNTED)
    response = served.client.post("/v1/probe", json={"source_code": SOURCE})
    assert response.status_code == 200
    assert (response.json()["model_version"], "(v1)" in response.json()["requirements"]) == ("v1", True)
    assert response.json()["finish_reason"] == "stop"
    served.request("after-the-probe")
    eventually(lambda: rows(engine, "select 1 from iccm.requests where session_id = 'after-the-probe'"))
    [[now]] = rows(engine, COUNTED)
    assert now == counted + 2
    after = served.client.get("/metrics").text
    assert "iccm_gateway_probes_total" in after and 'iccm_gateway_probes_total{status="ok"}' not in before


def test_a_probe_is_served_by_production_while_the_canary_has_half_of_the_traffic(served, engine) -> None:
    with engine.begin() as conn:
        rollout(conn, 0.5)
    eventually(lambda: served.routing()["weights"].get("v2") == 0.5)
    responses = [served.client.post("/v1/probe", json={"source_code": f"{SOURCE}#{n}"}) for n in range(20)]
    assert {response.json()["model_version"] for response in responses} == {"v1"}
    set_weight(engine, 0.0, state="aborted")


@pytest.mark.parametrize(("body", "status"), [({}, 422), ({"source_code": "x", "session_id": "s"}, 422)])
def test_a_probe_accepts_source_code_and_nothing_else(served, body, status) -> None:
    assert served.client.post("/v1/probe", json=body).status_code == status


def test_a_live_gateway_is_probed_and_results_keep_their_order(served, engine, home) -> None:
    def probe():
        with open_serving_path(engine, make_settings(engine, home), production(engine), loading) as path:
            return path.name == f"gateway {served.url}" and path([SOURCE] * 30)

    results = eventually(probe)  # on a busy machine its heartbeat may be late
    assert [result.text for result in results] == ["The function `add` shall return the sum. (v1)"] * 30


def test_without_a_gateway_production_is_loaded_as_a_gateway_would(fresh, tmp_path) -> None:
    with open_serving_path(fresh, make_settings(fresh, tmp_path), production(fresh), loading) as path:
        results = path([f"s{n}" for n in range(20)])
    assert [result.text for result in results] == [f"loaded v1 s{n}" for n in range(20)]


def test_a_response_of_another_version_ends_the_measurement(served, engine, home) -> None:
    with engine.begin() as conn:
        other = versions.get_version(conn, "v2")
        rollout(conn, 0.5)
    eventually(lambda: rows(engine, "select 1 from iccm.gateway_replicas where 'v2' = any(ready_versions)"))
    with (
        open_serving_path(engine, make_settings(engine, home), other, loading) as path,
        pytest.raises(IccmError, match="v1 serves now, not v2"),
    ):
        path([SOURCE])
    set_weight(engine, 0.0, state="aborted")


def test_a_token_is_sent_where_one_is_required(fresh, tmp_path) -> None:
    url = database_url(fresh)
    secret = "a-token-of-some-length"
    with gateway(url, tmp_path, ICCM_GATEWAY__TOKENS=secret) as running:
        rejected = httpx2.post(f"{running.url}/v1/probe", json={"source_code": SOURCE})
        assert rejected.status_code == 401
        eventually(
            lambda: rows(fresh, "select 1 from iccm.gateway_replicas where 'v1' = any(ready_versions)")
        )
        with open_serving_path(
            fresh, make_settings(fresh, tmp_path, gateway={"tokens": secret}), production(fresh), loading
        ) as path:
            assert path([SOURCE])[0].text
        with (
            open_serving_path(fresh, make_settings(fresh, tmp_path), production(fresh), loading) as path,
            pytest.raises(IccmError, match="HTTP 401"),
        ):
            path([SOURCE])


def test_a_measurement_ends_soon_after_its_gateways(monkeypatch):
    """The patience is for all sources together: with 40 of them and 0.3 s each it would take 3 s."""
    monkeypatch.setattr(serving_path, "PROBE_TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(serving_path, "RETRY_INTERVAL_SECONDS", 0.05)
    requests = []

    def refuse(request):
        requests.append(request)
        return httpx2.Response(503)

    client = httpx2.AsyncClient(transport=httpx2.MockTransport(refuse))
    monkeypatch.setattr(serving_path.httpx2, "AsyncClient", lambda **_: client)
    path = serving_path.HttpServingPath(["http://gateway"], "v1", load_settings(home="/nowhere"))
    results = path([f"{SOURCE}#{number}" for number in range(40)])
    assert {(result.text, result.error) for result in results} == {(None, "HTTP 503")}
    # The first four are requests until the time is up, every other source once.
    assert 40 <= len(requests) <= 40 + 4 * (0.3 / 0.05 + 1)
