"""Going on where a killed attempt stopped (L4).

The Trainer writes its checkpoints in place, file by file, so a killed one can leave half of one behind. A
mark written last, after everything was flushed, tells a whole checkpoint from half of one; it also holds
the curve so far and the identity of the training, so that nothing is ever continued with other data, another
configuration or other package versions. Going on from a mark gives the same bits as never having stopped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iccm_assets.learning.directories import flush, flush_tree, remove_tree
from iccm_assets.learning.job import LossPoint

MARK = "complete.json"
TRAINER_STATE = "trainer_state.json"


@dataclass(frozen=True)
class Resumable:
    """A whole checkpoint and the curve up to it."""

    checkpoint: Path
    history: tuple[LossPoint, ...]

    @property
    def step(self) -> int:
        """The optimiser steps already done."""
        return _step(self.checkpoint)


def mark(checkpoint: Path, identity: str, history: Sequence[LossPoint]) -> None:
    """Say that a checkpoint is whole; called once it is."""
    flush_tree(checkpoint)
    _write(checkpoint / MARK, {"identity": identity, "history": [asdict(point) for point in history]})


def find(scratch: Path, identity: str) -> Resumable | None:
    """The newest whole checkpoint of this very training; every other one is deleted.

    The best epoch's checkpoint is kept beside it, and named by its present place in the Trainer's state.
    """
    whole = {path: found for path in _checkpoints(scratch) if (found := _read_mark(path, identity))}
    for path in sorted(whole, key=_step, reverse=True):
        state = json.loads((path / TRAINER_STATE).read_text(encoding="utf-8"))
        best = scratch / Path(state["best_model_checkpoint"] or path).name
        if best in whole:
            _write(path / TRAINER_STATE, {**state, "best_model_checkpoint": str(best)})
            _remove_others(scratch, keep={path, best})
            return whole[path]
    _remove_others(scratch, keep=set())
    return None


def _checkpoints(scratch: Path) -> list[Path]:
    return [path for path in scratch.glob("checkpoint-*") if path.is_dir()]


def _remove_others(scratch: Path, keep: set[Path]) -> None:
    for path in _checkpoints(scratch):
        if path not in keep:
            remove_tree(path)


def _read_mark(checkpoint: Path, identity: str) -> Resumable | None:
    path = checkpoint / MARK
    if not path.is_file():
        return None
    told = json.loads(path.read_text(encoding="utf-8"))
    if told["identity"] != identity:
        return None
    return Resumable(checkpoint, tuple(LossPoint(**point) for point in told["history"]))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _write(path: Path, values: Any) -> None:
    """Replace a JSON file whole."""
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(json.dumps(values), encoding="utf-8")
    flush(fresh)
    fresh.rename(path)
    flush(path.parent)
