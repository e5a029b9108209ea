"""Redaction at its limits: what just is, and just is not, a card, an account, an address, a secret (C4)."""

from __future__ import annotations

import re

import pytest

from iccm_assets.capture.redaction.pii import is_card_number, is_iban, luhn_valid
from iccm_assets.capture.redaction.redact import (
    pseudonymize_user_id,
    redact,
    redact_document,
    stored_user_ids,
)
from iccm_assets.capture.redaction.rules import RedactionRule, RuleGroup
from iccm_assets.settings import load_settings

CARD = 4111111111111111


def with_check_digit(digits: str) -> str:
    """The number with the digit that Luhn's formula demands."""
    return next(digits + check for check in "0123456789" if luhn_valid(digits + check))


# --- documents


@pytest.mark.parametrize("number", [CARD, int(with_check_digit("4" + "0" * 10 + "2")), 4000000000000000006])
def test_a_card_given_as_a_number_is_replaced(number):
    redacted, counts = redact_document({"payment": {"card": number, "cards": [number, 7]}})
    assert redacted == {"payment": {"card": "<CARD>", "cards": ["<CARD>", 7]}}
    assert counts == {"CARD": 2}
    assert redact_document(number) == ("<CARD>", {"CARD": 1})


@pytest.mark.parametrize(
    "value",
    [CARD + 1, 41111111, True, None, 10**12, 10**19 - 1, 1.5, 12345678901234567890],
)
def test_other_numbers_stay_as_they_are(value):
    redacted, counts = redact_document([value, {"n": value}])
    assert redacted == [value, {"n": value}] and counts == {}
    assert all(type(item) is type(value) for item in (redacted[0], redacted[1]["n"]))


def test_a_password_is_replaced_wherever_the_document_has_it():
    secret = "Tr0ub4dor&3x"
    document = {
        "settings": {"password": secret},
        "text": f"say {secret}, not x{secret} or {secret}y",
        "names": [secret],
        f"key {secret}": 1,
    }
    redacted, counts = redact_document(document)
    assert redacted["settings"] == {"password": "<PASSWORD>"} and redacted["names"] == ["<PASSWORD>"]
    # Only as a word of its own: other texts may contain its letters.
    assert redacted["text"] == f"say <PASSWORD>, not x{secret} or {secret}y"
    assert redacted["key <PASSWORD>"] == 1 and counts == {"PASSWORD": 4}


@pytest.mark.parametrize(
    "text",
    [
        "postgres://bob:{}@db/x",
        "curl -u bob:{} http://x",
        "docker login -u bob -p {} registry",
        "create user bob identified by '{}'",
        "requests.get(url, auth=('bob', '{}'))",
        "DB_PASSWORD = '{}'",
    ],
)
@pytest.mark.parametrize("secret", ["tk7!Baum99x", "tk7!B9"])
def test_a_password_that_its_context_gives_away_is_replaced_in_other_texts_too(text, secret):
    redacted, counts = redact_document([text.format(secret), f"uses {secret} twice"])
    assert redacted == [text.format("<PASSWORD>"), "uses <PASSWORD> twice"] and counts == {"PASSWORD": 2}


@pytest.mark.parametrize("secret", ["sunshine", "20260301", "ab1!x"])
def test_a_password_that_is_a_word_a_number_or_short_is_replaced_in_its_place_only(secret):
    document = {"url": f"postgres://bob:{secret}@db/x", "text": f"the {secret} shall return"}
    redacted, _ = redact_document(document)
    assert redacted == {"url": "postgres://bob:<PASSWORD>@db/x", "text": f"the {secret} shall return"}


def test_the_longer_of_two_passwords_is_replaced_first():
    document = {
        "first": {"password": "hunter2.x9"},
        "second": {"password": "hunter2.x9-old.7"},
        "text": "hunter2.x9 and hunter2.x9-old.7",
    }
    redacted, counts = redact_document(document)
    assert redacted["text"] == "<PASSWORD> and <PASSWORD>" and counts == {"PASSWORD": 4}


def test_a_value_is_named_by_its_key_or_by_the_name_next_to_it():
    for label in ("name", "key"):
        assert redact_document({label: "DB_PASSWORD", "value": "tk7!Baum99"})[0]["value"] == "<PASSWORD>"
        assert redact_document({label: "COLOUR", "value": "tk7!Baum99"})[0]["value"] == "tk7!Baum99"
    assert redact_document({"password": ["tk7!Baum99"]})[0] == {"password": ["<PASSWORD>"]}
    assert redact_document({"name": 5, "value": "tk7!Baum99"})[0]["value"] == "tk7!Baum99"


def test_at_most_the_five_hundred_longest_passwords_are_replaced_in_other_texts():
    secrets = [f"tk7!Baum{number}x" for number in range(1000, 1500)]
    document = {
        "short": {"password": "tk7!Baum9x"},
        "long": [{"password": secret} for secret in secrets],
        "text": f"{secrets[0]}, {secrets[-1]}, tk7!Baum9x",
    }
    assert redact_document(document)[0]["text"] == "<PASSWORD>, <PASSWORD>, tk7!Baum9x"


def test_keys_that_become_equal_keep_their_values():
    redacted, counts = redact_document({"a@x.org": 1, "b@x.org": 2, "<EMAIL> 3": 3, "c@x.org": 4})
    assert redacted == {"<EMAIL>": 1, "<EMAIL> 2": 2, "<EMAIL> 3": 3, "<EMAIL> 4": 4}
    assert counts == {"EMAIL": 4}


def test_only_placeholders_of_redaction_are_counted():
    assert redact_document(["<DIV> and <EMAIL>", "a@x.org <T>"])[1] == {"EMAIL": 2}


# --- users


def test_a_user_id_with_personal_data_becomes_a_pseudonym():
    settings = load_settings()
    plain, pseudonym = stored_user_ids("jane@example.org")
    assert pseudonymize_user_id("jane@example.org", settings) == pseudonym != plain == "jane@example.org"
    assert pseudonym == "user-a980e3f7325f63b9a561"  # an erasure finds what an earlier release stored
    assert pseudonymize_user_id("joe@example.org", settings) not in (pseudonym, "joe@example.org")
    assert pseudonymize_user_id("jane", settings) == "jane" and pseudonymize_user_id(None, settings) is None
    open_ = load_settings(capture={"redact": False})
    assert pseudonymize_user_id("jane@example.org", open_) == "jane@example.org"


# --- texts


def test_a_text_is_read_again_only_after_a_change_and_never_if_it_is_too_short(monkeypatch):
    read = []
    monkeypatch.setattr(
        "iccm_assets.capture.redaction.redact.find_keyword_secrets", lambda text: read.append(text) or []
    )
    assert redact("a@b.c") == "a@b.c" and read == []
    assert redact("nothing") == "nothing" and read == ["nothing"]
    assert redact("a@b.cd") == "<EMAIL>" and read == ["nothing", "a@b.cd", "<EMAIL>"]


def test_a_text_that_changes_in_every_round_is_given_up_after_six(monkeypatch):
    monkeypatch.setattr(
        "iccm_assets.capture.redaction.redact.replace_spans", lambda text, spans, place: f"{text}."
    )
    assert redact("nothing") == "nothing......"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # What a replacement brings together is replaced as well.
        ("to jane@mail.example.org.u9@bjya.io", "to <EMAIL><EMAIL>"),
        # Of a secret that its name identifies the name stays.
        ("aws_key = '" + "Ab1/" * 10 + "'", "aws_key = '<AWS_SECRET_KEY>'"),
        # The shortest text that can be redacted.
        ("a@b.cd", "<EMAIL>"),
        # A file or a repository is no address.
        ("see icon@2x.png and ICON@2X.PNG", "see icon@2x.png and ICON@2X.PNG"),
        ("git@github.com", "git@github.com"),
        ("git@ssh.github.com", "<EMAIL>"),
        ("ann@github.com", "<EMAIL>"),
        # Credentials of a URL, unless they are a variable.
        ("ftp://bob:$PASS@host/x", "ftp://bob:$PASS@host/x"),
        ("ftp://bob:{password}@host/x", "ftp://bob:{password}@host/x"),
        ("ftp://bob:%s@host/x", "ftp://bob:%s@host/x"),
        ("https://Qm7RtXhwKpLvBnYc@host/x", "https://<TOKEN>@host/x"),
        ("https://Qm7RtXhwKpLvBnY@host/x", "https://Qm7RtXhwKpLvBnY@host/x"),
        ("curl -u bob:a1b2c http://x", "curl -u bob:<PASSWORD> http://x"),
        ("docker run -u bob:1000 x", "docker run -u bob:1000 x"),
        ("docker run -u bob:$GID x", "docker run -u bob:$GID x"),
        # A cookie has a number, a call of a function is none.
        ("Cookie: session=a1b2c3d4e5", 'Cookie: "<COOKIE>"'),
        ("Cookie: session=abcdefghij", "Cookie: session=abcdefghij"),
        ("Cookie: session=sign(1234)", "Cookie: session=sign(1234)"),
    ],
)
def test_a_text_is_redacted_where_it_holds_a_secret(text, expected):
    assert redact(text) == expected
    assert redact(expected) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.8.8.8 and 1.2.3.4 are versions", "8.8.8.8 and 1.2.3.4 are versions"),
        ("ping 8.8.8.8", "ping <IP>"),
        ("at 8.8.8.64 once", "at <IP> once"),
        ("at 8.8.8.63 once", "at 8.8.8.63 once"),
        ("at 10.8.8.8 once", "at <IP> once"),
        ("at 9.8.8.8 once", "at 9.8.8.8 once"),
        ("version 203.0.113.77", "version 203.0.113.77"),
        ("v203.0.113.77", "v203.0.113.77"),
        ("at 203.0.113.0/24", "at 203.0.113.0/24"),
        ("at 203.0.113.7/24", "at <IP>/24"),
        ("at 203.0.113.0 or 203.0.113.0/245", "at <IP> or <IP>/245"),
        ("^8.100.1.1", "^8.100.1.1"),
        # What names an address stands at most 16 characters before it.
        ("addr_xxxxxxxxxx 1.2.3.4", "addr_xxxxxxxxxx <IP>"),
        ("addr_xxxxxxxxxxx 1.2.3.4", "addr_xxxxxxxxxxx 1.2.3.4"),
        ("at 203.0.113.256", "at 203.0.113.256"),
        ("at 0.1.2.3 and 255.255.255.0", "at 0.1.2.3 and 255.255.255.0"),
        ("at 127.9.9.9", "at 127.9.9.9"),
        ("at 203.0.113.77.5", "at 203.0.113.77.5"),
        ("at ::1 and 2001:db8::1", "at ::1 and <IP>"),
        ("at fe80::1 or fd00::1", "at <IP> or <IP>"),
        ("x[1:2:3] and ab::cd", "x[1:2:3] and ab::cd"),
        ("0:0:0:0:0:0:0:1", "0:0:0:0:0:0:0:1"),
        ("1:2:3:4:5:6:7:8", "<IP>"),
    ],
)
def test_an_ip_address_is_told_from_a_version_a_network_and_a_slice(text, expected):
    assert redact(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tel 123-4567", "tel <PHONE>"),
        ("tel 123-456", "tel 123-456"),
        ("tel 2026-03-01", "tel 2026-03-01"),
        ("+49 301234", "<PHONE>"),
        ("+49 30123", "+49 30123"),
        ("+12.3456789", "+12.3456789"),
        ("+49 3012 3456 7890 1", "<PHONE>"),
        ("+49 3012 3456 7890 12", "+49 3012 3456 7890 12"),
        ("call 123 456 789 012 345", "call <PHONE>"),
        ("call 123 456 789 012 3456", "call 123 456 789 012 3456"),
        ("0049 30 901820", "<PHONE>"),
        ("0049 30 901", "<PHONE>"),
        ("0049 30 90", "<PHONE>"),
        ("0049 3090", "0049 3090"),
        ("078-05-1120", "<SSN>"),
        ("000-05-1120 and 666-05-1120 and 078-00-1120 and 078-05-0000",) * 2,
    ],
)
def test_a_phone_number_has_seven_to_fifteen_digits(text, expected):
    assert redact(text) == expected


@pytest.mark.parametrize(
    ("digits", "card"),
    [
        ("411111111111111", True), ("511111111111111", True), ("501111111111111", True),
        ("581111111111111", True), ("491111111111111", True), ("591111111111111", False),
        ("601111111111111", True), ("611111111111111", False), ("621111111111111", True),
        ("651111111111111", True), ("661111111111111", False), ("671111111111111", True),
        ("681111111111111", False), ("222111111111111", True), ("222011111111111", False),
        ("272011111111111", True), ("272111111111111", False), ("352811111111111", True),
        ("352711111111111", False), ("358911111111111", True), ("359011111111111", False),
        ("411111111111", True), ("511111111111", False),
        ("3001111111111", True), ("3051111111111", True), ("3061111111111", False),
        ("2991111111111", False), ("3611111111111", True), ("3811111111111", True),
        ("3911111111111", True), ("3711111111111", False), ("3511111111111", False),
        ("34111111111111", True), ("37111111111111", True), ("35111111111111", False),
        ("36111111111111", False), ("411111111111111111", True), ("511111111111111111", False),
        ("301111111111111", False), ("4011111111111", False), ("33111111111111", False),
        ("38111111111111", False), ("311111111111", False), ("311111111111111111", False),
        ("4111111111", False), ("41111111111111111", False), ("4111111111111111111", False),
    ],
)  # fmt: skip
def test_a_card_has_an_issued_range_and_a_length(digits, card):
    number = with_check_digit(digits)
    assert is_card_number(number) == card
    assert is_card_number(" ".join(number)) == card
    wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
    assert not is_card_number(wrong)


def test_a_number_of_one_digit_alone_is_no_card():
    assert luhn_valid("4111 1111-1111 1111")
    assert not luhn_valid("0" * 16) and luhn_valid("79927398713") and not luhn_valid("79927398710")


@pytest.mark.parametrize(
    ("account", "valid"),
    [
        ("GB82 WEST 1234 5698 7654 32", True),
        ("gb82west12345698765432", True),
        ("GB82 WEST 1234 5698 7654 33", False),
        ("NO9386011117947", True),  # the shortest there is
        ("NO938601111794", False),
        ("MT84MALT011000012345MTLCAST001S", True),
        ("MT84MALT011000012345MTLCAST001S" + "0" * 4, False),
    ],
)
def test_an_account_number_has_its_check_digits(account, valid):
    assert is_iban(account) == valid


@pytest.mark.parametrize(("length", "valid"), [(14, False), (15, True), (34, True), (35, False)])
def test_an_account_number_has_fifteen_to_thirty_four_characters(length, valid):
    account = "7" * (length - 4)
    check = 98 - int(f"{account}{int('D', 36)}{int('E', 36)}00") % 97
    assert is_iban(f"DE{check:02d}{account}") == valid


def test_an_account_number_may_have_all_letters():
    check = 98 - int(f"{'35' * 11}{int('D', 36)}{int('E', 36)}00") % 97
    assert is_iban(f"DE{check:02d}{'Z' * 11}") and not is_iban(f"DE{check:02d}{'Y' * 11}")


def test_an_account_number_in_a_text_is_replaced():
    assert redact("pay GB82 WEST 1234 5698 7654 32.") == "pay <IBAN>."
    assert redact("pay GB82 WEST 1234 5698 7654 33.") == "pay GB82 WEST 1234 5698 7654 33."


# --- groups of rules


@pytest.mark.parametrize("text", ["xab", "abcd", "-u", "zbcdz", "q7", "abcd bcd ab -u", "é-uq7"])
def test_a_group_does_what_its_rules_do_in_turn(text):
    hints = ("abcd", "bcd", "ab", "-u", "q7")
    rules = tuple(
        RedactionRule(f"KIND{n}", re.compile(re.escape(hint)), (hint,)) for n, hint in enumerate(hints)
    )
    in_turn = text
    for rule in rules:
        in_turn = rule.apply(in_turn, lambda secret: None)
    assert RuleGroup(rules).apply(text, lambda secret: None) == in_turn != text


def test_a_rule_finds_what_an_earlier_rule_of_its_group_replaced():
    rules = (
        RedactionRule("FIRST", re.compile("ab+"), ("ab",)),
        RedactionRule("SECOND", re.compile("<FIRST>(?P<x>-7+)"), ("<FIRST>",)),
    )
    assert RuleGroup(rules).apply("cabb-77", lambda secret: None) == "c<FIRST><SECOND>"
