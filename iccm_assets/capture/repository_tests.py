"""Read the test files of a project, of which some may be the suite of a session's source. (C7)"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from iccm_assets.capture.messages import FilePart
from iccm_assets.errors import InputError

MAX_TEST_FILES = 2000
MAX_FOLDERS = 20_000
MAX_TEST_BYTES = 1 << 20  # of one file
_FOREIGN_FOLDERS = frozenset({"node_modules", "site-packages", "venv", "env", "build", "dist", "__pycache__"})


def read_repository_tests(repository: Path) -> tuple[FilePart, ...]:
    """Read the test files below a folder, without those of installed packages and hidden folders.

    Raises ``InputError`` if it is not a folder, or holds so many files that it is no single project.
    """
    if not repository.is_dir():
        raise InputError(f"{repository} is not a folder")
    parts: list[FilePart] = []
    for path in _find_tests(repository):
        with suppress(OSError, UnicodeDecodeError):  # such a file is no test of this source
            if path.is_file() and path.stat().st_size <= MAX_TEST_BYTES:
                parts.append(FilePart(str(path.relative_to(repository)), path.read_text("utf-8"), "read"))
        if len(parts) > MAX_TEST_FILES:
            raise InputError(f"{repository} holds more than {MAX_TEST_FILES} test files")
    return tuple(parts)


def _find_tests(repository: Path) -> Iterator[Path]:
    for count, (folder, inner, names) in enumerate(os.walk(repository)):
        if count > MAX_FOLDERS:
            raise InputError(f"{repository} holds more than {MAX_FOLDERS} folders")
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name not in _FOREIGN_FOLDERS)
        for name in sorted(names):
            if (name.startswith("test_") or name.endswith("_test.py")) and name.endswith(".py"):
                yield Path(folder, name)
