"""Remove secrets and personal data from a text before it is stored.

Each match is replaced by a placeholder that names its kind, such as ``<EMAIL>``. What can be checked is
checked (card and account numbers by their check digits, addresses by parsing), so that ordinary code does
not change. Covered: keys and tokens of known shape, private keys, words of high entropy, values whose name
contains password, key, token or secret, credentials in URLs, headers, cookies and command lines, e-mail
addresses, phone, card and account numbers, IP addresses. Not covered: names of people, postal addresses,
secrets that look like ordinary words and stand alone. (C4)
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import count
from typing import Any

from iccm_assets.capture.redaction.context_secrets import CONTEXT_GROUPS
from iccm_assets.capture.redaction.keyword_secrets import classify_key, find_keyword_secrets, is_secret
from iccm_assets.capture.redaction.pii import PII_RULES, is_card_number
from iccm_assets.capture.redaction.program_text import keep_programs
from iccm_assets.capture.redaction.rules import OnMatch, Place, RuleGroup, place_anywhere, replace_spans
from iccm_assets.capture.redaction.token_secrets import HIGH_ENTROPY_RULE, KEY_RULES, TOKEN_RULES
from iccm_assets.capture.redaction.webhook_urls import WEBHOOK_RULES
from iccm_assets.settings import Settings

_BEFORE_KEYWORDS = (RuleGroup((*KEY_RULES, *WEBHOOK_RULES)), TOKEN_RULES, *CONTEXT_GROUPS)
_AFTER_KEYWORDS = (HIGH_ENTROPY_RULE, *PII_RULES)
ALL_RULES = tuple(rule for group in (*_BEFORE_KEYWORDS, *_AFTER_KEYWORDS) for rule in group.rules)
_MIN_LENGTH = 6
# A replacement may join two halves of a secret; most texts need one more round, hostile ones a few.
_MAX_ROUNDS = 6
_MAX_REMEMBERED = 500
_MAX_KNOWN_KEY = 64  # characters


def make_redactor(settings: Settings) -> Callable[[str], str]:
    """Return ``redact``, or a function that changes nothing, as ``ICCM_CAPTURE__REDACT`` says."""
    return redact if settings.capture.redact else str


def redact(text: str) -> str:
    """Return the text with secrets and personal data replaced; redacting it again changes nothing."""
    return _redact(text, lambda secret: None)


def redact_document(value: Any) -> tuple[Any, dict[str, int]]:
    """Return a JSON value with all its texts redacted, and the number of its placeholders by kind.

    A key can identify its value as a secret (``{"password": "…"}``), and a password that is identified in one
    text is replaced in all of them, so that source, tests and metadata still agree.
    """
    document = _DocumentRedactor()
    redacted = document.redact(value, None)
    longest = sorted(document.remembered, key=len, reverse=True)[:_MAX_REMEMBERED]
    if not longest:
        return redacted, count_placeholders(redacted)
    pattern = re.compile(rf"(?<![^\W_])(?:{'|'.join(map(re.escape, longest))})(?![^\W_])")

    def replace_remembered(text: str, place: Place) -> str:
        spans = ((*match.span(), document.remembered[match[0]]) for match in pattern.finditer(text))
        return replace_spans(text, spans, place)

    def replace_remembered_safely(text: str) -> str:
        replaced = replace_remembered(text, place_anywhere)
        if replaced != text:
            text = keep_programs(text, replaced, replace_remembered)
        return text

    redacted = _map_texts(redacted, replace_remembered_safely)
    return redacted, count_placeholders(redacted)


def count_placeholders(value: Any) -> dict[str, int]:
    """Return the number of placeholders in all texts of a JSON value, by kind."""
    counts: Counter[str] = Counter()
    for text in _iterate_texts(value):
        if "<" in text:
            counts.update(kind for kind in _PLACEHOLDER.findall(text) if kind in _KINDS)
    return dict(sorted(counts.items()))


def pseudonymize_user_id(user_id: str | None, settings: Settings) -> str | None:
    """Return the id under which a user is stored: an id with personal data becomes a constant pseudonym."""
    if user_id is None or not settings.capture.redact:
        return user_id
    return _pseudonymize(user_id)


@lru_cache(maxsize=4096)
def _pseudonymize(user_id: str) -> str:
    return user_id if redact(user_id) == user_id else _pseudonym(user_id)


def _pseudonym(user_id: str) -> str:
    return "user-" + hashlib.sha256(b"iccm user " + user_id.encode("utf-8", "replace")).hexdigest()[:20]


def stored_user_ids(user_id: str) -> tuple[str, str]:
    """Return all ids under which this user may be stored, with redaction and without."""
    return user_id, _pseudonym(user_id)


def _redact(text: str, remember: OnMatch) -> str:
    redacted = _redact_text(text, remember, place_anywhere)
    if redacted == text:
        return text
    return keep_programs(text, redacted, lambda program, place: _redact_text(program, remember, place))


def _redact_text(text: str, remember: OnMatch, place: Place) -> str:
    if len(text) < _MIN_LENGTH:
        return text
    for _ in range(_MAX_ROUNDS):
        before, text = text, _redact_once(text, remember, place)
        if text == before:
            break
    return text


def _redact_once(text: str, remember: OnMatch, place: Place) -> str:
    for group in _BEFORE_KEYWORDS:
        text = group.apply(text, remember, place)
    spans = list(find_keyword_secrets(text))
    for start, end, _ in spans:
        remember(text[start:end])
    text = replace_spans(text, spans, place)
    for group in _AFTER_KEYWORDS:
        text = group.apply(text, remember, place)
    return text


class _DocumentRedactor:
    """Redacts the texts of one document; a text that occurs again is looked up."""

    def __init__(self) -> None:
        self.remembered: dict[str, str] = {}
        self._redacted: dict[tuple[str, str | None], str] = {}

    def redact(self, value: Any, name: str | None) -> Any:
        """Return the value with its texts redacted; ``name`` is its key."""
        if isinstance(value, str):
            return self._redact_text(value, name)
        if isinstance(value, Mapping):
            label = value.get("name") or value.get("key")
            names = {"value": label} if isinstance(label, str) else {}
            return _unique(
                (self._redact_key(key), self.redact(item, names.get(key, key))) for key, item in value.items()
            )
        if isinstance(value, list):
            return [self.redact(item, name) for item in value]
        card = type(value) is int and value in range(10**19) and is_card_number(str(value))
        return "<CARD>" if card else value

    def _redact_key(self, key: str) -> str:
        is_known = len(key) <= _MAX_KNOWN_KEY and _is_harmless_key(key)
        return key if is_known else self._redact_text(key, None)

    def _redact_text(self, text: str, name: str | None) -> str:
        kind = classify_key(name) if name else None
        if (text, kind) not in self._redacted:
            if kind is not None and is_secret(text, kind):
                self._remember(text, kind)
                self._redacted[text, kind] = f"<{kind}>"
            else:
                self._redacted[text, kind] = _redact(text, self._remember)
        return self._redacted[text, kind]

    def _remember(self, secret: str, kind: str = "PASSWORD") -> None:
        """Remember a secret to replace it everywhere, unless it is a word, which other texts use, too."""
        word = secret.isalpha() or secret.isdecimal() or "<" in secret
        if len(secret) >= _MIN_LENGTH and not word:
            self.remembered.setdefault(secret, kind)


@lru_cache(maxsize=4096)
def _is_harmless_key(key: str) -> bool:
    """Whether a key contains nothing to redact: documents have few different ones."""
    return redact(key) == key


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object of these pairs; keys that became equal are numbered, so that no value is lost."""
    items = list(pairs)
    result: dict[str, Any] = dict(items)
    if len(result) == len(items):
        return result
    result.clear()
    numbers: dict[str, Iterator[int]] = defaultdict(lambda: count(2))
    for key, value in items:
        name = key
        while name in result:
            name = f"{key} {next(numbers[key])}"
        result[name] = value
    return result


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return _unique((change(key), _map_texts(item, change)) for key, item in value.items())
    if isinstance(value, list):
        return [_map_texts(item, change) for item in value]
    return value


def _iterate_texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _iterate_texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _iterate_texts(item)


_PLACEHOLDER = re.compile(r"<([A-Z][A-Z_]{1,30})>")
_KINDS = frozenset(
    [rule.kind for rule in ALL_RULES] + ["PASSWORD", "API_KEY", "TOKEN", "SECRET", "AWS_SECRET_KEY"]
)
