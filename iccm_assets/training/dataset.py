"""Training sets as immutable, content-addressed snapshots (L3, L5).

``compose_dataset`` builds a set from selected examples and rehearsal; ``DatasetStore`` stores it under
``$ICCM_HOME/datasets/<digest>/`` as a Parquet file and a manifest, and in ``ICCM_STORAGE``. The digest is the
sha256 over the canonical JSON of the ordered examples and the seed, so it identifies the content and not the
file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np

from iccm_assets.atomic_directories import STAGING, fsync_tree, publish_directory, remove_tree
from iccm_assets.curation.json_lines import read_json_lines
from iccm_assets.errors import ArtifactNotFoundError, CorruptArtifactError, InputError
from iccm_assets.registry.manifest import is_digest, sha256_json
from iccm_assets.settings import Settings
from iccm_assets.storage_cache import StorageCache, open_storage

KIND = "datasets"
Role = Literal["new", "self", "rehearsal", "validation"]
EXAMPLES_FILE = "examples.parquet"
DATASET_MANIFEST_FILE = "manifest.json"
# The most of what is new in a set that the model itself wrote, so of the whole set, too (L12).
MAX_OWN_SHARE = 0.3
# Earlier training conversations fill at most this share of the rehearsal, the base model's sample the rest.
MAX_PINNED_SHARE = 0.5


@dataclass(frozen=True)
class TrainingExample:
    """One pair of source code and requirements to train on.

    ``origin`` is ``pool`` (selected now), ``sampled`` (an answer of the model itself), ``pinned`` (an earlier
    version was trained on it) or ``sample/<slice>`` (the base model's own training sample, which has no
    conversation). ``rejected`` is a worse-scored answer to the same source; only a set of preferences has
    them.
    """

    conversation_id: int | None
    source_code: str
    requirements: str
    role: Role
    origin: str
    rejected: str | None = None

    @property
    def content_hash(self) -> str:
        """sha256 over source and requirements."""
        return sha256_json([self.source_code, self.requirements])

    def to_row(self) -> dict[str, Any]:
        """The example as a row of the snapshot; without a rejected answer as it was before there were any."""
        row = asdict(self)
        if self.rejected is None:
            del row["rejected"]
        return row


@dataclass(frozen=True)
class Dataset:
    """An ordered training set with the seed of its random choices."""

    examples: tuple[TrainingExample, ...]
    seed: int

    @property
    def digest(self) -> str:
        """The content address: sha256 over the canonical JSON of examples and seed."""
        return sha256_json({"examples": [example.to_row() for example in self.examples], "seed": self.seed})

    @property
    def counts(self) -> dict[str, int]:
        """Number of examples per role and per origin, e.g. ``{"new": 72, "origin pool": 80, …}``."""
        roles = Counter(example.role for example in self.examples)
        origins = Counter(f"origin {example.origin.split('/')[0]}" for example in self.examples)
        return {
            **{role: roles[role] for role in ("new", "rehearsal", "validation")},
            **({"self": roles["self"]} if roles["self"] else {}),
            **dict(sorted(origins.items())),
        }

    @property
    def conversation_ids(self) -> list[int]:
        """The conversations of the examples; the base model's sample has none."""
        return [row.conversation_id for row in self.examples if row.conversation_id is not None]

    def with_roles(self, *roles: Role) -> list[TrainingExample]:
        """Return the examples of these roles, in order."""
        return [example for example in self.examples if example.role in roles]


def compose_dataset(
    new: Sequence[TrainingExample],
    sample: Sequence[TrainingExample],
    pinned: Sequence[TrainingExample],
    *,
    rehearsal_fraction: float,
    validation_share: float,
    seed: int,
    own: Sequence[TrainingExample] = (),
) -> Dataset:
    """Build the training set of one run: new examples, rehearsal, and a validation split of both.

    ``rehearsal_fraction`` is the share of *all* examples that is rehearsal, as far as ``sample`` and
    ``pinned`` suffice; ``validation_share`` of each (at least one example in all) is held out by hash.
    Other new examples draw other rehearsal: a sample larger than one run's share is replayed in turn, not the
    same part of it again and again. ``own`` are answers of the model itself: they are
    trained on, never validated with, and none is to a source that is. The result does not depend on
    the order of the arguments' rows. Raises ``InputError`` if fewer than two examples remain to train and
    validate with.
    """
    unique_new = _deduplicate(new)
    selected = len(unique_new)
    unique_new += _deduplicate(own, {row.content_hash for row in unique_new})
    new_hashes = {row.content_hash for row in unique_new}
    draw = int(sha256_json(sorted(new_hashes)), 16)
    rehearsal = _draw_rehearsal(
        _deduplicate(sample, new_hashes),
        _deduplicate(pinned, new_hashes),
        _rehearsal_size(len(unique_new), rehearsal_fraction),
        np.random.default_rng([seed, draw]),
    )
    examples = [
        *(replace(row, role="new") for row in unique_new[:selected]),
        *(replace(row, role="self") for row in unique_new[selected:]),
        *(replace(row, role="rehearsal") for row in rehearsal),
    ]
    if len(examples) < 2:
        raise InputError(f"{len(unique_new)} new and {len(rehearsal)} rehearsal examples are too few")
    split = _split_validation(examples, validation_share, seed)
    validated = {row.source_code for row in split if row.role == "validation"}
    return Dataset(
        tuple(row for row in split if row.role != "self" or row.source_code not in validated), seed
    )


def describe_rehearsal_shortage(dataset: Dataset, rehearsal_fraction: float, sample: str) -> str:
    """Describe how much rehearsal a set lacks (L3); empty if it has enough.

    ``sample`` is the path of the base model's own training sample, empty if none is configured.
    """
    new = sum(row.origin in ("pool", "sampled") for row in dataset.examples)
    required = _rehearsal_size(new, rehearsal_fraction)
    actual = len(dataset.examples) - new
    if actual >= required:
        return ""
    reason = f"{sample} has no more" if sample else "ICCM_REHEARSAL is not set"
    return f"{actual} of {required} rehearsal examples, {reason}: forgetting is measured but not prevented"


def load_rehearsal(path: str) -> list[TrainingExample]:
    """Read the base model's own training sample: JSON lines, optionally gzipped.

    Each line is an object with the strings ``source_code`` and ``requirements`` and optionally
    ``slice``. An empty path is an empty sample. Raises ``InputError`` with the line number.
    """
    if not path:
        return []
    hint = "Correct ICCM_REHEARSAL or the file."
    try:
        sample = [_parse_rehearsal_row(row, location) for location, row in read_json_lines(Path(path))]
    except InputError as error:
        raise InputError(f"the rehearsal sample {error.detail}", hint=hint) from None
    if not sample:
        raise InputError(f"the rehearsal sample {path} is empty", hint=hint)
    return sample


class DatasetStore:
    """The training sets below one ``$ICCM_HOME``, and of the storage that it shares, if any."""

    def __init__(self, home: Path, storage: StorageCache | None = None) -> None:
        self.root = Path(home) / KIND
        self.storage = storage

    @classmethod
    def open(cls, settings: Settings) -> DatasetStore:
        """Return the training sets of these settings."""
        return cls(settings.home, open_storage(settings))

    def write(self, dataset: Dataset) -> Path:
        """Store a training set and return its directory; a set that is stored already stays as it is.

        Raises ``InputError`` where the storage has it without examples, because one of them was erased.
        """
        directory = self._write(dataset)
        if self.storage is not None:
            is_new = self.storage.publish(KIND, dataset.digest, directory)
            if not is_new and not self.has_examples(dataset.digest):
                remove_tree(directory)
                raise InputError(f"examples of the training set {dataset.digest} were erased")
        return directory

    def locate(self, path: str | Path) -> Path:
        """Return the directory of a training set that was stored at this path of this or another home.

        It is downloaded if only the storage has it. Raises ``InputError``, ``StorageError``.
        """
        directory = Path(path)
        is_elsewhere = directory.parent != self.root and directory.is_dir()
        if self.storage is None or is_elsewhere or not is_digest(directory.name):
            return directory
        digest = directory.name
        try:
            self.storage.prune(KIND)
            return self.storage.fetch(KIND, digest, lambda staged: _verify_download(staged, digest))
        except (ArtifactNotFoundError, CorruptArtifactError) as error:
            raise InputError(f"training set {digest}: {error.message}") from None

    def list_shared(self) -> dict[str, datetime]:
        """Return the digests of the training sets in the storage, and when each was published."""
        artifacts = self.storage.storage.list_artifacts(KIND) if self.storage else []
        return {artifact.name: artifact.modified for artifact in artifacts}

    def delete(self, digest: str) -> int:
        """Delete a training set from the storage and from the home; return the bytes that it had there."""
        if self.storage is not None:
            self.storage.storage.delete(KIND, digest)
        size = sum(path.stat().st_size for path in (self.root / digest).rglob("*") if path.is_file())
        remove_tree(self.root / digest)
        return size

    def has_examples(self, digest: str) -> bool:
        """Return whether the storage, or without one the home, has a training set that is not erased."""
        if self.storage is None:
            return (self.root / digest / EXAMPLES_FILE).exists()
        try:
            return EXAMPLES_FILE in self.storage.storage.read_manifest(KIND, digest).files
        except ArtifactNotFoundError:
            return (self.root / digest / EXAMPLES_FILE).exists()

    def _write(self, dataset: Dataset) -> Path:
        target = self.root / dataset.digest
        if target.exists():
            try:
                read_dataset(target)
                return target
            except InputError:
                remove_tree(target)  # damaged, and about to be written again with the same content
        staging = self.root / STAGING / f"{dataset.digest}-{os.getpid()}"
        remove_tree(staging)
        staging.mkdir(parents=True)
        try:
            _write_files(dataset, staging)
            fsync_tree(staging)
            publish_directory(staging, target)
        except OSError:
            if not target.exists():
                raise
        finally:
            remove_tree(staging)
        return target

    def load(self, digest: str) -> Dataset:
        """Read a training set; raises ``InputError`` if it does not match its digest."""
        return read_dataset(self.locate(self.root / digest))


def read_dataset(directory: Path) -> Dataset:
    """Read a training set; raises ``InputError`` if it does not match its manifest or directory name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        manifest = json.loads((directory / DATASET_MANIFEST_FILE).read_text(encoding="utf-8"))
        rows = pq.read_table(directory / EXAMPLES_FILE).to_pylist()
        dataset = Dataset(tuple(TrainingExample(**row) for row in rows), int(manifest["seed"]))
        recorded = manifest["digest"]
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise InputError(f"training set {directory} ({error})") from error
    if dataset.digest != recorded or (len(directory.name) == 64 and directory.name != recorded):
        raise InputError(f"training set {directory} was changed: its digest is {dataset.digest[:12]}")
    return dataset


def _verify_download(directory: Path, digest: str) -> None:
    """Accept a training set with this digest, or the manifest alone of one whose examples were erased."""
    if (directory / EXAMPLES_FILE).exists() and read_dataset(directory).digest != digest:
        raise InputError(f"the storage has another training set under the digest {digest[:12]}")


def _write_files(dataset: Dataset, directory: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ("source_code", "requirements", "role", "origin")
    schema = pa.schema([("conversation_id", pa.int64()), *((name, pa.string()) for name in texts)])
    if any(example.rejected is not None for example in dataset.examples):
        schema = schema.append(pa.field("rejected", pa.string()))
    table = pa.Table.from_pylist([example.to_row() for example in dataset.examples], schema=schema)
    pq.write_table(table, directory / EXAMPLES_FILE, compression="zstd")
    manifest = {
        "digest": dataset.digest,
        "seed": dataset.seed,
        "counts": dataset.counts,
        "examples_sha256": hashlib.sha256((directory / EXAMPLES_FILE).read_bytes()).hexdigest(),
    }
    (directory / DATASET_MANIFEST_FILE).write_text(
        json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )


def _rehearsal_size(new: int, fraction: float) -> int:
    return round(new * fraction / (1 - fraction))


def _deduplicate(examples: Iterable[TrainingExample], excluded: Container[str] = ()) -> list[TrainingExample]:
    """Return one example per content in a fixed order: by conversation, then the base model's sample."""
    first: dict[str, TrainingExample] = {}
    for row in sorted(
        examples, key=lambda row: (row.conversation_id is None, row.conversation_id or 0, row.content_hash)
    ):
        if row.content_hash not in excluded:
            first.setdefault(row.content_hash, row)
    return list(first.values())


def _draw_rehearsal(
    sample: list[TrainingExample], pinned: list[TrainingExample], size: int, rng: np.random.Generator
) -> list[TrainingExample]:
    """Draw pinned examples up to their share and the rest from the sample, evenly over its slices."""
    from_pinned = min(len(pinned), round(size * MAX_PINNED_SHARE))
    from_sample = min(len(sample), size - from_pinned)
    # A platform without a sample rehearses on pinned examples alone: they fill what the sample lacks.
    from_pinned = min(len(pinned), size - from_sample)
    indices = sorted(rng.choice(len(pinned), from_pinned, replace=False))
    return [pinned[index] for index in indices] + _draw_evenly(sample, from_sample, rng)


def _draw_evenly(
    sample: list[TrainingExample], count: int, rng: np.random.Generator
) -> list[TrainingExample]:
    """Draw ``count`` rows without replacement, in turn from each slice."""
    slices: dict[str, list[TrainingExample]] = defaultdict(list)
    for index in rng.permutation(len(sample)):
        slices[sample[index].origin].append(sample[index])
    queues = [slices[name] for name in sorted(slices)]
    turns = chain.from_iterable(zip_longest(*(reversed(queue) for queue in queues)))
    return list(islice((row for row in turns if row is not None), count))


def _split_validation(examples: list[TrainingExample], share: float, seed: int) -> list[TrainingExample]:
    """Mark the validation examples: the same share of new and rehearsal, those of smallest hash."""
    # Ranked by a hash with the seed, not drawn: an example keeps its role when others are added or removed.
    ranked = sorted(
        (row for row in examples if row.role != "self"), key=lambda row: sha256_json([seed, row.content_hash])
    )
    validation: list[TrainingExample] = []
    for role in ("new", "rehearsal"):
        candidates = [row for row in ranked if row.role == role]
        validation += candidates[: round(len(candidates) * share)]
    hashes = {row.content_hash for row in validation or ranked[:1]}
    return [replace(row, role="validation") if row.content_hash in hashes else row for row in examples]


def _parse_rehearsal_row(row: dict[str, Any], location: str) -> TrainingExample:
    match row:
        case {"source_code": str(source_code), "requirements": str(requirements)}:
            return TrainingExample(
                None, source_code, requirements, "rehearsal", f"sample/{row.get('slice', '')}"
            )
    raise InputError(f"{location}: needs the strings source_code and requirements")
