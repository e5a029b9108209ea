"""Read a source file of the project that an agent works in, and nothing outside of it."""

from __future__ import annotations

import stat
from pathlib import Path

from iccm_assets.errors import InputError

# As of the gateway's default limit of a request.
MAX_SOURCE_BYTES = 1 << 20


def read_project_file(root: Path, name: str) -> str:
    """Read a text file below ``root``, by its absolute path or the one relative to ``root``.

    Raises ``InputError`` for a path that leads outside, also through a link, for what is no regular file,
    and for one that is missing, empty, too large or not UTF-8 text.
    """
    try:
        root = root.resolve()
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise InputError(f"{name} is outside of the project {root}", hint="Send its text instead.")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{name} is not a file")
        if status.st_size > MAX_SOURCE_BYTES:
            raise InputError(
                f"{name} has {status.st_size} bytes, more than {MAX_SOURCE_BYTES}",
                hint="Send the part of it that matters as source_code.",
            )
        with path.open("rb") as stream:
            content = stream.read(MAX_SOURCE_BYTES + 1)
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, with NUL, a loop of links
        raise InputError(f"{name[:200]!r}: {getattr(error, 'strerror', None) or error}") from None
    return _decode(name, content)


def _decode(name: str, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\x00"
    if "\x00" in text:
        raise InputError(f"{name} is not a text file in UTF-8")
    if not text.strip():
        raise InputError(f"{name} is empty")
    return text
