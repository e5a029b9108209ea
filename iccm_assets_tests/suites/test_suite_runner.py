"""The judge on honest implementations, verdict by verdict, and the command line around it."""

import json
import os
import subprocess
import sys
from textwrap import dedent

import pytest
import typer
from typer.testing import CliRunner

from iccm_assets.cli.judge import judge as judge_command
from iccm_assets.errors import SandboxUnavailableError
from iccm_assets.sandbox import bubblewrap
from iccm_assets.settings import load_settings
from iccm_assets.suites.case_verdicts import CaseResult
from iccm_assets.suites.suite_runner import run_suite, run_suites
from iccm_assets.suites.suspicions import find_suspicious_behavior
from iccm_assets.suites.test_suites import parse_suite
from iccm_assets_tests.factories.host_probe import assert_unchanged, snapshot
from iccm_assets_tests.factories.implementations import HONEST, PLAIN, SUITE


@pytest.fixture(scope="module")
def settings():
    return load_settings()


def verdicts(source, cases, settings):
    result = run_suite(dedent(source), parse_suite({"kind": "cases", "cases": cases}), settings)
    assert not result.reason
    return [case.verdict for case in result.results]


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_implementation_passes_fully_and_is_not_suspected(name, settings):
    before = snapshot()
    result = run_suite(HONEST[name], parse_suite(SUITE), settings)
    assert [(case.verdict, case.detail) for case in result.results] == [("passed", "")] * 5
    assert result.test_pass_rate == 1.0
    assert not result.suspect, result.violations
    assert_unchanged(before)


def test_the_pass_rate_counts_the_planned_cases(settings):
    source = "def add(a, b):\n    return a + b if a > 0 else 1 / 0\n"
    result = run_suite(source, parse_suite(SUITE), settings)
    assert [case.verdict for case in result.results] == ["passed", "error", "passed", "passed", "error"]
    assert result.test_pass_rate == 3 / 5
    assert result.results[1].detail == "ZeroDivisionError: division by zero (line 2)"
    assert result.results[4].detail == "the implementation defines no 'label'"


STACK = """
class Stack:
    made = []
    def __init__(self, limit=3):
        if limit < 1:
            raise ValueError("limit")
        self.items, self.limit = [], limit
        Stack.made.append(self)
    def push(self, item):
        if len(self.items) == self.limit:
            raise OverflowError("full")
        self.items.append(item)
        return self
    def pop(self):
        return self.items.pop()
    def all(self):
        return self.items
    def size(self):
        return len(self.items)
    def count(self):
        return len(Stack.made)
    class Deep:
        @staticmethod
        def answer():
            return (1, {2}, b"3", None)
"""


@pytest.mark.parametrize(
    ("case", "verdict"),
    [
        ({"new": "Stack", "steps": [{"call": "push", "args": [1]}, {"call": "pop", "expect": 1}]}, "passed"),
        ({"new": "Stack", "steps": [{"call": "push", "args": [1]}, {"call": "pop", "expect": 2}]}, "failed"),
        ({"new": "Stack", "kwargs": {"limit": 0}, "raises": "ValueError"}, "passed"),
        ({"new": "Stack", "kwargs": {"limit": 1}, "raises": "ValueError"}, "failed"),
        ({"new": "Stack", "args": [0], "steps": [{"call": "pop"}]}, "error"),
        (
            {
                "new": "Stack",
                "steps": [{"call": "pop", "raises": "IndexError"}, {"call": "size", "expect": 0}],
            },
            "passed",
        ),
        ({"new": "Stack", "steps": [{"call": "pop", "raises": "LookupError"}]}, "passed"),
        ({"new": "Stack", "steps": [{"call": "pop", "raises": "KeyError"}]}, "failed"),
        ({"new": "Stack", "steps": [{"call": "pop", "expect": 1}]}, "error"),
        ({"new": "Stack", "steps": [{"call": "peek", "expect": 1}]}, "error"),
        ({"new": "Queue", "steps": [{"call": "pop"}]}, "error"),
        # Each case starts from a fresh import.
        ({"new": "Stack", "steps": [{"call": "count", "expect": 1}]}, "passed"),
        # A step's return value is recorded as it was at that step.
        (
            {
                "new": "Stack",
                "steps": [
                    {"call": "all", "expect": []},
                    {"call": "push", "args": [{"$tuple": [1]}]},
                    {"call": "all", "expect": [{"$tuple": [1]}]},
                ],
            },
            "passed",
        ),
        (
            {"call": "Stack.Deep.answer", "expect": {"$tuple": [1, {"$set": [2]}, {"$bytes": "Mw=="}, None]}},
            "passed",
        ),
    ],
)
def test_cases_for_classes(case, verdict, settings):
    assert verdicts(STACK, [case], settings) == [verdict]


RAISERS = """
import json, decimal
class ShopError(Exception): pass
class Sold(ShopError, KeyError): pass
class ValueError(Exception): pass
def own(): raise ShopError("x")
def sub(): raise Sold("x")
def fake(): raise ValueError("not the builtin")
def parse(): json.loads("{")
def io(): open("nowhere")
def interrupt(): raise KeyboardInterrupt
def leave(): raise SystemExit(3)
def silent():
    class Odd(Exception):
        def __str__(self): raise RuntimeError
    raise Odd
def memory(): raise MemoryError
"""


GRAPH = """
class Node:
    def __init__(self, name, edges=None):
        self.name, self.edges = name, edges or []

    def link(self, other):
        self.edges.append(other)

class Copy(Node):
    pass

def meets(start, goal):
    seen, pending = set(), [start]
    while pending:
        node = pending.pop()
        if node is goal:
            return True
        if node not in seen:
            seen.add(node)
            pending += node.edges
    return False

def last(nodes):
    return nodes[-1]

def copied(nodes):
    return Node(nodes[-1].name, nodes[-1].edges)

def cut(node):
    node.edges.clear()

def linked(node):
    return [node.name, *(other.name for other in node.edges)]

def same(left, right):
    left.append(1)
    return left is right

class Walk:
    def __init__(self, node):
        self.node = node
    def step(self):
        self.node = self.node.edges[0]
        return self.node
"""
CIRCLE = {
    "a": {"$new": ["Node", ["a"], {}, {"edges": [{"$ref": "b"}]}]},
    "b": {"$new": ["Node", ["b"], {}, {"edges": [{"$ref": "a"}]}]},
    "c": {"$new": ["Node", ["c"]]},
}
A, B, C = ({"$ref": name} for name in "abc")
LINKED = {"$new": ["Node", ["a"], {}, {}, [["link", [{"$new": ["Node", ["b"]]}]]]]}


def describe_circle(**edges):
    """Return what the shared nodes are after a call that leaves them these edges."""
    edges = {"a": [B], "b": [A], "c": []} | edges
    return {name: {"$object": ["Node", {"name": name, "edges": edges[name]}]} for name in edges}


@pytest.mark.parametrize(
    ("case", "verdict"),
    [
        ({"call": "meets", "args": [A, B], "expect": True}, "passed"),
        ({"call": "meets", "args": [A, C], "expect": False}, "passed"),
        ({"call": "meets", "args": [A, {"$new": ["Node", ["b"]]}], "expect": False}, "passed"),
        ({"call": "linked", "args": [LINKED], "expect": ["a", "b"]}, "passed"),
        ({"call": "linked", "args": [{"$new": ["Node", ["a"]]}], "expect": ["a"]}, "passed"),
        ({"shared": {"a": LINKED}, "call": "linked", "args": [A], "expect": ["a", "b"]}, "passed"),
        ({"call": "last", "args": [[A, B]], "expect": B}, "passed"),
        ({"call": "last", "args": [[A, B]], "expect": A}, "failed"),
        ({"call": "copied", "args": [[A, B]], "expect": B}, "failed"),
        ({"call": "cut", "args": [A], "expect": None, "shared_after": describe_circle(a=[])}, "passed"),
        ({"call": "cut", "args": [A], "expect": None, "shared_after": describe_circle()}, "failed"),
        ({"call": "cut", "args": [A], "expect": None, "shared_after": describe_circle(a=[], b=[])}, "failed"),
        ({"new": "Walk", "args": [A], "steps": [{"call": "step", "expect": B}]}, "passed"),
        ({"new": "Walk", "args": [A], "steps": [{"call": "step", "expect": C}]}, "failed"),
    ],
)
def test_cases_whose_values_refer_to_each_other(case, verdict, settings):
    after = {"args_after": case["args"]} if "shared_after" in case else {}
    assert verdicts(GRAPH, [{**case, **after, "shared": CIRCLE}], settings) == [verdict]


def test_a_list_that_two_arguments_share_is_one_list(settings):
    own = {"call": "same", "args": [[], []], "expect": False}
    shared = {"shared": {"x": [0]}, "call": "same", "args": [{"$ref": "x"}] * 2, "expect": True}
    after = {"args_after": shared["args"], "shared_after": {"x": [0, 1]}}
    assert verdicts(GRAPH, [own, {**shared, **after}, own], settings) == ["passed"] * 3


def test_an_implementation_without_the_class_of_a_shared_value_fails(settings):
    case = {"call": "meets", "args": [A, B], "expect": True, "shared": CIRCLE}
    assert verdicts("def meets(start, goal):\n    return True\n", [case], settings) == ["error"]


@pytest.mark.parametrize(
    ("call", "raises", "verdict"),
    [
        ("own", "ShopError", "passed"),
        ("own", "Exception", "passed"),
        ("own", "KeyError", "failed"),
        ("sub", "ShopError", "passed"),
        ("sub", "Sold", "passed"),
        ("sub", "KeyError", "passed"),
        ("sub", "shop.Sold", "passed"),
        ("fake", "ValueError", "failed"),  # the name of a builtin means the builtin
        ("parse", "JSONDecodeError", "passed"),
        ("parse", "ValueError", "passed"),
        ("io", "FileNotFoundError", "passed"),
        ("io", "IOError", "passed"),
        ("interrupt", "KeyboardInterrupt", "passed"),
        ("leave", "SystemExit", "passed"),
        ("leave", "ValueError", "exited"),
        ("silent", "Odd", "passed"),
        ("memory", "ValueError", "out_of_memory"),
    ],
)
def test_exceptions_match_by_class_builtin_ones_by_identity(call, raises, verdict, settings):
    assert verdicts(RAISERS, [{"call": call, "raises": raises}], settings) == [verdict]


ANSWERS = """
from collections import Counter, OrderedDict, defaultdict, namedtuple
import enum
Point = namedtuple("Point", "x y")
class MyList(list): pass
class MyDict(dict):
    def items(self): return [("a", 1)]
class Level(enum.IntEnum):
    HIGH = 3
VALUES = {
    "counter": Counter("aab"), "ordered": OrderedDict(a=2, b=1), "default": defaultdict(int, a=2, b=1),
    "point": Point(1, 2), "list": MyList([1]), "dict": MyDict(), "enum": Level.HIGH,
    "generator": (x for x in "a"),
    "object": object(), "class": int, "complex": 1j, "array": bytearray(b"a"), "range": range(3),
}
def answer(name): return VALUES[name]
"""


@pytest.mark.parametrize(
    ("name", "expect", "verdict"),
    [
        ("counter", {"a": 2, "b": 1}, "passed"),
        ("ordered", {"b": 1, "a": 2}, "passed"),
        ("default", {"a": 2, "b": 1}, "passed"),
        ("point", {"$tuple": [1, 2]}, "passed"),
        ("list", [1], "failed"),
        ("dict", {"a": 1}, "failed"),
        ("enum", 3, "failed"),
        ("generator", ["a"], "failed"),
        ("object", None, "failed"),
        ("class", "int", "failed"),
        ("complex", 1, "failed"),
        ("array", {"$bytes": "YQ=="}, "failed"),
        ("range", [0, 1, 2], "failed"),
    ],
)
def test_only_plain_values_are_answers(name, expect, verdict, settings):
    assert verdicts(ANSWERS, [{"call": "answer", "args": [name], "expect": expect}], settings) == [verdict]


@pytest.mark.parametrize(
    "source", ["def add(a, b:\n", "\0", "import json.nowhere\n", "1 / 0\n", "\ud800 = 1", "(" * 500, ""]
)
def test_source_that_cannot_be_imported_is_an_error_in_every_case(source, settings):
    result = run_suite(source, parse_suite(SUITE), settings)
    assert {case.verdict for case in result.results} == {"error"}
    assert result.test_pass_rate == 0.0


def test_a_path_from_the_inputs_may_be_opened(settings):
    source = """
    def first_line(path):
        try:
            with open(path) as file:
                return file.readline()
        except FileNotFoundError:
            return "none"
    """
    assert verdicts(
        source, [{"call": "first_line", "args": ["/etc/app.conf"], "expect": "none"}], settings
    ) == ["passed"]


def test_the_same_source_gets_the_same_hash_seed_every_time(settings):
    source = "def order():\n    return list({'a', 'b', 'c', 'd', 'e'})\n"
    suite = parse_suite({"kind": "cases", "cases": [{"call": "order", "expect": []}]})
    assert len({run_suite(source, suite, settings).results[0].detail for _ in range(3)}) == 1


def test_cases_do_not_depend_on_the_quick_and_slow_ones_before_them(settings):
    source = """
        import time
        calls = []
        def order():
            calls.append(1)
            return [number for number in {8, 0}], len(calls)
        def slow():
            time.sleep(0.04)
            return order()
    """
    cases = [{"call": name, "expect": {"$tuple": [[8, 0], 1]}} for name in ("order", "order", "slow") * 2]
    assert verdicts(source, cases, settings) == ["passed"] * 6


def test_a_limit_used_up_between_quick_cases_ends_the_suite(settings):
    source = "import os\ndef f(n):\n    text = b'x' * n\n    while text: text = text[os.write(1, text):]\n"
    cases = [{"call": "f", "args": [size], "expect": None} for size in (1, 600_000, 448_575, 1, 1)]
    result = run_suite(source, parse_suite({"kind": "cases", "cases": cases}), settings)
    assert [case.verdict for case in result.results] == ["passed"] * 3 + ["not_run"] * 2
    assert result.results[-1].detail == "the implementation's output was used up by case 2"


def test_inside_there_is_no_environment_and_no_host_file(settings, monkeypatch):
    monkeypatch.setenv("PLANTED_SECRET", "s3cret")
    source = """
    import os, sys
    def look():
        return [dict(os.environ), os.listdir("/dev"), os.getuid() > 0, os.uname().nodename, sys.argv,
                [path for path in ("/etc", "/proc", "/home", "/var", "/sys") if os.path.exists(path)]]
    """
    expect = [
        {},
        ["full", "null", "random", "shm", "urandom", "zero"],
        True,
        "sandbox",
        ["implementation"],
        [],
    ]
    result = run_suite(
        dedent(source.replace('os.listdir("/dev")', 'sorted(os.listdir("/dev"))')),
        parse_suite({"kind": "cases", "cases": [{"call": "look", "expect": expect}]}),
        settings,
    )
    assert result.results[0].detail == ""
    assert result.test_pass_rate == 1.0


def test_many_suites_run_concurrently_in_order_and_leave_nothing(settings):
    before = snapshot()
    suite = parse_suite({"kind": "cases", "cases": [{"call": "f", "expect": 0}]})
    work = [(f"def f():\n    return {number % 3}\n", suite) for number in range(24)]
    rates = [result.test_pass_rate for result in run_suites(iter(work), settings, workers=6)]
    assert rates == [1.0, 0.0, 0.0] * 8
    assert_unchanged(before)


def test_running_many_suites_can_be_abandoned_half_way(settings):
    before = snapshot()
    results = run_suites(((PLAIN, parse_suite(SUITE)) for _ in range(50)), settings, workers=2)
    assert next(results).test_pass_rate == 1.0
    results.close()
    assert_unchanged(before)


# ---- the command -----------------------------------------------------------------------------------


def run_command(tmp_path, implementation, suite, *options, **environment):
    (tmp_path / "implementation.py").write_text(implementation, encoding="utf-8")
    (tmp_path / "suite.json").write_text(suite, encoding="utf-8")
    program = "from iccm_assets.cli.main import main; main()"
    return subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            "judge",
            "--implementation",
            str(tmp_path / "implementation.py"),
            "--suite",
            str(tmp_path / "suite.json"),
            *options,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "ICCM_HOME": str(tmp_path), **environment},
    )


def test_the_command_prints_stable_json_and_exits_0_for_every_verdict(tmp_path):
    for implementation, rate in ((PLAIN, 1.0), ("import os\nos._exit(7)\n", 0.0)):
        done = run_command(tmp_path, implementation, json.dumps(SUITE), "--json")
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["test_pass_rate"] == rate
        assert [case.keys() for case in result["results"]] == [{"case", "verdict", "detail"}] * 5
        assert result.keys() >= {"test_pass_rate", "results", "suspect", "layers"}
        assert result["layers"]["seccomp"] == "ok"


def test_the_command_explains_a_broken_suite_in_one_line(tmp_path):
    done = run_command(tmp_path, PLAIN, '{"kind": "cases", "cases": [{"call": "f"}]}')
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "case 0" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_command_explains_a_missing_file_in_one_line(tmp_path):
    done = run_command(tmp_path, PLAIN, json.dumps(SUITE), "--implementation", str(tmp_path / "none.py"))
    assert done.returncode == 1
    assert "none.py: No such file" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_command_reads_source_as_python_does(tmp_path):
    done = run_command(tmp_path, "\ufeff" + PLAIN, json.dumps(SUITE), "--json")
    assert json.loads(done.stdout)["test_pass_rate"] == 1.0


def test_the_command_without_a_sandbox_has_no_verdict_and_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(bubblewrap, "_find_wheel", lambda: None)
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda *args, **kwargs: None)
    (tmp_path / "implementation.py").write_text(PLAIN, encoding="utf-8")
    (tmp_path / "suite.json").write_text(json.dumps(SUITE), encoding="utf-8")
    app = typer.Typer()
    app.command("judge")(judge_command)
    app.callback()(lambda: None)
    files = ["--implementation", str(tmp_path / "implementation.py"), "--suite", str(tmp_path / "suite.json")]
    done = CliRunner().invoke(app, ["judge", *files, "--json"])
    assert json.loads(done.stdout)["test_pass_rate"] is None
    assert isinstance(done.exception, SandboxUnavailableError)


def test_the_command_prints_a_table_for_people(tmp_path):
    done = run_command(tmp_path, PLAIN.replace("item", "thing"), json.dumps(SUITE))
    assert done.returncode == 0
    assert "0.800 (4 of 5)" in done.stdout
    assert "expected 'item-7', got 'thing-7'" in done.stdout


def test_an_implementations_text_cannot_garble_or_break_the_output(tmp_path):
    hostile = r"raise ValueError('\ud800 \x1b[31m [/red] \u202e é')"
    done = run_command(tmp_path, f"def label(n):\n    {hostile}\n", json.dumps(SUITE))
    assert done.returncode == 0
    assert "\x1b[31m" not in done.stdout
    assert r"ValueError: \ud800 \x1b[31m [/red] \u202e é" in done.stdout


def test_honest_exceptions_may_combine_two_kinds(settings):
    source = """
class NotFound(KeyError, ValueError):
    pass
class Every(NotFound, TypeError):
    pass
def two():
    raise NotFound
def three():
    raise Every
"""
    names = ("KeyError", "ValueError", "LookupError", "NotFound")
    cases = [{"call": call, "raises": name} for call in ("two", "three") for name in names]
    assert verdicts(source, cases, settings) == ["passed"] * 4 + ["failed"] * 4


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import sys\ndef add(a, b):\n    sys.setprofile(print)\n", "traces the code around it"),
        ("import sys\nsys.modules['json'] = None\n", "manipulates imports"),
        ("import os\ndef add(a, b):\n    return os.pidfd_open(1)\n", "accesses other processes"),
    ],
)
def test_signs_in_the_source_name_a_failure(source, words):
    assert words in find_suspicious_behavior(source, [CaseResult(0, "failed", "")], [])
    assert find_suspicious_behavior(source, [CaseResult(0, "passed", "")], []) == ()


# ---- the kind pytest -------------------------------------------------------------------------------

TESTS = """
import pytest, implementation, solution
from helpers.tools import three

def test_the_two_names_are_one_module():
    assert implementation is solution

@pytest.mark.parametrize(("a", "b"), [(1, 2), (0, 3)])
def test_all_sets(a, b, expected):
    assert solution.add(a, b) == expected == three

@pytest.mark.parametrize(("a", "b"), [(1, 2), (1, 1)])
def test_one_set_fails(a, b):
    assert solution.add(a, b) == 3

@pytest.mark.skip
def test_skipped():
    pass

class TestThing:
    def test_method(self, tmp_path):
        with pytest.raises(TypeError):
            solution.add(1, None)
"""
FILES = {
    "test_add.py": TESTS,
    "conftest.py": "import pytest\n@pytest.fixture\ndef expected():\n    return 3\n",
    "helpers/tools.py": "three = 3\n",
}
CHEATS = {
    "leaves": ("import os\nos._exit(0)\n", "exited", ""),
    "leaves from a thread": (
        "import os, threading, time\nthreading.Thread(target=os._exit, args=(0,)).start()\ntime.sleep(9)\n",
        "exited",
        "ends its process",
    ),
    # These are wrong and pass: documented as a limit of this kind of suite, and marked as suspect.
    "equal to everything": (
        "class Any:\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return Any()\n",
        "passed",
        "equal to everything",
    ),
    "patches pytest": (
        "import _pytest.runner as r\nmade = r.CallInfo.from_call.__func__\n"
        "r.CallInfo.from_call = classmethod(lambda c, f, when, reraise=None: made(c, lambda: None, when))\n"
        "def add(a, b):\n    return 0\n",
        "passed",
        "refers to the test runner",
    ),
}


def test_a_pytest_suite_runs_and_is_marked_as_weaker_evidence(settings):
    before = snapshot()
    result = run_suite(PLAIN, parse_suite({"kind": "pytest", "files": FILES}), settings)
    assert [case.verdict for case in result.results] == ["passed", "passed", "failed", "failed", "passed"]
    assert "skipped" in result.results[3].detail
    assert result.test_pass_rate == 3 / 5
    assert result.evidence == "pytest"
    assert not result.suspect
    assert run_suite(PLAIN, parse_suite(SUITE), settings).evidence == "cases"
    assert_unchanged(before)


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_on_a_pytest_suite_fail_or_are_marked(name, settings):
    source, verdict, suspicion = CHEATS[name]
    files = {"test_add.py": "from solution import add\ndef test_add():\n    assert add(1, 2) == 3\n"}
    result = run_suite(source, parse_suite({"kind": "pytest", "files": files}), settings)
    assert result.results[0].verdict == verdict, result.results
    assert result.suspect
    assert any(suspicion in violation for violation in result.violations)


def run_batch(tmp_path, lines, *options):
    path = tmp_path / "batch.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    program = "from iccm_assets.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, "judge", "--batch", str(path), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "ICCM_HOME": str(tmp_path)},
    )


def line(line_id, implementation=PLAIN, suite=SUITE):
    return json.dumps({"id": line_id, "implementation": implementation, "suite": suite})


def test_a_batch_gives_one_result_per_line_in_order_and_the_same_as_one_by_one(tmp_path):
    implementations = [PLAIN, "import os\nos._exit(7)\n", PLAIN.replace("item", "thing"), ""] * 3
    done = run_batch(tmp_path, [line(n, source) for n, source in enumerate(implementations)], "--json")
    assert done.returncode == 0, done.stderr
    results = [json.loads(text) for text in done.stdout.splitlines()]
    assert [result["id"] for result in results] == list(range(12))
    single = {
        source: json.loads(run_command(tmp_path, source, json.dumps(SUITE), "--json").stdout)
        for source in set(implementations)
    }
    for source, result in zip(implementations, results, strict=True):
        alone = single[source]
        assert result.keys() == {"id", *alone} and result["layers"].keys() == alone["layers"].keys()
        same = alone.keys() - {"duration_ms", "layers"}  # the layers name the uid of each sandbox
        assert {name: result[name] for name in same} == {name: alone[name] for name in same}


def test_a_line_of_a_batch_that_cannot_be_judged_says_why_and_loses_no_other(tmp_path):
    broken = {"kind": "cases", "cases": [{"call": "f"}]}
    lines = [line("a", suite=broken), line("b"), "", json.dumps({"id": "c"}), line("d", suite=None)]
    done = run_batch(tmp_path, lines, "--json")
    results = [json.loads(text) for text in done.stdout.splitlines()]
    assert [(result["id"], result["test_pass_rate"]) for result in results] == [
        ("a", None), ("b", 1.0), ("c", None), ("d", None),
    ]  # fmt: skip
    assert "line 1: case 0" in results[0]["reason"] and "line 4: needs `id`" in results[2]["reason"]
    assert done.returncode == 1 and "3 of 4 lines have no verdict" in done.stderr


@pytest.mark.parametrize(
    ("content", "message"), [("{", "line 1: not JSON"), ("[1]", "line 1: not a JSON object")]
)
def test_a_batch_that_is_no_file_of_json_lines_is_one_line(tmp_path, content, message):
    done = run_batch(tmp_path, [content])
    assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_batch_excludes_the_options_of_a_single_judgment(tmp_path):
    done = run_batch(tmp_path, [line(1)], "--suite", "x")
    assert done.returncode == 2 and "either --implementation and --suite, or --batch" in done.stderr
