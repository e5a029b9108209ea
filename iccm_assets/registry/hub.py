"""Resolve a path or a hub id to a local model directory that is safe to load.

No code from a model directory runs and no pickle is opened: weights that are not safetensors are
rejected (L6).
"""

from __future__ import annotations

import re
from pathlib import Path

from iccm_assets.errors import ModelError, ModelNotFoundError, first_line
from iccm_assets.registry.manifest import MANIFEST_FILE

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# What a from_pretrained directory needs, without code, pickles and the weights of other frameworks.
DOWNLOAD_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
HUB_TIMEOUT_SECONDS = 10.0
CONFIG_FILE = "config.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"


def is_local_path(name: str) -> bool:
    """Return whether a name can only be a path, so that the hub is never queried for it."""
    return name.startswith((".", "/", "~")) or "\\" in name or HUB_ID.fullmatch(name) is None


def resolve(name: str, *, download: bool = True) -> Path:
    """Return the local directory of a model, named by path or hub id.

    An existing directory takes precedence over a hub id. A hub id is looked up in the Hugging Face cache, and
    downloaded if it is not there, unless ``HF_HUB_OFFLINE`` is set or ``download`` is false. Raises
    ``ModelNotFoundError``.
    """
    try:
        path = Path(name).expanduser()
        if name and path.is_dir():
            return path.absolute()
    except (OSError, RuntimeError) as error:  # no permission, a name too long, an unknown ~user
        raise ModelNotFoundError(f"{name[:200]} ({error})") from error
    if is_local_path(name):
        raise ModelNotFoundError(name or "(empty name)", hint="Use an existing directory or a hub id.")
    return _from_hub(name, download)


def check_loadable(directory: Path) -> None:
    """Raise ``ModelNotFoundError`` unless this is a model's directory, ``ModelError`` for pickled weights.

    An adapter's directory has a config of its own, its weights alone, and none of its base.
    """
    if is_adapter(directory):
        weights = sorted(path.name for path in directory.glob("*.safetensors"))
        if weights != [ADAPTER_WEIGHTS_FILE]:
            raise ModelNotFoundError(
                f"{directory} is an adapter, whose only weights are {ADAPTER_WEIGHTS_FILE};"
                f" it has {', '.join(weights) or 'none'}"
            )
        return
    if not (directory / CONFIG_FILE).is_file():
        raise ModelNotFoundError(f"{directory} has no {CONFIG_FILE}")
    if any(directory.glob("*.safetensors")):
        return
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise ModelError(
            f"the weights of {directory} are pickles ({', '.join(pickles)}), which can run code when opened",
            hint="Convert them with save_pretrained() on a disposable machine.",
        )
    raise ModelNotFoundError(f"{directory} has no *.safetensors")


def is_adapter(directory: Path) -> bool:
    """Return whether a model directory is an adapter, which changes the weights of another model."""
    return (directory / ADAPTER_CONFIG_FILE).is_file() and not (directory / CONFIG_FILE).is_file()


def has_manifest(directory: Path) -> bool:
    """Return whether the directory has a manifest, which it must then match."""
    return (directory / MANIFEST_FILE).exists()


def _from_hub(name: str, download: bool) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = list(DOWNLOAD_PATTERNS)
    try:
        cached = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        # A download that was interrupted leaves an incomplete snapshot in the cache.
        if (cached / "config.json").is_file() and any(cached.glob("*.safetensors")):
            return cached
    except (LocalEntryNotFoundError, HFValidationError):
        pass  # not in the cache: query the hub
    if constants.HF_HUB_OFFLINE or not download:
        raise ModelNotFoundError(
            f"{name} is not a directory and not in the Hugging Face cache",
            hint=f"Unset HF_HUB_OFFLINE, or run `hf download {name}` where there is a network.",
        )
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, etag_timeout=HUB_TIMEOUT_SECONDS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelNotFoundError(
            f"{name} is not a directory, and the hub lacks it or is unreachable ({first_line(error)})",
            hint="Check the name, or use a local path.",
        ) from error
