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
import importlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import count
from typing import Any

from iccm_assets.capture.redaction.keyword_secrets import classify_key, find_keyword_secrets, is_secret
from iccm_assets.capture.redaction.pii import PII_RULES, is_card_number
from iccm_assets.capture.redaction.rules import OnMatch, RedactionRule, replace_spans
from iccm_assets.capture.redaction.token_secrets import HIGH_ENTROPY_RULE, TOKEN_RULES, is_keyboard_mash
from iccm_assets.settings import Settings

_MIN_LENGTH = 6
# A replacement may join two halves of a secret; most texts need one more round, hostile ones a few.
_MAX_ROUNDS = 6
_MAX_REMEMBERED = 500
_MAX_KNOWN_KEY = 64  # characters

# Detectors of detect-secrets for tokens of known shape, and what a text must contain for their patterns to be
# tried. The others guess (entropy, keywords) and match ordinary code; those of npm and OpenAI take quadratic
# time.
_DETECTORS = (
    ("aws", "AWSKeyDetector", "AWS_ACCESS_KEY", ("AKIA", "ASIA", "ABIA", "ACCA", "A3T", "aws", "AWS")),
    ("azure_storage_key", "AzureStorageKeyDetector", "AZURE_KEY", ("AccountKey=",)),
    ("discord", "DiscordBotTokenDetector", "DISCORD_TOKEN", (".",)),
    ("github_token", "GitHubTokenDetector", "GITHUB_TOKEN", ("gh",)),
    ("gitlab_token", "GitLabTokenDetector", "GITLAB_TOKEN", ("gl", "GR1348941")),
    ("mailchimp", "MailchimpDetector", "MAIL_KEY", ("-us",)),
    ("pypi_token", "PypiTokenDetector", "PYPI_TOKEN", ("pypi-",)),
    ("sendgrid", "SendGridDetector", "SENDGRID_KEY", ("SG.",)),
    ("slack", "SlackDetector", "SLACK_TOKEN", ("xox", "slack")),
    ("square_oauth", "SquareOAuthDetector", "SQUARE_TOKEN", ("sq0csp-",)),
    ("stripe", "StripeDetector", "STRIPE_KEY", ("k_live_",)),
    ("telegram_token", "TelegramBotTokenDetector", "TELEGRAM_TOKEN", (":",)),
    ("twilio", "TwilioKeyDetector", "TWILIO_KEY", ("AC", "SK")),
)


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
    counts: Counter[str] = Counter()
    longest = sorted(document.remembered, key=len, reverse=True)[:_MAX_REMEMBERED]
    pattern = re.compile(rf"(?<![^\W_])(?:{'|'.join(map(re.escape, longest))})(?![^\W_])")

    def replace_remembered_and_count(text: str) -> str:
        if longest:
            text = pattern.sub(lambda match: f"<{document.remembered[match[0]]}>", text)
        counts.update(kind for kind in _PLACEHOLDER.findall(text) if kind in _KINDS)
        return text

    redacted = _map_texts(redacted, replace_remembered_and_count)
    return redacted, dict(sorted(counts.items()))


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
    if len(text) < _MIN_LENGTH:
        return text
    for _ in range(_MAX_ROUNDS):
        before, text = text, _redact_once(text, remember)
        if text == before:
            break
    return text


def _redact_once(text: str, remember: OnMatch) -> str:
    for rule in (*TOKEN_RULES, *_CONTEXT_RULES):
        text = rule.apply(text, remember)
    for rule in _detector_rules():
        text = rule.apply(text, remember)
    spans = list(find_keyword_secrets(text))
    for start, end, _ in spans:
        remember(text[start:end])
    text = replace_spans(text, spans)
    for rule in (HIGH_ENTROPY_RULE, *PII_RULES):
        text = rule.apply(text, remember)
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
    result: dict[str, Any] = {}
    numbers: dict[str, Iterator[int]] = defaultdict(lambda: count(2))
    for key, value in pairs:
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


@lru_cache(maxsize=1)
def _detector_rules() -> Sequence[RedactionRule]:
    rules = []
    for module, name, kind, hints in _DETECTORS:
        detector = getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), name)()
        for pattern in detector.denylist:
            # The group of AWS is the secret without what identifies it, others are a part of the secret.
            if kind == "AWS_ACCESS_KEY":
                pattern = re.compile(re.sub(r"\((?!\?)", "(?P<x>", pattern.pattern), pattern.flags)
            rules.append(RedactionRule(kind, pattern, hints))
    return rules


_CALL_OR_NAME = re.compile(r"[\w(\[]")

# Secrets identified by their context: a URL, a header, a command line.
_CONTEXT_RULES = (
    RedactionRule(
        "PASSWORD",
        re.compile(
            r"(?<![A-Za-z0-9])[a-z][a-z0-9+.-]{1,30}://[^\s:/@'\"<>]{0,100}:(?P<x>[^\s/'\"<>]{1,200})@"
        ),
        ("://",),
        lambda match: re.match(r"[${%(]", match["x"]) is None,
        remember=True,
    ),
    RedactionRule(
        "TOKEN",
        re.compile(r"(?<![A-Za-z0-9])https?://(?P<x>[A-Za-z0-9_-]{16,200})@"),
        ("://",),
        lambda match: re.search(r"\d", match["x"]) is not None,
    ),
    RedactionRule(
        "TOKEN", re.compile(r"\b[Bb]earer\s{1,4}(?P<x>(?=[\w.~+/-]{0,200}\d)[\w.~+/-]{12,}=*)"), ("earer",)
    ),
    RedactionRule(
        "TOKEN",
        re.compile(
            r"(?i)\bauthorization\\?[\"']?\]?\s{0,4}[:=,]\s{0,4}\\?[\"']?(?:(?:basic|token|apikey|api-key|digest|key|negotiate)\s{1,4})?"
            r"(?:token=)?(?P<x>(?=[\w.~+/:-]{0,200}(?:\d|=))[\w.~+/:-]{8,}+=*+)"
        ),
        ("uthorization", "UTHORIZATION"),
        # Tested afterwards: as a part of the pattern, it would make a long match fail and be tried again.
        lambda match: _CALL_OR_NAME.match(match.string, match.end()) is None,
    ),
    RedactionRule(
        "PASSWORD",
        re.compile(
            r"\b[Bb]asic\s{1,4}(?P<x>[A-Za-z0-9+/]{12,}={1,2}|(?=[A-Za-z+/]{0,40}\d)[A-Za-z0-9+/]{16,})"
        ),
        ("asic ",),
    ),
    RedactionRule(
        "COOKIE",
        re.compile(
            r"(?i)(?<=cookie)\\?[\"']?\s{0,4}[:=]\s{0,4}\\?[\"']?(?P<x>[\w.%-]{1,80}=[^\r\n\"'\\<>]{8,4000})"
        ),
        ("ookie", "OOKIE"),
        lambda match: re.search(r"\d", match["x"]) is not None and "(" not in match["x"],
    ),
    RedactionRule(
        "PASSWORD",
        re.compile(
            r"(?<![\w-])(?:-u|--user|--proxy-user)[ =]{1,2}[\"']?[^\s:'\"<>]{1,100}:(?P<x>[^\s'\"<>]{4,200})"
        ),
        ("-u", "-user"),
        lambda match: re.match(r"[${]|\d+$", match["x"]) is None,
        remember=True,
    ),
    RedactionRule(
        "PASSWORD",
        re.compile(
            r"\b(?:sshpass|docker login|mysql\w{0,8}|mariadb|redis-cli|mongo\w{0,8}|ldap\w{1,8}|smbclient"
            r"|xfreerdp|htpasswd|7z|unzip|zip)\s"
            r"(?:[^\n]{0,120}?\s)?(?:-p|-a|-w|-P|/p:)\s?(?:[\"']|(?!-))(?P<x>(?=[^\s'\"]{0,100}[\d!@#$%^&*])[^\s'\"<>$][^\s'\"<>]{5,100})"
        ),
        ("-p", "-a", "-w", "-P", "/p:"),
        remember=True,
    ),
    RedactionRule(
        "PASSWORD",
        re.compile(
            r"\b(?:sshpass|mysql\w{0,8}|mariadb\w{0,8})\s(?:[^\n]{0,120}?\s)?-p\s?[\"']?(?P<x>[A-Za-z]{12,60})(?![\w.])"
        ),
        (" -p",),
        holds=lambda match: is_keyboard_mash(match["x"]),
    ),
    RedactionRule(
        "TOKEN",
        re.compile(r"\b(?:login|authenticate)\(\\?[\"'](?P<x>[\w.+/=-]{24,200})\\?[\"']\)"),
        ("login(", "authenticate("),
        lambda match: is_secret(match["x"], "TOKEN"),
    ),
    RedactionRule(
        "PASSWORD",
        re.compile(r"(?i)\bidentified\s{1,4}by\s{1,4}\\?[\"'](?P<x>[^\"'\s<>]{4,100})"),
        ("dentified", "DENTIFIED"),
        remember=True,
    ),
    RedactionRule(
        "PASSWORD",
        re.compile(
            r"\b(?:auth|login|credentials|basic_auth|HTTPBasicAuth|httpbasicauth)\s?[=(]{1,2}\s?\(?\s?[\"'][^\"'\n]{1,80}[\"'],\s?[\"'](?P<x>[^\"'\s<>]{6,100})[\"']"
        ),
        ("auth", "Auth", "login", "credentials"),
        lambda match: is_secret(match["x"], "PASSWORD"),
        remember=True,
    ),
)

_PLACEHOLDER = re.compile(r"<([A-Z][A-Z_]{1,30})>")
_KINDS = frozenset(
    [rule.kind for rule in (*TOKEN_RULES, HIGH_ENTROPY_RULE, *_CONTEXT_RULES, *PII_RULES)]
    + [kind for _, _, kind, _ in _DETECTORS]
    + ["PASSWORD", "API_KEY", "TOKEN", "SECRET", "AWS_SECRET_KEY"]
)
