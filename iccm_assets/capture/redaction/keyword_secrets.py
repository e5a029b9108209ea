"""Find secrets identified only by a keyword before them: ``DB_PASSWORD=…``, "the password is …".

The keyword determines the kind, quotes or context determine the end of the value, and the value itself has to
look like a secret: ordinary words, names of other variables, types and templates do not. (C4)
"""

from __future__ import annotations

import re
import string
from collections import defaultdict
from collections.abc import Iterable, Iterator
from enum import IntEnum
from functools import lru_cache

from iccm_assets.capture.redaction.rules import Span
from iccm_assets.capture.redaction.token_secrets import (
    has_high_entropy,
    is_filler,
    is_keyboard_mash,
    is_mixed,
)

# Stems, lower case, by the kind of a value under such a name.
_STEMS = {
    "PASSWORD": (
        "password passwd passphrase passcode pwd passwort kennwort contraseña contrasena senha wachtwoord"
        " parola haslo hasło пароль пароля 密码 密碼 口令 パスワード 비밀번호"
        " şifre sifre lösenord salasana jelszó"
        " storepass keypass"
        " jelszo heslo mật khẩu पासवर्ड סיסמה รหัสผ่าน κωδικός mdp"
    ),
    "TOKEN": "token jwt 令牌 トークン токен jeton",
    "SECRET": "secret credential секрет geheimnis csrf xsrf sessionid session_id sessid",
    "API_KEY": "apikey apiキー 密钥 密鑰 秘钥 ключ",
}
_PHRASES = {"mot de passe": "PASSWORD", "كلمة المرور": "PASSWORD"}
_WHOLE = {"pass": "PASSWORD", "pw": "PASSWORD", "parole": "PASSWORD", "bearer": "TOKEN", "pat": "TOKEN"}
_WHOLE |= {"auth": "SECRET", "authorization": "SECRET", "creds": "SECRET", "salt": "SECRET", "sid": "SECRET"}
_WHOLE |= {"psk": "PASSWORD", "passkey": "PASSWORD", "clave": "PASSWORD"}
_WHOLE |= {"schlüssel": "API_KEY", "clé": "API_KEY", "key": "API_KEY"}
_KINDS = {stem: kind for kind, stems in _STEMS.items() for stem in stems.split()} | _PHRASES | _WHOLE


def _compile_names(names: Iterable[str]) -> re.Pattern[str]:
    """Compile a pattern for any of these texts, by first letters: most positions then fail at once."""
    by_letter: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names, key=len, reverse=True):
        by_letter[name[0]].append(re.escape(name[1:]))
    groups = (f"{re.escape(letter)}(?:{'|'.join(ends)})" for letter, ends in by_letter.items())
    return re.compile("|".join(groups))


_NAME = _compile_names(_KINDS)
_ASCII_NAME = _compile_names(filter(str.isascii, _KINDS))
# What a short name may follow without a sign between them: dbpass, DBPASS, adminpw.
_BEFORE_SHORT_NAME = re.compile(
    r"(?:db|sql|pg|root|user|admin|smtp|imap|pop3?|mail|ftp|ssh|ldap|bind|http|proxy|vnc|rdp|wifi|wlan|login|sudo|mqtt"
    r"|redis|mongo|rabbit|server|client|test|app|bot|svc|enc|cert|pfx|jks|zip|backup|master|my)$"
)
# "key" alone is usually the key of a table; after these words it is a secret.
_SECRET_KEY_PREFIX = re.compile(
    r"(?:api|app|access|secret|private|signing|encryption|decryption|validation|account|master|auth|service|licen[sc]e|deploy|session"
    r"|storage|consumer|client|shared|admin|webhook|hmac|subscription|ingest(?:ion)?|integration|project|write"
    r"|jwt|aes|crypto|fernet|wi-?fi|wlan|wpa2?|network|[a-z0-9]{2,20}(?=[_-]))[-_. ]?(?:access[-_ ]?)?$"
)
# Suffixes of names that describe a secret and hold none: its file, its length, its header.
_DESCRIPTIVE_SUFFIX = re.compile(
    r"s?[-_]?(?:file|path|dir|url|uri|name|type|count|len|size|limit|field|format|expir|ttl|policy|prompt|label|hint"
    r"|error|message|regex|pattern|rule|min|max|hasher|iz|list|index|kind|class|manager|version|scheme|algo"
    r"|endpoint|col|ids?(?![a-z])|(?:[a-z]{1,12}_)?at(?![a-z])|func|provider|store|reset|valid|check|encrypt|encod|strength)"
)
_OTHER_KEY_PREFIX = re.compile(
    r"(?:primary|foreign|public|publishable|publickey|sort|cache|partition|row|hash|dict|lookup|group|order|index|idempotency|object|s3"
    r"|next|page|continuation|eof|end|start|sep|pad|unk|mask|bos|eos|cls"
    r"|map|meta|hot|short|arrow|natural|site|websocket|host|known)[-_ ]?$"
)
# An annotation between a name and its value, of Python, Rust and C#.
_ANNOTATION = (
    r":[ \t]?[A-Za-z_&](?:[^\n\"'#()=]|\([^\n()\"']{0,60}\)){0,80}=(?=[ \t]?(?:[\"']|[A-Z]?[a-z]\w{0,10}\())"
    r"|\{[ \w;]{0,30}\}[ \t]?=|(?<=\w)(?:[ \t][Aa]s)?[ \t][A-Za-z]\w{0,15}[ \t]?=(?=[ \t]?[\"'])"
)
# Behind this, too, a literal is the value: SecretStr('…'), Field(default='…'), getpass() or '…'.
_BEFORE_LITERAL = (
    r"(?:(?:(?:Secret(?:Str|Bytes)?|String::from|(?:SecretString|Zeroizing)::(?:new|from)|new String"
    r"|[Ff]ield|str|bytes|Some|(?:bytes\.)?fromhex|(?:binascii\.)?unhexlify"
    r"|(?:base64\.)?b64decode)\(\s{0,20}(?:default=\s?)?){1,2}(?=[rbfu]?[\"'])"
    r"|\(\s{1,20}(?=[rbfu]?[\"'])"
    r"|[\w.]{1,60}(?:\([^()\n]{0,80}\))?[ \t](?:or|\|\||\?\?)[ \t](?=[rbfu]?[\"'`]))?"
)
# Of an option's declaration, and of a variable of Terraform.
_DEFAULT = (
    r",\s{0,20}(?:\w{1,20}=[\w.\[\]\"' -]{1,40},\s{0,20}){0,4}default=\s?(?=[rbfu]?[\"'])"
    r"|[ \t]?\{[^{}\"']{0,120}?\bdefault\s{0,10}=\s{0,4}(?=\")"
    r"|[ \t]?\|[ \t]?default\([ \t]?(?=[\"'])"
    r"|:[ \t]{0,4}\n(?:[ \t]{1,12}[A-Z]\w{1,20}: [^\n]{0,60}\n){0,4}?[ \t]{1,12}Default:[ \t]{1,4}(?=\S)"
)
_IS = "is|was|ist|war|lautet|est|c['’]est|es|era|é|è|jest|to|je|är|er|это"
_ASSIGN = re.compile(
    r"(?:\\{0,3}[\"'`*]{1,3})?[\])]?"
    rf"(?:(?P<default>{_DEFAULT}|[ \t](?:\|\||\?\?|or)[ \t](?=[\"'`]))"
    rf"|[ \t]{{0,40}}(?P<eq>{_ANNOTATION}|:=|:-|=>|->|<-|===?|!==?|=|:(?!:)"
    rf"|：)(?:\*\*)?[ \t]{{0,8}}(?:!!(?:str"
    rf"|binary)[ \t])?"
    rf"(?:[|>][-+]?\n[ \t]{{1,20}})?{_BEFORE_LITERAL}"
    r"|,?\s{1,40}(?:-\s)?\\{0,3}[\"']?(?:value|content)\\{0,3}[\"']?\s{0,4}(?P<value>[=:])\s{0,4}"
    r"|[ \t]{0,4}(?P<call>[,({])\s{0,8}[\[(]?|(?P<xml>>|</(?:td|th|dt|b|strong)>\s{0,8}(?:<(?:td|dd)>"
    r"|:[ \t]?))"
    r"|(?P<prose>[ \t]{0,3}(?:(?:[ \t](?:for|of|on|at|in|to|für|fuer|zum|zur|vom|von|di|des|der|du|de|do|da"
    r"|dos|das|del|della|per|pour|para|voor|van|för|till|til|dla|na|pro|od|от|для|к|на)"
    r"(?:[ \t][\w.-]{1,30}){1,5}"
    r"|[ \t](?:(?:d|n|a)ell|all|de l|d|l)['’]\w{1,20}(?:[ \t][\w.-]{1,30}){0,4})"
    rf"(?:[ \t](?:{_IS})(?=[ \t:])|(?=[ \t]?[:=][ \t]))"
    r"|[ \t](?:is|was|has been|set)[ \t](?:generated|created|set|reset|changed"
    r"|for)(?:[ \t][\w.@-]{1,40}){0,4}(?=:[ \t])"
    rf"|[ \t](?:(?:root|admin|sudo|wi-?fi|ssh|ftp|prod|staging)[ \t])?"
    rf"(?:{_IS}|are|as|becomes|on|with)(?=[ \t:])|[—–-]|是|为|為|は|를|은|는|が)[ \t]{{0,3}}"
    r"(?:now |still |just |jetzt |set to )?[:=]?[ \t]{0,2})"
    r"|(?P<space>[ \t]{1,16}))"
)
_QUOTED = re.compile(
    r"[rbfuRBFUNE]{0,2}(?P<q>\\{0,3}(?:\"\"\"|'''|[\"'`]))(?P<x>[^\r\n]{1,500}?)(?P=q)|[«“„「]\s?(?P<y>[^»”“」\s][^»”“」\r\n]{0,200}?)\s?[»”“」]"
)
_TO_SPACE = re.compile(r"[^\s\"'`<>]{1,500}")
_TO_LINE_END = re.compile(r"[^\s\"'`<>]{1,200}(?=\s{0,20}(?:\n|$))")
_TO_SEMICOLON = re.compile(r"[^\s\"'`<>;]{1,500}")
_IN_SENTENCE = re.compile(r"[^\s\"'`<>,;(){}\[\]|，。、；]{1,500}")
_BARE = re.compile(r"[^\s\"'`<>,;&(){}\[\]|，。、；]{1,500}")
_REST_OF_NAME = re.compile(r"[A-Za-z0-9_-]{0,30}")
# After a value without quotes: the end of its line, or another name with a value.
_NEXT_PAIR = re.compile(r"[;,&|](?:$|(?=[\w.-]{1,40}=))")
_APP_PASSWORD = re.compile(r"[a-z]{4}(?: [a-z]{4}){3}")  # as Google shows it
_COMPARISONS = {"==", "!=", "===", "!=="}
_SHORT_NAMES = {"pass", "pw", "pat", "auth", "sid", "salt"}  # also words of prose
# An address of a resource: arn:aws:secretsmanager:eu-west-1:1:secret:name, and checksum/secret.
_OF_RESOURCE = re.compile(r"\b[au]rn:[\w-][^\s\"']{0,90}$")
_OF_DIGEST = re.compile(r"(?:checksum|digest|sha\d{1,3}|fingerprint)[/._-]$")
# validate_password("x") in a test: no password of anybody.
_OF_CHECK = re.compile(
    r"(?:valid\w{0,10}|check|is|strength|score|strong|weak|hash|mask|redact|rate|entropy|count|contains?|test|has)_?(?:\w{1,20}_)?$"
)
_NETWORK_PREFIX = re.compile(r"(?:wi-?fi|wlan|wpa2?|network)[-_. ]?$")
_VARIABLE = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")
_DIGIT = re.compile(r"[0-9]")
_DIGITS = re.compile(r"[0-9]+")
_CODE = re.compile(r"\$?[A-Za-z_][\w.]{0,100}[(\[{]")
# A line that assigns: of a .env file, a shell, a diff, YAML, a numbered listing.
_LINE_START = re.compile(
    r"(?:^|\n|\\n|[\"'`])[^\S\n]{0,40}"
    r"(?:(?:[-+>$#%*;]|//|\d{1,6}\s?[→:|]|export|set|setx|env|arg|label|- name:)"
    r"[^\S\n]{0,4}){0,3}"
    r"[\w.-]{0,60}$"
)
_ARGUMENT = re.compile(
    r"(?:[?&;#]|(?<![\w-])--?|(?<![\w-])-[eD] ?|--(?:env|build-arg|set|from-literal|secret)[ =]"
    r"|\w=[^\s,()]{1,60}[ ,]{1,2}|\w: ?[^\s,()]{1,60},? |login \S{1,60} |//)[\w.-]{0,40}$"
)
_OPTION = re.compile(r"(?<![\w-])--[\w-]{0,40}$")
_AFTER_WORD = re.compile(r"[^,(\s]\s[\w.-]{0,40}$")
_WORDS = re.compile(r"[^\W\d_]+(?:[ _./:-]+[^\W\d_]+)*[.!?:]?")
# In these, no two repeats may share their text: failing to match a long value would take quadratic time.
_WORD = r"[^\W\d_]+(?:\d{1,3}[^\W\d_]*)?"
_NAMELIKE = re.compile(rf"(?:{_WORD}|\d{{1,4}})(?:[ _./:@-]+(?:{_WORD}|\d{{1,4}}))*")
_ONE_WORD = re.compile(
    rf"[^\W\d_]+\d+[^\W\d_]*|\d{{6,}}|{_WORD}[-_.]\d{{4,}}|[^\W\d_]+[-_.][^\W\d_]{{3,}}\d{{2,}}"
)
# pixel-Harbor-copper62, and Saturn965.
_WORDS_WITH_NUMBER = re.compile(r"[^\W\d_]{2,}(?:-[^\W\d_]{2,})+-?\d{2,}")
# torta_limone3 and mandel@22: in a sentence that says what the password is.
_WORDS_AND_DIGITS = re.compile(
    r"[^\W\d_]{3,20}(?:[-_.][^\W\d_]{3,20}){1,4}\d{1,4}[!?]?|[^\W\d_]{4,30}[@#$%&!]\d{2,6}"
    r"|[A-Z]?[a-zß-ÿ]{4,30}[-_.]\d{2,6}"
)
# lamp-otter-nine-blue: the value of an assignment.
_HYPHENATED_WORDS = re.compile(r"(?=.{16})[a-z]{2,12}(?:-[a-z]{2,12}){3,7}")
_TWO_WORDS = re.compile(r"[A-Z][a-z]{2,20}[-_.&+][A-Z][a-z]{2,20}")
_BEFORE_PASSWORD = re.compile(r"\buser(?:name)?\s?=\s?[\"'][^\"'\n]{1,60}[\"'],?\s{1,20}\w{0,20}$")
_AFTER_USER = re.compile(
    r"\b(?:user|login|username|benutzer|usuario|utente|utilisateur)[ :=]{1,3}[\w.@-]{1,40},? (?:and |/ ?)?$"
)
_LONG_WORD = re.compile(r"[a-z]{0,40}\d[a-z\d]{1,60}(?<=[a-z\d]{20})")
_CONSONANTS = re.compile(r"[bcdfghjklmnpqrstvwxz]{6}")
_WORD_WITH_NUMBER = re.compile(r"[A-Z][a-z]{2,}\d{3,}")
# kR210-tulip-CZP: letters of both sizes, and three digits, in several parts.
_JOINED_PASSWORD = re.compile(
    r"(?=.{10,60}$)(?=[^A-Z]*[A-Z])(?=[^a-z]*[a-z])(?=(?:\D*\d){3})(?!\d)[^\W_]+(?:[-_.][^\W_]+)+"
)
_TECHNICAL = re.compile(
    r"(?:scram|wpa\d?|cram|digest|sha-?\d|md5|base-?\d\d|utf-?\d|[hrepd]s\d{3}|hmac|oauth|argon2(?:id|i|d)?|pbkdf2|scrypt|bcrypt|x509|aes|rsa|ed25519"
    r"|ecdsa|uuid|int\d|u?int|float|bytes|str|http|ipv\d|v\d)(?:[-_:/.,\d][\w:/.,-]*)?",
    re.IGNORECASE,
)
# The same within a word, which has no other digits then.
_TECHNICAL_PART = re.compile(
    r"(?i)sha-?\d{1,3}|md5|base\d\d|utf-?\d{1,2}|[hrepd]s\d{3}|o?auth2?|x509|u?int\d{1,2}|float\d\d|bytes?\d{0,2}|str(?:ing)?\d?"
    r"|ipv[46]|http/?[23]?|ed25519|argon2(?:id)?|pbkdf2|log4|web3|[bp]2[bpc]|[ksl3]8s|i18n|l10n|(?<![a-z])(?:s3|ec2|2fa|es\d|v\d)"
    r"|s?crypt\d?[a-z]?|windows|python|chrome|firefox|ubuntu|debian|java|postgres|mysql|node|php"
)
_STRENGTHS = tuple(map(re.compile, ("[a-z]", "[A-Z]", r"\d")))
# A digit within letters, several at the end, or a sign: unlike Profile2.
_CHOSEN = re.compile(
    r"[^\W\d_]\d+[a-zß-ÿ]|\d\d[!?]?$|[^\W\d_][-_.!#$%^&*?~+@]+[^\W_]|^\d{1,3}[a-z]|[!#$%^&*?~+@]$"
)
_WORD_AND_VERSION = re.compile(r"[A-Za-z]?[a-z]+[-. ]?v?\d{1,3}(?:\.\d+)*")
_VERSION = re.compile(r"v?\d{1,4}(?:\.\d{1,8}){1,3}(?:[-+~:.][\w.+~-]*)?")
_COLOUR = re.compile(r"#(?:[0-9A-Fa-f]{3,4}){1,2}|0x[0-9A-Fa-f]{6,8}")
# user_input_2, LIMIT_4, nextPage2 and InputField2: as programs write names.
_CONVENTION = re.compile(
    r"[a-z]+\d{0,3}(?:[-_./:@]+[a-z\d]+)*|[A-Z]+\d{0,3}(?:_+[A-Z\d]+)*|[A-Za-z][a-z]+(?:[A-Z][a-z]+)*\d{0,3}"
)
_TEMPLATE = re.compile(
    r"[<{(\[\\]|##|(?:required|nullable|sometimes|same|confirmed|string|bail)[|:]|\*[a-z]\w*\.[A-Z]|!(?:vault|Ref|Sub|GetAtt|secret|env)(?:_[a-z]{1,20})?\b|\*\*|\$[{(A-Z]|\$_[A-Z]|\$[a-z_]{2,40}$|%[({]|.*\$\{|.*\{\w{0,40}\}|.*%[sd](?!\w)|.*(?:\.{3}|\*{3}|…|xxxx)"
    r"|(?:self|os|process|settings|config|env|None|True|False|null|true|false)\b"
)
_EXPLANATORY = re.compile(
    r"(?i)passw|pwd|secret|token|(?<![a-z])key|your|example|change|hidden|required|redacted|bearer|basic|string|invalid|user"
)
# Labels in other languages, too.
_EXPLAINS = re.compile(f"{_EXPLANATORY.pattern}|{'|'.join(name for name in _KINDS if len(name) > 5)}|geheim")
_OF_SOMEBODY = re.compile(
    r"(?<![\w.-])(?:new|current|the|my|our|your|old|initial|default|guest|root|admin|wi-?fi|neues|das|nouveau|le|la|nueva)\s"
    r"(?:[\w-]{1,20}\s)?[\w-]{0,20}$"
)
_JOINED_WORDS = re.compile(
    r"[a-z]{12,40}(?<!tion)(?<!ed)(?<!ing)(?<!tor)(?<!ble)(?<!ive)(?<!ic)(?<!ment)(?<!ly)(?<!al)"
)
_FUNCTION_WORDS = re.compile(
    r"\b(?:an?|and|as|at|by|can|enter|for|from|in|is|it|must|new|not?|of|on|or|the|to|with)\b"
)
# What documents and examples write in the place of a value.
_STAND_IN = re.compile(
    r"(?i)(?:your|my|the|some|change|example|insert|enter|replace|put|dummy|fake|sample|placeholder|todo|secret"
    r"|password|undefined)[a-z]{0,20}(?:[-_ ][a-z]{1,20}){0,6}"
)
_SPECIAL = re.compile(r"[!#$%^&*?~+@|]")
# Of 20 bytes or more, and of 40 characters: no path looks like this.
_KEY_BYTES = re.compile(
    r"[A-Za-z0-9+/]{40}|(?:[A-Za-z0-9+/]{4}){6,24}(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)"
)
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]{1,15}://|[.~]{0,2}/[\w.-]+(?:/|$)|[A-Z]:\\")
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class Certainty(IntEnum):
    """How surely a value without more to it is one, by what is around it."""

    CODE = 0  # it may be another name
    WORDS = 1  # "with password x"
    SENTENCE = 2  # "the password is x"
    SETTING = 3  # PASSWORD=x, --password x, ;Password=x;


def find_keyword_secrets(text: str) -> Iterator[Span]:
    """Find the secrets of a text that keywords identify, ordered and disjoint."""
    lower, end = _lower(text), 0
    for match in (_ASCII_NAME if lower.isascii() else _NAME).finditer(lower):
        if match.start() >= end and (secret := _find_value(text, lower, match)) is not None:
            end = secret[1]
            yield secret


def classify_key(name: str) -> str | None:
    """Return the kind of a value of this name (``PASSWORD``, ``API_KEY``, …), else None."""
    return _classify_start(name[:200])


@lru_cache(maxsize=4096)
def _classify_start(name: str) -> str | None:
    """Classify the start of a key: documents have few different ones."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    lower = _lower(parted)
    return next(filter(None, (_classify_stem(parted, lower, match) for match in _NAME.finditer(lower))), None)


def is_secret(value: str, kind: str, *, quoted: bool = True) -> bool:
    """Whether a value with a name of this kind looks like a secret, not like a word, name or template."""
    if not 6 <= len(value) <= 500 or len(set(value[:64])) < 3:
        return False
    if kind == "PASSWORD":
        return not _is_reference(value) and _is_password(value, quoted)
    # Cheap questions first: a hostile text asks them at every few characters.
    if len(value) < 8 or " " in value:
        return False
    if len(value) < 12 and kind != "API_KEY" and not (kind == "SECRET" and is_strong(value)):
        return False
    if not (_has_digit(value) or is_keyboard_mash(value)):
        return False
    if _is_reference(value) or _VERSION.fullmatch(value):
        return False
    return not _is_name_like(value) or (_is_chosen_key(value, kind) and _is_chosen(value, Certainty.SENTENCE))


def _is_reference(value: str) -> bool:
    """Whether a value is a template, the name of an algorithm or type, a URL or a path."""
    if (
        value.endswith(("EXAMPLE", "EXAMPLEKEY"))
        or _TEMPLATE.match(value)
        or _TECHNICAL.fullmatch(value)
        or _COLOUR.fullmatch(value)
    ):
        return True
    return _URL.match(value) is not None and not (_KEY_BYTES.fullmatch(value) and has_high_entropy(value))


def _has_digit(value: str) -> bool:
    if value.isascii():
        return _DIGIT.search(value) is not None
    return any(map(str.isdigit, value))


def _is_password(value: str, quoted: bool) -> bool:
    if _WORDS.fullmatch(value) and not _APP_PASSWORD.fullmatch(value):
        single = value.isalpha() and value.isascii() and not _EXPLAINS.search(value)
        return single and ((quoted and len(value) >= 8) or is_keyboard_mash(value))
    if " " in value:
        return quoted and (_is_passphrase(value) or _APP_PASSWORD.fullmatch(value) is not None)
    return _has_digit(value) or _SPECIAL.search(value) is not None


def _is_passphrase(value: str) -> bool:
    short = len(value) <= 64 and value.count(" ") <= 5
    return short and _has_digit(value) and not _NAMELIKE.fullmatch(value)


def _is_diceware(value: str, fewest: int = 4) -> bool:
    """Whether a passphrase consists of random words, unlike a message about it."""
    words = re.split(r"[-_. ]", value[:100])
    return (
        fewest <= len(words) <= 10
        and all(word.isascii() and word.isalpha() and word.islower() for word in words)
        and not (_EXPLANATORY.search(value) or _FUNCTION_WORDS.search(value.replace("_", " ")))
    )


def _is_phrase(value: str) -> bool:
    """Whether these words are a sentence that someone chose as a secret."""
    return (
        len(value) <= 80
        and 3 <= value.count(" ") <= 9
        and re.fullmatch(r"[a-z\d]+(?: [a-z\d]+)*", value) is not None
        and len(set(value.split())) >= 4
        and not (_EXPLANATORY.search(value) or _FUNCTION_WORDS.match(value))
    )


def _is_name_like(value: str) -> bool:
    """Whether a value consists of words and small numbers, as variables, options and messages do."""
    return _NAMELIKE.fullmatch(value) is not None and not (
        has_high_entropy(value)
        or is_keyboard_mash(value)
        or is_mixed(value)
        or (_LONG_WORD.fullmatch(value) and _CONSONANTS.search(value))
    )


def _is_ordinary(value: str, kind: str, certainty: Certainty) -> bool:
    """Whether a namelike value is harmless: what people choose as a password may look like a name."""
    chosen = kind == "PASSWORD" or _is_chosen_key(value, kind)
    return _is_name_like(value) and not (chosen and _is_chosen(value, certainty))


def _is_chosen_key(value: str, kind: str) -> bool:
    """Whether words with a number are a secret or a token, which people choose less often."""
    return is_strong(value) and (kind == "SECRET" or len(re.findall(r"[-_]", value)) >= 2)


def _is_chosen(value: str, certainty: Certainty) -> bool:
    """Whether words with a number are a password where it is this certain."""
    explains = _EXPLANATORY.search(value) and re.search(r"[-_.]", value) and _CONVENTION.fullmatch(value)
    if explains or _TECHNICAL.match(value) or value.isdecimal():
        return value.isdecimal() and len(value) >= 6 and bool(certainty)
    if _JOINED_PASSWORD.fullmatch(value):
        return True
    if certainty and (_ONE_WORD.fullmatch(value) or _WORDS_WITH_NUMBER.fullmatch(value)):
        return True
    if certainty is Certainty.SENTENCE and _WORDS_AND_DIGITS.fullmatch(value):
        return True
    if certainty is Certainty.SETTING:
        return _has_digit(value) and re.search(r"[^\W\d_]{2}", value) is not None
    leet = certainty is Certainty.SENTENCE and re.search(r"[a-z]\d+[a-z]", _TECHNICAL_PART.sub("", value))
    return bool(leet) or (bool(certainty) and is_strong(value))


def is_random(value: str) -> bool:
    """Whether small letters and digits alternate as in an issued secret: not in a name with a version."""
    return 16 <= len(value) <= 100 and len(_DIGITS.findall(value)) >= 3 and is_secret(value, "TOKEN")


def is_strong(value: str) -> bool:
    """Whether a word looks like a password wherever it stands, and not like a name."""
    if not 6 <= len(value) <= 64 or _WORD_AND_VERSION.fullmatch(value) or _URL.match(value):
        return False
    plain = _TECHNICAL_PART.sub("", value)
    return all(strength.search(plain) for strength in _STRENGTHS) and _CHOSEN.search(plain) is not None


def _lower(text: str) -> str:
    """Return the text in lower case, with every letter at its position."""
    lower = text.lower()
    return lower if len(lower) == len(text) else text.translate(_LOWER)


def _classify_stem(text: str, lower: str, name: re.Match[str]) -> str | None:
    """Return the kind of secret that the name around this stem denotes; None for no secret."""
    stem, before = name[0], lower[max(0, name.start() - 24) : name.start()]
    after = lower[name.end() : name.end() + 1]
    if stem == "key":
        whole = _SECRET_KEY_PREFIX.search(before) and not after.isalpha()
    else:
        whole = stem not in _WHOLE or not (after.isalnum() or _is_within_word(text, name, before))
    if not whole or _DESCRIPTIVE_SUFFIX.match(lower, name.end()) or _OTHER_KEY_PREFIX.search(before):
        return None
    if stem == "key" and before.rstrip("-_ ").endswith("registry"):
        return None
    if stem == "key" and _NETWORK_PREFIX.search(before):
        return "PASSWORD"
    aws = "aws" in before and ("secret" in before or stem in {"secret", "key"})
    return "AWS_SECRET_KEY" if aws else _KINDS[stem]


def _is_within_word(text: str, name: re.Match[str], before: str) -> bool:
    """Whether letters before a short name belong to it: in "bypass", but not in "adminPass" and DBPASS."""
    if not before[-1:].isalpha():
        return False
    if name[0] not in {"pass", "pw"} or before.endswith("by"):
        return True
    start = name.start()
    in_camel_case = text[start].isupper() and text[start - 1].islower()
    return not (in_camel_case or _BEFORE_SHORT_NAME.search(before))


def _find_value(text: str, lower: str, name: re.Match[str]) -> Span | None:
    kind = _classify_stem(text, lower, name)
    if kind is None:
        return None
    sign = _ASSIGN.match(text, _REST_OF_NAME.match(text, name.end()).end())  # type: ignore[union-attr]
    if sign is None:
        return None
    if name[0] in _SHORT_NAMES and (sign["prose"] or sign["space"]) and not _is_compound(text, name, sign):
        value = _BARE.match(text, sign.end())
        word = value[0].rstrip(".!?") if value is not None else ""
        is_told = name[0] == "pw" and sign["prose"] and len(word) >= 8 and _ONE_WORD.fullmatch(word)
        if not (is_mixed(word) or is_strong(word) or is_told):
            return None
    if text[sign.start() : sign.start() + 2] in {":?", ":+"}:
        return None  # of a shell's variable: what follows is a message, or another value
    before = lower[max(0, name.start() - 100) : name.start()]
    if ("rn:" in before and _OF_RESOURCE.search(before)) or _OF_DIGEST.search(before[-14:]):
        return None
    if sign["xml"] and (text[sign.end() : sign.end() + 1] in {"@", "="} or _is_placeholder(text, name, sign)):
        return None
    quoted = _QUOTED.match(text, sign.end())
    if quoted is not None:
        line = before.rpartition("\n")[2]
        of_check = sign["call"] and (
            _OF_CHECK.search(before) or line.lstrip().startswith(("assert ", ">>> "))
        )
        return None if of_check else _find_quoted(quoted, sign, kind, name)
    return _find_bare(text, sign, kind, before, name)


def _is_compound(text: str, name: re.Match[str], sign: re.Match[str]) -> bool:
    """Whether a short name is a part of a longer one: ``#define WIFI_PASS "…"``, ``X-Internal-Auth "…"``."""
    start = name.start()
    return bool(sign["space"]) and start > 0 and (text[start - 1] in "_-." or text[start - 1].isalpha())


def _is_placeholder(text: str, name: re.Match[str], sign: re.Match[str]) -> bool:
    """Whether this is ``<PASSWORD>`` without an end tag after it."""
    return (
        text[name.start() - 1 : sign.end()].isupper() and "</" not in text[sign.start() : sign.start() + 500]
    )


def _find_quoted(value: re.Match[str], sign: re.Match[str], kind: str, name: re.Match[str]) -> Span | None:
    group = "x" if value["x"] is not None else "y"
    secret, span = value[group], (*value.span(group), kind)
    firm = bool(sign["prose"]) and _is_firm(sign)
    if _is_quoted_phrase(secret, value.string, sign, kind, name, firm):
        return span
    loose = sign["call"] or sign["prose"] or sign["space"] or sign["eq"] in _COMPARISONS
    certainty = Certainty.SENTENCE if sign["prose"] else Certainty.WORDS
    if firm or (sign["space"] and value.string[name.start() : name.end()].isupper()):
        certainty = Certainty.SETTING
    if (loose and _is_ordinary(secret, kind, certainty)) or not is_secret(secret, kind):
        return None
    return span


def _is_quoted_phrase(
    secret: str, text: str, sign: re.Match[str], kind: str, name: re.Match[str], firm: bool
) -> bool:
    """Whether a value in quotes consists of words that somebody chose as a secret."""
    of_phrase, assigned = name[0] in {"passphrase", "psk"}, sign["eq"] in {":", "="}
    if (
        of_phrase
        and sign["eq"] not in _COMPARISONS
        and _is_diceware(secret, 3 if sign["prose"] or assigned else 4)
    ):
        return True
    if kind == "PASSWORD" and sign["eq"] == "=" and _TWO_WORDS.fullmatch(secret):
        before = text[max(0, name.start() - 100) : name.start()].lower()
        return _BEFORE_PASSWORD.search(before) is not None and not _EXPLAINS.search(secret)
    named = text[name.start() : name.end()].isupper() and sign["eq"] == "="
    chosen = (assigned and kind == "PASSWORD") or (named and kind in {"SECRET", "TOKEN"})
    if chosen and _HYPHENATED_WORDS.fullmatch(secret):
        return _is_diceware(secret)
    named = (
        named
        or (firm and (name[0] == "passphrase" or _has_digit(secret)))
        or (name[0] == "secret" and _has_digit(secret))
    )
    is_given = (named and (firm or assigned)) or (of_phrase and sign["space"])
    return bool(is_given) and _is_phrase(secret)


def _find_bare(text: str, sign: re.Match[str], kind: str, before: str, name: re.Match[str]) -> Span | None:
    """Find a value without quotes; in an assignment on a line of its own it extends to the next space."""
    if (
        (sign["call"] and not _is_in_brackets(text, sign))
        or (sign["default"] or ":").rstrip()[-1] != ":"
        or sign["eq"] in {*_COMPARISONS, "->"}
    ):
        return None
    on_line = sign["eq"] is not None and _LINE_START.search(before) is not None
    tight = sign[0] == "="
    env = on_line and tight and text[name.start() : name.end()].isupper()
    form = _TO_SPACE if env or (on_line and (tight or sign[0] == ": ")) else _BARE
    if tight and re.search(r";[ \w]{0,40}$", before):
        form = _TO_SEMICOLON
    elif sign["prose"]:
        form = _TO_LINE_END if _TO_LINE_END.match(text, sign.end()) else _IN_SENTENCE
    value = _bare_value(text, sign, env, form)
    if kind == "PASSWORD" and _is_option(text, sign, before, value):
        return sign.end(), sign.end() + len(value), kind
    certainty = _get_certainty(text, sign, before, name, value, on_line)
    if kind == "PASSWORD" and sign[0] == ": " and _is_told(text, sign, before, value):
        return sign.end(), sign.end() + len(value), kind
    sure = certainty is Certainty.SETTING or (sign[0] == ": " and _HYPHENATED_WORDS.fullmatch(value))
    phrase = name[0] == "passphrase" and sure and _is_diceware(value)
    if not (phrase or (env and _is_env_value(value)) or _is_bare_secret(value, sign, kind, certainty)):
        return None
    return sign.end(), sign.end() + len(value), kind


def _is_in_brackets(text: str, sign: re.Match[str]) -> bool:
    """Whether this is "the password (Word-w0rd) is old", and no call."""
    value = _BARE.match(text, sign.end())
    alone = sign[0].startswith(" (") and value is not None and text[value.end() : value.end() + 1] == ")"
    return alone and (is_strong(value[0]) or is_random(value[0]))  # type: ignore[index]


def _is_told(text: str, sign: re.Match[str], before: str, value: str) -> bool:
    """Whether letters end a line that says whose password they are, unlike a message about one."""
    ends_line = text[sign.end() + len(value) : sign.end() + len(value) + 1] in {"", "\n"}
    return (
        ends_line and _OF_SOMEBODY.search(before) is not None and _JOINED_WORDS.fullmatch(value) is not None
    )


def _get_certainty(
    text: str, sign: re.Match[str], before: str, name: re.Match[str], value: str, on_line: bool
) -> Certainty:
    """Say how surely the value after this sign is one of its name."""
    after = text[sign.end() + len(value) : sign.end() + len(value) + 1]
    if on_line and sign[0] != "=" and _VARIABLE.fullmatch(value) and _CONVENTION.fullmatch(value):
        # password = user_input2
        return Certainty.WORDS if " =" in sign[0] or after in {",", ";", ")"} else Certainty.SETTING
    # As logs write it: password=…, but not a further argument of a call.
    logged = sign[0] == "=" and (_AFTER_WORD.search(before) is not None or after in {"", " ", "\n", "!", "?"})
    if on_line or logged or sign["default"] or _is_argument(sign, before):
        return Certainty.SETTING
    if sign[0].strip() == ":" and _is_in_sentence(text, sign, name, value):
        return Certainty.SETTING
    if sign["eq"] == "：" or (sign["prose"] and _is_firm(sign)):
        return Certainty.SENTENCE
    if sign["space"] and _AFTER_USER.search(before):
        return Certainty.SETTING
    if sign["eq"] and is_strong(value) and not _VARIABLE.fullmatch(value):
        return Certainty.WORDS
    # "user bob / password Saturn965?, thanks"
    return (
        Certainty.WORDS
        if sign["prose"] or ((sign["space"] or sign["call"]) and is_strong(value))
        else Certainty.CODE
    )


def _is_firm(sign: re.Match[str]) -> bool:
    """Whether what follows is said to be the value, unlike after "password on" and "password with"."""
    return re.search(r"(?:\b(?:to|as|on|with|are|becomes)|[—–-])\s*$", sign["prose"]) is None


def _is_in_sentence(text: str, sign: re.Match[str], name: re.Match[str], value: str) -> bool:
    """Whether "Password: Word_word24" or "pw: Word_word44!," is no field of a program with its type."""
    end = sign.end() + len(value)
    titled = text[name.start()].isupper() and re.search(r"\d\d$", value[-2:]) is not None
    return titled or is_strong(value) or text[end : end + 1] in {*"!#$%^&*?~"}


def _is_option(text: str, sign: re.Match[str], before: str, value: str) -> bool:
    """Whether this is ``--password=value`` in a command, where the value may consist of letters."""
    return sign[0] == "=" and _OPTION.search(before) is not None and _is_env_value(value)


def _is_argument(sign: re.Match[str], before: str) -> bool:
    """Whether the value is in a command line, a URL, or markup."""
    return bool(_ARGUMENT.search(before) or sign["xml"] or sign["value"])


def _bare_value(text: str, sign: re.Match[str], env: bool, form: re.Pattern[str]) -> str:
    """Return the text after the sign as far as it can be a value; '' where it is program code."""
    match = form.match(text, sign.end())
    if match is None or (not env and _CODE.match(text, sign.end())):
        return ""
    # An escaped line end, in JSON or in program text, ends the value too.
    value = re.split(r"\\+[nrt\"']", match[0], maxsplit=1)[0]
    if env:
        return value.rstrip(",;)]}")
    value = _NEXT_PAIR.split(value, maxsplit=1)[0].rstrip(".,;:)]}")
    # Of a sentence, unless it is what makes the value a password.
    stripped = value.rstrip(".,;:!?)]}")
    return value if form not in (_BARE, _IN_SENTENCE, _TO_LINE_END) and _has_digit(value) else stripped


def _is_env_value(value: str) -> bool:
    """Whether a ``.env`` line holds a secret: after the name of one, almost every value is."""
    if len(value) < 6 or value.isupper() or _STAND_IN.fullmatch(value):
        return False
    return not (_TEMPLATE.match(value) or _URL.match(value) or is_filler(value))


def _is_bare_secret(value: str, sign: re.Match[str], kind: str, certainty: Certainty) -> bool:
    """Whether an unquoted value is a secret; the context decides, too: in code it may be another name."""
    if not is_secret(value, kind, quoted=False) or _is_ordinary(value, kind, certainty):
        return False
    if sign["space"] and certainty is Certainty.CODE and not _has_digit(value):
        return False
    if certainty or kind == "API_KEY" or not _VARIABLE.fullmatch(value):
        return True
    return is_mixed(value) or (len(value) >= 16 and len(_DIGITS.findall(value)) >= 3)
