"""A model server that loads and unloads adapters of its base model, with vLLM's words (L11, G7)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iccm_assets.models.generation import load_model
from iccm_assets.registry.model_store import StoredModel
from iccm_assets_tests.factories.chat_dialects import Dialect, DialectStub, Reply, run_stub
from iccm_assets_tests.factories.completion_dialects import runs

BASE = "base"


def _error(status: int, kind: str, message: str) -> Reply:
    return Reply({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)


class AdapterServer(DialectStub):
    """Runs real weights; ``calls`` counts what it was asked to load and unload, and with which result.

    ``root`` is where it sees the model store; ``changeable`` is false where no endpoint loads adapters.
    """

    store: Path
    root: str
    changeable = True
    enabled = True
    max_rank = 16

    def __init__(self, dialects: Mapping[str, Dialect], url: str) -> None:
        super().__init__(dict(dialects), url)
        self.paths: dict[str, str] = {}
        self.base_root = ""
        self.calls: Counter[tuple[str, str, int]] = Counter()
        self._loading = threading.Lock()
        # As on one device: requests wait for each other, and a load does not wait for all of them.
        self._running = threading.Lock()

    @property
    def adapters(self) -> set[str]:
        return set(self.paths)

    def restart(self) -> None:
        """Forget the adapters, as a server that is started again."""
        for name in list(self.paths):
            del self.paths[name], self.dialects[name]  # type: ignore[attr-defined]

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Let all requests wait."""
        with self._running:
            yield

    def cards(self) -> list[dict[str, Any]]:
        base = {"id": BASE, "object": "model", "root": self.base_root, "parent": None}
        return [base, *({"id": name, "root": path, "parent": BASE} for name, path in self.paths.items())]

    def post(self, path: str, request: dict[str, Any]) -> Reply:
        if path == "/v1/completions":
            return self.answer(request)
        if not self.changeable or not path.endswith("load_lora_adapter"):
            return Reply({"detail": "Not Found"}, 404)
        verb, name = path.removeprefix("/v1/").removesuffix("_lora_adapter"), request["lora_name"]
        with self._loading:
            reply = self._load(name, request["lora_path"]) if verb == "load" else self._unload(name)
        self.calls[verb, name, reply.status] += 1
        return reply

    def answer(self, request: dict[str, Any]) -> Reply:
        with self._running:
            if request["model"] not in self.dialects:
                return _error(404, "NotFoundError", f"The model `{request['model']}` does not exist.")
            return super().answer(request)

    def _load(self, name: str, path: str) -> Reply:
        if name in self.paths:
            words = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in"
            return _error(400, "InvalidUserInput", f"{words} place, set 'load_inplace' to True.")
        if not self.enabled:
            return _error(500, "InternalServerError", "Call to add_lora method failed: LoRA is not enabled.")
        directory = self.store / Path(path).name
        if Path(path).parent != Path(self.root) or not (directory / "adapter_config.json").is_file():
            words = f"Loading lora {name} failed: No adapter found for {path}"
            return _error(404, "NotFoundError", words)
        loaded = load_model(directory, shared=True)
        rank = max(config.r for config in loaded.model.peft_config.values())
        if rank > self.max_rank:
            words = f"LoRA rank {rank} is greater than max_lora_rank {self.max_rank}."
            return _error(500, "InternalServerError", words)
        self.dialects[name] = runs(loaded)  # type: ignore[index]
        self.paths[name] = path
        return Reply(f"Success: LoRA adapter '{name}' added successfully.")

    def _unload(self, name: str) -> Reply:
        if name not in self.paths:
            return _error(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        del self.paths[name], self.dialects[name]  # type: ignore[attr-defined]
        return Reply(f"Success: LoRA adapter '{name}' removed successfully.")


@contextmanager
def serve_adapters(base: StoredModel, root: str = "") -> Iterator[AdapterServer]:
    """Serve a base model under its name, and its adapters once they are loaded.

    ``root`` is the path at which the server sees the model store; empty: where it is.
    """
    loaded = load_model(base.path, shared=True)
    with run_stub({BASE: runs(loaded)}, AdapterServer) as server:
        server.store, server.root = base.path.parent, root or str(base.path.parent)
        server.base_root = f"{server.root}/{base.digest}"
        yield server
