"""A home that was copied or restored, with real processes: its models are those next to its database."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from iccm_assets.db.embedded.embedded_server import EmbeddedServer
from iccm_assets_tests.factories.commands import iccm
from iccm_assets_tests.factories.gateways import SOURCE, eventually
from iccm_assets_tests.factories.tiny_models import tiny_t5

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SERVE = [sys.executable, "-c", "from iccm_assets.cli.main import main; main()", "serve", "--port", "0"]


@contextmanager
def served(home: Path, **variables: str) -> Iterator[str]:
    """Run `iccm serve` on this home until production is loaded; yields its URL."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ICCM_")}
    log = home.parent / "serve.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            SERVE,
            env={**inherited, "ICCM_HOME": str(home), **variables},
            stdout=subprocess.PIPE,
            stderr=stream,
        )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().decode().split(" ")[0]
        assert url.startswith("http"), log.read_text()
        eventually(lambda: httpx2.get(f"{url}/readyz").status_code == 200, seconds=120)
        yield url
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()
        EmbeddedServer(home).stop()


def stored_response(url: str) -> str:
    response = httpx2.post(f"{url}/v1/requirements", json={"source_code": SOURCE}, timeout=120)
    assert response.status_code in (200, 502), response.text  # a random model may say nothing of use
    return response.json().get("model_version", "")


def model_path(home: Path) -> Path:
    lineage = iccm("lineage", "production", "--json", ICCM_HOME=str(home))
    assert lineage.returncode == 0, lineage.stderr
    return Path(json.loads(lineage.stdout)["path"])


def test_a_copied_home_and_a_restored_one_serve_their_own_model_with_the_old_folder_damaged_or_gone(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    with served(old, ICCM_BASE_MODEL=str(tiny_t5(tmp_path / "tiny"))) as url:
        stored_response(url)
        backup = iccm("backup", str(tmp_path / "backups"), ICCM_HOME=str(old))
        assert backup.returncode == 0, backup.stderr
    subprocess.run(["cp", "-a", str(old), str(new)], check=True)
    [weights] = old.glob("models/*/model.safetensors")
    weights.chmod(0o644)
    weights.write_bytes(b"damaged")
    with served(new) as url:
        version = stored_response(url)
        assert model_path(new).parent == new / "models"
    for path in [old, *old.rglob("*")]:
        if path.is_dir():
            path.chmod(0o700)
    shutil.rmtree(old)
    shutil.rmtree(tmp_path / "tiny")
    restored = tmp_path / "restored"
    result = iccm("restore", str(tmp_path / "backups"), ICCM_HOME=str(restored))
    assert result.returncode == 0, result.stderr
    with served(restored) as url:
        assert stored_response(url) == version
        assert model_path(restored).parent == restored / "models"
