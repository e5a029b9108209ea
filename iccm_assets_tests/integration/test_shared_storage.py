"""A platform that publishes at an S3 server, and an empty home that serves and reproduces it. (K2)"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from iccm_assets.gateway.subprocess_gateway import run_gateway
from iccm_assets.object_storage import ObjectStorage
from iccm_assets.registry.manifest import verify
from iccm_assets.settings import load_settings
from iccm_assets_tests.factories.commands import ICCM, run
from iccm_assets_tests.factories.demo_platforms import Platform, temporary_home, write_canary_items
from iccm_assets_tests.factories.object_storages import BUCKET, read_tree, s3_server
from iccm_assets_tests.factories.processes import bare_environment
from iccm_assets_tests.factories.tiny_models import tiny_t5

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# What a random model of 30 000 weights and a test of a minute need; everything else is the default.
SMALL = {
    "ICCM_TRIGGERS__MIN_EXAMPLES": "5",
    "ICCM_TRAINING__LEARNING_RATE": "1e-3",
    "ICCM_TRAINING__EPOCHS": "1",
    "ICCM_EVALUATION__MAX_NEW_TOKENS": "32",
    "ICCM_EVALUATION__LATENCY_ITEMS": "5",
    "ICCM_EVALUATION__LATENCY_ROUNDS": "1",
}
URL = f"s3://{BUCKET}/platform"


@pytest.fixture(scope="module")
def shared() -> Iterator[Platform]:
    """A platform on which a one-day demo has run with a storage."""
    with s3_server() as server, temporary_home("iccm-shared-") as folder:
        environment = bare_environment() | SMALL | server
        environment |= {
            "ICCM_HOME": str(folder / "iccm"),
            "ICCM_STORAGE": URL,
            "ICCM_BASE_MODEL": str(tiny_t5(folder / "my_model")),
            "ICCM_CANARY_SET": write_canary_items(folder / "canary.jsonl", 8),
        }
        demo = run([*ICCM, "demo", "--no-rollout", "--conversations", "24", "--days", "1"], environment, 1500)
        yield Platform(folder / "iccm", environment, demo)


def move(shared: Platform, home: Path) -> Platform:
    """Return the same platform as an empty home elsewhere sees it."""
    url = shared.iccm("db", "url").stdout.strip()
    return Platform(
        home, shared.environment | {"ICCM_HOME": str(home), "ICCM_DATABASE_URL": url}, shared.demo
    )


def test_a_retrain_publishes_and_another_home_serves_and_reproduces_it(
    shared: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shared.demo.returncode == 0, shared.demo.stderr[-3000:]
    [[candidate, digest, dataset]] = shared.rows(
        "select v.version, v.digest, r.dataset_digest from iccm.phase4_training_runs r"
        " join iccm.model_versions v on v.version = r.candidate_version"
    )
    elsewhere = move(shared, tmp_path / "elsewhere")
    for name in elsewhere.environment:
        if name.startswith(("AWS_", "ICCM_")):
            monkeypatch.setenv(name, elsewhere.environment[name])
    storage = ObjectStorage(URL)
    published = {
        kind: [each.name for each in storage.list_artifacts(kind)] for kind in ("models", "datasets")
    }
    versions = shared.rows("select version, digest, path from iccm.model_versions")
    assert published == {"models": sorted(row.digest for row in versions), "datasets": [dataset]}
    assert {row.path for row in versions} == {f"models/{row.digest}" for row in versions}

    # The gateway of an empty home answers with the version in production, downloaded bit for bit.
    with run_gateway(load_settings()) as gateway:
        body = {"source_code": "def f(x):\n    return x\n", "session_id": "elsewhere"}
        response = httpx2.post(f"{gateway}/v1/requirements", json=body, timeout=120)
    assert response.status_code == 200, response.text
    assert response.json()["model_version"] == shared.production()
    [serving] = [row for row in versions if row.version == shared.production()]
    copy = elsewhere.home / "models" / serving.digest
    assert read_tree(copy) == read_tree(shared.home / "models" / serving.digest)

    # The candidate is trained again there, from the parent and the training set that it downloads.
    report = elsewhere.json("verify", candidate)
    assert report["outcome"] == "reproduced"
    assert verify(elsewhere.home / "models" / digest).digest == digest
    assert (elsewhere.home / "datasets" / dataset).is_dir()
