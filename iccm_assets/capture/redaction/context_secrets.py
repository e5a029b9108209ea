"""Rules for secrets that their place identifies: a URL, a header, a cookie, a command line, a call. (C4)"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from iccm_assets.capture.redaction.keyword_secrets import is_secret, is_strong
from iccm_assets.capture.redaction.rules import OnMatch, RedactionRule, RuleGroup, Span
from iccm_assets.capture.redaction.token_secrets import is_keyboard_mash
from iccm_assets.capture.redaction.vendor_tokens import UUID


def _rule(
    kind: str,
    pattern: str,
    *hints: str,
    holds: Callable[[re.Match[str]], bool] = RedactionRule.holds,
    gate: str | None = None,
) -> RedactionRule:
    gated = re.compile(gate) if gate else None
    return RedactionRule(kind, re.compile(pattern), hints, holds, kind == "PASSWORD", gated)


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
_COOKIE_ATTRIBUTES = re.compile(r"(?i);\s{0,4}(?:path|expires|max-age|domain|samesite|priority)=[^;]{0,100}")
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


# What a call expects as its password: the callees, by the number of arguments before it.
_POSITIONAL = {
    0: "APISession client.auth redis.auth jedis.auth redisClient.auth cookieParser hmac.new AES.new"
    " SecretKeySpec Serializer",
    1: "createHmac jwt.sign jwt.verify jwt.encode jwt.decode HMAC.hexdigest createCipheriv"
    " createDecipheriv AES.encrypt AES.decrypt hmac.New X509Certificate2 WiFi.begin WiFi.softAP"
    " wlan.connect wifi.connect sta.connect login Login simple_bind simple_bind_s bind bind_s"
    " pgp_sym_encrypt pgp_sym_decrypt algoliasearch HTTPBasicAuth HTTPDigestAuth httpbasicauth"
    " HTTPProxyAuth BasicAuth SetBasicAuth setBasicAuth basicAuth basic_auth withBasicAuth"
    " setHttpAuth Credentials.basic auth.basic auth.Basic"
    " AuthTokens.basic UserPassword NetworkCredential NetworkCredentials UsernamePasswordCredentials"
    " UsernamePasswordCredential PasswordCredential UsernamePasswordAuthenticationToken"
    " PasswordAuthentication PasswordAuthenticator PlainTextAuthProvider PlainCredentials Credential"
    " Credentials setCredentials SetCredentials withCredentials credentials auth authenticate"
    " Authenticate signIn sign_in logIn log_in oci_connect cx_Oracle.connect oracledb.connect getKey"
    " getEntry .load openssl_pkey_get_private loadKeyMaterial loadTrustMaterial username_pw_set"
    " connectWith createCredentials Basic PasswordProtection KeyPairLoader kmf.init",
    2: "createConnection FTP.open hash_hmac smtp.PlainAuth PlainAuth PDO mysqli mysqli_connect"
    " mysql_connect mysql_pconnect"
    " odbc_connect getConnection ldap_bind ftp_login ssh2_auth_password imap_open imap_login"
    " DBI->connect connect Sequelize create_user create_superuser createUser add_user"
    " signInWithEmailAndPassword createUserWithEmailAndPassword FTP FTP_TLS createCredential"
    " MongoCredential SMTPHandler pg_connect AddUser setEntry Database.connect DriverManagerDataSource"
    " sql.Open",
    3: "connect create_user create_superuser createUser",
}
_ARGUMENT = (
    r"(?:(?:new\s|b|u|@)?[\"'][^\"'\n]{0,120}[\"']|[^\s\"',()][^\"',()\n]{0,80}(?:\([^()\n]{0,100}\))?|[fc])"
)
_ADDRESS = re.compile(
    r"[\w.+-]{1,60}@|\w{2,12}://|[./~]|[\w.-]{1,60}\.[a-z]\w{1,3}$|[\w-]{1,30}:\d{2,5}$|\d{1,5}$"
)


def _is_argument(match: re.Match[str]) -> bool:
    """Whether a positional argument is a password, and no address, file, name or word."""
    value = match["x"]
    if _ADDRESS.match(value) or not is_secret(value, "PASSWORD"):
        return False
    of_login = re.match(r"(?i)[\w.]{0,40}(?:auth|login|credential|password)", match[0]) is not None
    return of_login or re.search(r"[\d!#$%&?]", value) is not None or is_keyboard_mash(value)


def _make_positional_rules() -> Iterator[RedactionRule]:
    for number, callees in _POSITIONAL.items():
        names = "|".join(re.escape(name) for name in callees.split())
        before = rf"(?:{_ARGUMENT},\s{{0,20}}){{{number}}}"
        yield _rule(
            "PASSWORD",
            rf"(?:(?<![A-Za-z0-9])|(?=\.))(?:{names})\s?[=(]{{1,2}}\s{{0,20}}\(?\s?{before}(?:b|N|@)?"
            r"\\?[\"'](?P<x>[a-z]{4}(?: [a-z]{4}){3}|[^\"'\s<>\\]{6,100})\\?[\"']",
            *(name + sign for name in callees.split() for sign in (_SIGNS if number else "(")),
            holds=_is_argument,
        )


_FIRST_ARGUMENT, *_FURTHER_ARGUMENTS = _make_positional_rules()
# What all but the first of them contain.
_QUOTED_ARGUMENT = re.compile(
    r",\s{0,20}(?:[bN@]|\\)?[\"'](?:[^\"'\s]{0,60}[\d!#$%&?]|[A-Za-z]{8,60}[\"']|[a-z]{4} [a-z]{4} )"
)
_INSERT = re.compile(
    r"(?i)\b(?:insert|replace)\s{1,4}(?:\w{1,10}\s{1,4})?into\s{1,4}[\w.`\"\[\]]{1,80}\s{0,4}"
    r"\((?P<columns>[^()]{1,600})\)\s{0,8}values\s{0,8}(?=\()"
)
_SQL_VALUE = re.compile(
    r"\s*(?:[NE]?'(?P<x>(?:[^'\n]|''){0,500})'|[^,'()]{0,100}(?:\([^()]{0,200}\))?[^,'()]{0,20})\s*(?P<end>[,)])"
)
_SQL_COLUMN = re.compile(
    r"(?i)pass(?:word|wd|wort|phrase)?$|pwd$|pw$|passw\w*$|kennwort$|secret$|\w*token$|\w*api_?key$"
)


class _InsertRule(RedactionRule):
    """Values of SQL that stand where a column of passwords does."""

    def find(self, text: str, remember: OnMatch) -> Iterator[Span]:
        """Return the spans to replace, in order."""
        end = 0
        for insert in self.pattern.finditer(text):
            columns = [column.strip(' \t\n`"[]') for column in insert["columns"].split(",")]
            numbers = {number for number, column in enumerate(columns) if _SQL_COLUMN.search(column)}
            position = insert.end()
            while numbers and position >= end and text[position : position + 1] == "(":
                position, number = position + 1, 0
                while value := _SQL_VALUE.match(text, position):
                    position = end = value.end()
                    if number in numbers and value["x"] and is_secret(value["x"], "PASSWORD"):
                        remember(value["x"])
                        yield *value.span("x"), self.kind
                    number += 1
                    if value["end"] == ")":
                        break
                else:
                    break
                following = _NEXT_ROW.match(text, position)
                position = following.end() if following else len(text)


_NEXT_ROW = re.compile(r"\s{0,20},\s{0,20}(?=\()")
_CREDENTIALS = re.compile(
    r"(?i)\blog(?:ged|ging)?[ -]?(?:in|on)\b|\bsign(?:ed)?[ -]?in\b|\blogins?\b|credential|\bcreds\b"
    r"|passw|\bpw\b|\bpass\b|\bbasic.auth"
    r"|connect(?:ed|ing)? |zugang|zugänge|anmeld|einlogg|account|contraseña|mot de passe|identifiant"
    r"|connexion|senha|acceso|acces"
    r"|benutzer|\busers?\b|inlog|hasło|логин|пароль"
)
_PASSWORDS = re.compile(
    r"(?i)passw|passphrase|passcode|\bpw\b|\bpwd\b|kennwort|contraseña|mot de passe|senha|hasło"
    r"|wachtwoord|\blogin\b|\blog in\b|credential"
)
_OF_CREDENTIALS = (
    *("assw", "assp", "assc", "asse", "pw", "ogin", "og i", "redential", "reds "),
    *("asic", "onnect", "ennwort", "ugang", "ontrase"),
)
_STRONG = r"(?P<x>(?=[^\s\"'`<>(){}\[\],;\\|/]{0,39}\d)[^\s\"'`<>(){}\[\],;\\|/]{7,40})(?![\w/])"
_DIGIT_OF_WORD = re.compile(r"\d(?:(?<=[^\W\d]\d)|(?<=[-.!#$%^&*?~+@]\d)|[^\W\d_])")
# Before a user with a password: what says that this is none of the other things with such a sign.
_BEFORE_USER = re.compile(
    r"(?:\b(?:with|as|to|from|is|are|use|using|via|und|and|mit|als|von|auf|con|como|avec|com|connect"
    r"|login|creds?|credentials"
    r"|user|account|in)|[:(=,»—–-]|^|[\"'`])\s{0,2}[\"'`(]?[A-Za-z][\w.@+-]{0,40}$"
)


def _is_near(words: re.Pattern[str]) -> Callable[[re.Match[str]], bool]:
    """Make the test whether a value that looks strong has one of these words in its line."""

    def holds(match: re.Match[str]) -> bool:
        text, start = match.string, match.start()
        first = max(text.rfind("\n", 0, start) + 1, start - 160)
        last = text.find("\n", match.end(), match.end() + 120)
        value = match["x"].rstrip(".:?")
        if not (is_strong(value) and is_secret(value, "PASSWORD")) or _OF_FILES.search(match["x"]):
            return False
        if words is _CREDENTIALS and not _BEFORE_USER.search(text, max(first, start - 60), start):
            return False
        return words.search(text, first, last if last >= 0 else match.end() + 120) is not None

    return holds


_OF_FILES = re.compile(r"::|\.[a-z]{2,4}(?:[:#]|$)")
_OF_SENTENCES = re.compile(r"\b(?:the|and|with|from|are|your?|for|not|should|must|was|have|can)\b")
_LABEL_ABOVE = re.compile(
    r"(?i)(?:passw(?:or[dt])?|passphrase|passcode|kennwort|secret|token|api[ _-]?key|recovery (?:code"
    r"|key))s?\b[^\n]{0,120}:[ \t*`]{0,4}"
    r"(?:\n(?:[^\n|]{0,60}[|>#]|[ \t]{0,12}[*-]?|```\w{0,10})[ \t]{0,8}(?=\n)){0,3}"
    r"\n(?:[^\n|]{0,60}\|)?[ \t>#`*-]{0,16}(?P<x>[^\s<>`|]{8,200})[`*]{0,2}[ \t\r]{0,8}(?=\n|$)"
)


_OF_PIN = re.compile(
    r"(?i)\b(?:card|sim|unlock|user|so|token|door|alarm|pairing|bluetooth|parental|voicemail)[ _-]?\Z"
)
# What prints a secret, and nothing else.
_PRINTED = re.compile(
    r"(?:\bget secrets? [^\n]{1,200}base64 (?:-d|-D|--decode)\b|\b(?:go)?pass show|\bvault (?:kv get"
    r"|read) [^\n]{0,80}-field"
    r"|\bop read|\bfind-generic-password|--query SecretString"
    r"|\bprint[\w-]{0,20}-password)[^\n]{0,160}\n(?P<x>[^\s<>]{8,200})[ \r]{0,4}(?=\n|$)"
)


def _is_generated(match: re.Match[str]) -> bool:
    """Whether the word below a label looks random, or like a password."""
    value = match["x"]
    random = re.fullmatch(r"[0-9a-f]{16,128}", value) or is_secret(value, "TOKEN")
    return bool(random) or (is_strong(value) and is_secret(value, "PASSWORD"))


_RULES = (
    _FIRST_ARGUMENT,
    _TableRule("PASSWORD", _HEADER, _OF_HEADERS, gate=_HEADER),
    _rule(
        "PASSWORD",
        r"(?<![A-Za-z0-9])[a-z][a-z0-9+.-]{1,30}://[^\s:/@'\"<>]{0,100}:(?P<x>[^\s/'\"<>]{3,200})@",
        "://",
        holds=_is_no_variable,
    ),
    _rule("TOKEN", r"(?<![A-Za-z0-9])https?://(?P<x>[A-Za-z0-9_-]{16,200})@", "://", holds=_has_digit),
    _rule("TOKEN", r"\b[Bb]earer\s{1,4}(?P<x>(?=[\w.~+/-]{0,200}\d)[\w.~+/-]{12,}=*)", "earer"),
    _rule(
        "TOKEN",
        r"(?i)\bauthorization\\?[\"']?\]?\s{0,4}[:=,]\s{0,4}\\?[\"']?(?:(?:basic|token|apikey|api-key"
        r"|digest|key"
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
        r"(?i)\b(?:x-honeycomb-team|x-honeycomb-dataset-key"
        r"|otlp_(?:\w{1,20}_)?headers\\?[\"']?\s?[:=]\s?\\?[\"']?[\w-]{1,60})"
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
        r"(?i)(?:(?<=cookie)\\?[\"']?\]?\s{0,4}[:=]\s{0,4}|(?<=[\"'\s])(?:-b|--cookie)[ =])\\?[\"']?"
        r"(?P<x>[\w.%-]{1,80}=[^\r\n\"'\\<>]{8,4000})",
        "ookie",
        "OOKIE",
        "-b ",
        holds=lambda match: (
            re.search(r"\d", _COOKIE_ATTRIBUTES.sub("", match["x"])) is not None and "(" not in match["x"]
        ),
    ),
    _rule(
        "COOKIE",
        r"(?i)\bcookies?\.set\(\s{0,20}[\"'][\w.-]{1,80}[\"'],\s{0,20}[\"'](?P<x>[^\s\"'\\<>]{16,4000})[\"']",
        "ookies.set(",
        "ookie.set(",
        holds=_has_digit,
    ),
    # A row of settings, by the name in another column.
    _rule(
        "PASSWORD",
        r"(?i)\bset\s{1,4}\w{1,30}\s?=\s?'(?P<x>[^'\n]{6,200})'\s{1,8}where\s[^\n;]{0,80}?'[\w.-]{0,40}"
        r"(?:passw(?:or)?d|secret|token|pwd)[\w.-]{0,20}'",
        "where ",
        "WHERE ",
        holds=_is_password,
    ),
    _rule("TOKEN", rf"\bcodecov\b[^\n]{{0,80}}?\s-t[ =]?(?P<x>{UUID})", "codecov"),
    # .netrc, on one line or several, also escaped or with line numbers: its words are in pairs, in any order.
    _rule(
        "PASSWORD",
        rf"\b(?:machine{_GAP}[\w.*:-]{{1,200}}|default)(?:{_GAP}(?:login|account"
        rf"|user){_GAP}[^\s\\]{{1,100}}){{0,3}}"
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
    _rule(
        "PASSWORD",
        r"\"result\":\s{0,4}\"(?P<x>[^\"\n]{8,200})\"[^{]{0,800}?\"random_password\"",
        "random_password",
    ),
    _rule(
        "SECRET",
        r"(?i)dockerconfig(?:json)?\\?[\"']?\s{0,4}[:=]\s{0,4}\\?[\"']?(?P<x>[A-Za-z0-9+/]{24,8000}={0,2})",
        "ockerconfig",
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
    _rule(
        "PASSWORD",
        r"\bredis-cli\s(?:[^\n]{0,120}?\s)?(?:-a|--pass)\s{1,4}[\"']?(?P<x>[^\s'\"<>$-][^\s'\"<>]{5,100})",
        "redis-cli ",
        holds=_is_no_variable,
    ),
    _rule(
        "PASSWORD",
        r"\bsshpass\s{1,4}-p\s{0,2}(?P<q>[\"'])(?P<x>[^\"'\n]{6,100})(?P=q)",
        "sshpass ",
        holds=_is_no_variable,
    ),
    _rule(
        "PASSWORD",
        r"(?i)\bpassphrase: (?P<x>[a-z]{2,20}(?: [a-z\d]{2,20}){2,7})[.!]?[ \t\r]{0,4}(?=\n|$)",
        "assphrase: ",
        holds=lambda match: _has_digit(match) and _OF_SENTENCES.search(match["x"]) is None,
    ),
    # What an authorization server answers with.
    _rule(
        "TOKEN",
        r"(?:callback|oauth2?|redirect|authorized?)\S{0,80}?[?&]code=(?P<x>[\w./~-]{20,400})",
        "code=",
        holds=_has_digit,
    ),
    _rule(
        "TOKEN",
        r"\blogin\b[^\n]{0,120}?<<<\s{0,4}[\"']?(?P<x>[\w.~+/-]{16,400})",
        "<<<",
        holds=_has_digit,
    ),
    _rule(
        "PASSWORD",
        r"(?<![\w-])-(?:store|key|src|dest)(?:store)?pass(?:word)?\s{1,4}(?P<x>[^\s'\"$<>-][^\s'\"<>]{5,100})",
        "pass ",
        "password ",
        holds=_is_no_variable,
    ),
    _rule(
        "PASSWORD",
        r"\.pass(?:word)?\(Some\(\s{0,4}\"(?P<x>[^\"\n]{6,100})\"",
        "(Some(",
        holds=_is_password,
    ),
    _rule(
        "TOKEN",
        r"\bprintf\s{1,4}[\"']:%s[\"']\s{1,4}[\"']?(?P<x>[A-Za-z0-9]{20,400})",
        ":%s",
        holds=_has_digit,
    ),
    # What cloud-init sets, and what stands in for a second factor.
    _rule(
        "PASSWORD",
        r"\bchpasswd:[ \t]{0,4}\n(?:[ \t]{1,12}[\w-]{1,20}:[^\n]{0,20}\n){0,3}?[ \t]{1,16}[\w.-]{1,40}:"
        r"(?P<x>[^\s'\"<>]{6,100})(?=\n|$)",
        "chpasswd:",
        holds=_is_password,
    ),
    _rule(
        "TOKEN",
        r"(?i)\b(?:backup|recovery|scratch) codes?\b[^\n:]{0,60}: "
        r"(?P<x>[a-z\d]{4,8}(?:-[a-z\d]{4,8}){1,5})(?![\w-])",
        "code",
        holds=_has_digit,
    ),
    _rule(
        "SECRET",
        r"\b(?:TOTP|totp|OTP|2FA|MFA)\b[^\n:=]{0,40}[:=]\s{0,4}[\"']?(?P<x>[A-Z2-7]{16,64})(?![\w=])",
        "TOTP",
        "totp",
        "OTP",
        "2FA",
        "MFA",
        holds=_has_digit,
    ),
    # What a test types into the field of a page.
    _rule(
        "PASSWORD",
        r"(?i)(?:passw(?:or)?d|pass|pwd)[\w-]{0,20}[\"']?\]?[\"']?\)\s{0,20}\."
        r"(?:type|fill|send_?keys|set_?value|setText|press_sequentially)\(\s{0,20}[\"'](?P<x>[^\"'\n]{6,80})[\"']",
        ".type(",
        ".fill(",
        "eys(",
        "alue(",
        "etText(",
        "entially(",
        holds=_is_password,
    ),
    _rule(
        "TOKEN",
        r"(?i)\b(?<![\w-])token\b[^\n:=]{1,80}?(?:: | is )(?P<x>[0-9a-f]{32,64})(?![\w-])",
        "token ",
        holds=_has_digit,
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
        r"\b(?:sshpass|mysql\w{0,8}|mariadb\w{0,8}|(?:docker|podman) login)\s"
        r"(?:[^\n]{0,120}?\s)?-p\s?[\"']?(?P<x>[A-Za-z]{12,60})(?![\w.])",
        "docker login",
        "podman login",
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
        r"(?m)(?:^[ \t+-]{0,8}|(?<=\s)--)(?:requirepass|masterauth|sentinel auth-pass \S{1,60}"
        r"|snmp-server community"
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
        r"\s{0,4}\|\s{0,4}(?:sudo -S|base64\b|passwd --stdin|cryptsetup"
        r"|[^\n|]{1,120}?--(?:password-stdin|passphrase-fd|with-token))",
        "echo ",
        "printf ",
        holds=lambda match: not match[0].endswith("base64") or is_strong(match["x"]),
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
        r"(?i)\bidentified\s{1,4}by\s{1,4}(?:\\?[\"'](?=[^\"'\s<>]{4})|(?=\w{0,60}\d))(?P<x>[^\"'\s<>;]{4,100})",
        "dentified",
        "DENTIFIED",
    ),
    _InsertRule("PASSWORD", _INSERT, ("INSERT ", "insert ", "Insert "), gate=_INSERT),
    # A cookie that a browser exports.
    _rule(
        "COOKIE",
        r"(?i)\\?[\"']name\\?[\"']\s?:\s?\\?[\"'][\w.-]{0,60}(?:sess|auth|sid|token|csrf|xsrf|remember"
        r"|login|jwt|identity)[\w.-]{0,60}"
        r"\\?[\"'],\s{0,20}(?:\\?[\"']\w{1,20}\\?[\"']\s?:\s?[^\n,{}]{1,80},\s{0,20}){0,6}?\\?[\"']value\\?[\"']\s?:\s?\\?[\"']"
        r"(?P<x>[^\s\"'\\<>]{12,4000})",
        '"name',
        "'name'",
        holds=_has_digit,
    ),
    _rule(
        "COOKIE",
        r"(?i)\\?[\"']value\\?[\"']\s?:\s?\\?[\"'](?P<x>[^\s\"'\\<>]{12,4000})\\?[\"'],\s{0,20}"
        r"(?:\\?[\"']\w{1,20}\\?[\"']\s?:\s?[^\n,{}]{1,80},\s{0,20}){0,6}?"
        r"\\?[\"']name\\?[\"']\s?:\s?\\?[\"'][\w.-]{0,60}(?:sess|auth|sid|csrf|xsrf|remember|jwt)",
        '"name',
        "'name'",
        holds=_has_digit,
    ),
    # Of a blockchain's account: its key, and the words that it can be made of again.
    RedactionRule(
        "PRIVATE_KEY",
        re.compile(
            r"(?i)(?:mnemonic|(?:seed|recovery|secret|backup|wallet)[ _-]?(?:phrase|words))"
            r"[^\n]{0,60}?(?:[=:\"'`(]|\b(?:is|are|ist"
            r"|lautet))\s{0,4}[\"'`]?(?P<x>[a-z]{3,8}(?:[ ,]{1,2}[a-z]{3,8}){11,23})"
        ),
        ("nemonic", "NEMONIC", "hrase"),
        lambda match: len(_OF_SENTENCES.findall(match["x"])) < 2,
    ),
    RedactionRule(
        "PASSWORD",
        re.compile(
            r"(?<![A-Za-z0-9])[pP][iI][nN]\b"
            r"(?:[ ]?(?:code|number|nummer))?(?: (?:for|of|to|on|für|fuer|der|des|vom|zum|de|del|du|di"
            r"|da|do)[^\n.;]{1,50}?)?"
            r"\s?(?:\bis|\bwas|\bist|\blautet|\best|\bes|\bè|\bé|=|:|：)\s?[\"']?(?P<x>\d{4,8})(?!\w|[.-]\d)"
        ),
        ("PIN", " pin"),
        lambda match: (
            (match[0].startswith("PIN") and match.string[match.start() - 1 : match.start()] != "_")
            or _OF_PIN.search(match.string, max(0, match.start() - 12), match.start()) is not None
        ),
    ),
    # A row of a table with a name and its value.
    RedactionRule(
        "PASSWORD",
        re.compile(
            r"(?im)^[ \t]{0,8}\|[ \t*`]{0,6}[\w ]{0,20}?(?:password|passwd|passwort|secret|token"
            r"|api key)[ \t*`]{0,6}"
            r"\|[ \t]{0,20}`?(?P<x>[^\s|`]{6,200})`?[ \t]{0,20}(?:\||$)"
        ),
        _OF_HEADERS,
        lambda match: _has_digit(match) and _is_password(match),
        remember=True,
        gate=re.compile(r"\|"),
    ),
    # What a test of a page types, and what a script sends to a prompt.
    _rule(
        "PASSWORD",
        r"(?i)(?:passw|pwd)[\w-]{0,20}[^\n\"'`]{0,20}[\"'`][)\]]{0,2}[^\n]{0,40}?\.(?:type|fill"
        r"|send_?keys|setvalue|val|set)"
        r"\(\s?[\"'`](?P<x>[^\"'`\n]{6,100})[\"'`]",
        "assw",
        "Passw",
        "pwd",
        "Pwd",
        holds=_is_password,
        gate=r"\.(?:type|fill|send_?[kK]eys|setValue|val|set)\(",
    ),
    _rule(
        "PASSWORD",
        r"(?i)passw(?:or[dt])?\??:?\s?\*?[\"'][^\n\"']{0,20}\s{0,8}(?:exp_)?send(?:line)?(?: --)?[ (]"
        r"[\"'](?P<x>[^\"'\n\\]{4,100}?)(?:\\[rn])*[\"']",
        "assw",
        holds=_is_password,
        gate=r"send(?:line)?(?: --)?[ (][\"']",
    ),
    _rule(
        "PASSWORD",
        r"\bnet use \S{1,40}\s{1,4}\\\\\S{1,100}\s{1,4}(?P<x>(?!/)[^\s\"'<>]{6,100})(?=\s{1,4}/)",
        "net use",
        holds=_is_password,
    ),
    _rule(
        "PASSWORD",
        r"\b(?:ssh-keygen|openssl|mysqladmin)"
        r"(?:\.exe)?\s(?:[^\n]{0,160}?\s)?(?:-N|-P|-k|-p|-pw|password)[ =]?"
        r"[\"']?(?P<x>(?=[^\s'\"]{0,100}[\d!@#$%^&*])[^\s'\"<>$/][^\s'\"<>]{5,100})",
        "ssh-keygen",
        "openssl",
        "mysqladmin",
        holds=_is_password,
    ),
    # A user, and behind it the password.
    _rule(
        "PASSWORD",
        r"(?:\bnet user|\brabbitmqctl (?:add_user|change_password)|\brootpw(?: --plaintext)?"
        r"|\buseradd -p|\bsmbpasswd)\s{1,4}"
        r"(?:(?<!rootpw )(?<!plaintext )(?<!-p )[\w.@\\-]{1,60}\s{1,4})?(?P<x>(?![/-])[^\s\"'$<>]{6,100})",
        "net user",
        "rabbitmqctl",
        "pw",
        "useradd -p",
        "smbpasswd",
        holds=_has_digit,
    ),
    _rule(
        "PASSWORD",
        r"\b[uU](?:ser)?\s?[:=]\s?[^\s,;/|]{1,60}[ ,;/|\n]{1,3}[pP](?:w"
        r"|ass)?\s?[:=]\s?(?P<x>[^\s\"'<>]{6,60})",
        "user: ",
        "user=",
        "User: ",
        holds=lambda match: is_strong(match["x"].rstrip(".,;")),
    ),
    _rule(
        "TOKEN",
        r"(?:[?&](?:key|access_key|apitoken)=|(?i:\bappid)[\"'\]]{0,2}\s?[=:]\s?[\"']?(?=[0-9a-f]{32}\b))"
        r"(?P<x>[A-Za-z0-9_-]{20,200})",
        "key=",
        "appid",
        holds=lambda match: is_secret(match["x"], "TOKEN"),
    ),
    _rule(
        "COOKIE",
        r"(?i)\bcookies\s?[=:]\s?\{[^{}\n]{0,200}?[\"'][\w.-]{1,60}[\"']\s?:\s?[\"'](?P<x>[^\"'\s]{16,2000})[\"']",
        "ookies",
        holds=_has_digit,
    ),
    # A file of cookies.
    _rule(
        "COOKIE",
        r"(?m)^[\w#.-]{1,100}\t(?:TRUE|FALSE)\t\S{1,100}\t(?:TRUE"
        r"|FALSE)\t\d{1,12}\t[\w.%-]{1,80}\t(?P<x>\S{12,4000})",
        "E\t/",
        holds=_has_digit,
    ),
    # A label, and below it the value.
    RedactionRule("PASSWORD", _LABEL_ABOVE, _OF_HEADERS, _is_generated, True, re.compile(r":[ \t*`]{0,4}\n")),
    RedactionRule(
        "PASSWORD",
        _PRINTED,
        ("et secret", "pass show", "-password"),
        _is_generated,
        remember=True,
    ),
    # In sentences and remarks.
    *(
        RedactionRule("PASSWORD", re.compile(pattern), _OF_CREDENTIALS, _is_near(words), True, _DIGIT_OF_WORD)
        for words, pattern in (
            (
                _CREDENTIALS,
                rf"(?:(?<=[\w.-])[ ]?/[ ]?|(?<=[\w-]):[ ]?)[\"'`]?{_STRONG}",
            ),
            (
                _PASSWORDS,
                rf"(?<= )(?:to|into|auf|zu|in|en|por|à|naar|на|=>|->)(?:\s{{1,2}}[\"'`«„]?){_STRONG}",
            ),
            (_PASSWORDS, rf"(?:[Uu]se|[Tt]ry|[Ee]nter|[Tt]ype|[Ww]ith|[Nn]imm)(?: |: )[\"'`«„]?{_STRONG}"),
        )
    ),
    RedactionRule(
        "PASSWORD",
        re.compile(
            rf"(?<![\w/.-]){_STRONG}[\"'`]?\s(?:is|was|as|ist|war|als|est|es|è)"
            r"(?: (?:the|our|my|its|your|a|das|unser|mein|le|la|el|il|notre|mon)){0,2}(?: [\w-]{1,20}){0,2}?"
            r" (?:[Pp]ass(?:word|phrase|wort|code)|pw|[Kk]ennwort|mot de passe|contraseña)\b"
        ),
        ("assw", "assp", "assc", "asse", "pw", "ennwort", "ontrase"),
        lambda match: is_strong(match["x"]),
        remember=True,
        gate=_DIGIT_OF_WORD,
    ),
)
CONTEXT_GROUPS = (RuleGroup(_RULES), RuleGroup(tuple(_FURTHER_ARGUMENTS), _QUOTED_ARGUMENT))
