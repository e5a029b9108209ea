"""Training sets as immutable snapshots: what exactly a model learned from (L3, L5).

``compose`` puts a set together from selected examples and rehearsal; ``DatasetStore`` keeps it under
``$ICCM_HOME/datasets/<digest>/`` as a Parquet file and a manifest. The digest is the sha256 over the
canonical JSON of the ordered examples and the seed, so it names the content and not the file.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from iccm_assets.errors import InputError
from iccm_assets.learning.directories import STAGING, flush_tree, move_into_place, remove_tree
from iccm_assets.models.manifest import sha256_json

Role = Literal["new", "rehearsal", "validation"]
EXAMPLES = "examples.parquet"
MANIFEST = "manifest.json"
# Earlier lessons get at most this share of the rehearsal; the rest is the base model's own sample.
PINNED_SHARE = 0.5


@dataclass(frozen=True)
class Example:
    """One pair to learn from.

    ``origin`` is ``pool`` (selected now), ``pinned`` (learned by an earlier version) or
    ``sample/<slice>`` (the base model's own training sample, which has no conversation).
    """

    conversation_id: int | None
    source_code: str
    requirements: str
    role: Role
    origin: str

    @property
    def content_hash(self) -> str:
        """sha256 over the two texts."""
        return sha256_json([self.source_code, self.requirements])


@dataclass(frozen=True)
class Dataset:
    """An ordered training set with the seed it was drawn with."""

    examples: tuple[Example, ...]
    seed: int

    @property
    def digest(self) -> str:
        """The content address."""
        return sha256_json({"examples": [asdict(example) for example in self.examples], "seed": self.seed})

    @property
    def counts(self) -> dict[str, int]:
        """Examples per role and per origin, e.g. ``{"new": 72, "origin pool": 80, …}``."""
        roles = Counter(example.role for example in self.examples)
        origins = Counter(f"origin {example.origin.split('/')[0]}" for example in self.examples)
        return {
            **{role: roles[role] for role in ("new", "rehearsal", "validation")},
            **dict(sorted(origins.items())),
        }

    def of_role(self, *roles: Role) -> list[Example]:
        """The examples of these roles, in order."""
        return [example for example in self.examples if example.role in roles]


def compose(
    new: Sequence[Example],
    sample: Sequence[Example],
    pinned: Sequence[Example],
    *,
    rehearsal_fraction: float,
    validation_share: float,
    seed: int,
) -> Dataset:
    """The training set of one run: new examples, rehearsal, and a validation split of both.

    ``rehearsal_fraction`` is the share of *all* examples that is rehearsal, as far as ``sample`` and
    ``pinned`` reach; ``validation_share`` of each (at least one example in all) is set aside by hash.
    The result does not depend on the order of the arguments' rows. Raises ``InputError`` when fewer
    than two examples are left to train on and validate with.
    """
    rng = np.random.default_rng(seed)
    chosen = _unique(sorted(new, key=_order))
    taken = {example.content_hash for example in chosen}
    wanted = round(len(chosen) * rehearsal_fraction / (1 - rehearsal_fraction))
    rehearsal = _rehearsal(
        [one for one in _unique(sorted(sample, key=_order)) if one.content_hash not in taken],
        [one for one in _unique(sorted(pinned, key=_order)) if one.content_hash not in taken],
        wanted,
        rng,
    )
    if len(chosen) + len(rehearsal) < 2:
        raise InputError(f"{len(chosen)} new and {len(rehearsal)} rehearsal examples are no training set")
    examples = [replace(one, role="new") for one in chosen] + [
        replace(one, role="rehearsal") for one in rehearsal
    ]
    return Dataset(tuple(_split(examples, validation_share, seed)), seed)


def rehearsal_remark(dataset: Dataset, rehearsal_fraction: float, sample: str) -> str:
    """What to know about a set's rehearsal (L3); empty when it has all that was wanted.

    ``sample`` is where the base model's own training sample was to be read, empty when none is named.
    """
    new = sum(one.origin == "pool" for one in dataset.examples)
    wanted = round(new * rehearsal_fraction / (1 - rehearsal_fraction))
    found = len(dataset.examples) - new
    if found >= wanted:
        return ""
    why = (
        f"{sample} has no more"
        if sample
        else "ICCM_REHEARSAL names no sample of the base model's own training"
    )
    return f"{found} of {wanted} rehearsal examples, {why}: forgetting is only measured, not fought"


def load_rehearsal(path: str) -> list[Example]:
    """Read the base model's own training sample: JSON lines, gzipped if the name ends in ``.gz``.

    Each line is an object with the strings ``source_code`` and ``requirements`` and optionally
    ``slice``. An empty path is an empty sample. Raises ``InputError`` naming the line.
    """
    if not path:
        return []
    try:
        raw = Path(path).read_bytes()
        lines = (gzip.decompress(raw) if path.endswith(".gz") else raw).decode("utf-8").split("\n")
        return [
            _rehearsal_row(line, f"{path}, line {number}")
            for number, line in enumerate(lines, start=1)
            if line.strip()
        ]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"rehearsal sample {path} ({error})", hint="Set ICCM_REHEARSAL.") from error


class DatasetStore:
    """The training sets below one ``$ICCM_HOME``."""

    def __init__(self, home: Path) -> None:
        self.root = Path(home) / "datasets"

    def write(self, dataset: Dataset) -> Path:
        """Store a training set; storing the same one again changes nothing. Returns its directory."""
        target = self.root / dataset.digest
        if target.exists():
            try:
                self.load(dataset.digest)
                return target
            except InputError:
                remove_tree(target)  # damaged: what is at hand is the same content, whole
        staging = self.root / STAGING / f"{dataset.digest}-{os.getpid()}"
        remove_tree(staging)
        staging.mkdir(parents=True)
        try:
            _write_files(dataset, staging)
            flush_tree(staging)
            move_into_place(staging, target)
        except OSError:
            if not target.exists():
                raise
        finally:
            remove_tree(staging)
        return target

    def load(self, digest: str) -> Dataset:
        """Read a training set and check it against its digest; raises ``InputError`` if it differs."""
        return read_dataset(self.root / digest)


def read_dataset(directory: Path) -> Dataset:
    """Read a training set from its directory, checked against manifest and directory name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        rows = pq.read_table(directory / EXAMPLES).to_pylist()
        dataset = Dataset(tuple(Example(**row) for row in rows), int(manifest["seed"]))
        recorded = manifest["digest"]
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise InputError(f"training set {directory} ({error})") from error
    if dataset.digest != recorded or (len(directory.name) == 64 and directory.name != recorded):
        raise InputError(f"training set {directory} was changed: its digest is {dataset.digest[:12]}")
    return dataset


def _write_files(dataset: Dataset, directory: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            pa.field("conversation_id", pa.int64()),
            *(pa.field(name, pa.string()) for name in ("source_code", "requirements", "role", "origin")),
        ]
    )
    table = pa.Table.from_pylist([asdict(example) for example in dataset.examples], schema=schema)
    pq.write_table(table, directory / EXAMPLES, compression="zstd")
    manifest = {
        "digest": dataset.digest,
        "seed": dataset.seed,
        "counts": dataset.counts,
        "examples_sha256": hashlib.sha256((directory / EXAMPLES).read_bytes()).hexdigest(),
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _order(example: Example) -> tuple[int, int, str]:
    known = example.conversation_id is not None
    return (0 if known else 1, example.conversation_id or 0, example.content_hash)


def _unique(examples: Iterable[Example]) -> list[Example]:
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(example.content_hash, example)
    return list(first.values())


def _rehearsal(
    sample: list[Example], pinned: list[Example], wanted: int, rng: np.random.Generator
) -> list[Example]:
    """Earlier lessons up to their share, the rest from the sample, evenly over its slices."""
    from_pinned = min(len(pinned), round(wanted * PINNED_SHARE))
    from_sample = min(len(sample), wanted - from_pinned)
    from_pinned = min(len(pinned), wanted - from_sample)
    picked = [pinned[index] for index in sorted(rng.choice(len(pinned), from_pinned, replace=False))]
    return picked + _even_draw(sample, from_sample, rng)


def _even_draw(sample: list[Example], count: int, rng: np.random.Generator) -> list[Example]:
    """``count`` rows without replacement, the slices taking turns."""
    slices: dict[str, list[Example]] = defaultdict(list)
    for index in rng.permutation(len(sample)):
        slices[sample[index].origin].append(sample[index])
    queues = [slices[name] for name in sorted(slices)]
    drawn: list[Example] = []
    while len(drawn) < count:
        queues = [queue for queue in queues if queue]
        drawn += [queue.pop() for queue in queues[: count - len(drawn)]]
    return drawn


def _split(examples: list[Example], share: float, seed: int) -> list[Example]:
    """Mark the validation examples: of new and rehearsal the same share, those of smallest hash."""
    marked: set[str] = set()
    for role in ("new", "rehearsal"):
        ranked = sorted(
            (sha256_json([seed, one.content_hash]), one.content_hash) for one in examples if one.role == role
        )
        marked.update(content for _, content in ranked[: round(len(ranked) * share)])
    if not marked:
        marked.add(min((sha256_json([seed, one.content_hash]), one.content_hash) for one in examples)[1])
    return [replace(one, role="validation") if one.content_hash in marked else one for one in examples]


def _rehearsal_row(line: str, where: str) -> Example:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON ({error})") from None
    if not isinstance(row, dict) or not all(
        isinstance(row.get(key), str) for key in ("source_code", "requirements")
    ):
        raise InputError(f"{where} needs the strings source_code and requirements")
    return Example(
        None, row["source_code"], row["requirements"], "rehearsal", f"sample/{row.get('slice', '')}"
    )
