"""Checks of a trained version: its files, its weight change and its lineage (U4, L2, L6)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from iccm_assets.check_result import CheckResult, sample_ids
from iccm_assets.errors import CorruptCheckpointError, ModelNotFoundError
from iccm_assets.registry import versions
from iccm_assets.registry.base_difference import find_base_difference
from iccm_assets.registry.manifest import read_manifest
from iccm_assets.registry.model_store import fetch_model, find_base, verify_model
from iccm_assets.settings import Settings

# Training at a rate of 1e-6 changes little; a larger relative change is another model.
MAX_RELATIVE_CHANGE = 0.5
# About a second of hashing; of larger models only the file sizes are compared.
MAX_HASHED_BYTES = 512 << 20


@dataclass(frozen=True)
class IntegrityResult:
    """The result of comparing a model's directory with its manifest."""

    damage: str
    hashed: bool


@dataclass(frozen=True)
class LatestCheckpoint:
    """The version of the last finished training, with its lineage.

    ``example_counts`` are its examples by role, ``erased_conversations`` the ids of those erased since.
    """

    version: str
    path: str
    training: dict[str, Any]
    example_counts: dict[str, int] = field(default_factory=dict)
    erased_conversations: list[int] = field(default_factory=list)


def check_integrity(version: str, damage: str, hashed: bool) -> CheckResult:
    """Judge whether a model's directory matches its manifest; ``damage`` is empty if it does."""
    method = "every file hashed" if hashed else "sizes only: too large to hash in a check"
    text = f"{version}: {damage}" if damage else f"{version} matches its manifest ({method})"
    return CheckResult(
        not damage,
        text,
        "A damaged checkpoint is rejected at load, so no wrong output is served, but a restarted gateway "
        "cannot load it. Restore the directory from a backup; a fine-tuned version can be reproduced bit for "
        "bit (`iccm verify VERSION` shows whether). Production: `iccm rollback` returns to the previous "
        "version immediately.",
        metrics={"hashed": float(hashed)},
    )


def check_weight_change(version: str, weight_change: Mapping[str, float] | None) -> CheckResult:
    """Judge how much a fine-tuned version's weights differ from its parent's (L2)."""
    recovery = (
        "No change: half-precision weights round steps of 1e-6 to zero, or few examples fit into the "
        "limits (`examples_too_long`); see the loss curve and `selection` of the materialization. Too much: "
        "the learning rate is too high for this model (`ICCM_TRAINING__LEARNING_RATE`). The quality gate "
        "decides in either case; do not force the deployment of this version."
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

    ``erased``: ids of its training conversations that were erased since.
    """
    # Only these roles: rehearsal also uses the base model's sample, which has no conversations.
    excess = [
        name for name in ("new", "self", "validation") if recorded.get(name, 0) > trainer_counts.get(name, 0)
    ]
    text = f"{version} was trained on " + ", ".join(
        f"{n} {name} examples" for name, n in sorted(recorded.items())
    )
    if excess:
        text += "; its trainer counted " + ", ".join(
            f"{trainer_counts.get(name, 0)} {name}" for name in excess
        )
    if erased:
        text += f"; {len(erased)} of them erased since"
    numbers = {**{f"{name}_examples": float(n) for name, n in recorded.items()}, "erased": float(len(erased))}
    passed = bool(recorded) and not excess and not erased
    return CheckResult(
        passed,
        text,
        "Erased since: `iccm erase` printed the plan to replace this version (docs/how-to/governance.md). "
        "Different counts: `iccm verify VERSION` compares the stored snapshot with the training examples.",
        severity="error" if excess else "warning",
        metrics=numbers,
        sample_ids=sample_ids(erased),
    )


def check_files(path: str) -> IntegrityResult:
    """Compare a model's directory with its manifest, by hash unless it is too large."""
    try:
        directory = fetch_model(path)
        manifest = read_manifest(directory)
        base_size = read_manifest(find_base(directory)).size if manifest.base_digest else 0
        hashed = manifest.size + base_size <= MAX_HASHED_BYTES
        verify_model(directory, hash_files=hashed)
    except (CorruptCheckpointError, ModelNotFoundError) as error:
        return IntegrityResult(error.detail, False)
    return IntegrityResult("", hashed)


def get_latest_checkpoint(conn: sa.Connection) -> LatestCheckpoint | None:
    """Return the version of the last finished training; None before the first."""
    version = conn.execute(
        sa.text(
            """
            select v.version, v.path, v.metrics -> 'training' as training, r.id as run_id
            from iccm.phase4_training_runs r join iccm.model_versions v on v.version = r.candidate_version
            order by v.created_at desc, r.id desc limit 1
            """
        )
    ).one_or_none()
    if version is None:
        return None
    examples = conn.execute(
        sa.text(
            """
            select e.conversation_id as id, e.role, c.erased_at is not null as erased
            from iccm.training_run_examples e join iccm.conversations c on c.id = e.conversation_id
            where e.training_run_id = :run
            """
        ),
        {"run": version.run_id},
    ).all()
    return LatestCheckpoint(
        version.version,
        versions.resolve_path(version.path),
        dict(version.training or {}),
        Counter(row.role for row in examples),
        [row.id for row in examples if row.erased],
    )


def list_training_conversations(conn: sa.Connection, training_run_id: int) -> list[dict[str, Any]]:
    """List the conversations of a training (ids and numbers, no text): new ones first, best first."""
    rows = conn.execute(
        sa.text(
            """
            select e.conversation_id, e.role, (c."timestamp" at time zone 'UTC')::date::text as day,
                p.quality_score, p.evidence, p.test_suite_origin
            from iccm.training_run_examples e
            join iccm.conversations c on c.id = e.conversation_id
            left join iccm.phase4_training_data p on p.conversation_id = e.conversation_id
            where e.training_run_id = :run
            order by array_position(array['new', 'self', 'validation', 'rehearsal'], e.role),
                p.quality_score desc nulls last, e.conversation_id
            """
        ),
        {"run": training_run_id},
    )
    return [dict(row) for row in rows.mappings()]


def get_dagster_run(conn: sa.Connection, version: str) -> str | None:
    """Return the Dagster run that trained a version; None if it was not trained here."""
    query = sa.text(
        "select dagster_run_id from iccm.phase4_training_runs where candidate_version = :version "
        "order by id desc limit 1"
    )
    return conn.execute(query, {"version": version}).scalar_one_or_none()


_NOTHING_TRAINED = CheckResult(True, "nothing has been trained yet", "")


def production_checksum_matches(conn: sa.Connection, settings: Settings) -> CheckResult:
    """Verify the files of the production version."""
    production = versions.get_production_version(conn)
    if production is None:
        return CheckResult(False, "no version is in production", "Materialize `base_model`.")
    return _check_checksum(production.version, production.path)


def production_descends_from_base_model(conn: sa.Connection, settings: Settings) -> CheckResult:
    """Compare production's base with ``ICCM_BASE_MODEL``; a warning, since production serves either way."""
    difference = find_base_difference(conn, settings)
    if difference is None:
        return CheckResult(True, f"nothing in production has another base than {settings.base_model}", "")
    return CheckResult(False, difference.detail, difference.fix, "warning")


def checkpoint_checksum_matches(conn: sa.Connection, settings: Settings) -> CheckResult:
    """Verify the files of the newest checkpoint."""
    newest = get_latest_checkpoint(conn)
    return _check_checksum(newest.version, newest.path) if newest else _NOTHING_TRAINED


def weights_changed(conn: sa.Connection, settings: Settings) -> CheckResult:
    """Check how far the newest training moved the weights."""
    newest = get_latest_checkpoint(conn)
    if newest is None:
        return _NOTHING_TRAINED
    return check_weight_change(newest.version, newest.training.get("weight_change"))


def lineage_is_complete(conn: sa.Connection, settings: Settings) -> CheckResult:
    """Compare the recorded training conversations with the counts of the training."""
    newest = get_latest_checkpoint(conn)
    if newest is None:
        return _NOTHING_TRAINED
    return check_lineage(
        newest.version, newest.example_counts, newest.training.get("counts", {}), newest.erased_conversations
    )


def _check_checksum(version: str, path: str) -> CheckResult:
    files = check_files(path)
    return check_integrity(version, files.damage, files.hashed)
