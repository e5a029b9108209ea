"""Invented secrets and personal data, seeded, and the kinds of text that contain them (C4).

No value is real: each is drawn from the generator that the caller passes.
"""

from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass

LOWER, UPPER, DIGITS = string.ascii_lowercase, string.ascii_uppercase, string.digits
WORD = LOWER + UPPER + DIGITS
HEX = "0123456789abcdef"


@dataclass(frozen=True)
class SecretSample:
    """A secret of a kind; ``needles`` are the parts that no table may hold; ``name`` is its usual name."""

    kind: str
    text: str
    needles: tuple[str, ...]
    name: str
    lines: bool = False


def _draw(rng: random.Random, alphabet: str, length: int) -> str:
    return "".join(rng.choice(alphabet) for _ in range(length))


def _base64(rng: random.Random, size: int) -> str:
    return base64.b64encode(rng.randbytes(size)).decode()


def _urlsafe(rng: random.Random, size: int) -> str:
    return base64.urlsafe_b64encode(rng.randbytes(size)).decode().rstrip("=")


def _password(rng: random.Random) -> str:
    style = rng.randrange(4)
    if style == 0:
        return _draw(rng, WORD, 10) + rng.choice("!#$%&*?@") + _draw(rng, DIGITS, 2)
    if style == 1:
        return rng.choice(["hunter", "dragon", "Sommer", "correct", "Kaiser"]) + _draw(rng, DIGITS, 4) + "!"
    if style == 2:
        return "-".join(_draw(rng, LOWER, 5) for _ in range(3)) + _draw(rng, DIGITS, 2) + "x9"
    return _draw(rng, WORD + "!#^*_-", 16) + "7"


def _armour(rng: random.Random, label: str, kind: str) -> SecretSample:
    lines = [_base64(rng, 48) for _ in range(rng.randint(3, 12))] + [_base64(rng, rng.randint(13, 40))]
    text = f"-----BEGIN {label}-----\n" + "\n".join(lines) + f"\n-----END {label}-----"
    return SecretSample(kind, text, tuple(lines), "private_key", lines=True)


def _service_account(rng: random.Random) -> SecretSample:
    key = _armour(rng, "PRIVATE KEY", "gcp_service_account")
    document = {
        "type": "service_account",
        "project_id": "p",
        "private_key_id": _draw(rng, HEX, 40),
        "private_key": key.text,
    }
    return SecretSample(
        "gcp_service_account", json.dumps(document, indent=2), key.needles, "credentials", lines=True
    )


def _jwt(rng: random.Random) -> str:
    parts = [{"alg": "HS256", "typ": "JWT"}, {"sub": _draw(rng, DIGITS, 10), "iat": rng.randrange(2**31)}]
    head = ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts
    )
    return f"{head}.{_urlsafe(rng, 32)}"


# kind: (its usual name, how to draw one)
SHAPED: dict[str, tuple[str, Callable[[random.Random], str]]] = {
    "aws_access_key": (
        "aws_access_key_id",
        lambda r: r.choice(["AKIA", "ASIA"]) + _draw(r, UPPER + "234567", 16),
    ),
    "github_classic": ("github_token", lambda r: r.choice(["ghp_", "gho_", "ghs_"]) + _draw(r, WORD, 36)),
    "github_fine": ("GH_PAT", lambda r: "github_pat_" + _draw(r, WORD, 22) + "_" + _draw(r, WORD, 59)),
    "gitlab": ("gitlab_token", lambda r: "glpat-" + _draw(r, WORD + "-_", 20)),
    "slack_token": (
        "slack_token",
        lambda r: f"xoxb-{_draw(r, DIGITS, 12)}-{_draw(r, DIGITS, 13)}-{_draw(r, WORD, 24)}",
    ),
    "slack_webhook": (
        "webhook",
        lambda r: (
            f"https://hooks.slack.com/services/T{_draw(r, UPPER, 8)}/B{_draw(r, UPPER, 8)}/"
            f"{_draw(r, WORD, 24)}"
        ),
    ),
    "stripe": ("stripe_key", lambda r: r.choice(["sk_live_", "rk_live_", "sk_test_"]) + _draw(r, WORD, 24)),
    "google_api": ("google_api_key", lambda r: "AIza" + _draw(r, WORD + "-_", 35)),
    "google_oauth": ("client_secret", lambda r: "GOCSPX-" + _draw(r, WORD + "-_", 28)),
    "azure_connection": (
        "connection_string",
        lambda r: (
            f"DefaultEndpointsProtocol=https;AccountName=acme;AccountKey={_base64(r, 64)};"
            f"EndpointSuffix=core.windows.net"
        ),
    ),
    "openai": ("OPENAI_API_KEY", lambda r: "sk-proj-" + _draw(r, WORD + "-_", 48)),
    "openai_old": ("openai.api_key", lambda r: "sk-" + _draw(r, WORD, 20) + "T3BlbkFJ" + _draw(r, WORD, 20)),
    "anthropic": ("ANTHROPIC_API_KEY", lambda r: "sk-ant-api03-" + _draw(r, WORD + "-_", 93) + "AA"),
    "hugging_face": ("HF_TOKEN", lambda r: "hf_" + _draw(r, LOWER + UPPER, 34)),
    "npm": ("NPM_TOKEN", lambda r: "npm_" + _draw(r, WORD, 36)),
    "pypi": ("pypi_token", lambda r: "pypi-AgEIcHlwaS5vcmc" + _draw(r, WORD + "-_", 100)),
    "sendgrid": ("sendgrid_key", lambda r: f"SG.{_draw(r, WORD, 22)}.{_draw(r, WORD + '-_', 43)}"),
    "twilio": ("twilio_sid", lambda r: r.choice(["AC", "SK"]) + _draw(r, HEX, 32)),
    "mailgun": ("mailgun_key", lambda r: "key-" + _draw(r, HEX, 32)),
    "mailchimp": ("mailchimp", lambda r: _draw(r, HEX, 32) + "-us" + _draw(r, "123", 1)),
    "discord": (
        "bot_token",
        lambda r: f"M{_draw(r, WORD, 23)}.{_draw(r, WORD, 6)}.{_draw(r, WORD + '-_', 27)}",
    ),
    "telegram": ("bot_token", lambda r: f"{r.randrange(10**9, 10**10)}:AA{_draw(r, WORD + '-_', 33)}"),
    "jwt": ("id_token", _jwt),
    "digitalocean": ("do_token", lambda r: "dop_v1_" + _draw(r, HEX, 64)),
    "heroku": ("heroku_key", lambda r: "HRKU-" + _draw(r, WORD + "-_", 60)),
    "databricks": ("databricks_token", lambda r: "dapi" + _draw(r, HEX, 32)),
    "artifactory": ("artifactory_key", lambda r: "AKCp" + _draw(r, WORD, 69)),
    "square": ("square_token", lambda r: "sq0atp-" + _draw(r, WORD + "-_", 22)),
    "shopify": ("shopify_token", lambda r: r.choice(["shpat_", "shpss_"]) + _draw(r, HEX, 32)),
    "vault": ("vault_token", lambda r: "hvs." + _draw(r, WORD, 90)),
    "linear": ("linear_key", lambda r: "lin_api_" + _draw(r, WORD, 40)),
    "groq": ("groq_key", lambda r: "gsk_" + _draw(r, WORD, 52)),
    "docker": ("docker_pat", lambda r: "dckr_pat_" + _draw(r, WORD + "-_", 27)),
    # High entropy, no prefix.
    "aws_secret_key": ("aws_secret_access_key", lambda r: _base64(r, 30)),
}

# Identified by their names only: (names, how to draw one)
NAMED: dict[str, tuple[tuple[str, ...], Callable[[random.Random], str]]] = {
    "password": (("password", "db_password", "DB_PASSWORD", "rootPassword", "passwd"), _password),
    "api_key": (("api_key", "X_API_KEY", "apiKey", "SERVICE_API_KEY"), lambda r: _draw(r, HEX, 32)),
    "heroku_uuid": (
        ("HEROKU_API_KEY", "heroku_api_key"),
        lambda r: "-".join(_draw(r, HEX, size) for size in (8, 4, 4, 4, 12)),
    ),
    "secret_key": (("SECRET_KEY", "client_secret", "app_secret"), lambda r: _draw(r, LOWER + DIGITS, 40)),
    "token": (("auth_token", "ACCESS_TOKEN", "accessToken"), lambda r: _draw(r, LOWER + DIGITS, 28)),
    "datadog": (("DD_API_KEY", "datadog_api_key"), lambda r: _draw(r, HEX, 32)),
}

NAMED_SURROUNDINGS: dict[str, Callable[[str, str], str]] = {
    "python": lambda n, v: f'import os\n{n} = "{v}"\n\ndef f(x):\n    return x\n',
    "python_call": lambda n, v: f"client = connect(host='db', {n}='{v}', timeout=3)",
    "python_typed": lambda n, v: f'class Settings:\n    {n}: str = "{v}"\n',
    "python_dict": lambda n, v: f'CONFIG = {{"user": "bob", "{n}": "{v}", "port": 5432}}',
    "environ": lambda n, v: f'os.environ["{n}"] = "{v}"',
    "dotenv": lambda n, v: f"DEBUG=1\n{n.upper()}={v}\nPORT=80\n",
    "shell": lambda n, v: f"$ export {n.upper()}='{v}' && make deploy",
    "yaml": lambda n, v: f"services:\n  db:\n    {n}: {v}\n    port: 5432\n",
    "yaml_quoted": lambda n, v: f"env:\n  - name: {n}\n    value: '{v}'\n",
    "json": lambda n, v: json.dumps({"host": "h", n: v, "n": 1}, indent=2),
    "json_in_json": lambda n, v: json.dumps({"out": json.dumps({n: v})}),
    "javascript": lambda n, v: f"const cfg = {{ {n}: '{v}', retries: 3 }};",
    "java": lambda n, v: f'private static final String {n} = "{v}";',
    "go": lambda n, v: f'{n} := "{v}"',
    "ini": lambda n, v: f"[main]\n{n} = {v}\nuser = x\n",
    "diff": lambda n, v: f"@@ -1,2 +1,2 @@\n-{n.upper()}=\n+{n.upper()}={v}\n",
    "xml": lambda n, v: f"<config><{n}>{v}</{n}></config>",
    "cli": lambda n, v: f"run --{n.replace('_', '-')}={v} --verbose",
    "query": lambda n, v: f"GET /v1/items?page=2&{n}={v}&x=1",
    "traceback": lambda n, v: (
        f'Traceback (most recent call last):\n  File "a.py", line 3, in <module>\n    login({n}="{v}")\n'
        f"ValueError: no"
    ),
    "numbered": lambda n, v: f'     1→import os\n     2→{n} = "{v}"\n     3→print(1)\n',
    "prose": lambda n, v: f"it still fails. the {n} is `{v}`, can you check?",
}
SHAPED_SURROUNDINGS: dict[str, Callable[[str, str], str]] = {
    **NAMED_SURROUNDINGS,
    "alone": lambda n, v: v,
    "chat": lambda n, v: f"hey, I use {v} for staging, is that ok?",
    "german": lambda n, v: f"Könntest du bitte {v} nehmen? Danke!",
    "chinese": lambda n, v: f"请使用这个：{v}。谢谢",
    "log": lambda n, v: f"2026-03-01 12:00:00,123 ERROR [api] refused credential={v} status=401",
    "header": lambda n, v: f"curl -H 'Authorization: Bearer {v}' https://api.example.org/v1",
    "list": lambda n, v: f"keys = ['{v}', 'other']",
    "comment": lambda n, v: f"def f():\n    # {v}\n    pass",
    "escaped": lambda n, v: json.dumps(f"first\n{v}\nlast"),
    "markdown": lambda n, v: f"| name | value |\n|---|---|\n| {n} | {v} |\n",
}


def in_place(rng: random.Random) -> list[SecretSample]:
    """Secrets that only exist in a place of their own, one of each."""
    word, long_token = _password(rng).replace("@", "x").replace("/", "x"), _draw(rng, WORD, 40)
    plain = _draw(rng, WORD, 12) + "9"
    texts = {
        "basic_auth_url": (f"git clone https://bob:{plain}@git.acme.io/x.git", plain),
        "postgres_url": (f"DATABASE_URL=postgresql+psycopg://app:{plain}@db.internal:5432/app", plain),
        "redis_url": (f"redis.from_url('redis://:{plain}@cache:6379/0')", plain),
        "mongo_url": (f"mongodb+srv://root:{plain}@c0.x.mongodb.net/?w=1", plain),
        "bearer": (f"> Authorization: Bearer {long_token}\n> Accept: */*", long_token),
        "bearer_dict": (f'headers = {{"Authorization": "Bearer {long_token}"}}', long_token),
        "basic_header": (f"Authorization: Basic {_base64(rng, 21)}", ""),
        "cookie": (f"Cookie: theme=dark; sessionid={long_token}; lang=en", long_token),
        "set_cookie": (f"Set-Cookie: JSESSIONID={long_token}; Path=/; HttpOnly", long_token),
        "curl_user": (f"curl -u admin:{plain} https://x.example.org/", plain),
        "sshpass": (f"sshpass -p '{word}' ssh bob@host", word),
        "mysql": (f"mysql -h db -u root -p{plain} app < dump.sql", plain),
        "pgpassword": (f"PGPASSWORD={plain} psql -h db", plain),
        "sql": (
            f"CREATE USER bob IDENTIFIED BY '{word}' PASSWORD EXPIRE NEVER; ALTER ROLE x PASSWORD '{word}';",
            "",
        ),
        "libpq": (f"host=db user=bob password={plain} dbname=app", plain),
        "adonet": (f"Server=db;User Id=sa;Password={plain};Encrypt=true", plain),
        "netrc": (f"machine api.acme.io login bob password {plain}", plain),
        "npmrc": (f"//registry.npmjs.org/:_authToken={long_token}", long_token),
        "german_prose": (f"Das Passwort lautet {plain}, bitte nicht weitergeben.", plain),
        "spanish_prose": (f"la contraseña es {plain} y el usuario bob", plain),
        "french_prose": (f"le mot de passe est « {plain} »", plain),
        "russian_prose": (f"пароль: {plain}", plain),
        "chinese_prose": (f"密码是{plain}，谢谢", plain),
        "japanese_prose": (f"パスワードは {plain} です", plain),
        "sas": (f"https://acme.blob.core.windows.net/c/b?sv=2022&sig={_draw(rng, WORD, 43)}%3D&se=2027", ""),
    }
    return [
        SecretSample(kind, text, (needle,) if needle else _find_needle(text), "")
        for kind, (text, needle) in texts.items()
    ]


def _find_needle(text: str) -> tuple[str, ...]:
    """Find the drawn part of a text of `in_place` whose needle is not listed."""
    for start, end in (("Basic ", None), ("IDENTIFIED BY '", "'"), ("sig=", "&")):
        if start in text:
            rest = text.split(start, 1)[1]
            return (rest.split(end)[0] if end else rest,)
    raise AssertionError(text)


def private_keys(rng: random.Random) -> list[SecretSample]:
    """Private keys, one of each kind."""
    labels = {
        "pem_rsa": "RSA PRIVATE KEY",
        "pem_ec": "EC PRIVATE KEY",
        "pem_openssh": "OPENSSH PRIVATE KEY",
        "pem_encrypted": "ENCRYPTED PRIVATE KEY",
        "pgp": "PGP PRIVATE KEY BLOCK",
    }
    return [_armour(rng, label, kind) for kind, label in labels.items()] + [_service_account(rng)]


ARMOUR_SURROUNDINGS: dict[str, Callable[[str], str]] = {
    "alone": lambda v: v,
    "python": lambda v: f'KEY = """{v}"""\n\ndef f():\n    return 1\n',
    "concatenated": lambda v: (
        "KEY = (" + "\n    ".join(json.dumps(line + "\n") for line in v.split("\n")) + ")\n"
    ),
    "json": lambda v: json.dumps({"key": v}),
    "json_in_json": lambda v: json.dumps({"out": json.dumps({"key": v})}),
    "yaml": lambda v: "key: |\n" + "\n".join("  " + line for line in v.split("\n")),
    "diff": lambda v: "\n".join("+" + line for line in v.split("\n")),
    "numbered": lambda v: "\n".join(f"{n:6}→{line}" for n, line in enumerate(v.split("\n"), 1)),
    "cut": lambda v: v.rsplit("\n", 1)[0],
}


def secrets(seed: int, rounds: int = 1) -> list[tuple[str, str, tuple[str, ...]]]:
    """``(kind @ surroundings, text, needles)``: every kind in ``rounds`` surroundings chosen by the seed."""
    rng = random.Random(seed)
    samples: list[tuple[str, str, tuple[str, ...]]] = []
    for _ in range(rounds):
        for kind, (name, draw) in SHAPED.items():
            where, value = rng.choice(list(SHAPED_SURROUNDINGS)), draw(rng)
            samples.append((f"{kind} @ {where}", SHAPED_SURROUNDINGS[where](name, value), _needles(value)))
        for kind, (names, draw) in NAMED.items():
            where, value = rng.choice(list(NAMED_SURROUNDINGS)), draw(rng)
            samples.append(
                (f"{kind} @ {where}", NAMED_SURROUNDINGS[where](rng.choice(names), value), (value,))
            )
        for sample in private_keys(rng):
            where = rng.choice(
                [name for name in ARMOUR_SURROUNDINGS if name != "cut" or "gcp" not in sample.kind]
            )
            samples.append(
                (f"{sample.kind} @ {where}", ARMOUR_SURROUNDINGS[where](sample.text), sample.needles)
            )
        samples += [(sample.kind, sample.text, sample.needles) for sample in in_place(rng)]
    return samples


def _needles(value: str) -> tuple[str, ...]:
    if "AccountKey=" in value:
        return (value.split("AccountKey=")[1].split(";")[0],)
    return (value.rsplit("/", 1)[1],) if value.startswith("https://") else (value,)


def _luhn(rng: random.Random, prefix: str, length: int) -> str:
    body = prefix + _draw(rng, DIGITS, length - len(prefix) - 1)
    total = sum(
        sum(divmod(int(digit) * (2 if place % 2 == 0 else 1), 10))
        for place, digit in enumerate(reversed(body))
    )
    return body + str(-total % 10)


def _iban(rng: random.Random) -> str:
    country, size = rng.choice([("DE", 18), ("FR", 23), ("GB", 18), ("NL", 14), ("ES", 20)])
    account = (_draw(rng, UPPER, 4) if country in {"GB", "NL"} else "") + _draw(rng, DIGITS, size)
    account = account[:size]
    check = 98 - int("".join(str(int(character, 36)) for character in account + country + "00")) % 97
    return f"{country}{check:02}{account}"


def _grouped(text: str) -> str:
    return " ".join(text[start : start + 4] for start in range(0, len(text), 4))


def _ipv6(rng: random.Random) -> str:
    groups = [f"{rng.randrange(2**16):x}" for _ in range(6)]
    return rng.choice(
        ["2001:db8:" + ":".join(groups), f"2a02:{groups[0]}::{groups[1]}", f"fe80::{groups[2]}:{groups[3]}"]
    )


def _ipv4(rng: random.Random) -> str:
    return ".".join(str(rng.randrange(*span)) for span in ((11, 223), (0, 255), (0, 255), (1, 255)))


PERSONAL: dict[str, tuple[Callable[[random.Random], str], ...]] = {
    "email": (
        lambda r: (
            f"{_draw(r, LOWER, 5)}.{_draw(r, LOWER, 6)}@{_draw(r, LOWER, 7)}.{r.choice(['com', 'co.uk'])}"
        ),
        lambda r: f"{_draw(r, LOWER, 4)}+tag{_draw(r, DIGITS, 2)}@mail.example.org",
        lambda r: f"{_draw(r, LOWER, 4)}_{_draw(r, DIGITS, 3)}@{_draw(r, LOWER, 4)}-{_draw(r, LOWER, 3)}.io",
    ),
    "phone": (
        lambda r: f"+1 ({r.randrange(200, 999)}) {r.randrange(200, 999)}-{r.randrange(1000, 9999)}",
        lambda r: f"+49 {r.randrange(151, 179)} {r.randrange(10**6, 10**7)}",
        lambda r: f"+44 20 {r.randrange(1000, 9999)} {r.randrange(1000, 9999)}",
        lambda r: f"({r.randrange(200, 999)}) {r.randrange(200, 999)}-{r.randrange(1000, 9999)}",
        lambda r: f"{r.randrange(200, 999)}-{r.randrange(200, 999)}-{r.randrange(1000, 9999)}",
        lambda r: f"{r.randrange(200, 999)}.{r.randrange(200, 999)}.{r.randrange(1000, 9999)}",
        lambda r: f"+{r.randrange(30, 99)}{r.randrange(10**9, 10**10)}",
        lambda r: "06 " + " ".join(f"{r.randrange(100):02}" for _ in range(4)),
    ),
    "card": (
        lambda r: _luhn(r, "4", 16),
        lambda r: _grouped(_luhn(r, "5" + r.choice("12345"), 16)),
        lambda r: _grouped(_luhn(r, "4", 16)).replace(" ", "-"),
        lambda r: _luhn(r, "37", 15),
        lambda r: _luhn(r, "6011", 16),
    ),
    "ipv4": (_ipv4,),
    "ipv6": (_ipv6,),
    "iban": (_iban, lambda r: _grouped(_iban(r))),
}
PERSONAL_SURROUNDINGS: dict[str, Callable[[str], str]] = {
    "alone": lambda v: v,
    "chat": lambda v: f"you can reach me under {v}, thanks",
    "python": lambda v: f'def f():\n    value = "{v}"\n    return value',
    "json": lambda v: json.dumps({"a": 1, "contact": v}),
    "csv": lambda v: f"id,value,n\n1,{v},3\n",
    "log": lambda v: f"2026-03-01T12:00:00Z INFO seen [{v}] status=200",
    "german": lambda v: f"Meine Daten: {v}. Grüße",
    "chinese": lambda v: f"我的信息：{v}，谢谢",
    "escaped": lambda v: json.dumps(f"a\n{v}\nb"),
    "comment": lambda v: f"x = 1  # {v}",
    "yaml": lambda v: f"a: 1\nvalue: {v}\nb: 2",
    "call": lambda v: f"send('{v}', retries=3)",
}


def personal(seed: int, rounds: int = 1) -> list[tuple[str, str, tuple[str, ...]]]:
    """``(kind @ surroundings, text, needles)`` of personal data with a pattern."""
    rng = random.Random(seed)
    samples = []
    for _ in range(rounds):
        for kind, forms in PERSONAL.items():
            for draw in forms:
                where, value = rng.choice(list(PERSONAL_SURROUNDINGS)), draw(rng)
                samples.append((f"{kind} @ {where}", PERSONAL_SURROUNDINGS[where](value), (value,)))
    return samples
