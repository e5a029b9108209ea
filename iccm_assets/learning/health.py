"""Are the models what was published, and did training do anything? Decisions over values (U4, L2, L6)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from iccm_assets.findings import Finding, named

# Training at 1e-6 moves little; more than this is another model.
MOST_MOVEMENT = 0.5


def intact(version: str, damage: str, hashed: bool) -> Finding:
    """Whether a model's directory fits its manifest; ``damage`` is what does not, empty when all does."""
    how = "every file hashed" if hashed else "sizes only: too large to hash in a check"
    told = f"{version}: {damage}" if damage else f"{version} fits its manifest ({how})"
    recovery = (
        "A damaged checkpoint is refused at load, so nothing wrong is served, but a gateway that restarts "
        "cannot load it. Restore the directory from a backup; a fine-tuned version can be made again bit for "
        "bit (`iccm verify VERSION` shows whether). Production: `iccm rollback` goes to the former version "
        "at once."
    )
    return Finding(not damage, told, recovery, numbers={"hashed": float(hashed)})


def moved(version: str, movement: Mapping[str, float] | None) -> Finding:
    """How far a fine-tuned version's weights are from its parent's (L2)."""
    recovery = (
        "Nothing moved: weights in half precision swallow steps of 1e-6, or every example was cut away; see "
        "the loss curve and `selection` of the materialization. Too far: the learning rate does not fit this "
        "model (`ICCM_TRAINING__LEARNING_RATE`). The quality gate decides either way; do not force this "
        "version."
    )
    if movement is None:
        return Finding(True, f"{version} was not trained here", recovery)
    relative, share = float(movement["relative"]), float(movement["changed_share"])
    told = f"{version}: the change is {relative:.2e} of the weights' norm, {share:.1%} of the weights changed"
    passed = math.isfinite(relative) and 0 < relative < MOST_MOVEMENT
    return Finding(passed, told, recovery, numbers={"relative_change": relative, "changed_share": share})


def taught(version: str, recorded: Mapping[str, int], counted: Mapping[str, int], gone: list[int]) -> Finding:
    """Whether the lineage rows of a version's training are those its trainer counted (V1).

    ``gone``: conversations it learned from that were erased since.
    """
    # Rehearsal also draws on the base model's sample, which has no conversations.
    pairs = {name: (recorded.get(name, 0), counted.get(name, 0)) for name in ("new", "validation")}
    told = f"{version} learned from " + ", ".join(
        f"{n} {name} examples" for name, n in sorted(recorded.items())
    )
    more = {name: pair for name, pair in pairs.items() if pair[0] > pair[1]}
    if more:
        told += "; its trainer counted " + ", ".join(f"{n} {name}" for name, (_, n) in more.items())
    if gone:
        told += f"; {len(gone)} of them erased since"
    recovery = (
        "Erased since: `iccm erase` printed the plan that replaces this version (docs/governance.md). Counts "
        "that differ: `iccm verify VERSION` compares the stored snapshot with what was learned."
    )
    return Finding(
        not more and not gone and bool(recorded),
        told,
        recovery,
        error=bool(more),
        numbers={
            **{f"{name}_examples": float(n) for name, n in recorded.items()},
            "erased": float(len(gone)),
        },
        ids=named(gone),
    )
