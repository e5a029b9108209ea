"""Rules for personal data: e-mail and IP addresses, phone, card and account numbers. (C4)"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

from iccm_assets.capture.redaction.rules import OnMatch, RedactionRule, RuleGroup, Span

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
    16: ((4, 4), (50, 58), (60, 60), (62, 65), (67, 67), (2200, 2204), (2221, 2720), (3528, 3589)),
    19: ((4, 4), (62, 62)),
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


# Of domains without a country: what follows the last dot of other names is an attribute of Python.
_COMMON_DOMAINS = frozenset(
    (
        "com", "net", "org", "edu", "gov", "mil", "int", "info", "biz", "name", "pro", "app", "dev", "io",
        "ai", "xyz", "online", "site", "shop", "store", "tech", "cloud", "email", "blog", "museum", "travel",
        "agency", "digital", "company", "example", "test", "invalid", "localdomain", "local", "internal",
        "lan", "corp",
    )
)  # fmt: skip
_IN_EXPRESSION = re.compile(r"(?:[=+*/-]\s|\w[(\[](?:[^\"'()]{1,80}[,+*/-] )?|\breturn )$")
_IDENTIFIERS = re.compile(r"[A-Za-z_][\w.]*@[A-Za-z_][\w.]*")


def _is_product(text: str, start: int, end: int) -> bool:
    """Whether this is a product of matrices, ``x@self.weight``, in a program."""
    last = text[start:end].rpartition(".")[2]
    if (len(last) == 2 and (last.islower() or last.isupper())) or last.lower() in _COMMON_DOMAINS:
        return False
    before = text[max(0, start - 100) : start].rpartition("\n")[2]
    return _IDENTIFIERS.fullmatch(text, start, end) is not None and _IN_EXPRESSION.search(before) is not None


def _is_email(text: str, start: int, domain: re.Match[str]) -> bool:
    if domain[0].rpartition(".")[2].lower() in _FILES:
        return False
    if text[start : domain.start()] == "git" and domain[0].count(".") == 1:
        return False
    return not _is_product(text, start, domain.end())


def _is_card(match: re.Match[str]) -> bool:
    """Whether this is a card's number, and not four columns of a table of numbers."""
    text = match.string
    if " " in match[0]:
        before, after = text[max(0, match.start() - 6) : match.start()], text[match.end() : match.end() + 10]
        if re.search(r"\d{2} $", before) or re.match(r" \d{3,4}(?: +\d|\n\d)", after):
            return False
    return is_card_number(match[0])


# The length of an account number by its country, where the letters may be small: those of the IBAN registry.
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "no", 16: "be", 18: "dk fi nl fo gl sd", 19: "mk si", 20: "at ba ee kz lt lu xk",
        21: "ch cr hr li lv",
        22: "bg bh de gb ge ie me rs va", 23: "ae gi il iq tl om so", 24: "ad cz es md pk ro sa se sk tn vg",
        25: "ly pt st", 26: "is tr", 27: "fr gr it mc mr sm", 28: "al az by cy do gt hu lb ni pl sv",
        29: "br eg ps qa ua", 30: "jo kw mu", 31: "mt sc", 32: "lc", 33: "ru",
    }.items()
    for country in countries.split()
}  # fmt: skip


def _is_small_iban(match: re.Match[str]) -> bool:
    return len(match[0]) == _IBAN_LENGTHS.get(match[0][:2]) and is_iban(match[0])


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


_DOMAIN = r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}(?:[^\W\d_]{2,24}|xn--[\w-]{2,40})(?![\w-]|\()"


def _rule(
    kind: str,
    pattern: str,
    *hints: str,
    holds: Callable[[re.Match[str]], bool] = RedactionRule.holds,
    gate: str | None = None,
) -> RedactionRule:
    return RedactionRule(kind, re.compile(pattern), hints, holds, gate=re.compile(gate) if gate else None)


_LOCAL_PART = re.compile(
    r"(?:(?<![\w.+%-])|(?<=\\[nrt])|(?<=%[2-3][0-9A-F]))(?=[\w.+-])[\w.+'-]{0,63}[\w+]\Z"
)


class _EmailRule(RedactionRule):
    """Addresses, found by what follows their name: names are everywhere, the sign before a domain is not."""

    def find(self, text: str, remember: OnMatch) -> Iterator[Span]:
        end = 0
        for domain in self.pattern.finditer(text):
            name = _LOCAL_PART.search(text, max(end, domain.start() - 66), domain.start())
            if name is not None and _is_email(text, name.start(), domain):
                end = domain.end()
                yield name.start(), end, self.kind


_AT = r"(?:@|%40|&#64;|&#x40;|\\{1,2}u0040)"
_EMAIL_RULES = (
    _EmailRule(
        "EMAIL",
        re.compile(rf"{_AT}(?:{_DOMAIN}|\[(?:\d{{1,3}}\.){{3}}\d{{1,3}}\])"),
        ("@", "%40", "&#64;", "&#x40;", "u0040"),
    ),
    _rule("EMAIL", r'"[\w.+! -]{1,64}"@' + _DOMAIN, '"@'),
    # Spelt so that programs do not find them.
    _rule(
        "EMAIL",
        r"(?<![\w.+-])[\w.+-]{1,64}\s?(?:\[at\]|\(at\)|\{at\}|<at>)\s?[\w-]{1,63}"
        r"(?:\s?(?:\.|\[dot\]|\(dot\)|\{dot\}|<dot>)\s?[\w-]{1,63}){1,4}",
        "[at]", "(at)", "{at}", "<at>",
    ),
    _rule(
        "EMAIL",
        r"(?<![\w.+-])[\w.+-]{2,64} at [\w-]{2,63}(?: dot [\w-]{2,63}){0,2}"
        r" dot (?:com|net|org|edu|gov|io|dev|[a-z]{2})\b",
        " dot ",
    ),
)  # fmt: skip
_NUMBER_RULES = (
    _rule(
        "CARD",
        r"[2-6](?:(?<![\w.].)|(?<=\\[nrt].))(?:\d{3}(?:[ -]?\d{4}){2}[ -]?\d{1,4}(?:[ -]?\d{3})?"
        r"|\d{3}[ -]?\d{6}[ -]?\d{4,5}|\d{12})(?![\w]|\.\d)",
        holds=_is_card,
    ),
    # In four groups, and on the stripe of the card.
    _rule("CARD", r"[2-6](?<![\w.].)\d{3}(?:\.\d{4}){3}(?![\w]|\.\d)", holds=_is_card),
    _rule("CARD", r"%B(?P<x>\d{13,19})\^", "%B", holds=lambda match: is_card_number(match["x"])),
    _rule(
        "SSN", r"[0-8](?:(?<![\w.-].)|(?<=\\[nrt].))\d\d(?<!000|666)-(?!00)\d\d-(?!0000)\d{4}(?![\w-])", "-"
    ),
    # A number with a label such as "tel".
    _rule(
        "PHONE",
        r"(?:phone|Phone|PHONE|tel|Tel|TEL|téléphone|Téléphone|mobile|Mobile|MOBILE|mobil|Mobil|handy|Handy"
        r"|cell|Cell|Rufnummer|Durchwahl|fax|Fax|FAX|whatsapp|WhatsApp|sms|SMS|call|Call|电话|手机号?|móvil|celular|gsm|GSM|msisdn|MSISDN|wa\.me/|電話|携帯|전화|телефон|Телефон|тел)"
        r"(?:efon\w{0,10}|éfono)?(?:[ _-]?(?:number|Number|nummer|no|nr|me at|us at))?"
        r"[\"']?\.?\s{0,2}[:=]?\s{0,3}[\"'(]?(?P<x>[+(]{0,2}\d[\d ()./-]{5,22}\d)(?![\w.])",
        holds=_is_labelled_phone,
    ),
    # In a sentence about it: my number 9873016482, numer to 512-874-306.
    _rule(
        "PHONE",
        r"(?i)\b(?:my|mera|meine?|mi|mon|mój|meu|il mio) (?:number|nummer|número|numéro|numero|numer)\b"
        r"[^\d\n]{1,16}(?P<x>\d(?:[ .-]?\d){7,13})(?![\w-]|\.\d)",
        "num",
        "Num",
        "núm",
        "Núm",
    ),
    _rule(
        "PHONE",
        r"(?i)\b(?:numer|móvil|telefon\w{0,2}|teléfono|tel|kom)\b[^\d\n]{1,24}"
        r"(?P<x>\d{3}([ -])\d{3}\2\d{3})(?![\w-]|[. ]\d)",
        "numer",
        "Numer",
        "óvil",
        "ele",
        "tel",
        "Tel",
        "kom",
        "Kom",
    ),
    # 0473/81.92.06 and 0532 718 46 09.
    _rule("PHONE", r"0(?<![\w./#-]0)(?<!\d 0)\d{2,3}(?:/\d\d\.\d\d\.\d\d| \d{3} \d\d \d\d)(?![\w/-]|[. ]\d)"),
    _rule(
        "PHONE",
        r"\+(?:(?<![\w+]\+)|(?<=\\[nrt]\+))[1-9]\d{0,2}(?:[ ./-]?\(?\d{1,4}\)?){2,6}(?!\w)",
        "+",
        holds=_is_phone,
    ),
    _rule("PHONE", r"\+(?<![\w+]\+)[1-9]\d{0,2} ?\(0\) ?\d{2,5} ?[/-] ?\d{3,9}(?![\w-]|\.\d)", "(0)"),
    # (555) 123-4567, (11) 91234-5678, (0118) 887 2767.
    _rule(
        "PHONE",
        r"\((?:(?<!\w\()|(?<=\\[nrt]\())(?:\d{3}\)[ -]?\d{3}[-. ]\d{4}|\d\d\) ?9?\d{4}-\d{4}"
        r"|0\d{2,4}\) ?\d{3,4}[ -]?\d{3,4}|0\d{1,5}\) ?\d{2,4}(?:[ -]\d{2,4}){1,3})(?![\w-]|\.\d)",
        "(",
    ),
    _rule(
        "PHONE",
        r"\d(?:(?<![\w.-]\d)|(?<=\\[nrt]\d))(?:[-. ]\d)?\d\d([-.])\d{3}\1\d{4}(?![\w-]|\.\d)",
    ),
    _rule("PHONE", r"[2-9](?:(?<![\w.-].)|(?<=\\[nrt].))(?<!\d .)\d\d [2-9]\d\d \d{4}(?![\w-]|[. ]\d)", " "),
    _rule(
        "PHONE",
        r"0(?:(?<![\w./#-]0)|(?<=\\[nrt]0))(?<!\d 0)(?:[1-9]"
        r"(?:(?:[ .]\d\d){4}|\d{0,3}[ /-]\d{3,4} ?\d{3,5})|\d{1,3}-\d{3,4}-\d{4})(?![\w/-]|[. ]\d)",
        "0",
    ),
    _rule("PHONE", r"[78](?:(?<![\w.+-].)|(?<=\\[nrt].))[ -]?\(?9\d\d\)?[ -]?\d{3}[ -]\d\d[ -]\d\d(?![\w-])"),
    _rule(
        "PHONE",
        r"00(?:(?<![\w./#-]00)|(?<=\\[nrt]00))[1-9]\d{0,2}(?:[ /-]\d{2,8}){2,5}(?![\w/-]|\.\d)",
        "00",
        holds=_is_phone,
    ),
    # Without spaces, of countries with numbers that are written so.
    _rule(
        "PHONE",
        r"00(?:(?<![\w./#-]00)|(?<=\\[nrt]00))(?:3[0-469]|4[0134-9]|5[1-8]|6[0-6]|7\d|8[1246]|9[0-58])\d{8,11}"
        r"(?![\w/-]|\.\d)",
        "00",
    ),
)

_ADDRESS_RULES = (
    _rule(
        "IBAN",
        r"(?:(?<![A-Za-z0-9])(?<![0-9A-F]-)|(?<=\\[nrt]))[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}"
        r"(?:[ -]?[A-Z0-9]{1,3})?(?![A-Za-z0-9])",
        holds=lambda match: is_iban(match[0]),
        gate=r"\d(?<=[A-Z]\d)\d[ -]?[A-Z0-9]{4}",
    ),
    _rule(
        "IBAN",
        r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))[a-z]{2}\d{2}[a-z0-9]{11,30}(?![A-Za-z0-9])",
        holds=_is_small_iban,
        gate=r"\d(?<=[a-z]\d)\d[a-z0-9]{11}",
    ),
    _rule(
        "IP",
        r"\d(?:(?<![\w.]\d)|(?<=\\[nrt]\d))\d{0,2}\.(?:\d{1,3}\.){2}\d{1,3}(?![\w]|\.\d)",
        holds=_is_ipv4,
    ),
    _rule(
        "IP",
        r"(?:(?<![\w:.])|(?<=\\[nrt]))[0-9A-Fa-f]{1,4}:[0-9A-Fa-f:]{2,34}(?![\w:])",
        holds=_is_ipv6,
        gate=r":[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]",
    ),
)
# Of an account number, an IPv4 and an IPv6 address. One set of first characters is found faster than three.
_OF_ADDRESSES = re.compile(
    r"[\d:](?:(?<=[A-Za-z]\d)\d[ -]?[A-Za-z0-9]{4}|(?<=\d)\d{0,2}\.\d{1,3}\.\d"
    r"|(?<=:)[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:])"
)
PII_RULES = (
    RuleGroup(_EMAIL_RULES),
    RuleGroup(_ADDRESS_RULES, _OF_ADDRESSES),
    # All of these have seven digits or more.
    RuleGroup(_NUMBER_RULES, re.compile(r"\d(?:[ ()./-]{0,3}\d){6}")),
)
