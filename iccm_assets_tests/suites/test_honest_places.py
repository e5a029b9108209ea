"""Honest code looks for files and hosts that are not there, and is neither forbidden nor suspect. (J2)"""

from textwrap import dedent

import pytest

from iccm_assets.settings import load_settings
from iccm_assets.suites.suite_runner import run_suite
from iccm_assets.suites.test_suites import parse_suite

HONEST = {
    "configuration at fixed places": (
        """
        import configparser, os
        config = configparser.ConfigParser()
        config.read(["/etc/app/app.conf", "/etc/app.ini", "/usr/local/etc/app.ini", "/opt/app.ini",
                     os.path.expanduser("~/.app.ini"), os.path.expanduser("~/.config/app.ini"), "app.ini"])
        def f(): return config.get("server", "port", fallback="80")
        """,
        "80",
    ),
    "configuration of other kinds": (
        """
        import json, os, pathlib, tomllib
        def load(path, parse, mode):
            try:
                with open(path, mode) as file: return parse(file)
            except OSError: return {}
        def f():
            paths = ("/data/settings.json", "/var/lib/app/state.json", "/mnt/share/x.json")
            found = [load("/etc/app/config.toml", tomllib.load, "rb")]
            found += [load(path, json.load, "r") for path in paths]
            return [found, os.path.exists("/etc/app"), pathlib.Path("/run/app.pid").exists()]
        """,
        [[{}] * 4, False, False],
    ),
    "a log at a fixed place": (
        """
        import logging
        def f():
            try:
                with open("/var/log/app.log", "a") as log: log.write("x")
            except OSError: pass
            try: logging.getLogger().addHandler(logging.FileHandler("/var/log/app/app.log"))
            except OSError: return "no log"
        """,
        "no log",
    ),
    "folders at fixed places": (
        """
        import glob, os
        def f():
            try: os.listdir("/var/lib/app")
            except OSError: pass
            try: os.chdir("/data/in")
            except OSError: pass
            return [glob.glob("/etc/app/*.conf"), list(os.walk("/opt/app/plugins"))]
        """,
        [[], []],
    ),
    "its own host": (
        """
        import socket
        def address(call):
            try: return call()
            except OSError: return "127.0.0.1"
        def f():
            name = socket.gethostname()
            return [address(lambda: socket.gethostbyname(name)) != "", address(socket.getfqdn) != "",
                    bool(address(lambda: socket.getaddrinfo("localhost", 80)))]
        """,
        [True, True, True],
    ),
    "hosts of an inner network": (
        """
        import socket
        def f():
            for name in ("db", "redis.internal", "printer.local", "api.test", b"cache"):
                try: socket.gethostbyname(name)
                except OSError: continue
            return 1
        """,
        1,
    ),
    "json with a default": (
        """
        import datetime, functools, json
        original = json.dumps
        def dumps(value, **options): return original(value, default=str, **options)
        json.dumps = dumps
        json.loads = functools.partial(json.loads, parse_float=str)
        def f(): return json.loads(json.dumps({"day": datetime.date(2024, 1, 2), "x": 1.5}))
        """,
        {"day": "2024-01-02", "x": "1.5"},
    ),
    "json with spaces": (
        """
        import json
        dump, load = json.dump, json.load
        json.dump = lambda value, file, **options: dump(value, file, indent=4, sort_keys=True, **options)
        json.load = lambda file: load(file)
        def f(): return 1
        """,
        1,
    ),
    "a read-only view of a dict": (
        """
        import types, collections
        def f():
            return [types.MappingProxyType({"a": 1}), types.MappingProxyType(collections.OrderedDict(b=(1,)))]
        """,
        [{"a": 1}, {"b": {"$tuple": [1]}}],
    ),
    "a byte order mark": ("\ufeffdef f(): return 1\n", 1),
}


def judge(source, expect):
    suite = parse_suite({"kind": "cases", "cases": [{"call": "f", "expect": expect}]})
    return run_suite(dedent(source), suite, load_settings())


@pytest.mark.parametrize("name", HONEST)
def test_honest_code_that_looks_for_what_is_not_there_passes_unsuspected(name):
    result = judge(*HONEST[name])
    assert [(case.verdict, case.detail) for case in result.results] == [("passed", "")]
    assert not result.suspect, result.violations


@pytest.mark.parametrize("name", ["configuration at fixed places", "a log at a fixed place"])
def test_a_path_that_is_not_there_is_no_sign_of_a_wrong_answer_either(name):
    source, _ = HONEST[name]
    result = judge(source, "something else")
    assert result.results[0].verdict == "failed"
    assert not result.suspect, result.violations


STANDARD_OBJECTS = [
    "collections.deque([1])", "collections.UserDict(a=1)", "collections.ChainMap({})",
    "decimal.Decimal(1)", "datetime.date(2024, 1, 2)", "pathlib.Path('a')", "array.array('i', [1])",
    "fractions.Fraction(1, 2)", "uuid.UUID(int=1)", "slice(1)",
    "types.MappingProxyType(collections.UserDict(a=1))", "ipaddress.ip_address('::1')",
]  # fmt: skip


@pytest.mark.parametrize("value", STANDARD_OBJECTS)
def test_an_object_of_the_standard_library_is_no_value_and_no_suspicion(value):
    modules = (
        "array, collections, dataclasses, datetime, decimal, fractions, ipaddress, pathlib, re, types, uuid"
    )
    source = f"import {modules}\n@dataclasses.dataclass\nclass Point:\n    x: int\ndef f(): return {value}\n"
    result = judge(source, [1])
    assert result.results[0].verdict == "failed"
    assert "an object of type" in result.results[0].detail
    assert not result.suspect, result.violations


@pytest.mark.parametrize(
    ("value", "description"),
    [
        ("{}.keys()", "an iterator over []"),
        ("range(3)", "an iterator over [0, 1, 2]"),
        ("types.SimpleNamespace(a=1)", "SimpleNamespace(a=1)"),
        ("Point(1)", "Point(x=1)"),
        ("Color.RED", "Color.RED"),
    ],
)
def test_an_object_that_a_suite_can_describe_is_no_suspicion_either(value, description):
    source = (
        "import dataclasses, enum, types\n@dataclasses.dataclass\nclass Point:\n    x: int\n"
        f"class Color(enum.Enum):\n    RED = 1\ndef f(): return {value}\n"
    )
    result = judge(source, [1])
    assert result.results[0].detail == f"expected [1], got {description}"
    assert not result.suspect, result.violations


@pytest.mark.parametrize(
    "made",
    [
        "class E:\n    def __eq__(self, other): return 1 == 1\n",
        "class B:\n    def __eq__(self, other): return 1 == 1\nclass E(B): pass\n",
        "E = type('E', (int,), {'__e' + 'q__': lambda self, other: 1 == 1})\n",
        "class E:\n    def __init__(self): self.value = 3\n    def __eq__(self, other): return 1 == 1\n",
        "import functools\nclass E:\n    __eq__ = functools.partialmethod(lambda *a: 1 == 1)\n",
    ],
)
def test_an_equality_of_the_implementation_is_still_suspect(made):
    result = judge(made + "def f(): return E()\n", 3)
    assert result.results[0].verdict == "failed"
    assert any("equality" in violation for violation in result.violations)


@pytest.mark.parametrize(
    "body",
    [
        "open('/etc/shadow')",
        "open('/root/.ssh/id_rsa')",
        "open('/home/user/notes.txt')",
        "open('/opt/app/.env')",
        "open('/proc/self/environ')",
        "os.listdir('/')",
        "os.listdir('/etc')",
        "os.chdir('/root')",
        "os.symlink('/etc/passwd', 'x')",
        "socket.gethostbyname('example.com')",
        "socket.getaddrinfo('db.example.com', 80)",
        "socket.gethostbyaddr('8.8.8.8')",
    ],
)
def test_what_no_honest_code_looks_for_is_still_forbidden(body):
    source = f"import os, socket\ndef f():\n    try: {body}\n    except OSError: pass\n    return 1\n"
    assert judge(source, 1).results[0].verdict == "forbidden"
