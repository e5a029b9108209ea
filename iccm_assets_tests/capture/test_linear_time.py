"""No text makes redaction, cleaning or parsing take more than linear time (C4, G6)."""

from __future__ import annotations

import contextlib
import json
import sysconfig
import threading
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest

from iccm_assets.capture.redaction import keyword_secrets, redact
from iccm_assets.capture.redaction.rules import RedactionRule
from iccm_assets.capture.sanitizing import Sanitizer
from iccm_assets.gateway.problem_details import ProblemDetail
from iccm_assets.gateway.request_body import parse_json
from iccm_assets_tests.factories.growth import assert_linear, cpu_seconds
from iccm_assets_tests.factories.hostile_shapes import ENDS, build_text, hostile_units

pytestmark = [pytest.mark.usefixtures("frozen_heap"), pytest.mark.slow]

SCREENED_LENGTH = 16_384
# Shorter times are of linear patterns only: quadratic ones take longer at this length.
SCREENED_SECONDS = 0.01
MAX_RATIO_TO_ORDINARY_TEXT = 20.0

WHOLE_TEXTS = {
    "JWT heads": "eyJ", "JWT heads with dots": "eyJaaaaa.", "two heads": "eyJaaaaa.eyJ",
    "keywords in a word": "password是", "keywords in Chinese": "密码是", "assignments": "password=a",
    "keywords only": "token=", "keyword and digits": "md5" + "1" * 400 + "% ",
    "sha digits": "token=sha1" + "1" * 480 + "% ", "long values": "token=" + "a" * 490 + "% ",
    "authorization": "authorization:", "authorization with a digit": "authorization:a1",
    "addresses": "a@a.a.a", "quoted names": "''''''''''a@aa.aa.", "apostrophes": "a'a'a'",
    "IP": "7.7.7.7 ", "labels": "a@" + "a-" * 30 + ".", "key heads": "-----BEGIN PRIVATE KEY-----",
    "half a key head": "-----BEGIN ", "opened quotes": "password='", "crossed quotes": "password='a\"",
    "URLs": "a://a:", "cookies": "cookie=", "AWS": "awskey'", "OpenAI": "sk-T3BlbkFJ", "dashes": "-",
    "backslashes": "\\", "quotes": '"', "phones": "+1 ", "a command": "mysql -p",
    "prose": "password for a a a a ", "blanks": "password           ", "IBAN": "AA77 ",
    "passphrase": 'passphrase="a-a-a-a-" ',
}  # fmt: skip


def seconds(call: Callable[[str], object], text: str) -> float:
    return cpu_seconds(lambda: call(text))


@pytest.mark.parametrize(
    "rule", redact.ALL_RULES, ids=lambda rule: f"{rule.kind}-{rule.pattern.pattern[:24]}"
)
def test_every_rule_takes_linear_time_on_what_it_almost_matches(rule: RedactionRule) -> None:
    for pattern in filter(None, (rule.pattern, rule.gate)):

        def apply(text: str, pattern=pattern) -> str:
            # Of a gate it only counts whether it matches.
            is_rule = pattern is rule.pattern
            return pattern.sub(lambda match: "<X>" if is_rule and rule.holds(match) else match[0], text)

        slow = [
            (pair, end)
            for pair in hostile_units(pattern)
            for end in ENDS
            if seconds(apply, build_text(pair, SCREENED_LENGTH, end)) > SCREENED_SECONDS
        ]
        for pair, end in slow[:3]:

            def spent(length: int, pair=pair, end=end) -> float:
                return seconds(apply, build_text(pair, length, end))

            assert_linear(spent, SCREENED_LENGTH, (pair, end))


@pytest.mark.parametrize(("name", "end"), zip(WHOLE_TEXTS, cycle(["", "(", "%"]), strict=False))
def test_redaction_of_a_hostile_text_takes_linear_time(name: str, end: str) -> None:
    def spent(length: int) -> float:
        return seconds(redact.redact, build_text(("", WHOLE_TEXTS[name]), length, end))

    if spent(SCREENED_LENGTH) > SCREENED_SECONDS:
        assert_linear(spent, SCREENED_LENGTH)


@pytest.mark.parametrize("name", ["keywords only", "authorization", "JWT heads"])
def test_a_hostile_text_takes_no_more_than_twenty_ordinary_ones(name: str) -> None:
    standard_library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    ordinary = "".join(path.read_text("utf-8") for path in standard_library)[: 1 << 18]
    hostile = build_text(("", WHOLE_TEXTS[name]), 1 << 18)
    assert seconds(redact.redact, hostile) <= MAX_RATIO_TO_ORDINARY_TEXT * seconds(redact.redact, ordinary)


def test_no_single_step_of_redaction_keeps_other_threads_waiting_for_long() -> None:
    """Regular expressions hold the interpreter's lock until the next match."""
    longest = 0.0
    done = threading.Event()

    def watch() -> None:
        nonlocal longest
        last = time.monotonic()
        while not done.wait(0.005):
            longest, last = max(longest, time.monotonic() - last), time.monotonic()

    watcher = threading.Thread(target=watch)
    watcher.start()
    for name in ("JWT heads", "keywords only", "a command", "quoted names"):
        redact.redact(build_text(("", WHOLE_TEXTS[name]), 1 << 17))
    done.set()
    watcher.join()
    assert longest < 2.0  # an eighth of a mebibyte, on a busy machine


@pytest.mark.parametrize("prefix", ["md5", "sha1", "aes", "v1", "uuid", "base64"])
def test_whether_a_value_is_a_secret_is_decided_at_once(prefix: str) -> None:
    for filler in ("1", "1a", "_", "-1", "a1"):
        value = (prefix + filler * 500)[:499] + "%"
        for kind in ("PASSWORD", "TOKEN", "API_KEY", "SECRET"):
            assert seconds(lambda text, kind=kind: keyword_secrets.is_secret(text, kind), value) < 0.05


@pytest.mark.parametrize(
    "make_document",
    [
        lambda n: {f"a{i}@example.org": 0 for i in range(n)},  # keys that become equal
        lambda n: {"a": [f"password='x{i}!secret'" for i in range(n)]},  # secrets replaced everywhere
        lambda n: {"a": " ".join(f"AC{i:032d}" for i in range(n))},
        lambda n: {"password": {f"k{i}": f"v{i}!abc" for i in range(n)}},
        lambda n: [{"name": "token", "value": f"x{i}"} for i in range(n)],
    ],
)
def test_redaction_of_a_hostile_document_takes_linear_time(make_document: Callable[[int], object]) -> None:
    def spent(count: int) -> float:
        document = make_document(count)
        return cpu_seconds(lambda: redact.redact_document(document))

    assert_linear(spent, 1000)


def parse(text: str) -> object:
    try:
        return Sanitizer().clean_document(parse_json(text.encode()), "document")
    except ProblemDetail as problem:
        return problem


@pytest.mark.parametrize(
    "make_json",
    [
        lambda n: json.dumps("\\" * n),
        lambda n: '"' + "\\\\" * (n // 2) + '"',
        lambda n: '"' + "\\u0041" * (n // 6) + '"',
        lambda n: "[" * n,
        lambda n: "[" * 60 + "[]," * (n // 3) + "0" + "]" * 60,
        lambda n: "[" + "[],[[[]]]," * (n // 10) + "0]",
        lambda n: "{" + ",".join(f'"{i}":{{}}' for i in range(n // 10)) + "}",
        lambda n: "{" + ",".join('"a":0' for _ in range(n // 6)) + "}",
        lambda n: "[" + ",".join("9" * 4000 for _ in range(n // 4000)) + "]",
        lambda n: "9" * n,
        lambda n: "1." + "9" * n,
        lambda n: '"' + "\ud7ff" * (n // 3) + '"',
    ],
)
def test_reading_a_hostile_body_takes_linear_time(make_json: Callable[[int], str]) -> None:
    def standard_library(text: str) -> None:
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(text, object_pairs_hook=dict)

    assert_linear(
        lambda length: seconds(parse, make_json(length)),
        1 << 16,
        reference=lambda length: seconds(standard_library, make_json(length)),
    )
