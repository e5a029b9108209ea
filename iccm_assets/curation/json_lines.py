"""JSON-lines files: UTF-8, optionally gzipped, blank lines ignored."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iccm_assets.errors import InputError


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the location ("FILE, line 3") and the object of every line.

    Raises ``InputError`` that names the file and the line.
    """
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        location = f"{path}, line {number}"
        try:
            value = json.loads(line.decode("utf-8")) if line.strip() else None
        except UnicodeDecodeError:
            raise InputError(f"{location}: not UTF-8") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{location}: not JSON ({error})") from None
        if isinstance(value, dict):
            yield location, value
        elif line.strip():
            raise InputError(f"{location}: not a JSON object")
