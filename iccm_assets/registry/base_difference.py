"""Whether `ICCM_BASE_MODEL` names the model that production descends from (V5).

The setting acts only where nothing is in production; a change of it is reported with the commands that
evaluate and deploy the other model. Large files are compared by samples: `iccm status` must not hash
gigabytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, text

from iccm_assets.errors import ModelError
from iccm_assets.registry.hub import resolve
from iccm_assets.registry.manifest import MANIFEST_FILE, FileEntry, Prompt, describe_file, read_manifest
from iccm_assets.registry.model_store import fetch_model
from iccm_assets.registry.versions import resolve_path
from iccm_assets.settings import Settings

_MODEL_SUFFIXES = (".safetensors", ".json", ".model", ".txt")
# Training or converting a model changes nearly all its weights.
_MAX_HASHED_BYTES = 8 << 20
_SAMPLES, _SAMPLE_BYTES = 64, 4096
# The imported versions among production and its ancestors, nearest first.
_IMPORTED = text(
    """
    with recursive lineage as (
        select version, parent_version, path, metrics, 0 as depth
        from iccm.model_versions where status = 'production'
        union all
        select p.version, p.parent_version, p.path, p.metrics, l.depth + 1
        from lineage l join iccm.model_versions p on p.version = l.parent_version)
    select version, path, coalesce(metrics ->> 'imported_from', metrics ->> 'base_model', version) as origin
    from lineage where parent_version is null or metrics ? 'imported_from' order by depth
    """
)


@dataclass(frozen=True)
class BaseDifference:
    """What differs, and the commands that evaluate and deploy the other model."""

    detail: str
    fix: str

    def __str__(self) -> str:
        return f"{self.detail}. {self.fix}"


def find_base_difference(conn: Connection, settings: Settings) -> BaseDifference | None:
    """Compare `ICCM_BASE_MODEL` with production's base; None if they agree or nothing is in production.

    A model that was trained elsewhere and imported counts as descended from the same base if its tokenizer is
    the same. Downloads nothing.
    """
    imported = conn.execute(_IMPORTED).all()
    if not imported:
        return None
    name, nearest = settings.base_model, imported[0]
    try:
        directory = resolve(name, download=False)
        bases = [fetch_model(resolve_path(row.path), settings) for row in imported]
        known = any(_is_same(directory, base, _MODEL_SUFFIXES) for base in bases)
        same = known and _is_same(directory, bases[0], ("tokenizer.json", ".model"))
    except (ModelError, OSError):  # removed since, or never downloaded: only the names can be compared
        same = Path(name).name == Path(nearest.origin.partition("@")[0]).name
    if same:
        return _find_prompt_difference(fetch_model(resolve_path(nearest.path), settings), settings)
    return BaseDifference(
        f"ICCM_BASE_MODEL is {name}, but production descends from {nearest.version} ({nearest.origin})",
        f"`iccm evaluate {name}` compares it with production and names its version, `iccm deploy VERSION`"
        " rolls that out; to keep production, set ICCM_BASE_MODEL to the model it descends from.",
    )


def _find_prompt_difference(base: Path, settings: Settings) -> BaseDifference | None:
    """Compare a prompt that is set with the base's own, which all its descendants are trained with (L8)."""
    own, configured = read_manifest(base).prompt or Prompt(), settings.prompt
    if (configured.template or own.template, configured.system or own.system) == (own.template, own.system):
        return None
    return BaseDifference(
        f"ICCM_PROMPT__TEMPLATE or ICCM_PROMPT__SYSTEM is not the prompt of production's base ({own.format})",
        f"`iccm evaluate {settings.base_model}` compares the base with this prompt with production and names"
        " its version, `iccm deploy VERSION` rolls that out; to keep production, unset the two.",
    )


def _is_same(directory: Path, stored: Path, suffixes: tuple[str, ...]) -> bool:
    """Compare the files whose names end like this with those of a model in the store."""
    files = {name: entry for name, entry in read_manifest(stored).files.items() if name.endswith(suffixes)}
    names = {
        path.name
        for path in directory.iterdir()
        if path.name.endswith(suffixes) and not path.name.startswith(".") and path.name != MANIFEST_FILE
    }
    return names == files.keys() and all(
        _has_content(directory / name, entry, stored / name) for name, entry in files.items()
    )


def _has_content(path: Path, entry: FileEntry, stored: Path) -> bool:
    """Compare a file with a manifest's entry, a large one by samples with the stored file."""
    size = path.stat().st_size
    if size != entry.size or size <= _MAX_HASHED_BYTES:
        return size == entry.size and describe_file(path) == entry
    with path.open("rb") as stream, stored.open("rb") as other:
        for position in range(0, size, size // _SAMPLES):
            stream.seek(position)
            other.seek(position)
            if stream.read(_SAMPLE_BYTES) != other.read(_SAMPLE_BYTES):
                return False
    return True
