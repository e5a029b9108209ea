"""A Dagster UI that runs, and how to query it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from datetime import date
from typing import Any

import httpx2 as httpx

from iccm_assets_tests.factories.commands import ICCM, run


@dataclass(frozen=True)
class Instance:
    """A running UI: its address, and the environment of commands that belong to it."""

    url: str
    environment: dict[str, str]
    yesterday: date  # of the time it was filled

    def iccm(self, *arguments: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        return run([*ICCM, *arguments], self.environment, timeout)

    def query(self, text: str, **variables: Any) -> Any:
        reply = httpx.post(f"{self.url}/graphql", json={"query": text, "variables": variables}, timeout=240)
        reply.raise_for_status()
        assert "errors" not in reply.json(), reply.json()
        return reply.json()["data"]
