"""A gateway with an empty home serves what another home has published. (K2)"""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest
import sqlalchemy as sa

from iccm_assets.gateway.subprocess_gateway import run_gateway
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.rollout.deployment import bootstrap
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.object_storages import BUCKET, read_tree, s3_server
from iccm_assets_tests.factories.tiny_models import tiny_t5


@pytest.mark.slow
def test_a_gateway_with_an_empty_home_downloads_production_and_answers_with_it(
    engine: sa.Engine, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as server:
        for name, value in {**server, "ICCM_STORAGE": f"s3://{BUCKET}/gateway"}.items():
            monkeypatch.setenv(name, value)
        first = settings.model_copy(update={"storage": f"s3://{BUCKET}/gateway"})
        published = ModelStore.open(first).import_model(str(tiny_t5(tmp_path / "model")))
        with engine.begin() as conn:
            path = f"models/{published.digest}"
            version = bootstrap(conn, digest=published.digest, path=path, base_model="tiny")
        empty = first.model_copy(update={"home": tmp_path / "elsewhere"})
        with run_gateway(empty) as url:
            body = {"source_code": "def f(x):\n    return x\n", "session_id": "s"}
            response = httpx2.post(f"{url}/v1/requirements", json=body, timeout=120)
        assert response.status_code == 200, response.text
        assert response.json()["model_version"] == version.version
        assert read_tree(empty.home / "models" / published.digest) == read_tree(published.path)
