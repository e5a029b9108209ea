"""What the safetensors files of a model hold, read from their headers: no weights, no torch."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from iccm_assets.errors import CorruptCheckpointError

_LENGTH = struct.Struct("<Q")  # a file begins with the length of its header
_MAX_HEADER_BYTES = 100 << 20  # the limit of the format


def count_weights(directory: Path) -> int:
    """Return the number of weights in a model's files; raises ``CorruptCheckpointError`` for damage."""
    headers = [read_header(path) for path in sorted(directory.glob("*.safetensors"))]
    return sum(math.prod(shape) for header in headers for shape in header.values())


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a safetensors file; raises ``CorruptCheckpointError``."""
    try:
        with path.open("rb") as stream:
            (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"its header has {length:,} bytes")
            values = json.loads(stream.read(length))
        tensors = {name: entry for name, entry in values.items() if name != "__metadata__"}
        return {name: tuple(map(int, entry["shape"])) for name, entry in tensors.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CorruptCheckpointError(f"{path} cannot be read ({' '.join(str(error).split())})") from error
