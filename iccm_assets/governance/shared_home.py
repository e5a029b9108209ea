"""Publish in the storage what a home has: once, when the storage is new, and after a restore. (K2)"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from iccm_assets.atomic_directories import remove_tree
from iccm_assets.errors import CorruptArtifactError, SettingsError
from iccm_assets.object_storage import KINDS
from iccm_assets.registry.manifest import is_digest
from iccm_assets.sandbox.environments import MANIFEST, list_portable_files, share_environment
from iccm_assets.settings import Settings
from iccm_assets.storage_cache import StorageCache, open_storage
from iccm_assets.training.dataset import EXAMPLES_FILE, DatasetStore


@dataclass
class PushReport:
    """What was published, what the storage had already, and what is damaged there and here."""

    published: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)


def push_home(
    settings: Settings, *, verify: bool = False, progress: Callable[[str], None] = lambda name: None
) -> PushReport:
    """Publish every model, training set and environment of the home that the storage lacks.

    With ``verify`` what it has already is read, and damaged files are written again. An erasure wins: a
    training set without examples replaces one with examples, in the home or in the storage. Without a
    storage nothing happens. Raises ``StorageError``.
    """
    report, storage = PushReport(), open_storage(settings)
    if storage is None:
        return report
    for kind in KINDS:
        for directory in sorted((settings.home / kind).glob("[!.]*")):
            if directory.is_dir() and is_digest(directory.name):
                name = f"{kind}/{directory.name}"
                progress(name)
                try:
                    is_new = _push(settings, storage, kind, directory, verify)
                except CorruptArtifactError as error:
                    report.damaged[name] = error.detail
                else:
                    (report.published if is_new else report.present).append(name)
                storage.release(kind, directory.name)
    return report


def push_home_or_fail(
    settings: Settings, *, verify: bool = False, progress: Callable[[str], None] = lambda name: None
) -> PushReport:
    """Do the same for a person who asks for it: without a storage that is an error."""
    if not settings.storage:
        raise SettingsError("ICCM_STORAGE is not set", hint="Set it to a URL such as s3://bucket/prefix.")
    return push_home(settings, verify=verify, progress=progress)


def _push(settings: Settings, storage: StorageCache, kind: str, directory: Path, verify: bool) -> bool:
    if kind == "environments":
        if not (directory / MANIFEST).is_file():
            return False  # is being built
        is_new = share_environment(directory, storage)
        if verify and not is_new:
            files = list_portable_files(directory)
            storage.storage.publish(kind, directory.name, directory, files, verify=True)
        return is_new
    is_new = storage.publish(kind, directory.name, directory, verify=verify)
    if kind == "datasets" and not is_new:
        has_examples = (directory / EXAMPLES_FILE).exists()
        if has_examples and not DatasetStore.open(settings).has_examples(directory.name):
            remove_tree(directory)
        elif not has_examples:
            storage.replace(kind, directory.name, directory)
    return is_new
