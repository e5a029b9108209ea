"""Code that imports a package which the judge lacks is inconclusive: not failed, not passed, not suspect."""

import json
from textwrap import dedent

import pytest
import typer
from typer.testing import CliRunner

from iccm_assets.cli.judge import judge as judge_command
from iccm_assets.errors import MissingPackageError
from iccm_assets.scoring.reconstruction import Reconstruction
from iccm_assets.scoring.sandbox_alert import _find_reason
from iccm_assets.scoring.scoring import ScoringTask, _score_judged, aggregate
from iccm_assets.settings import load_settings
from iccm_assets.suites.missing_dependencies import find_missing_package, find_reported_package
from iccm_assets.suites.suite_runner import run_suite
from iccm_assets.suites.test_suites import parse_suite
from iccm_assets_tests.factories.shop_suite import calls, make_cases, make_pytest

DOUBLE = make_cases(*calls("double", (1, 2), (2, 4)))
MISSING = "missing_dependency"
TESTS = """
    import implementation
    def test_double():
        assert implementation.double(1) == 2
    def test_negative():
        assert implementation.double(-1) == -2
    """


@pytest.fixture(scope="module")
def settings():
    return load_settings()


def judge(source, document, settings):
    return run_suite(dedent(source), parse_suite(document), settings)


def verdicts(result):
    return [case.verdict for case in result.results]


INCONCLUSIVE = {
    "at import": "import numpy\ndef double(x): return x * 2",
    "a submodule": "import numpy.linalg\ndef double(x): return x * 2",
    "from": "from numpy import array\ndef double(x): return x * 2",
    "in a function": "def double(x):\n    import numpy\n    return x * 2",
    "by name": "import importlib\nn = importlib.import_module('numpy.linalg')\ndef double(x): return x * 2",
    "raised by the source itself": (
        "def double(x):\n    raise ModuleNotFoundError(\"No module named 'numpy'\", name='numpy')"
    ),
    "with signs that explain failures": "import os, numpy\nHOME = os.environ\ndef double(x): return x * 2",
}


@pytest.mark.parametrize("document", [DOUBLE, make_pytest(TESTS)], ids=["cases", "pytest"])
@pytest.mark.parametrize("name", INCONCLUSIVE)
def test_a_missing_package_is_neither_a_failure_nor_a_pass(name, document, settings):
    result = judge(INCONCLUSIVE[name], document, settings)
    assert verdicts(result) == [MISSING, MISSING]
    assert result.test_pass_rate is None
    assert result.missing_packages == ("numpy",)
    assert "numpy, which the judge does not have; the fix is" in result.reason
    assert not result.suspect, result.violations


def test_one_case_that_needs_a_package_makes_the_whole_result_inconclusive(settings):
    source = """
        def double(x):
            if x > 1:
                import numpy
            return x * 2
        """
    result = judge(source, DOUBLE, settings)
    assert (verdicts(result), result.test_pass_rate) == (["passed", MISSING], None)


def test_every_missing_package_is_named_once(settings):
    source = """
        def double(x):
            if x > 1:
                import pandas
            import numpy
        """
    document = make_cases(*calls("double", (1, 2), (2, 4), (0, 0)))
    assert judge(source, document, settings).missing_packages == ("numpy", "pandas")


def test_a_step_and_a_constructor_that_need_a_package_are_inconclusive(settings):
    source = """
        class Box:
            def __init__(self, n=0):
                if n:
                    import numpy
            def add(self):
                import pandas
        """
    document = make_cases(
        {"new": "Box", "args": [1]}, {"new": "Box", "steps": [{"call": "add", "expect": 1}]}
    )
    document["cases"][0]["raises"] = "ValueError"
    assert verdicts(judge(source, document, settings)) == [MISSING, MISSING]


CONCLUSIVE = {
    "a fallback": (
        "try:\n    import numpy\nexcept ImportError:\n    numpy = None\ndef double(x): return x * 2",
        "passed",
    ),
    "a module of the standard library that was removed": (
        "import sys\nsys.meta_path.clear()\nsys.path.clear()\nimport wave\ndef double(x): return x * 2",
        "error",
    ),
    "a module that a package does not have": ("import xml.nowhere\ndef double(x): return x * 2", "error"),
    "itself": ("import solution\ndef double(x): return x * 2", "error"),
    "the judge": ("import iccm_assets.suites\ndef double(x): return x * 2", "error"),
    "a module that it made up": (
        "import sys, types\nsys.modules['made'] = types.ModuleType('made')\nimport made.part\n"
        "def double(x): return x * 2",
        "error",
    ),
    "a name that is not in a module": ("from json import nowhere\ndef double(x): return x * 2", "error"),
    "a class of its own": (
        "class ModuleNotFoundError(Exception): pass\n"
        "def double(x): raise ModuleNotFoundError(\"No module named 'numpy'\")",
        "error",
    ),
    "the words as a value": (
        "def double(x): return \"ModuleNotFoundError: No module named 'numpy'\"",
        "failed",
    ),
}


@pytest.mark.parametrize("name", CONCLUSIVE)
def test_what_is_no_missing_package_keeps_its_verdict(name, settings):
    source, verdict = CONCLUSIVE[name]
    result = judge(source, DOUBLE, settings)
    assert verdicts(result) == [verdict] * 2
    assert result.test_pass_rate == float(verdict == "passed")
    assert not result.missing_packages


def test_an_expected_exception_is_a_pass_and_a_module_of_the_inputs_is_no_package(settings):
    source = "import importlib\ndef load(name): return importlib.import_module(name).__name__"
    document = make_cases(
        {"call": "load", "args": ["nowhere"], "raises": "ModuleNotFoundError"},
        {"call": "load", "args": ["nowhere"], "expect": "nothing"},
        {"call": "load", "args": ["json"], "expect": "json"},
    )
    result = judge(source, document, settings)
    assert (verdicts(result), result.test_pass_rate) == (["passed", "error", "passed"], 2 / 3)


def test_a_module_of_the_suite_is_no_package(settings):
    document = make_pytest(TESTS)
    document["files"]["helpers/values.py"] = "TWO = 2\n"
    source = "import os\nimport values\ndef double(x): return x * 2"
    assert verdicts(judge(source, document, settings)) == ["error", "error"]


def test_tests_that_need_a_package_are_inconclusive(settings):
    result = judge("def double(x): return 2 * x", make_pytest("import numpy\n" + dedent(TESTS)), settings)
    assert (verdicts(result), result.test_pass_rate) == ([MISSING, MISSING], None)
    assert result.reason.startswith("it or its tests import numpy, ")


def test_code_that_is_suspect_as_well_remains_suspect(settings):
    result = judge("import socket\nsocket.socket()\nimport numpy\ndef double(x): return 2", DOUBLE, settings)
    assert result.suspect


def test_the_member_is_inconclusive_and_the_quorum_decides(settings):
    suite = parse_suite(DOUBLE)
    task = ScoringTask("a text", suite)
    sources = {"a": "import numpy", "b": "def double(x): return x * 2", "c": "def double(x): return 2"}
    members = [
        _score_judged(Reconstruction(name, "answered", source), run_suite(source, suite, settings), task)
        for name, source in sources.items()
    ]
    assert [(member.status, member.test_pass_rate) for member in members] == [
        ("inconclusive", None),
        ("scored", 1.0),
        ("scored", 0.5),
    ]
    assert aggregate(members, quorum=2).test_pass_rate == 0.75
    without_quorum = aggregate(members, quorum=3)
    assert without_quorum.test_pass_rate is None
    assert "a: inconclusive it imports numpy" in without_quorum.reason
    assert _find_reason(without_quorum) is None  # the sandbox is in order


def test_the_command_names_the_package_and_gives_no_verdict(tmp_path):
    (tmp_path / "code.py").write_text(INCONCLUSIVE["at import"], encoding="utf-8")
    (tmp_path / "suite.json").write_text(json.dumps(DOUBLE), encoding="utf-8")
    files = ["--implementation", str(tmp_path / "code.py"), "--suite", str(tmp_path / "suite.json")]
    app = typer.Typer()
    app.command("judge")(judge_command)
    app.callback()(lambda: None)
    done = CliRunner().invoke(app, ["judge", *files, "--json"])
    document = json.loads(done.stdout)
    assert isinstance(done.exception, MissingPackageError)
    assert document["test_pass_rate"] is None
    assert [case["verdict"] for case in document["results"]] == [MISSING, MISSING]
    assert document["reason"].startswith("it imports numpy, ")
    table = CliRunner().invoke(app, ["judge", *files])
    assert "test pass rate unknown (0 of 2)" in table.stdout


@pytest.mark.parametrize(
    ("message", "package"),
    [
        ("No module named 'numpy'", "numpy"),
        ("No module named 'numpy.linalg'", ""),
        ("No module named 'made.part'; 'made' is not a package", ""),
        ("No module named 'tomllib'", ""),
        ("No module named 'helpers'", ""),
        ("No module named ''", ""),
        ("No module named 'numpy' and more", ""),
        ("No module named '" + "a" * 100_000 + "'", ""),
        (None, ""),
    ],
)
def test_only_the_words_of_python_name_a_package(message, package):
    classes = [["ModuleNotFoundError", 1], ["ImportError", 1], ["Exception", 1]]
    assert find_missing_package(classes, message, {"helpers"}) == package
    assert find_missing_package([["ModuleNotFoundError", 0], *classes], message, {"helpers"}) == ""
    assert find_reported_package(f"ModuleNotFoundError: {message}", {"helpers"}) == package
