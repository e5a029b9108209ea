"""Resume the training of a killed attempt from its last complete checkpoint (L4).

The Trainer writes its checkpoints in place, file by file, so a killed one can leave half a checkpoint. A
marker, written last and after everything was flushed, distinguishes a complete checkpoint; it also holds the
loss curve so far and the identity of the training, so that no training resumes with other data, another
configuration or other package versions. A resumed training gives the same bits as an uninterrupted one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iccm_assets.atomic_directories import fsync, fsync_tree, remove_tree
from iccm_assets.registry.loss_curve import LossPoint

COMPLETE_MARKER = "complete.json"
TRAINER_STATE = "trainer_state.json"


@dataclass(frozen=True)
class ResumePoint:
    """A complete checkpoint and the curve up to it."""

    checkpoint: Path
    history: tuple[LossPoint, ...]

    @property
    def step(self) -> int:
        """The number of optimizer steps done."""
        return _step(self.checkpoint)


def mark_complete(checkpoint: Path, identity: str, history: Sequence[LossPoint]) -> None:
    """Mark a checkpoint as complete, with the names of its files."""
    fsync_tree(checkpoint)
    files = [path.name for path in checkpoint.iterdir()]
    points = [asdict(point) for point in history]
    _write_json(checkpoint / COMPLETE_MARKER, {"identity": identity, "history": points, "files": files})


def find_resume_point(scratch: Path, identity: str) -> ResumePoint | None:
    """Return the newest complete checkpoint of the same training; delete the others.

    The best epoch's checkpoint stays, too; the Trainer's state is updated with its current path.
    """
    checkpoints = [path for path in scratch.glob("checkpoint-*") if path.is_dir()]
    complete = {path: point for path in checkpoints if (point := _read_marker(path, identity))}
    for path in sorted(complete, key=_step, reverse=True):
        state = json.loads((path / TRAINER_STATE).read_text(encoding="utf-8"))
        best = scratch / Path(state["best_model_checkpoint"] or path).name
        if best in complete:
            _write_json(path / TRAINER_STATE, {**state, "best_model_checkpoint": str(best)})
            _remove_all(set(checkpoints) - {path, best})
            return complete[path]
    _remove_all(set(checkpoints))
    return None


def _remove_all(checkpoints: set[Path]) -> None:
    for path in checkpoints:
        remove_tree(path)


def _read_marker(checkpoint: Path, identity: str) -> ResumePoint | None:
    path = checkpoint / COMPLETE_MARKER
    marker = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    # The Trainer deletes old checkpoints file by file, too: the marker may outlive the files.
    if marker.get("identity") != identity or not all(
        (checkpoint / name).exists() for name in marker["files"]
    ):
        return None
    return ResumePoint(checkpoint, tuple(LossPoint(**point) for point in marker["history"]))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _write_json(path: Path, values: Any) -> None:
    """Replace a JSON file atomically."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(values), encoding="utf-8")
    fsync(temporary)
    temporary.rename(path)
    fsync(path.parent)
