"""Peers that are no dependencies: each runs in a process of another environment and measures itself there.

`make bench` installs benchmarks/peers.txt into build/bench/peers. A function of ``PEERS`` takes the worker's
arguments and returns the work of a round; what it imports and loads before is not measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.harness import Measured, measure

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / "build/bench/peers/bin/python"


def semhash(vectors: str) -> Callable[[], list[int]]:
    """Deduplicate the rows of a `.npy` file at 0.9; returns the kept rows."""
    import numpy as np
    from semhash import SemHash  # type: ignore[import-not-found]

    embeddings = np.load(vectors)
    records = [str(row) for row in range(len(embeddings))]

    def deduplicate() -> list[int]:
        index = SemHash.from_embeddings(embeddings, records, model=None)
        return [int(record) for record in index.self_deduplicate(threshold=0.9).selected]

    return deduplicate


PEERS: dict[str, Callable[..., Callable[[], Any]]] = {"semhash": semhash}


class Worker:
    """A process of the peers' environment that runs a peer once a call; ``versions`` names its release."""

    versions: ClassVar[dict[str, str]] = {}

    def __init__(self, peer: str, *arguments: str) -> None:
        command = [str(PYTHON), "-m", "benchmarks.peers", peer, *arguments]
        self._process = subprocess.Popen(
            command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ
        )
        if (release := json.loads(self._read())) is None:
            raise FileNotFoundError(f"{peer} is not installed")
        self.versions[peer] = release

    @classmethod
    def start(cls, peer: str, *arguments: str) -> Worker | None:
        """Return a worker that is ready; None if the peer is not installed."""
        try:
            return cls(peer, *arguments)
        except FileNotFoundError:
            return None

    def __call__(self) -> Measured:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Measured(**json.loads(self._read()))

    def _read(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            self._process.communicate()
            raise EOFError(f"the worker ended with status {self._process.returncode}")
        return line

    def close(self) -> None:
        self._process.communicate()


def main() -> None:
    """Announce the release, then run the peer once for each line of standard input."""
    peer, *arguments = sys.argv[1:]
    with os.fdopen(os.dup(1), "w", buffering=1) as replies:
        os.dup2(2, 1)  # what the peer prints is no reply
        try:
            work = PEERS[peer](*arguments)
        except ImportError:
            replies.write("null\n")
            return
        replies.write(json.dumps(version(peer)) + "\n")
        for _ in sys.stdin:
            replies.write(json.dumps(vars(measure(work))) + "\n")


if __name__ == "__main__":
    main()
