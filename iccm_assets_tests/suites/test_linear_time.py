"""Reading hostile text takes time in proportion to its size; see `growth` for the bound (J2)."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from iccm_assets.curation.code_fingerprints import ast_hash
from iccm_assets.errors import IccmError
from iccm_assets.sandbox import pytest_suites, python_source
from iccm_assets.sandbox import sandbox as sandbox_module
from iccm_assets.sandbox.sandbox import CaseOutcome
from iccm_assets.scoring import api_compatibility
from iccm_assets.settings import load_settings
from iccm_assets.suites import suspicions, test_suites
from iccm_assets.suites.case_verdicts import CaseResult, classify_case
from iccm_assets.suites.input_pool import build_pool
from iccm_assets.suites.mutants import generate_mutants, select_mutants
from iccm_assets.suites.outside_effects import choose_targets
from iccm_assets.suites.planned_checks import count_checks
from iccm_assets.suites.raised_classes import RaisedClasses
from iccm_assets.suites.recorded_inputs import InputSearch
from iccm_assets.suites.recorded_source import leave_out_tests
from iccm_assets.suites.source_edits import SourceText
from iccm_assets.suites.source_variants import build_stub, insert_all_probes, insert_probes, list_results
from iccm_assets.suites.suite_values import InvalidValueError, check_encoded
from iccm_assets.suites.value_differences import diff
from iccm_assets_tests.factories.growth import GROWTH, assert_linear, cpu_seconds

pytestmark = pytest.mark.slow

REFUSALS = (IccmError, InvalidValueError, RecursionError, MemoryError)
MEBIBYTE = 1 << 20

# Repeated up to a size: parts of every pattern, and what parsers nest or collect.
PIECES = [
    "__eq__ ", "def __eq__(", "def __eq__(): ", "def __eq__(a, b) ->", "__eq__\n", " return True",
    "import ", "import a, ", "from x ", "import\t", "json.dumps ", "setattr( ", "setattr(json",
    "builtins.a", "builtins. ", "__builtins__ ", "sys.modules ", "sys.modules.", "test_", "_test",
    "_test.py ",
    "'/etc", "/etc/", "'/run/", "/var/run/", "os.environ", "inspect.", "((((", "[", "{", "a.",
    "a+", "lambda:",
    "not ", "f'{", "'", '"\""', "\\\n", "\n", "\r", " ", "if x:\n ", "a,", "@a\n", "a if b else ", "a<b<",
    "0x", "é", "\x00", "A=B\n", "class A(A):0\n", "type('A',(B,),{})\n", "def f(a=1):\n    return a\n",
    "class A(B):\n    pass\n", "def test_a(): 0\n", "@overload\ndef f(a): 0\n",
]  # fmt: skip


def repeated(piece: str) -> Callable[[int], str]:
    # Whole pieces: one that is cut may be a syntax error at one size, and is then read quickly.
    return lambda size: piece * (size // len(piece))


def numbered(form: str) -> Callable[[int], str]:
    return lambda size: "".join(form.format(n=number) for number in range(size // len(form)))


def wrapped(start: str, piece: str, end: str) -> Callable[[int], str]:
    return lambda size: start + piece * (size // len(piece)) + end


SHAPES: dict[str, Callable[[int], str]] = {
    **{f"repeated {piece!r}": repeated(piece) for piece in PIECES},
    **{
        f"numbered {form!r}": numbered(form)
        for form in (
            "def f{n}(a, b=1):0\n", "class A{n}:\n def f(self):0\n", "A{n}=1\n", "x{n}:int=0\n",
            "class Test{n}(a.b):\n def test_(s):0\n", "if x:\n A{n}=1\n", "A{n}=A\n",
            "from a import b as c{n}\n", "__all__+=['a{n}']\n", "def f{n}(a):\n return a\nf{n}(1)\n",
            "class A{n}:\n def f(self,a): return a\nf({n})\n", "def f{n}():\n raise E{n}('x')\n",
        )
    },
    "an f-string of expressions": wrapped("x = f'", "{x}", "'\n"),
    "an f-string as a default": wrapped("def f(a=f'", "{x}", "'): 0\n"),
    "a tuple of names": wrapped("", "a,", "b = 1\n"),
    "assigned to many": wrapped("", "a=", "1\n"),
    "many bases": wrapped("class A(", "B,", "C): 0\n"),
    "a long base": wrapped("class T(", "a.", "TestCase):\n def test_a(s): 0\n"),
    "many parameters of one type": wrapped("def f(a: '", "A|", "B'): 0\n"),
    "many fields": wrapped("import dataclasses\n@dataclasses.dataclass\nclass A:\n", " x:int=0\n", ""),
    "many setters": wrapped("class A:\n @property\n def p(self):0\n", " @p.setter\n def p(self,v):0\n", ""),
    "many decorators": wrapped("", "@parametrize('', A)\n", "def test_a(): assert f(1)\n"),
    "a deep annotation": wrapped("def f(a: '", "list[", "'): return 1\n"),
    "many attributes of an instance": wrapped("class A:\n def __init__(self):\n", "  self.a=1\n", ""),
}  # fmt: skip


def assert_growth(read: Callable[[str], object], make: Callable[[int], str], size: int) -> None:
    def seconds(size: int) -> float:
        text = make(size)
        return cpu_seconds(lambda: read(text), REFUSALS)

    assert_linear(seconds, size // GROWTH, f"{make(80)[:80]!r}", cache_step=0.1)


FAILED = [CaseResult(0, "failed", "")]


def read_variants(text: str) -> None:
    """Do all that measuring a suite does with a source, and with a test file of the same text, outside."""
    source = SourceText.parse(text)
    if source is None:
        return
    for mutant in select_mutants(generate_mutants(source), source, 24):
        assert mutant.edit
    insert_probes(source, "probe")
    for result in list_results(source):
        build_stub(source, result)
    suite = SimpleNamespace(kind="pytest", cases=(), files={"test_a.py": text})
    build_pool(source, cast("test_suites.Suite", suite), "seed")
    suite.cases = [SimpleNamespace(test="test_a.py::test_a")]
    count_checks(cast("test_suites.Suite", suite))


def propose(text: str) -> None:
    """Do all that recording a suite does outside before anything runs."""
    source = SourceText.parse(text)
    if source is not None:
        targets, _ = choose_targets(source.tree)
        search = InputSearch(source, targets, (text,), "seed")
        search.propose_types(methods=False)
        insert_all_probes(source, "probe")


READERS: dict[str, Callable[[str], object]] = {
    "variants": read_variants,
    "fingerprint": ast_hash,
    "recorded inputs": propose,
    "recorded source": leave_out_tests,
    "suspicions": lambda text: suspicions.find_suspicious_behavior(text, FAILED, [], "pytest"),
    "imports": sandbox_module._imported_modules,
    "violations": lambda text: sandbox_module._parse_violations(text.encode("ascii", "replace")),
    "classes": lambda text: RaisedClasses((), text).bases,
    "planned tests": lambda text: pytest_suites.collect_tests({"test_a.py": text}),
    "interface": lambda text: api_compatibility.api_compatibility("def f(a): pass\n", text),
}


@pytest.mark.parametrize("reader", READERS)
def test_reading_source_takes_linear_time(reader, monkeypatch):
    # Else a shape with braces is searched for format strings at the larger size only.
    monkeypatch.setattr(python_source, "MAX_UNCHECKED_BRACES", 0)
    for make in SHAPES.values():
        size = api_compatibility.MAX_CHARACTERS // (
            4 if reader == "variants" else 1
        )  # much is done with them
        assert_growth(READERS[reader], make, size)


@pytest.mark.parametrize(
    "shape", ["__eq__ ", "def __eq__(", "setattr( ", "builtins.a", "_test", "import a, "]
)
def test_signs_take_linear_time_up_to_a_mebibyte(shape):
    assert_growth(READERS["suspicions"], repeated(shape), MEBIBYTE)
    assert_growth(READERS["imports"], repeated(shape), MEBIBYTE)


@pytest.mark.parametrize(
    "pattern", [pattern for pattern, _ in suspicions._SIGNS + suspicions._SIGNS_OF_FORGERY]
)
def test_every_sign_alone_takes_linear_time(pattern):
    for make in SHAPES.values():
        assert_growth(lambda text: suspicions._matching(((pattern, ""),), text), make, MEBIBYTE // 2)


ANSWERS: dict[str, Callable[[int], str]] = {
    "a list": lambda size: json.dumps(["v", ["l", [["n"]] * (size // 8)]]),
    "a set of close numbers": lambda size: json.dumps(
        ["v", ["S", [["f", (1.0 + number * 1e-12).hex()] for number in range(size // 40)]]]
    ),
    "a dict": lambda size: json.dumps(
        ["v", ["d", [[["i", f"{number:x}"], ["n"]] for number in range(size // 30)]]]
    ),
    "nested": lambda size: json.dumps(["v", ["l", [["t", [["n"]] * 10]] * (size // 100)]]),
    "a long text": lambda size: json.dumps(["v", ["s", "\x1b" * (size // 6)]]),
    "a long number": lambda size: json.dumps(["v", ["i", "f" * size]]),
    "classes": lambda size: json.dumps(["r", [["A", 0]] * (size // 10), "", 0]),
    "a message": lambda size: json.dumps(["r", [["object", 0]], "x" * size, 0]),
    "brackets": lambda size: "[" * size,
    "a number of JSON": lambda size: "1" * size,
}


@pytest.mark.parametrize("name", ANSWERS)
def test_comparing_an_answer_takes_linear_time(name):
    document = {"kind": "cases", "cases": [{"call": "f", "expect": [1]}]}
    case, limits = test_suites.parse_suite(document).cases[0], load_settings().judge

    def compare(text):
        return classify_case(case, CaseOutcome("answered", answer=text.encode(), imported=True), limits)

    assert_growth(compare, ANSWERS[name], MEBIBYTE // 2)


def test_two_sets_of_sets_that_nearly_agree_are_compared_in_little_time():
    def sets(offset):
        members = [
            ["F", [["f", (outer * 1000 + inner + offset).hex()] for inner in range(150)]]
            for outer in range(150)
        ]
        return check_encoded(["S", members])

    assert cpu_seconds(lambda: diff(sets(0.0), sets(1e-12))) < 1.0


@pytest.mark.parametrize(
    "make",
    [
        lambda size: "{" + ",".join(f'"a{number}":1' for number in range(size // 9)) + "}",
        lambda size: '{"a":' * (size // 5),
        lambda size: (
            '{"kind":"cases","cases":[' + ",".join(['{"call":"f","expect":[1]}'] * 900) + "]}" + " " * size
        ),
        lambda size: '{"kind":"cases","cases":[{"call":"' + "a." * (size // 2) + 'b","expect":1}]}',
    ],
)
def test_reading_a_suite_takes_linear_time(make, tmp_path):
    path = tmp_path / "suite.json"

    def read(text):
        path.write_text(text, encoding="utf-8")
        test_suites.load_suite_file(path)

    assert_growth(read, make, MEBIBYTE // 2)
