"""Parse the URL lists `ICCM_ORCHESTRA` and `ICCM_ALERT_URLS`.

The settings and the orchestra use the same functions, so that both reject the same values. Error messages
never contain a URL, which may hold a password.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

ENDPOINT_FORMAT = "openai:http://host:port/v1#model"
_SCHEME = "openai:"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


# A comma or blanks before the start of a URL: commas inside a URL separate its recipients.
_BETWEEN_URLS = re.compile(r"[,\s]+(?=[A-Za-z][A-Za-z0-9+.-]*://)")


def parse_alert_urls(spec: str) -> list[str]:
    """Split a comma-separated list of apprise URLs."""
    return [url for part in _BETWEEN_URLS.split(spec) if (url := part.strip().strip(","))]


@dataclass(frozen=True)
class EndpointAddress:
    """The base URL of an OpenAI-compatible endpoint, without a trailing slash, and its model."""

    url: str
    model: str

    @property
    def name(self) -> str:
        """The endpoint as it is written in `ICCM_ORCHESTRA`."""
        return f"{_SCHEME}{self.url}#{self.model}"

    @property
    def host(self) -> str:
        """The host name, empty if there is none."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int | None:
        """The port, None for the default one."""
        return urlsplit(self.url).port


def parse_orchestra(spec: str) -> list[str | EndpointAddress]:
    """Parse the members in order: names as text, endpoints as ``EndpointAddress``.

    Raises:
        ValueError: the list is empty, or a part is malformed or repeated; the message says which part.
    """
    parts = [part.strip() for part in spec.split(",")]
    members = [_part(number, part) for number, part in enumerate(parts, start=1) if part]
    if not members:
        raise ValueError(f"is empty; use `builtin` or `{ENDPOINT_FORMAT}`")
    for number, member in enumerate(members):
        if member in members[:number]:
            raise ValueError(f"a member is named twice: {member if isinstance(member, str) else member.name}")
    return members


def _part(number: int, part: str) -> str | EndpointAddress:
    if part.lower().startswith(_SCHEME):
        return _address(number, part[len(_SCHEME) :])
    if not _NAME.fullmatch(part):
        raise ValueError(f"part {number} is neither a name nor {ENDPOINT_FORMAT}")
    return part


def _address(number: int, text: str) -> EndpointAddress:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as error:
        raise ValueError(f"part {number} is not {ENDPOINT_FORMAT}: {_url_error(error)}") from None
    if url.username is not None or url.password is not None:
        raise ValueError(
            f"part {number} holds a password; keys come from the environment (docs/how-to/orchestra.md)"
        )
    if url.query:
        raise ValueError(f"part {number} has a query (?…), which belongs in ICCM_ENDPOINTS__REQUEST")
    is_complete = url.scheme in {"http", "https"} and url.hostname and url.fragment and port != 0
    if not is_complete or not text.isprintable() or any(character.isspace() for character in text):
        raise ValueError(f"part {number} is not {ENDPOINT_FORMAT}")
    return EndpointAddress(f"{url.scheme}://{url.netloc.lower()}{url.path.rstrip('/')}", url.fragment)


def _url_error(error: ValueError) -> str:
    """The kind of error without its value, which may hold a secret."""
    return "no such port" if "ort" in str(error) else "not a URL"
