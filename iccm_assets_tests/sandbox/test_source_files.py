"""Programs of several files are one text, whose files are modules of their own in the sandbox (J6)."""

from __future__ import annotations

import pytest

from iccm_assets.sandbox.source_files import (
    MAX_FILES,
    SourceFilesError,
    compile_source,
    is_test_path,
    join_files,
    module_name,
    pack_code,
    split_files,
)
from iccm_assets.settings import Settings
from iccm_assets.suites.suite_recording import record_suite
from iccm_assets.suites.suite_runner import JudgeResult, run_suite
from iccm_assets.suites.suite_strength import measure_suite
from iccm_assets.suites.test_suites import parse_suite
from iccm_assets_tests.factories.programs import CART, FILES, PRICES, TESTS

SHOP = join_files(FILES, CART)


def judge(source: str, cases: list[dict[str, object]], settings: Settings) -> JudgeResult:
    return run_suite(source, parse_suite({"kind": "cases", "cases": cases}), settings)


def test_files_are_joined_and_split_again() -> None:
    assert [(path, text) for path, text, _ in split_files(SHOP)] == [
        ("shop/__init__.py", "\n"),
        ("shop/prices.py", PRICES),
        ("shop/cart.py", CART),
    ]
    lines = SHOP.split("\n")
    for path, text, before in split_files(SHOP):
        assert lines[before - 1] == f"# file: {path}" and lines[before] == text.split("\n")[0]


@pytest.mark.parametrize(
    ("files", "main", "paths"),
    [
        ({"a.py": "x = 1"}, "import a", ["a.py", "main.py"]),
        ({"a.py": "x = 1", "main.py": "y = 1"}, "import a", ["a.py", "main.py", "main_module.py"]),
        ({"p/a.py": "x = 1"}, "from .a import x", ["p/a.py", "p/main.py"]),
        ({"b.py": "y = 1\n", "a.py": "x = 1"}, "y = 1", ["a.py", "b.py"]),
        ({"b.py": "y = 1\n", "a.py": "x = 1"}, None, ["b.py", "a.py"]),
        ({"a.py": "y = 1\n"}, "y = 1", []),
        ({}, "y = 1", []),
    ],
)
def test_the_main_file_comes_last(files: dict[str, str], main: str | None, paths: list[str]) -> None:
    assert [path for path, _, _ in split_files(join_files(files, main))] == paths


@pytest.mark.parametrize(
    ("path", "text"),
    [
        *[
            (path, "x = 1")
            for path in ("/etc/a.py", "../a.py", "a/../b.py", "a.txt", "a-b.py", "1.py", "a b.py")
        ],
        *[(path, "x = 1") for path in ("a//b.py", ".py", "é.py", "implementation.py", "p/conftest.py", "")],
        *[("a.py\n# file: b.py", "x"), ("/".join("a" * 30) + ".py", "x"), ("a" * 300 + ".py", "x")],
        *[("a.py", None), ("a.py", 3), ("x.py", "is also a folder")],
    ],
)
def test_what_is_no_file_of_a_program_is_refused(path: str, text: object) -> None:
    with pytest.raises(SourceFilesError, match="file "):
        join_files({"x/y.py": "y = 1", path: text})  # type: ignore[dict-item]


def test_too_many_files_are_refused() -> None:
    with pytest.raises(SourceFilesError, match="at most"):
        join_files({f"m{number}.py": "" for number in range(MAX_FILES + 1)})


@pytest.mark.parametrize(
    "source",
    [
        "# file: a.py\nx = 1\n",
        "# file: a.py\n# file: a.py\n",
        "# file: ../a.py\n# file: b.py\n",
        "x = 1\n# file: a.py\n# file: b.py\n",
        "",
    ],
)
def test_other_sources_are_one_file(source: str) -> None:
    assert split_files(source) == []


def test_a_line_that_looks_like_the_begin_of_a_file_begins_none() -> None:
    joined = join_files({"a.py": 'TEXT = """\n# file: evil.py\n"""\n', "b.py": "y = 1\n"})
    assert [path for path, _, _ in split_files(joined)] == ["a.py", "b.py"]


def test_names_of_modules_and_tests() -> None:
    paths = ("a.py", "src/shop/cart.py", "shop/__init__.py")
    assert [module_name(path) for path in paths] == ["a", "shop.cart", "shop"]
    assert all(map(is_test_path, ("test_a.py", "a/a_test.py", "tests/helpers.py", "conftest.py")))
    assert not any(map(is_test_path, ("attest.py", "a/testing.py", "contest.py")))


def test_cases_call_what_any_file_defines(settings: Settings) -> None:
    cases = [
        {"call": "total", "args": [["tea", "cup"]], "expect": 8},
        {"call": "shop.cart.total", "args": [["tea"]], "expect": 3},
        {"call": "price", "args": ["hat"], "raises": "KeyError"},
        {"new": "Cart", "steps": [{"call": "add", "args": ["tea", 2]}, {"get": "lines", "expect": 1}]},
        {"call": "largest", "args": [], "expect": {"$object": ["Line", {"name": "cup", "count": 1}]}},
    ]
    result = judge(SHOP, cases, settings)
    assert (result.test_pass_rate, result.suspect) == (1.0, False), result.results
    assert judge(SHOP.replace("src/", ""), cases, settings).test_pass_rate == 1.0


def test_pytest_imports_the_modules_by_their_names(settings: Settings) -> None:
    suite = parse_suite({"kind": "pytest", "files": {"test_shop.py": TESTS}})
    result = run_suite(SHOP, suite, settings)
    assert result.test_pass_rate == 1.0, result.results
    assert measure_suite(SHOP, suite, settings).status == "usable"
    one_file = PRICES + CART.replace("from .prices import PRICES, price\n", "")
    assert run_suite(one_file, suite, settings).test_pass_rate in (0.0, None)


def test_a_file_of_the_implementation_never_replaces_one_of_the_suite(settings: Settings) -> None:
    suite = parse_suite(
        {"kind": "pytest", "files": {"test_a.py": "def test():\n    import a\n    assert a.X == 2\n"}}
    )
    forged = join_files({"a.py": "X = 1\n", "test_a.py": "def test():\n    pass\n"})
    assert run_suite(forged, suite, settings).test_pass_rate == 0.0


@pytest.mark.slow
def test_a_suite_is_recorded_from_several_files(settings: Settings) -> None:
    recording = record_suite(SHOP, settings)
    assert recording.measurement.status == "usable", recording.measurement
    assert recording.document is not None
    assert {case.get("call", case.get("new")) for case in recording.document["cases"]} >= {"total", "price"}
    assert run_suite(SHOP, parse_suite(recording.document), settings).test_pass_rate == 1.0
    assert record_suite(SHOP, settings) == recording
    wrong = SHOP.replace("sum(price(name) for", "sum(1 for")
    assert run_suite(wrong, parse_suite(recording.document), settings).test_pass_rate != 1.0


@pytest.mark.parametrize(
    ("files", "verdict"),
    [
        ({"a.py": "from b import x\n", "b.py": "from a import y\nx = 1\n"}, "error"),
        ({"a.py": "def f(:\n", "b.py": "x = 1\n"}, "error"),
        ({"a.py": "import sys\nsys.modules['b'] = None\n", "b.py": "def f():\n    return 1\n"}, "error"),
        ({"colorsys.py": "def f():\n    return 1\n", "b.py": "import colorsys\ncolorsys.f()\n"}, "passed"),
        ({"a.py": "def f():\n    return 2\n", "b.py": "def f():\n    return 1\n"}, "passed"),
        ({"a.py": "import os\nos._exit(0)\n", "b.py": "def f():\n    return 1\n"}, "exited"),
        ({"p/__main__.py": "raise SystemExit\n", "p/b.py": "def f():\n    return 1\n"}, "passed"),
    ],
)
def test_files_that_do_not_fit_together(files: dict[str, str], verdict: str, settings: Settings) -> None:
    result = judge(join_files(files), [{"call": "f", "args": [], "expect": 1}], settings)
    assert [case.verdict for case in result.results] == [verdict], result.results


@pytest.mark.parametrize(
    ("source", "packed"),
    [
        ("def f():\n    return (1, 'a')\n", True),
        ("def f(n):\n    return n in {8, 0}\n", False),  # a copy of the set may have another order
        (f"x = '{'a' * (1 << 20)}'", False),
        (SHOP, False),
    ],
)
def test_a_source_is_compiled_once_where_its_code_can_be_copied(source: str, packed: bool) -> None:
    assert bool(pack_code(compile_source(source, "x.py"))) == packed
