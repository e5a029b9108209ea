"""Production measured through the gateway: its own answer, and nobody's traffic (T8)."""

from __future__ import annotations

import httpx2
import pytest
import sqlalchemy as sa

from iccm_assets.errors import IccmError
from iccm_assets.gateway.batching import BackendResponse, DynamicBatcher
from iccm_assets.monitoring.serving_path import open_serving_path
from iccm_assets.registry import versions
from iccm_assets.settings import load_settings
from iccm_assets_tests.gateway.factories import SOURCE, eventually, gateway, rollout, rows, set_weight

COUNTED = "select (select count(*) from iccm.requests) + (select count(*) from iccm.conversations)"


def settings_of(engine: sa.Engine, home, **more):
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    return load_settings(home=home, database_url=url, **more)


def production(engine: sa.Engine):
    with engine.connect() as conn:
        return versions.get_production_version(conn)


def loading(version):
    """A loader that says who was loaded here."""
    return DynamicBatcher(
        version.version,
        lambda sources: [BackendResponse(f"loaded {version.version} {one}") for one in sources],
        batch_size=4,
        batch_timeout_seconds=0,
        queue_size=8,
        stall_timeout_seconds=30,
    )


def test_a_probe_is_answered_by_production_and_recorded_nowhere(served, engine) -> None:
    before = served.client.get("/metrics").text
    [[counted]] = rows(engine, COUNTED)
    reply = served.client.post("/v1/probe", json={"source_code": SOURCE})
    assert reply.status_code == 200
    assert (reply.json()["model_version"], "(v1)" in reply.json()["requirements"]) == ("v1", True)
    served.ask("after-the-probe")
    eventually(lambda: rows(engine, "select 1 from iccm.requests where session_id = 'after-the-probe'"))
    [[now]] = rows(engine, COUNTED)
    assert now == counted + 2
    after = served.client.get("/metrics").text
    assert "iccm_gateway_probes_total" in after and 'iccm_gateway_probes_total{status="ok"}' not in before


def test_while_the_canary_arm_has_half_of_the_traffic_a_probe_is_still_productions(served, engine) -> None:
    with engine.begin() as conn:
        rollout(conn, 0.5)
    eventually(lambda: served.routing()["weights"].get("v2") == 0.5)
    answers = [served.client.post("/v1/probe", json={"source_code": f"{SOURCE}#{n}"}) for n in range(20)]
    assert {one.json()["model_version"] for one in answers} == {"v1"}
    set_weight(engine, 0.0, state="aborted")


@pytest.mark.parametrize(("body", "status"), [({}, 422), ({"source_code": "x", "session_id": "s"}, 422)])
def test_a_probe_takes_source_code_and_nothing_else(served, body, status) -> None:
    assert served.client.post("/v1/probe", json=body).status_code == status


def test_a_living_gateway_is_asked_and_gives_every_answer_in_its_place(served, engine, home) -> None:
    with open_serving_path(engine, settings_of(engine, home), production(engine), loading) as path:
        assert path.name == f"gateway {served.url}"
        told = path([SOURCE] * 30)
    assert [one.text for one in told] == ["The function `add` shall return the sum. (v1)"] * 30


def test_without_a_gateway_production_is_loaded_as_a_gateway_would(fresh, tmp_path) -> None:
    with open_serving_path(fresh, settings_of(fresh, tmp_path), production(fresh), loading) as path:
        told = path([f"s{n}" for n in range(20)])
    assert [one.text for one in told] == [f"loaded v1 s{n}" for n in range(20)]


def test_an_answer_of_another_version_ends_the_measurement(served, engine, home) -> None:
    with engine.connect() as conn:
        other = versions.get_version(conn, "v2")
    eventually(lambda: "v2" not in served.routing()["weights"])
    path = open_serving_path(engine, settings_of(engine, home), other, loading)
    with path as asked:
        if not asked.name.startswith("gateway"):
            pytest.skip("the gateway has let go of v2")
        with pytest.raises(IccmError, match="v1 serves now, not v2"):
            asked([SOURCE])


def test_where_tokens_are_needed_one_is_sent(fresh, tmp_path) -> None:
    url = fresh.url.set(drivername="postgresql").render_as_string(hide_password=False)
    secret = "a-token-of-some-length"
    with gateway(url, tmp_path, ICCM_GATEWAY__TOKENS=secret) as running:
        refused = httpx2.post(f"{running.url}/v1/probe", json={"source_code": SOURCE})
        assert refused.status_code == 401
        eventually(
            lambda: rows(fresh, "select 1 from iccm.gateway_replicas where 'v1' = any(ready_versions)")
        )
        with open_serving_path(
            fresh, settings_of(fresh, tmp_path, gateway={"tokens": secret}), production(fresh), loading
        ) as path:
            assert path([SOURCE])[0].text
        with (
            open_serving_path(fresh, settings_of(fresh, tmp_path), production(fresh), loading) as path,
            pytest.raises(IccmError, match="HTTP 401"),
        ):
            path([SOURCE])
