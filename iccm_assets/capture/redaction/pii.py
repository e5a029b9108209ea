"""Rules for personal data: e-mail and IP addresses, phone, card and account numbers. (C4)"""

from __future__ import annotations

import ipaddress
import re

from iccm_assets.capture.redaction.rules import RedactionRule

_FILES = frozenset(
    ("png", "jpg", "jpeg", "gif", "svg", "webp", "css", "html", "js", "json", "txt", "xml", "yaml", "yml")
)
_VERSION = re.compile(
    r"(?i)(?:versions?_{0,2}|release|\bv|==|>=|<=|~=|\^|oid|sections?|sect?\.|§"
    r"|chapter|clause|appendix)\s?[\"'=:(-]{0,3}\s?[\"']?$"
)
_ADDRESS = re.compile(
    r"(?i)(?:ip|v4|addr\w*|host|server|client|from|peer|dns|ping|ssh|//|@)[\"']?[\s:=(,]{0,4}[\"']?$"
)
_NETWORK_SIZE = re.compile(r"/\d\d?(?!\d)")


def luhn_valid(number: str) -> bool:
    """Whether the check digit of a card number is right."""
    digits = [int(character) for character in number if character.isdecimal()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


# Length: issued ranges (first, last), compared with as many leading digits as these have.
_CARD_RANGES = {
    13: ((4, 4),),
    14: ((300, 305), (36, 36), (38, 39)),
    15: ((34, 34), (37, 37)),
    16: ((4, 4), (50, 58), (60, 60), (62, 65), (67, 67), (2221, 2720), (3528, 3589)),
    19: ((4, 4),),
}


def is_card_number(text: str) -> bool:
    """Whether this is a number of an issued range and length, with a valid check digit."""
    digits = "".join(character for character in text if character.isdecimal())
    ranges = _CARD_RANGES.get(len(digits), ())
    issued = any(first <= int(digits[: len(str(first))]) <= last for first, last in ranges)
    return issued and luhn_valid(digits)


def is_iban(text: str) -> bool:
    """Whether this is an international account number with its check digits (ISO 7064, mod 97)."""
    plain = re.sub(r"[ -]", "", text)
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(character, 36)) for character in plain[4:] + plain[:4])) % 97 == 1


def _is_email(match: re.Match[str]) -> bool:
    local, _, domain = match[0].replace("%40", "@").rpartition("@")
    return domain.rpartition(".")[2].lower() not in _FILES and not (local == "git" and domain.count(".") == 1)


def _is_ipv4(match: re.Match[str]) -> bool:
    text = match.string
    try:
        address = ipaddress.IPv4Address(match[0])
    except ValueError:
        return False
    before = text[max(0, match.start() - 16) : match.start()]
    if address.is_loopback or match[0].startswith(("0.", "255.")) or _VERSION.search(before):
        return False
    if _NETWORK_SIZE.match(text, match.end()) and match[0].endswith(".0"):
        return False  # a network, no person's address
    octets = address.packed
    version_like = octets[0] < 10 and max(octets) < 64
    return not version_like or _ADDRESS.search(before) is not None


def _is_ipv6(match: re.Match[str]) -> bool:
    try:
        address = ipaddress.IPv6Address(match[0])
    except ValueError:
        return False
    # Slices and qualified names may parse as short addresses: a compressed one has to begin as they do.
    issued = re.match(r"(?i)[23][0-9a-f]{3}:|f[cd][0-9a-f]{2}:|fe[89ab][0-9a-f]:|64:ff9b:", match[0])
    return not address.is_loopback and (match[0].count(":") == 7 or issued is not None)


def _is_phone(match: re.Match[str]) -> bool:
    return 8 <= sum(map(str.isdecimal, match[0])) <= 15 and re.fullmatch(r"\+\d+\.\d+", match[0]) is None


def _is_labelled_phone(match: re.Match[str]) -> bool:
    date_or_version = re.match(r"\d{4}-\d\d-\d\d|(?:\d+\.){3}\d", match["x"])
    return 7 <= sum(map(str.isdecimal, match["x"])) <= 15 and date_or_version is None


_DOMAIN = r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w-]|\()"

PII_RULES = (
    RedactionRule(
        "EMAIL",
        re.compile(
            r"(?:(?<![\w.+%-])|(?<=\\[nrt])|(?<=%[2-3][0-9A-F]))(?=[\w.+-])[\w.+'-]{0,63}[\w+](?:@|%40)"
            + _DOMAIN
        ),
        holds=_is_email,
        gate=re.compile(r"(?:@|%40)[^\W_]"),
    ),
    RedactionRule("EMAIL", re.compile(r'"[\w.+! -]{1,64}"@' + _DOMAIN), ('"@',), holds=_is_email),
    RedactionRule(
        "IBAN",
        re.compile(
            r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}"
            r"(?:[ -]?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"
        ),
        holds=lambda match: is_iban(match[0]),
        gate=re.compile(r"\d(?<=[A-Z]\d)\d[ -]?[A-Z0-9]{4}"),
    ),
    RedactionRule(
        "CARD",
        re.compile(
            r"[2-6](?:(?<![\w.].)|(?<=\\[nrt].))(?:\d{3}(?:[ -]?\d{4}){2}[ -]?\d{1,4}(?:[ -]?\d{3})?"
            r"|\d{3}[ -]?\d{6}[ -]?\d{4,5}|\d{12})"
            r"(?![\w]|\.\d)"
        ),
        holds=lambda match: is_card_number(match[0]),
    ),
    RedactionRule(
        "IP",
        re.compile(r"\d(?:(?<![\w.]\d)|(?<=\\[nrt]\d))\d{0,2}\.(?:\d{1,3}\.){2}\d{1,3}(?![\w]|\.\d)"),
        holds=_is_ipv4,
    ),
    RedactionRule(
        "IP",
        re.compile(r"(?:(?<![\w:.])|(?<=\\[nrt]))[0-9A-Fa-f]{1,4}:[0-9A-Fa-f:]{2,34}(?![\w:])"),
        holds=_is_ipv6,
        gate=re.compile(r":[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]"),
    ),
    RedactionRule("SSN", re.compile(r"[0-8](?<![\w.-].)\d\d(?<!000|666)-(?!00)\d\d-(?!0000)\d{4}(?![\w-])")),
    # A number with a label such as "tel".
    RedactionRule(
        "PHONE",
        re.compile(
            r"(?:phone|Phone|PHONE|tel|Tel|TEL|téléphone|Téléphone|mobile|Mobile|MOBILE|mobil|Mobil|handy|Handy"
            r"|cell|Cell"
            r"|fax|Fax|FAX|whatsapp|WhatsApp|sms|SMS|call|Call|电话|手机|電話|携帯|전화|телефон|Телефон|тел)"
            r"(?:efon\w{0,10}|éfono)?(?:[ _-]?(?:number|Number|nummer|no|nr|me at|us at))?"
            r"[\"']?\.?\s{0,2}[:=]?\s{0,3}[\"'(]?(?P<x>[+(]{0,2}\d[\d ()./-]{5,22}\d)(?![\w.])"
        ),
        holds=_is_labelled_phone,
    ),
    RedactionRule(
        "PHONE",
        re.compile(r"\+(?:(?<![\w+]\+)|(?<=\\[nrt]\+))[1-9]\d{0,2}(?:[ ./-]?\(?\d{1,4}\)?){2,6}(?!\w)"),
        holds=_is_phone,
    ),
    RedactionRule(
        "PHONE", re.compile(r"\((?:(?<!\w\()|(?<=\\[nrt]\())\d{3}\)[ -]?\d{3}[-. ]\d{4}(?![\w-]|\.\d)")
    ),
    RedactionRule(
        "PHONE",
        re.compile(r"\d(?:(?<![\w.-]\d)|(?<=\\[nrt]\d))(?:[-. ]\d)?\d\d([-.])\d{3}\1\d{4}(?![\w-]|\.\d)"),
    ),
    RedactionRule(
        "PHONE",
        re.compile(r"[2-9](?:(?<![\w.-].)|(?<=\\[nrt].))(?<!\d .)\d\d [2-9]\d\d \d{4}(?![\w-]|[. ]\d)"),
    ),
    RedactionRule(
        "PHONE",
        re.compile(
            r"0(?:(?<![\w./#-]0)|(?<=\\[nrt]0))(?<!\d 0)[1-9]"
            r"(?:(?:[ .]\d\d){4}|\d{0,3}[ /-]\d{3,4} ?\d{3,5})(?![\w/-]|[. ]\d)"
        ),
    ),
    RedactionRule(
        "PHONE",
        re.compile(r"00(?:(?<![\w./#-]00)|(?<=\\[nrt]00))[1-9]\d{0,2}(?:[ /-]\d{2,8}){2,5}(?![\w./-])"),
        holds=_is_phone,
    ),
)
