"""Rules for secrets that their place identifies: a URL, a header, a cookie, a command line, a call. (C4)"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from iccm_assets.capture.redaction.keyword_secrets import is_secret
from iccm_assets.capture.redaction.rules import OnMatch, RedactionRule, Span
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


def _is_below(match: re.Match[str], key: str) -> bool:
    """Whether a line is below this key of a YAML document, with only indented lines between them."""
    above = match.string[max(0, match.start() - 4000) : match.start()]
    block = above[above.rfind(f"\n{key}:") :]
    return block.startswith(f"\n{key}:") and re.search(r"\n[^\s]", block[1:]) is None


def _is_data_of_secret(match: re.Match[str]) -> bool:
    return len(match["x"]) % 4 == 0 and _is_below(match, "data")


def _is_string_data_of_secret(match: re.Match[str]) -> bool:
    looks_random = is_secret(match["x"], "TOKEN") or is_keyboard_mash(match["x"])
    return looks_random and _is_below(match, "stringData")


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
    "sqlcmd",
    "bcp",
    "osql",
    "mosquitto_",
    "cqlsh",
    "rabbitmq",
    "lftp",
)
_PROGRAMS = ("sshpass", "mysql", "mariadb", "7z", "zip", "unzip", "redis-cli")
_GAP = r"(?:\s|\\[nrt]){1,8}(?:(?:[+>|]|\d{1,6}[→|:])\s{0,8})?"
_SIGNS = ("=", " =", "(")
_STRING = r"[\"'][^\"'\n]{1,80}[\"']"

# Columns of a table, in Markdown or separated values, by the kind of what is in them.
_COLUMNS = {
    **dict.fromkeys(("password", "passwd", "pwd", "passwort", "passphrase", "initial password"), "PASSWORD"),
    **dict.fromkeys(("token", "access token", "access_token", "auth_token"), "TOKEN"),
    **dict.fromkeys(("secret", "client_secret", "client secret"), "SECRET"),
    **dict.fromkeys(("api key", "api_key", "apikey"), "API_KEY"),
}
_HEADER = re.compile(
    rf"(?im)(?:^|[|,;\t])[ \t\"*]{{0,8}}(?:{'|'.join(_COLUMNS)})[ \t\"*\r]{{0,8}}(?:[|,;\t]|$)"
)
_OF_HEADERS = tuple(
    form(part)
    for part in ("passw", "passp", "pwd", "secret", "token", "apikey", "api_key", "api key")
    for form in (str, str.upper, str.capitalize)
)
_IN_CELL = " \t\r`*\"'"


class _TableRule(RedactionRule):
    """Values below the header of a column that names secrets; the rows have as many cells as the header."""

    def find(self, text: str, remember: OnMatch) -> Iterator[Span]:
        """Return the spans to replace, in order."""
        separator, size, columns, position = "", 0, dict[int, str](), 0
        for line in text.split("\n"):
            cells = line.split(separator) if separator else []
            if len(cells) == size and columns:
                start = position
                for number, cell in enumerate(cells):
                    value = cell.strip(_IN_CELL)
                    if number in columns and is_secret(value, columns[number]):
                        if columns[number] == "PASSWORD":
                            remember(value)
                        at = start + cell.index(value)
                        yield at, at + len(value), columns[number]
                    start += len(cell) + 1
            else:
                separator, size, columns = _read_header(line)
            position += len(line) + 1


def _read_header(line: str) -> tuple[str, int, dict[int, str]]:
    """Return the separator of a table's header, its number of cells, and the kinds of columns of secrets."""
    for separator in "|\t;,":
        if separator in line[:1000]:
            cells = [cell.strip(_IN_CELL).lower() for cell in line[:1000].split(separator)]
            kinds = {number: _COLUMNS[cell] for number, cell in enumerate(cells) if cell in _COLUMNS}
            return separator, len(cells), kinds
    return "", 0, {}


CONTEXT_RULES = (
    _TableRule("PASSWORD", _HEADER, _OF_HEADERS, gate=_HEADER),
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
    # With the name of a vendor as its scheme.
    _rule(
        "TOKEN",
        r"(?i)\bauthorization\\?[\"']?\]?\s{0,4}[:=,]\s{0,4}\\?[\"']?[a-z][a-z0-9_-]{1,30}\s{1,4}"
        r"(?P<x>(?=[\w.~+/:-]{0,200}\d)[\w.~+/:-]{16,}+=*+)",
        "uthorization",
        "UTHORIZATION",
        holds=lambda match: _CALL_OR_NAME.match(match.string, match.end()) is None,
    ),
    _rule(
        "TOKEN",
        r"(?i)\b(?:x-honeycomb-team|x-honeycomb-dataset-key|otlp_(?:\w{1,20}_)?headers\\?[\"']?\s?[:=]\s?\\?[\"']?[\w-]{1,60})"
        r"\\?[\"']?\s?[:=]\s?\\?[\"']?(?P<x>[\w.~+/-]{16,200}=*)",
        "oneycomb",
        "OTLP_",
        "otlp_",
        holds=_has_digit,
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
    _rule(
        "SECRET",
        r"(?m)^[ \t]{1,12}[\w.-]{1,100}:[ \t][\"']?(?P<x>[^\s\"'<>${}]{8,400})[\"']?$",
        "stringData:",
        holds=_is_string_data_of_secret,
    ),
    # In the state of Terraform.
    _rule(
        "PASSWORD",
        r"\"random_password\"[^}]{0,800}?\"result\":\s{0,4}\"(?P<x>[^\"]{8,200})\"",
        "random_password",
    ),
    # The values of a Kubernetes secret are in base64.
    _rule(
        "SECRET",
        r"(?m)^[ \t]{1,12}[\w.-]{1,100}:[ \t](?P<x>[A-Za-z0-9+/]{7,4000}={0,2})$",
        "kind: Secret",
        holds=_is_data_of_secret,
    ),
    _rule(
        "PASSWORD",
        r"(?:(?<![\w-])(?:-u|--user|--proxy-user|--auth|--creds?|--basic)|\bhttps?\s(?:[^\n]{0,80}?\s)?-a)"
        r"[ =]{1,2}"
        r"[\"']?[^\s:'\"<>]{1,100}:(?P<x>[^\s'\"<>]{4,200})",
        "-u",
        "-user",
        "--auth",
        "--cred",
        "--basic",
        "http -",
        "https -",
        holds=lambda match: re.match(r"[${]|\d+$|PASSW(?:OR)?D$", match["x"]) is None,
    ),
    _rule(
        "PASSWORD",
        r"\b(?:sshpass|(?:docker|podman|az|oc|cf|argocd|helm|registry|skopeo|ibmcloud) login"
        r"|mysql\w{0,8}|mariadb|redis-cli|mongo\w{0,8}|ldap\w{1,8}|smbclient"
        r"|xfreerdp|htpasswd|7z|unzip|zip|sqlcmd|bcp|osql|mosquitto_\w{3}|cqlsh|rabbitmqadmin|lftp)\s"
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
    # A user and a password in one argument, with the sign between them that the program expects.
    _rule(
        "PASSWORD",
        r"(?<![\w-])(?:-U|--user(?:name)?)[ =]?[\"']?[\w.\\/@-]{1,80}%(?P<x>[^\s'\"<>%]{4,100})",
        "-U",
        "--user",
    ),
    # A data source of Go, and a host with its port: there is no scheme before the user.
    RedactionRule(
        "PASSWORD",
        re.compile(
            r"(?<![\w:/.@-])[\w.-]{1,60}:(?P<x>[^\s:/@'\"<>(){}]{4,100})@"
            r"(?:(?:tcp|unix|udp)\(|(?!sha\d)[A-Za-z][\w.-]{0,100}:\d{2,5}(?!\d))"
        ),
        ("@",),
        lambda match: _is_no_variable(match) and (match[0][-1] == "(" or _is_password(match)),
        remember=True,
        gate=re.compile(r"@(?:(?:tcp|unix|udp)\(|[A-Za-z][\w.-]{0,100}:\d\d)"),
    ),
    # ODBC, where braces are quotes, and Oracle's own form.
    _rule(
        "PASSWORD",
        r"(?i)(?<=;)\s?(?:pwd|password)\s?=\s?\{(?P<x>[^{}\n]{4,100})\}(?=;|\\?[\"']|\s|$)",
        "wd={",
        "WD={",
        "ord={",
        "ORD={",
        holds=_is_password,
    ),
    _rule(
        "PASSWORD",
        r"jdbc:oracle:\w{1,10}:[^\s/@:'\"]{1,60}/(?P<x>[^\s@'\"<>]{4,100})@",
        "jdbc:oracle:",
        holds=_is_no_variable,
    ),
    _rule(
        "PASSWORD",
        r"\bhttp-basic\.[\w-]{1,60}\s{1,4}\S{1,100}\s{1,4}[\"']?(?P<x>[^\s'\"$<>]{4,200})",
        "http-basic.",
    ),
    _rule(
        "TOKEN",
        r"\blogin\s{1,4}(?:--[\w-]{1,30}(?:[ =]\S{1,100})?\s{1,4}){0,4}(?P<x>[0-9a-fA-F]{32,64})(?!\w)",
        "login ",
    ),
    _rule(
        "TOKEN",
        r"\b[A-Za-z_]\w{1,40}\.(?:init|initialize|configure|setup|start|identify)\(\s{0,20}"
        r"\\?[\"'](?P<x>[0-9a-f]{32})\\?[\"']",
        ".init",
        ".configure(",
        ".setup(",
        ".start(",
        ".identify(",
        holds=_has_digit,
    ),
    # Directives of servers and of network devices: no sign between the name and its value.
    _rule(
        "PASSWORD",
        r"(?m)^[ \t+-]{0,8}(?:requirepass|masterauth|sentinel auth-pass \S{1,60}|snmp-server community"
        r"|enable (?:secret|password)(?: \d)?"
        r"|username \S{1,60} (?:privilege \d{1,2} )?(?:secret|password)(?: \d)?)"
        r"[ \t]{1,8}(?:=[ \t]{0,4})?[\"']?(?P<x>[^\s\"'$<>=][^\s\"'$<>]{3,200})",
        "requirepass",
        "masterauth",
        "auth-pass",
        "snmp-server",
        "enable ",
        "username ",
    ),
    _rule(
        "PASSWORD",
        r"(?i)\b(?:credentials|creds|login|zugangsdaten)\s?:\s?[\w.@-]{2,60}\s?/\s?(?P<x>[^\s'\"<>/]{6,100})",
        "redentials",
        "reds:",
        "ogin:",
        "gangsdaten",
        holds=lambda match: _has_digit(match) and _is_password(match),
    ),
    # A program that reads it from another one.
    _rule(
        "PASSWORD",
        r"\b(?:echo|printf)\s{1,4}(?:-\w\s{1,4}|[\"']%s(?:\\n)?[\"']\s{1,4})?[\"']?(?P<x>[^\s'\"$<>|]{6,500})[\"']?"
        r"\s{0,4}\|\s{0,4}(?:sudo -S|passwd --stdin|cryptsetup"
        r"|[^\n|]{1,120}?--(?:password-stdin|passphrase-fd|with-token))",
        "echo ",
        "printf ",
    ),
    _rule(
        "SECRET",
        r"\bdefine\(\s?[\"']\w{0,40}(?:KEY|SALT|SECRET|TOKEN|PASSWORD)[\"'],\s{1,20}"
        r"(?P<q>[\"'])(?P<x>(?:(?!(?P=q))[^\n]){16,200})(?P=q)",
        "define(",
        holds=lambda match: _has_digit(match) and "your" not in match["x"],
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
        r"\b(?:login|authenticate)\(\s{0,20}(?:\w{1,20}\s?=\s?)?\\?[\"'](?P<x>[\w.+/=-]{24,200})\\?[\"']\)",
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
        r"\b(?:auth|login|credentials|basic_auth|HTTPBasicAuth|httpbasicauth|BasicAuth|authenticate"
        r"|NetworkCredential|UsernamePasswordCredentials|PasswordAuthentication)\s?[=(]{1,2}"
        rf"\s?\(?\s?{_STRING},\s?[\"'](?P<x>[^\"'\s<>]{{6,100}})[\"']",
        *(
            name + sign
            for name in ("auth", "Auth", "login", "redential", "redentials", "authenticate", "Authentication")
            for sign in _SIGNS
        ),
        holds=_is_password,
    ),
    # Positional arguments: of SSH and database clients, and of the makers of users.
    _rule(
        "PASSWORD",
        rf"\b(?:connect|getConnection|create_(?:super)?user|createUser|add_user)\(\s?"
        rf"(?:(?:{_STRING}|[\w.@<>]{{1,60}}),\s{{0,8}}){{2,3}}"
        r"[\"'](?P<x>[^\"'\s<>]{6,100})[\"']\s?[,)]",
        "connect(",
        "onnection(",
        "_user(",
        "_superuser(",
        "createUser(",
        holds=lambda match: (
            _is_password(match)
            and (re.search(r"^[^./:@\d]*\d[^./:@]*$", match["x"]) is not None or is_keyboard_mash(match["x"]))
        ),
    ),
)
