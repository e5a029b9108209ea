import gzip
import json
import sysconfig
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.capture.redaction.redact import make_redactor, redact
from iccm_assets.settings import PACKAGED_CANARY_SET, PACKAGED_REHEARSAL, load_settings
from iccm_assets_tests.factories import redaction_samples

# Assembled here, so that no scanner mistakes this file for a leak.
AWS = "AKIA" + "Q3EGVWTNPZ5RXK7M"
GITHUB = "ghp_" + "a1B2" * 9
SLACK = "xoxb-" + "123456789012-abcdefABCDEF"
STRIPE = "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc"
JWT = ".".join(
    ["eyJhbGciOiJIUzI1NiJ9", "eyJzdWIiOiIxMjM0NTY3ODkwIn0", "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"]
)
KEY = "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEow\nIBAAK\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"key = '{AWS}'", "key = '<AWS_ACCESS_KEY>'"),
        (f"use {GITHUB} please", "use <GITHUB_TOKEN> please"),
        (f"slack {SLACK}", "slack <SLACK_TOKEN>"),
        (f"stripe: {STRIPE}!", "stripe: <STRIPE_KEY>!"),
        (f"Authorization: Bearer {JWT}", "Authorization: Bearer <JWT>"),
        (f"jwt={JWT}", 'jwt="<JWT>"'),
        (f"jwt={JWT}; a b", "jwt=<JWT>; a b"),
        (f"a\n{KEY}\nb", "a\n<PRIVATE_KEY>\nb"),
        ("DB_PASSWORD = 'hunter2hunter2'", "DB_PASSWORD = '<PASSWORD>'"),
        ('{"api_key": "0123456789abcdef"}', '{"api_key": "<API_KEY>"}'),
        ("postgres://bob:s3cret@db/x", "postgres://bob:<PASSWORD>@db/x"),
        (
            "the password for the test server is rtngsxg375.",
            "the password for the test server is <PASSWORD>.",
        ),
        (
            "Das Passwort für den Server lautet tk7!Baum, bitte",
            "Das Passwort für den Server lautet <PASSWORD>, bitte",
        ),
        ("le mot de passe de la base est Welkom-2661!", "le mot de passe de la base est <PASSWORD>!"),
        ("password: Dragon_8099!\nport: 1", "password: <PASSWORD>\nport: 1"),
        ("la contraseña es 'GTTlLbjdmFpcpA'", "la contraseña es '<PASSWORD>'"),
        ("mysqldump -u b -pYlBGVoRdXyBS shop", "mysqldump -u b -p<PASSWORD> shop"),
        (
            f"Authorization: SSWS {'00aZpTCLWcoAJdeasSdBYLqBNX_6siPIe_4cyoK1s-'}",
            "Authorization: SSWS <TOKEN>",
        ),
        (
            f"aws_secret_access_key = /{'S/VhyD28yfRfkJSp+twmtWqMBQ8k9RYASc++zzp'}",
            "aws_secret_access_key = <AWS_SECRET_KEY>",
        ),
        ("x = 'mysql://scott:tiger@localhost/test'", "x = 'mysql://scott:<PASSWORD>@localhost/test'"),
        ("<PASSWORD>tk7!Baum9</PASSWORD>", "<PASSWORD><PASSWORD></PASSWORD>"),
        ("mail jane.doe+x@mail.example.org.", "mail <EMAIL>."),
        ("card 4111 1111 1111 1111,", "card <CARD>,"),
        ("card 5500-0000-0000-0004", "card <CARD>"),
        ("from 203.0.113.77 to 10.1.2.3", "from <IP> to <IP>"),
        ("v6 2001:db8:0:1:1:1:1:1", "v6 <IP>"),
        (f"Client('AC{'0f' * 16}', '{'1e' * 16}')", "Client('<TWILIO_KEY>', '<TWILIO_KEY>')"),
        (f"Client(account_sid, '{'1e' * 16}')  # Twilio", "Client(account_sid, '<TWILIO_KEY>')  # Twilio"),
        ('PASSPHRASE="correct-horse-battery-staple"', 'PASSPHRASE="<PASSWORD>"'),
        ("passphrase: 'lunar velvet copper orchard'", "passphrase: '<PASSWORD>'"),
        (f"client.login('{'QmzRtXhwKpLvBnYcDsJfGa7e'}2')", "client.login('<TOKEN>')"),
        ('to "john..doe"@example.org', "to <EMAIL>"),
        ("mail='jane@example.org'", "mail='<EMAIL>'"),
        ("Tel. 0049 30 901820, 0049 (not one)", "Tel. <PHONE>, 0049 (not one)"),
        ("it is 0049 30 901820", "it is <PHONE>"),
        (f"the x-{JWT} and _{JWT}", "the x-<JWT> and _<JWT>"),
        (f"\\n{JWT}\\n", "\\n<JWT>\\n"),
        ("call +49 30 1234567 or (555) 123-4567 or 555-123-4567", "call <PHONE> or <PHONE> or <PHONE>"),
    ],
)
def test_secrets_and_personal_data_become_typed_placeholders(text, expected):
    assert redact(text) == expected
    assert redact(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "The function shall return 4111111111111112 for 1.2.3.",
        "version = '1.2.3.4.5'",
        "host = '127.0.0.1'; any = '0.0.0.0'",
        "x[::2], x[a::b], at 12:30:45, std::map<int, std::pair>",
        "password = get_password(user)",
        "password: userNameFromHTTPRequest\nsecret: isHTTPSConnectionPool",
        "the password for the user is hashed; le mot de passe du compte est demandé",
        "mysql -u root -production\nmysql -phpMyAdminConfig",
        "secret_path = /usr/lib/python3/dist-packages/setuptools/command",
        "def check(password: str, secret: bytes) -> bool: return password == secret",
        "@app.route('/x')\n@decorator.name\nprint(a@b)",
        "range(1000000000, 9999999999); 3.14159265358979; 2026-03-01T12:00:00+00:00",
        "0000000000000000 and 1234567890123456",
        "x = 555-123-45678 + 1",
        'assert parse("1.10.0.4") < parse("2.31.0.1")',
        "key = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJx8Wq3vKpYbT0r5mN2cHfLsUeXgZ1aBdQi7oRwEtVyK me'",
        'expect = "aGVsbG8gd29ybGQgZnJvbSBhIHRlc3Q="',
        "passphrase = 'please enter the new passphrase'\npassphrase: 'words for the vault to open'",
        "client.login('the_user_name_of_the_form_2')",
        "authorization: get_the_header_2(request)",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "",
    ],
)
def test_ordinary_code_and_text_stay_as_they_are(text):
    assert redact(text) == text


def test_nothing_in_the_simulated_world_is_mistaken_for_a_secret():
    texts = []
    for path in (PACKAGED_CANARY_SET, PACKAGED_REHEARSAL):
        if path.exists():
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                texts += [
                    row[field] for row in map(json.loads, lines) for field in ("source_code", "requirements")
                ]
    assert [text for text in texts if redact(text) != text] == []


def test_redaction_of_a_text_can_be_switched_off():
    assert make_redactor(load_settings(capture={"redact": False}))("a@example.org") == "a@example.org"
    assert make_redactor(load_settings())("a@example.org") == "<EMAIL>"


@given(st.text(st.characters(codec="utf-8")) | st.text("0123456789 -+().:@=/'\"abcdefAKIA\n"))
def test_redacting_twice_is_redacting_once(text):
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "unit", ["a", "1", "a@", "1.", "1:", "password", "password='", "+1 ", "-----BEGIN ", "4111 ", "x://a:b"]
)
def test_no_text_takes_long(unit):
    text = unit * (200_000 // len(unit))
    started = time.process_time()
    redact(text)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("make_samples", "min_share"), [(redaction_samples.secrets, 0.99), (redaction_samples.personal, 0.98)]
)
def test_planted_secrets_and_personal_data_are_gone_in_any_surroundings(make_samples, min_share):
    texts = make_samples(5, rounds=6)
    missed = [kind for kind, text, needles in texts if any(needle in redact(text) for needle in needles)]
    assert len(missed) <= (1 - min_share) * len(texts), missed


def test_the_standard_library_changes_only_in_addresses():
    folder = Path(sysconfig.get_paths()["stdlib"])
    sources = [
        (folder / name).read_text("utf-8") for name in ("argparse.py", "hmac.py", "secrets.py", "uuid.py")
    ]
    sources += [
        (folder / name).read_text("utf-8") for name in ("getpass.py", "netrc.py", "token.py", "ssl.py")
    ]
    lines = [line for source in sources for line in source.splitlines()]
    assert sum(redact(line) != line for line in lines) <= len(lines) // 500
