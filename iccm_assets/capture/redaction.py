"""Secrets and personal data leave a text before it is stored (C4).

Each finding is replaced by a placeholder that names its kind, such as ``<EMAIL>``. What can be checked is
checked (card numbers by Luhn, addresses by parsing), so that ordinary code stays as it is. Covered: keys
and tokens of known shape, private keys, assigned passwords and keys, credentials in URLs, e-mail
addresses, phone numbers, card numbers, public and private IP addresses. Not covered: names, postal
addresses, secrets without a shape or a telling name.
"""

from __future__ import annotations

import importlib
import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from iccm_assets.settings import Settings

_SHORTEST = 6

# Detectors of detect-secrets whose findings have a shape of their own; the guessing ones (entropy,
# keywords) take ordinary code for secrets, and npm's takes quadratic time on hostile text.
_DETECTORS = (
    ("aws", "AWSKeyDetector"),
    ("azure_storage_key", "AzureStorageKeyDetector"),
    ("discord", "DiscordBotTokenDetector"),
    ("github_token", "GitHubTokenDetector"),
    ("gitlab_token", "GitLabTokenDetector"),
    ("mailchimp", "MailchimpDetector"),
    ("openai", "OpenAIDetector"),
    ("pypi_token", "PypiTokenDetector"),
    ("sendgrid", "SendGridDetector"),
    ("slack", "SlackDetector"),
    ("square_oauth", "SquareOAuthDetector"),
    ("stripe", "StripeDetector"),
    ("telegram_token", "TelegramBotTokenDetector"),
    ("twilio", "TwilioKeyDetector"),
)


def redactor(settings: Settings) -> Callable[[str], str]:
    """What ``record`` applies to every text: ``redact``, or nothing where ``ICCM_CAPTURE__REDACT`` is off."""
    return redact if settings.capture.redact else str


def redact(text: str) -> str:
    """The text with secrets and personal data replaced; redacting it again changes nothing."""
    if len(text) < _SHORTEST:
        return text
    for rule in _FIRST:
        text = rule.apply(text)
    for detector in _detectors():
        for secret in sorted(_texts(detector.analyze_string(text)), key=len, reverse=True):
            if len(secret) >= 16:  # shorter ones would be replaced in the middle of other words
                text = text.replace(secret, "<TOKEN>")
    for rule in _LAST:
        text = rule.apply(text)
    return text


@dataclass(frozen=True)
class _Rule:
    """A pattern; its group ``x`` (else the whole) is replaced where ``holds`` says so."""

    placeholder: str
    pattern: re.Pattern[str]
    holds: Callable[[str], bool] = lambda found: True

    def apply(self, text: str) -> str:
        return self.pattern.sub(self._replacement, text)

    def _replacement(self, match: re.Match[str]) -> str:
        group = "x" if "x" in self.pattern.groupindex else 0
        found = match[group]
        if not self.holds(found):
            return match[0]
        start, end = (position - match.start() for position in match.span(group))
        return match[0][:start] + self.placeholder + match[0][end:]


@lru_cache(maxsize=1)
def _detectors() -> Sequence[Any]:
    return [
        getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), name)()
        for module, name in _DETECTORS
    ]


def _texts(found: Iterable[object]) -> set[str]:
    return {one for one in found if isinstance(one, str)}


def _passes_luhn(found: str) -> bool:
    digits = [int(one) for one in found if one.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_address(found: str) -> bool:
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def _is_phone(found: str) -> bool:
    return 8 <= sum(one.isdigit() for one in found) <= 15


def _is_no_placeholder(found: str) -> bool:
    return not (found.startswith("<") and found.endswith(">"))


_FIRST = (
    _Rule(
        "<PRIVATE_KEY>",
        re.compile(
            r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
            r".*?(?:-----END [A-Z ]{0,40}KEY(?: BLOCK)?-----|\Z)",
            re.S,
        ),
    ),
    _Rule(
        "<PASSWORD>",
        re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@'\"]{1,100}:(?P<x>[^\s@/'\"]{1,200})@"),
        _is_no_placeholder,
    ),
    _Rule("<TOKEN>", re.compile(r"\bBearer\s+(?P<x>[A-Za-z0-9._~+/-]{16,}=*)")),
    _Rule(
        "<TOKEN>",
        re.compile(
            r"\b(?:sk-[A-Za-z0-9_-]{20,}|AIza[0-9A-Za-z_-]{35}|hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}"
            r"|github_pat_[A-Za-z0-9_]{30,}|glpat-[A-Za-z0-9_-]{20,}|xox[abeprs]-[A-Za-z0-9-]{10,}"
            r"|npm_[A-Za-z0-9]{36}|eyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]{5,}|ya29\.[A-Za-z0-9_-]{30,}|(?:AKIA|ASIA)[0-9A-Z]{16})"
        ),
    ),
    _Rule(
        "<PASSWORD>",
        re.compile(
            r"(?i)(?:passw(?:or)?d|passphrase|pwd|secret|api_?-?key|access_?-?key|auth_?-?token|access_?-?token"
            r"|private_?-?key|client_?-?secret)[a-z0-9_]{0,20}[\"']?\s{0,5}(?::=|=>|[:=])\s{0,5}"
            r"(?P<q>[\"'])(?P<x>[^\"'\s]{6,200})(?P=q)"
        ),
        _is_no_placeholder,
    ),
)
_LAST = (
    _Rule(
        "<EMAIL>",
        re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])"),
    ),
    _Rule(
        "<CARD>", re.compile(r"(?<![\w.])(?:[3-6]\d{3})(?:[ -]?\d{4}){2}[ -]?\d{1,7}(?![\w.])"), _passes_luhn
    ),
    _Rule("<IP>", re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)"), _is_address),
    _Rule(
        "<IP>", re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:{1,2}){3,7}[0-9A-Fa-f]{1,4}(?![\w:])"), _is_address
    ),
    _Rule(
        "<PHONE>",
        re.compile(r"(?<![\w+])\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,6}(?!\w)"),
        _is_phone,
    ),
    _Rule("<PHONE>", re.compile(r"(?<![\w.-])(?:\(\d{3}\) ?|\d{3}-)\d{3}-\d{4}(?![\w-])")),
)
