"""An exported version is a model that Hugging Face's libraries load, with its evidence and nobody's text."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from iccm_assets.errors import CorruptCheckpointError, InputError, ModelError, VersionNotFoundError
from iccm_assets.governance.model_export import export_version
from iccm_assets.registry import versions
from iccm_assets.registry.model_store import ModelStore
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.platform_rows import conversation, training_run
from iccm_assets_tests.factories.tiny_models import tiny_t5
from iccm_assets_tests.factories.verdicts import store_verdict

REPOSITORY = "team/cet-d"


@pytest.fixture
def version(engine: sa.Engine, settings: Settings, tmp_path: Path) -> str:
    """A version with a model, a training run on a conversation, and a verdict."""
    stored = ModelStore(settings.home).import_model(str(tiny_t5(tmp_path / "tiny")))
    with engine.begin() as conn:
        values = {"path": str(stored.path), "parent": None, "status": "production"}
        made = versions.register_version(conn, digest=stored.digest, **values)
        conversation(conn, 1, user="somebody")
        training_run(conn, 1, made.version, examples={1: "new"})
    store_verdict(engine, made.version, made.version, "better")
    return made.version


class Hub:
    """What was committed to a repository, and how the server answers."""

    def __init__(self) -> None:
        self.status = 200
        self.url = ""
        self.files: dict[str, bytes] = {"model-00001-of-00002.safetensors": b"of an earlier version"}
        self.repository: dict[str, Any] = {}
        self.tags: list[str] = []

    def answer(self, path: str, body: bytes) -> Any:
        """Answer a request of the client."""
        if path == "/api/repos/create":
            self.repository = json.loads(body)
            return {"url": f"{self.url}/{REPOSITORY}"}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return {"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in files]}
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del self.files[line["value"]["path"]]
            return {
                "commitOid": "c0ffee",
                "commitUrl": f"{self.url}/{REPOSITORY}/commit/c0ffee",
                "success": True,
            }
        if "/tag/" in path:
            self.tags.append(json.loads(body)["tag"])
            return {}
        if "/tree/" in path:
            return [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in self.files]
        return {"id": REPOSITORY, "sha": "c0ffee", "siblings": [{"rfilename": name} for name in self.files]}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server with the part of the hub's interface that an upload uses."""
    served = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = served.answer(self.path, body) if served.status == 200 else {"error": "not allowed"}
            content = json.dumps(answer).encode()
            self.send_response(served.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    for module in ("huggingface_hub.constants", "huggingface_hub.hf_api"):
        monkeypatch.setattr(f"{module}.ENDPOINT", served.url, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield served
    server.shutdown()
    server.server_close()


def test_an_exported_version_loads_and_carries_its_evidence(
    engine: sa.Engine, settings: Settings, version: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    with engine.connect() as conn:
        report = export_version(conn, "production", str(tmp_path / "out"))
        stored = Path(versions.get_version(conn, version).path)
    target = Path(report.location)
    exported = AutoModelForSeq2SeqLM.from_pretrained(target).state_dict()
    original = AutoModelForSeq2SeqLM.from_pretrained(stored).state_dict()
    assert all(exported[name].equal(value) for name, value in original.items())
    assert AutoTokenizer.from_pretrained(target)("def f(): pass").input_ids
    card = (target / "README.md").read_text()
    assert f"name: {version}" in card and "type: test_pass_rate" in card and "value: 1.0" in card
    assert "**pass**" in card
    evidence = json.loads((target / "evidence.json").read_text())
    assert evidence["version"] == version and evidence["conversations_by_role"] == {"new": 1}
    assert [verdict["status"] for verdict in evidence["verdicts"]] == ["pass"]
    everything = b"".join(path.read_bytes() for path in target.iterdir() if path.suffix != ".safetensors")
    assert b"somebody" not in everything and b"s1" not in everything.split(b'"manifest"')[0]
    assert report.files == len(list(target.iterdir())) and not list(tmp_path.glob(".out*"))


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    engine: sa.Engine, settings: Settings, version: str, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    with engine.connect() as conn:
        for target, reason in ((str(full), "not an empty directory"), ("s3://bucket", "unknown kind")):
            with pytest.raises(InputError, match=reason):
                export_version(conn, version, target)
        with pytest.raises(InputError, match="public"):
            export_version(conn, version, str(tmp_path / "out"), public=True)
        with pytest.raises(VersionNotFoundError):
            export_version(conn, "no such version", str(tmp_path / "out"))
        weights = Path(versions.get_version(conn, version).path) / "model.safetensors"
        weights.chmod(0o600)
        weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
        with pytest.raises(CorruptCheckpointError):
            export_version(conn, version, str(tmp_path / "out"))
    assert [path.name for path in full.iterdir()] == ["notes.txt"]
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_a_version_is_one_commit_of_a_private_repository_with_its_tag(
    engine: sa.Engine, version: str, hub: Hub
) -> None:
    with engine.connect() as conn:
        report = export_version(conn, version, f"hf://{REPOSITORY}")
    assert report.location.endswith("/commit/c0ffee") and hub.tags == [version]
    assert hub.repository["name"] == "cet-d" and hub.repository["organization"] == "team"
    assert hub.repository.get("private") is True or hub.repository.get("visibility") == "private"
    assert {"README.md", "config.json", "model.safetensors", "evidence.json"} <= set(hub.files)
    assert "model-00001-of-00002.safetensors" not in hub.files


def test_a_hub_that_refuses_or_a_name_that_is_none_is_an_error(
    engine: sa.Engine, version: str, hub: Hub
) -> None:
    hub.status = 403
    with engine.connect() as conn:
        with pytest.raises(ModelError, match="did not take"):
            export_version(conn, version, f"hf://{REPOSITORY}")
        with pytest.raises(InputError, match="hf://"):
            export_version(conn, version, "hf://not a/valid/name")
