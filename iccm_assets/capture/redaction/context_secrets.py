"""Rules for secrets that their place identifies: a URL, a header, a cookie, a command line, a call. (C4)"""

from __future__ import annotations

import re
from collections.abc import Callable

from iccm_assets.capture.redaction.keyword_secrets import is_secret
from iccm_assets.capture.redaction.rules import RedactionRule
from iccm_assets.capture.redaction.token_secrets import is_keyboard_mash


def _rule(
    kind: str, pattern: str, *hints: str, holds: Callable[[re.Match[str]], bool] = RedactionRule.holds
) -> RedactionRule:
    return RedactionRule(kind, re.compile(pattern), hints, holds, remember=kind == "PASSWORD")


def _is_password(match: re.Match[str]) -> bool:
    return is_secret(match["x"], "PASSWORD")


# A variable, or what documents write in the place of a password.
_STAND_IN = re.compile(r"[${%(]|(?:(?:your-?)?pass(?:word|wd|w)?|pwd?|changeme|[x*.]+)$", re.IGNORECASE)


def _is_no_variable(match: re.Match[str]) -> bool:
    return _STAND_IN.match(match["x"]) is None


def _has_digit(match: re.Match[str]) -> bool:
    return re.search(r"\d", match["x"]) is not None


def _is_data_of_secret(match: re.Match[str]) -> bool:
    """Whether this line is below ``data:``, with only indented lines between them."""
    above = match.string[max(0, match.start() - 4000) : match.start()]
    block = above[above.rfind("\ndata:") :]
    return (
        block.startswith("\ndata:") and len(match["x"]) % 4 == 0 and re.search(r"\n[^\s]", block[6:]) is None
    )


_CALL_OR_NAME = re.compile(r"[\w(\[]")
_COMMANDS = (
    "sshpass ",
    " login",
    "mysql",
    "mariadb",
    "redis-cli",
    "mongo",
    "ldap",
    "smbclient",
    "xfreerdp",
    "htpasswd",
    "7z ",
    "zip -",
)
_PROGRAMS = ("sshpass", "mysql", "mariadb", "7z", "zip", "unzip", "redis-cli")
_GAP = r"(?:\s|\\[nrt]){1,8}(?:(?:[+>|]|\d{1,6}[→|:])\s{0,8})?"
_SIGNS = ("=", " =", "(")
_STRING = r"[\"'][^\"'\n]{1,80}[\"']"

CONTEXT_RULES = (
    _rule(
        "PASSWORD",
        r"(?<![A-Za-z0-9])[a-z][a-z0-9+.-]{1,30}://[^\s:/@'\"<>]{0,100}:(?P<x>[^\s/'\"<>]{1,200})@",
        "://",
        holds=_is_no_variable,
    ),
    _rule("TOKEN", r"(?<![A-Za-z0-9])https?://(?P<x>[A-Za-z0-9_-]{16,200})@", "://", holds=_has_digit),
    _rule("TOKEN", r"\b[Bb]earer\s{1,4}(?P<x>(?=[\w.~+/-]{0,200}\d)[\w.~+/-]{12,}=*)", "earer"),
    _rule(
        "TOKEN",
        r"(?i)\bauthorization\\?[\"']?\]?\s{0,4}[:=,]\s{0,4}\\?[\"']?(?:(?:basic|token|apikey|api-key|digest|key"
        r"|negotiate)\s{1,4})?(?:token=)?(?P<x>(?=[\w.~+/:-]{0,200}(?:\d|=))[\w.~+/:-]{8,}+=*+)",
        "uthorization",
        "UTHORIZATION",
        # Tested afterwards: as a part of the pattern, it would make a long match fail and be tried again.
        holds=lambda match: _CALL_OR_NAME.match(match.string, match.end()) is None,
    ),
    _rule("TOKEN", r"[ ,]response=\\?\"(?P<x>[0-9a-f]{32,64})\\?\"", "response="),
    _rule(
        "PASSWORD",
        r"\b[Bb]asic\s{1,4}(?P<x>[A-Za-z0-9+/]{12,}={1,2}|(?=[A-Za-z+/]{0,40}\d)[A-Za-z0-9+/]{16,})",
        "asic ",
    ),
    _rule(
        "COOKIE",
        r"(?i)(?:(?<=cookie)\\?[\"']?\s{0,4}[:=]\s{0,4}|(?<=[\"'\s])(?:-b|--cookie)[ =])\\?[\"']?"
        r"(?P<x>[\w.%-]{1,80}=[^\r\n\"'\\<>]{8,4000})",
        "ookie",
        "OOKIE",
        "-b ",
        holds=lambda match: _has_digit(match) and "(" not in match["x"],
    ),
    # .netrc, on one line or several, also escaped or with line numbers: its words are in pairs, in any order.
    _rule(
        "PASSWORD",
        rf"\b(?:machine{_GAP}[\w.*:-]{{1,200}}|default)(?:{_GAP}(?:login|account|user){_GAP}[^\s\\]{{1,100}}){{0,3}}"
        rf"{_GAP}passw(?:or)?d{_GAP}(?P<x>[^\s<>$\\\"']{{4,200}})",
        "passw",
        holds=lambda match: not re.match(r"\w+[(\[]|\{", match["x"]),
    ),
    # .pgpass: host, port, database, user, password.
    _rule(
        "PASSWORD",
        r"(?m)^[\w.*-]{1,100}:(?:\d{4,5}|\*):[\w*-]{1,80}:[\w.*-]{1,80}:(?P<x>[^\s:<>]{4,200})$",
        ":5432:",
        ":*:",
        ":6432:",
        ":5433:",
    ),
    _rule(
        "PASSWORD",
        r"ConvertTo-SecureString\s{1,4}(?:-String\s{1,4})?[\"'](?P<x>[^\"'$<>]{4,200})",
        "SecureString",
    ),
    _rule(
        "TOKEN",
        r"\"[\w-]{2,20}-oauth\":\s{0,8}\{\s{0,8}\"[\w.-]{1,80}\":\s?\"(?P<x>[\w-]{20,100})\"",
        '-oauth"',
    ),
    _rule("SECRET", r"otpauth://[^\s\"'<>]{1,200}?secret=(?P<x>[A-Z2-7=]{16,200})", "otpauth://"),
    _rule("SECRET", r"\bsecrets? set \S{1,100} (?:--body|-b)[ =]?[\"']?(?P<x>[^\s\"'$<>]{6,2000})", " set "),
    # The values of a Kubernetes secret are in base64.
    _rule(
        "SECRET",
        r"(?m)^[ \t]{1,12}[\w.-]{1,100}:[ \t](?P<x>[A-Za-z0-9+/]{7,4000}={0,2})$",
        "kind: Secret",
        holds=_is_data_of_secret,
    ),
    _rule(
        "PASSWORD",
        r"(?<![\w-])(?:-u|--user|--proxy-user)[ =]{1,2}[\"']?[^\s:'\"<>]{1,100}:(?P<x>[^\s'\"<>]{4,200})",
        "-u",
        "-user",
        holds=lambda match: re.match(r"[${]|\d+$", match["x"]) is None,
    ),
    _rule(
        "PASSWORD",
        r"\b(?:sshpass|(?:docker|podman|az|oc|cf|argocd|helm|registry|skopeo|ibmcloud) login"
        r"|mysql\w{0,8}|mariadb|redis-cli|mongo\w{0,8}|ldap\w{1,8}|smbclient"
        r"|xfreerdp|htpasswd|7z|unzip|zip)\s"
        r"(?:[^\n]{0,120}?\s)?(?:-p|-a|-w|-P|/p:)\s?(?:[\"']|(?!-))(?P<x>(?=[^\s'\"]{0,100}[\d!@#$%^&*])"
        r"[^\s'\"<>$][^\s'\"<>]{5,100})",
        *_COMMANDS,
    ),
    # The same as a list of arguments.
    _rule(
        "PASSWORD",
        r"[\"'](?:sshpass|mysql\w{0,8}|mariadb\w{0,8}|7z|zip|unzip|redis-cli)[\"']"
        r"(?:,\s{0,8}[\"'][^\"'\n]{0,60}[\"']){0,8}?"
        r",\s{0,8}[\"'](?:-p(?:[\"'],\s{0,8}[\"'])?|-a[\"'],\s{0,8}[\"'])(?P<x>[^\"'\s<>]{5,100})[\"']",
        *(f"{quote}{name}" for name in _PROGRAMS for quote in "\"'"),
        holds=_is_password,
    ),
    _rule(
        "PASSWORD",
        r"\b(?:sshpass|mysql\w{0,8}|mariadb\w{0,8})\s(?:[^\n]{0,120}?\s)?-p\s?[\"']?(?P<x>[A-Za-z]{12,60})(?![\w.])",
        "sshpass",
        "mysql",
        "mariadb",
        holds=lambda match: is_keyboard_mash(match["x"]),
    ),
    _rule(
        "PASSWORD",
        r"\bhtpasswd\s{1,4}-\w{1,9}\s{1,4}\S{1,100}\s{1,4}\S{1,80}\s{1,4}(?P<x>[^\s$<>]{4,100})",
        "htpasswd",
    ),
    _rule(
        "PASSWORD", r"(?<=\s)/user:\S{1,80}\s{1,4}(?P<x>(?!/)[^\s$<>]{6,100})", "/user:", holds=_is_password
    ),
    _rule(
        "PASSWORD",
        r"\becho\s+[\"']?[\w.-]{1,60}:(?P<x>[^\s'\"$<>]{4,100})[\"']?\s{0,4}\|\s{0,4}(?:sudo )?chpasswd",
        "chpasswd",
    ),
    _rule("PASSWORD", r"-pass(?:in|out)?\s{1,4}pass:(?P<x>[^\s'\"$<>]{4,100})", "pass:"),
    _rule(
        "PASSWORD",
        r"\b(?:sqlplus|rman|expdp|impdp|sqlldr)\s{1,4}(?:-\w{1,10}\s{1,4})?[\w$#]{1,40}/(?P<x>[^\s@/'\"<>]{4,60})@",
        "sqlplus",
        "rman",
        "dp ",
        "sqlldr",
    ),
    _rule(
        "TOKEN",
        r"\b(?:login|authenticate)\(\\?[\"'](?P<x>[\w.+/=-]{24,200})\\?[\"']\)",
        "login(",
        "authenticate(",
        holds=lambda match: is_secret(match["x"], "TOKEN"),
    ),
    _rule(
        "PASSWORD",
        r"(?i)\bidentified\s{1,4}by\s{1,4}\\?[\"'](?P<x>[^\"'\s<>]{4,100})",
        "dentified",
        "DENTIFIED",
    ),
    _rule(
        "PASSWORD",
        rf"\b(?:auth|login|credentials|basic_auth|HTTPBasicAuth|httpbasicauth|BasicAuth|authenticate)\s?[=(]{{1,2}}"
        rf"\s?\(?\s?{_STRING},\s?[\"'](?P<x>[^\"'\s<>]{{6,100}})[\"']",
        *(
            name + sign
            for name in ("auth", "Auth", "login", "credentials", "authenticate")
            for sign in _SIGNS
        ),
        holds=_is_password,
    ),
    # Positional arguments: of SSH and database clients, and of the makers of users.
    _rule(
        "PASSWORD",
        rf"\b(?:connect|create_(?:super)?user|createUser|add_user)\(\s?"
        rf"(?:(?:{_STRING}|[\w.@<>]{{1,60}}),\s{{0,8}}){{2,3}}"
        r"[\"'](?P<x>[^\"'\s<>]{6,100})[\"']\s?[,)]",
        "connect(",
        "_user(",
        "_superuser(",
        "createUser(",
        holds=lambda match: (
            _is_password(match) and re.search(r"^[^./:@\d]*\d[^./:@]*$", match["x"]) is not None
        ),
    ),
)
