"""From "a path or a hub id" to a local directory that is safe to load: the rules of the entrance.

Nothing is executed from a model directory (no remote code) and no pickle is opened: weights are
safetensors or the directory is refused (L6).
"""

from __future__ import annotations

import re
from pathlib import Path

from iccm_assets.errors import ModelError, ModelNotFound
from iccm_assets.models.manifest import MANIFEST

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# What a from_pretrained directory needs; code, pickles and other frameworks' weights are left out.
WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
HUB_TIMEOUT_SECONDS = 10.0


def looks_local(name: str) -> bool:
    """Whether a name can only be a path: it is then never looked up in the network."""
    return name.startswith((".", "/", "~")) or "\\" in name or HUB_ID.fullmatch(name) is None


def resolve(name: str) -> Path:
    """The local directory of a model given by path or hub id.

    An existing directory wins over a hub id. Hub ids come from the Hugging Face cache; only what is not
    there is downloaded, unless ``HF_HUB_OFFLINE`` is set. Raises ``ModelNotFound``.
    """
    try:
        path = Path(name).expanduser()
        if name and path.is_dir():
            return path.absolute()
    except (OSError, RuntimeError) as error:  # not allowed to look, a name too long, an unknown ~user
        raise ModelNotFound(f"{name[:200]} ({error})") from error
    if looks_local(name):
        raise ModelNotFound(name or "(empty name)", hint="Give an existing directory or a hub id.")
    return _from_hub(name)


def check_loadable(directory: Path) -> None:
    """Refuse a directory that is no model, or whose weights are pickles (``ModelError``)."""
    if not (directory / "config.json").is_file():
        raise ModelNotFound(f"{directory} has no config.json")
    if any(directory.glob("*.safetensors")):
        return
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise ModelError(
            f"the weights of {directory} are pickles ({', '.join(pickles)}), which can run code when opened",
            hint="Convert them with save_pretrained() on a machine you can lose.",
        )
    raise ModelNotFound(f"{directory} has no *.safetensors")


def is_published(directory: Path) -> bool:
    """Whether the directory carries a manifest and therefore must match it."""
    return (directory / MANIFEST).exists()


def _from_hub(name: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = list(WANTED)
    try:
        cached = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        if (cached / "config.json").is_file() and any(cached.glob("*.safetensors")):
            return cached
    except (LocalEntryNotFoundError, HFValidationError):
        pass  # not in the cache: the hub is asked next
    if constants.HF_HUB_OFFLINE:
        raise ModelNotFound(
            f"{name} is no directory and not in the Hugging Face cache, and HF_HUB_OFFLINE is set"
        )
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, etag_timeout=HUB_TIMEOUT_SECONDS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelNotFound(
            f"{name} is not a directory, and the hub has no such model or cannot be reached "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})",
            hint="Check the name, or give a local path.",
        ) from error
