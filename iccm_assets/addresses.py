"""What `ICCM_ORCHESTRA` may say (O1, S3): names, and addresses of chat endpoints; and `ICCM_ALERT_URLS` (A1).

Read where the settings are validated and where the orchestra is made, so that both refuse the same.
No message repeats an address: one with a password in it is refused without being shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

EXAMPLE = "openai:http://host:port/v1#model"
_SCHEME = "openai:"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


# A comma, or blanks, before what begins like a URL: commas inside of one separate its recipients.
_BETWEEN_URLS = re.compile(r"[,\s]+(?=[A-Za-z][A-Za-z0-9+.-]*://)")


def alert_urls(spec: str) -> list[str]:
    """The apprise URLs of a comma-separated list."""
    return [url for part in _BETWEEN_URLS.split(spec) if (url := part.strip().strip(","))]


@dataclass(frozen=True)
class EndpointAddress:
    """An OpenAI-compatible endpoint's base URL, without a trailing slash, and the model asked for there."""

    url: str
    model: str

    @property
    def name(self) -> str:
        return f"{_SCHEME}{self.url}#{self.model}"

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int | None:
        return urlsplit(self.url).port


def parse_orchestra(spec: str) -> list[str | EndpointAddress]:
    """The parts of the list, in order: names as text, endpoints as addresses.

    Raises:
        ValueError: an empty list, a malformed part, or the same part twice; it says which part.
    """
    parts = [part.strip() for part in spec.split(",")]
    found = [_part(number, part) for number, part in enumerate(parts, start=1) if part]
    if not found:
        raise ValueError(f"names nobody; give builtin or {EXAMPLE}")
    for number, one in enumerate(found):
        if one in found[:number]:
            raise ValueError(f"a member is named twice: {one if isinstance(one, str) else one.name}")
    return found


def _part(number: int, part: str) -> str | EndpointAddress:
    if part.lower().startswith(_SCHEME):
        return _address(number, part[len(_SCHEME) :])
    if not _NAME.fullmatch(part):
        raise ValueError(f"part {number} is neither a name nor {EXAMPLE}")
    return part


def _address(number: int, text: str) -> EndpointAddress:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as error:
        raise ValueError(f"part {number} is not {EXAMPLE}: {_first(error)}") from None
    if url.username is not None or url.password is not None:
        raise ValueError(
            f"part {number} holds a password; keys come from the environment (docs/orchestra.md)"
        )
    if url.query:
        raise ValueError(f"part {number} has a query (?…), which belongs into ICCM_ENDPOINTS__REQUEST")
    whole = url.scheme in {"http", "https"} and url.hostname and url.fragment and port != 0
    if not whole or not text.isprintable() or any(character.isspace() for character in text):
        raise ValueError(f"part {number} is not {EXAMPLE}")
    return EndpointAddress(f"{url.scheme}://{url.netloc.lower()}{url.path.rstrip('/')}", url.fragment)


def _first(error: ValueError) -> str:
    """Without the value it complains of, which may hold a secret."""
    return "no such port" if "ort" in str(error) else "not a URL"
