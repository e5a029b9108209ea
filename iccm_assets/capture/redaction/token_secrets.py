"""Rules for secrets of known shape: tokens of known issuers, armored keys, words of high entropy. (C4)"""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Iterator

from iccm_assets.capture.redaction.rules import OnMatch, RedactionRule, RuleGroup, Span
from iccm_assets.capture.redaction.vendor_tokens import AMBIGUOUS_TOKENS, DISTINCT_TOKENS


def has_high_entropy(text: str, min_changes: float = 0.42) -> bool:
    """Whether a word changes between lower case, upper case and digits as often as random text.

    Random base62 changes at 0.62 of its steps, CamelCase with numbers at 0.3.
    """
    classes = [
        "d" if character.isdigit() else "u" if character.isupper() else "l"
        for character in text
        if character.isalnum()
    ]
    if len(set(text)) < 12 or min(map(classes.count, "dul")) < 2:
        return False
    changes = sum(a != b for a, b in itertools.pairwise(classes))
    return changes >= min_changes * (len(classes) - 1)


def is_keyboard_mash(text: str) -> bool:
    """Whether letters change their case as often as random text, unlike joined words.

    Names in camel case have no two capitals in a row, or a long run of them.
    """
    # First what most texts fail: the letters of a text are looked at one by one.
    runs = re.findall(r"[A-Z]{2,}", text) if text.isascii() else []
    if not runs or max(map(len, runs)) > 5:
        return False
    letters = [character for character in text if character.isalpha()]
    if len(letters) < 12 or len(set(letters)) < 7:
        return False
    changes = sum(a.isupper() != b.isupper() for a, b in itertools.pairwise(letters))
    return changes >= 0.34 * (len(letters) - 1)


def is_mixed(text: str) -> bool:
    """Whether a short word of letters and digits is random, unlike a name: K2vDNwlUzGk9."""
    if not 10 <= len(text) <= 100 or not (text.isascii() and text.isalnum()):
        return False
    classes = ["d" if letter.isdigit() else "u" if letter.isupper() else "l" for letter in text]
    changes = sum(a != b for a, b in itertools.pairwise(classes))
    return min(classes.count("u"), classes.count("l")) >= 2 and "d" in classes and changes >= 0.5 * len(text)


_FILLER = re.compile(
    r"[xX]{6}|(?<![A-Za-z0-9])(?:X{3,5}|Y{3,}|Z{3,})(?![A-Za-z0-9])|0{12}|[_.*-]{8}|EXAMPLE(?:KEY)?$|^s3pPLMBiTxaQ9kYG|(?i:your|example|placeholder|redacted)[-_]"
)
_RANDOM_TAIL = re.compile(r"(?=[a-z]*[0-9])[0-9a-z]{24,}")


def is_filler(text: str) -> bool:
    """Whether a token only shows what a token looks like: ``ghp_xxxxxxxxxxxx``."""
    return _FILLER.search(text) is not None


def _is_distinct_token(match: re.Match[str]) -> bool:
    return not is_filler(match[0])


def _is_random_token(match: re.Match[str]) -> bool:
    """Whether a token with a common prefix starts a word and looks random."""
    before = match.string[max(0, match.start() - 2) : match.start()]
    starts_word = not (before[-1:].isalnum() or before[-1:] == "_") or before in {"\\n", "\\r", "\\t"}
    token = match[0][:200]  # the search for a random part takes quadratic time
    if not starts_word or is_filler(token) or not any(map(str.isdigit, token)):
        return False
    return _RANDOM_TAIL.search(token) is not None or has_high_entropy(token, 0.3) or is_keyboard_mash(token)


# An armored key: up to its end line, or to its last line of base64 where it was truncated. Brackets end it:
# program code that searches for such lines is not a key. Nothing backtracks, so that hostile text takes
# linear time: by atomic groups, since possessive repeats of groups lose matches before Python 3.11.5.
_ARMORED_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?>(?:(?!-----)[^(){}\[\]])*)-----END [A-Z0-9 ]{0,40}KEY(?: BLOCK)?-----"
    r"|(?>(?:[^\w(){}\[\]]{0,12}(?:[rn]?[A-Za-z0-9+/=]{16,}+))+))"
)

_KEY_BODY = re.compile(r"KEY(?: BLOCK)?-----(?:(?s:.)*?[A-Za-z0-9+/=]{16}|\s*(?:\\n)?[A-Za-z0-9+/=]{5})")

KEY_RULES = (
    # The two lines alone are what a command searches for.
    RedactionRule(
        "PRIVATE_KEY", _ARMORED_KEY, ("-----BEGIN ",), lambda match: _KEY_BODY.search(match[0]) is not None
    ),
    RedactionRule(
        "PRIVATE_KEY",
        re.compile(
            r"-----BEGIN OpenVPN [\w -]{1,40}-----[0-9A-Za-z+/=\s\\\"',]{32,}+"
            r"(?:-----END OpenVPN [\w -]{1,40}-----)?"
        ),
        ("-----BEGIN OpenVPN ",),
    ),
    RedactionRule(
        "PRIVATE_KEY",
        re.compile(r"Private-Lines: (?P<x>\d+\s+(?:[A-Za-z0-9+/=]{16,}\s*)+)"),
        ("Private-Lines: ",),
    ),
    # The body of an account SID's token: the second of two arguments.
    RedactionRule(
        "TWILIO_KEY",
        re.compile(
            r"(?:AC[a-f0-9]{32}|<TWILIO_KEY>|[sS][iI][dD])\\?[\"']?,\s{0,20}\\?[\"'](?P<x>[a-f0-9]{32})\\?[\"']"
        ),
        ("AC", "<TWILIO_KEY>", "wilio"),
    ),
    RedactionRule(
        "HEROKU_KEY",
        re.compile(
            r"(?:h|H)(?:eroku|EROKU)[^\n]{0,60}?(?P<x>(?<![\w-])[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12})(?![\w-])"
        ),
        ("eroku", "EROKU"),
    ),
    RedactionRule("TOKEN", re.compile(r"SSWS (?P<x>[\w-]{30,})"), ("SSWS ",)),
)

_LONG_WORD = re.compile(r"[A-Za-z0-9_.+/~%$:@?=&#-]{16,}+")
# From the first "eyJ" of a run of letters: tried at each of them, hostile text takes quadratic time.
_JWT = RedactionRule(
    "JWT",
    re.compile(r"(?<![\w-])(?:(?!ey[JK])[\w-])*+(?P<x>ey[JK][\w-]{5,}+\.[\w-]{5,}+(?:\.[\w-]*+){1,3}+)"),
    ("eyJ", "eyK"),
    gate=re.compile(r"ey[JK][\w-]{5}"),
)
_PASETO = RedactionRule("TOKEN", re.compile(r"v[1-4]\.(?:local|public)\.[\w-]{30,}"), (".local.", ".public."))
# 64 bytes; the digests of package locks are as long but have a prefix.
_AZURE_KEY = RedactionRule(
    "AZURE_KEY",
    re.compile(r"(?<![A-Za-z0-9+/=-])(?<!base64,)[A-Za-z0-9+/]{86}==(?!=)"),
    ("==",),
    gate=re.compile(r"==(?<=[A-Za-z0-9+/]{8}==)"),
)
# As modular crypt and its successors write them: $2b$12$…, $argon2id$…, pbkdf2_sha256$….
_PASSWORD_HASH = RedactionRule(
    "PASSWORD",
    re.compile(
        r"(?:\$(?:apr1|[1567y]|2[abxy]|gy|s[cm]rypt|argon2(?:id|i|d)|pbkdf2(?:-sha\d{1,3})?)"
        r"|pbkdf2_sha\d{1,3})\$[\w./+=,$-]{22,400}"
    ),
    ("$",),
    lambda match: not is_filler(match[0]) and re.search(r"\d", match[0][4:]) is not None,
)

TOKEN_RULES = RuleGroup(
    (
        *(
            RedactionRule(
                form.kind,
                re.compile(form.pattern),
                tuple(form.anchors.split()),
                holds,
                gate=re.compile(form.gate) if form.gate else None,
            )
            for forms, holds in ((DISTINCT_TOKENS, _is_distinct_token), (AMBIGUOUS_TOKENS, _is_random_token))
            for form in forms
        ),
        _JWT,
        _PASETO,
        _AZURE_KEY,
        _PASSWORD_HASH,
    ),
    _LONG_WORD,
    inside=True,
)


def _is_readable_base64(text: str) -> bool:
    """Whether this encodes words; a secret in base64 has digits or signs, and no spaces between words."""
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), validate=True).decode("ascii")
    except ValueError:
        return False
    decoded = decoded.replace("\n", " ")
    letters = sum(character.isalpha() or character == " " for character in decoded)
    return decoded.isprintable() and letters >= (0.8 if " " in decoded else 1.0) * len(decoded)


_HIGH_ENTROPY = re.compile(
    r"(?:(?<![\w+/=.-])|(?<=\\[nrt]))(?<!base64,)(?<!\bh1:)(?<!\bSHA256:)"
    r"(?!(?:toolu|msg|req|call|resp|chatcmpl|run|sha\d+|pi|pm|ch|cus|sub|evt|price|prod|seti|acct|file)[_-]"
    r"|(?:[rnbqkpRNBQKP1-8]{1,8}/){7}|RW[QRST][A-Za-z0-9+/]{53}(?![\w+/=])|AAAA(?:[BC]3NzaC1|E2VjZHN|[GI]nNrL))"
    r"[A-Za-z0-9][A-Za-z0-9+/_-]{22,98}[A-Za-z0-9]={0,2}(?![\w+/=-])"
)
# What is public, or no text at all: certificates, public keys, signatures, images, archives, documents.
_PUBLIC_DATA = re.compile(
    r"-----BEGIN (?:(?!PRIVATE|OpenVPN)[A-Z0-9]{1,20} ?){1,5}-----[^-]*+"
    r"|(?<![A-Za-z0-9+/])(?:iVBORw0KGgo|/9j/|R0lGOD|UEsDB|H4sI|JVBERi|UklGR|AGFzbQ)[A-Za-z0-9+/=\s\\\"']{40,}+"
    # Of 76 characters a line, as MIME writes data; keys have 64 or 70.
    r"|(?<![A-Za-z0-9+/])(?>(?:[A-Za-z0-9+/]{76}\s{1,20})+)[A-Za-z0-9+/]{0,76}"
)


# What is named as public, as an identifier, or as a digest.
_PUBLIC_NAME = re.compile(
    r"(?i)(?:(?:public|publishable|site|websocket)[ _-]?(?:key|accept)"
    r"|(?<!session)(?<!sess)(?<!secret)(?<!auth)[_-]id(?:-2)?|etag|if-none-match|cursor|[\"']kid|digest"
    r"|integrity|checksum|fingerprint|content-md5|declare_id!|[\"'][xyn]|pubkey|program(?:_?id)?|address)"
    r"(?:\\?[\"'])?\s{0,3}[:=(]\s{0,3}(?:W/)?(?:\\?[\"'])?$"
)
_CHAIN_ADDRESS = re.compile(r"0x[0-9A-Fa-f]{40}")


class _HighEntropyRule(RedactionRule):
    """24 to 100 characters of high entropy, from any issuer.

    Hexadecimal digests have no upper case, images and other data in base64 are longer or begin as such files
    do, integrity digests have a prefix, and so have public SSH keys.
    """

    def find(self, text: str, remember: OnMatch) -> Iterator[Span]:
        public = _PUBLIC_DATA.finditer(text)
        data = next(public, None)
        for match in self.pattern.finditer(text):
            if not has_high_entropy(match[0]) or is_filler(match[0]) or _is_readable_base64(match[0]):
                continue
            if _PUBLIC_NAME.search(text, max(0, match.start() - 32), match.start()):
                continue
            if _CHAIN_ADDRESS.fullmatch(match[0]):
                continue
            while data is not None and data.end() <= match.start():
                data = next(public, None)
            if data is None or match.start() < data.start():
                yield *match.span(), self.kind


_LONG_MIXED_WORD = re.compile(
    r"(?<![A-Za-z0-9+/_-])(?=[A-Za-z+/_-]*[0-9])(?=[a-z0-9+/_-]*[A-Z])[A-Za-z0-9+/_-]{24}"
)
_WALLET = re.compile(
    r"(?i)private[ _-]?key|accounts['\"]?\s?[:=]\s?\[|deployer|wallet|signer|secret[ _-]?key|\bpk\b"
)


def _is_of_wallet(match: re.Match[str]) -> bool:
    """Whether 32 bytes are near a word for the account of a blockchain: others are digests."""
    return _WALLET.search(match.string, max(0, match.start() - 200), match.end() + 120) is not None


_WORD_OF_DIGITS = re.compile(r"(?<![A-Za-z0-9])0x(?P<x>[0-9a-fA-F]{64})(?![A-Za-z0-9])")
HIGH_ENTROPY_RULE = RuleGroup(
    (
        _HighEntropyRule("TOKEN", _HIGH_ENTROPY, gate=_LONG_MIXED_WORD),
        RedactionRule("PRIVATE_KEY", _WORD_OF_DIGITS, ("0x",), _is_of_wallet),
    ),
    _LONG_WORD,
    inside=True,
)
