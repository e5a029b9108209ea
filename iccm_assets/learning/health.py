"""Judge the models' files, the change of their weights and their lineage: pure functions (U4, L2, L6)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from iccm_assets.findings import CheckResult, sample_ids

# Training at a rate of 1e-6 changes little; a larger relative change is another model.
MAX_RELATIVE_CHANGE = 0.5


def check_integrity(version: str, damage: str, hashed: bool) -> CheckResult:
    """Judge whether a model's directory matches its manifest; ``damage`` is empty if it does."""
    method = "every file hashed" if hashed else "sizes only: too large to hash in a check"
    text = f"{version}: {damage}" if damage else f"{version} matches its manifest ({method})"
    recovery = (
        "A damaged checkpoint is rejected at load, so no wrong output is served, but a restarted gateway "
        "cannot load it. Restore the directory from a backup; a fine-tuned version can be reproduced bit for "
        "bit (`iccm verify VERSION` shows whether). Production: `iccm rollback` returns to the previous "
        "version immediately."
    )
    return CheckResult(not damage, text, recovery, metrics={"hashed": float(hashed)})


def check_weight_change(version: str, weight_change: Mapping[str, float] | None) -> CheckResult:
    """Judge how much a fine-tuned version's weights differ from its parent's (L2)."""
    recovery = (
        "No change: half-precision weights round steps of 1e-6 to zero, or every example was truncated to "
        "nothing; see the loss curve and `selection` of the materialization. Too much: the learning rate is "
        "too high for this model (`ICCM_TRAINING__LEARNING_RATE`). The quality gate decides in either case; "
        "do not force the deployment of this version."
    )
    if weight_change is None:
        return CheckResult(True, f"{version} was not trained here", recovery)
    relative, share = float(weight_change["relative"]), float(weight_change["changed_share"])
    text = (
        f"{version}: the relative change of the weights is {relative:.2e}, {share:.1%} of the weights changed"
    )
    passed = math.isfinite(relative) and 0 < relative < MAX_RELATIVE_CHANGE
    return CheckResult(passed, text, recovery, metrics={"relative_change": relative, "changed_share": share})


def check_lineage(
    version: str, recorded: Mapping[str, int], trainer_counts: Mapping[str, int], erased: list[int]
) -> CheckResult:
    """Judge whether the lineage rows of a training match its trainer's counts (V1).

    ``gone``: ids of its training conversations that were erased since.
    """
    # Only these roles: rehearsal also uses the base model's sample, which has no conversations.
    excess = [name for name in ("new", "validation") if recorded.get(name, 0) > trainer_counts.get(name, 0)]
    text = f"{version} was trained on " + ", ".join(
        f"{n} {name} examples" for name, n in sorted(recorded.items())
    )
    if excess:
        text += "; its trainer counted " + ", ".join(
            f"{trainer_counts.get(name, 0)} {name}" for name in excess
        )
    if erased:
        text += f"; {len(erased)} of them erased since"
    recovery = (
        "Erased since: `iccm erase` printed the plan to replace this version (docs/governance.md). Different "
        "counts: `iccm verify VERSION` compares the stored snapshot with the training examples."
    )
    numbers = {**{f"{name}_examples": float(n) for name, n in recorded.items()}, "erased": float(len(erased))}
    passed = bool(recorded) and not excess and not erased
    return CheckResult(
        passed, text, recovery, error=bool(excess), metrics=numbers, sample_ids=sample_ids(erased)
    )
