"""A fake model, small reconstructors and a suite for evaluations without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iccm_assets.scoring.orchestra import LocalReconstructor, Orchestra
from iccm_assets.suites.test_suites import parse_suite

GOOD, BAD = "double it", "leave it"
SUITE = parse_suite(
    {"kind": "cases", "cases": [{"call": "f", "args": [n], "expect": 2 * n} for n in (1, 2, 3)]}
)


@dataclass(frozen=True)
class FakeResponse:
    text: str
    output_tokens: int = 4
    latency_ms: float = 8.0
    is_complete: bool = True
    is_truncated: bool = False


class FakeModel:
    """Generates the same text for every source and records the sources."""

    def __init__(self, text: str, **changes: bool) -> None:
        self.text, self.changes = text, changes
        self.sources: list[str] = []

    def __call__(self, sources: Sequence[str], batch_size: int) -> list[FakeResponse]:
        self.sources += sources
        return [FakeResponse(self.text, **self.changes) for _ in sources]


def make_reconstructor(name: str, *, broken: bool = False) -> LocalReconstructor:
    def reconstruct(text: str) -> str:
        if text not in (GOOD, BAD):
            raise ValueError("nothing to read")
        return "def f(x):\n    return x * 2\n" if text == GOOD and not broken else "def f(x):\n    return x\n"

    return LocalReconstructor(name, reconstruct)


ORCHESTRA = Orchestra(
    (make_reconstructor("a"), make_reconstructor("b"), make_reconstructor("c", broken=True)), quorum=2
)
