"""What of a source is recorded: not the tests in it, nor what only these or annotations import."""

from textwrap import dedent

import pytest

from iccm_assets.settings import load_settings
from iccm_assets.suites.recorded_source import IS_TEST, leave_out_tests
from iccm_assets.suites.suite_recording import SuiteRecording, record_suite
from iccm_assets.suites.suite_runner import run_suite
from iccm_assets.suites.test_suites import parse_suite

CODE = """
    def grade(points: int) -> str:
        if points < 0:
            raise ValueError("negative")
        return "high" if points >= 50 else "low"
    """
WITH_PYTEST = f"""
    import pytest
    from not_a_package import (
        make_points,
    )
    {CODE}

    @pytest.fixture
    def points():
        return make_points()

    @pytest.mark.parametrize("points", [1, 2])
    def test_low(points):
        assert grade(points) == "low"

    class TestGrades:
        def test_high(self):
            assert grade(50) == "high"
    """
WITH_UNITTEST = f"""
    import unittest
    from not_a_module import bst
    {CODE}
    class Base(unittest.TestCase):
        def setUp(self):
            self.tree = bst()

    class Grades(Base):
        def test_high(self):
            self.assertEqual(grade(50), "high")

    if __name__ == "__main__":
        unittest.main()
    """
DEPTH = """
    def depth(tree: Node | None) -> int:
        if tree is None:
            return 0
        return 1 + max(depth(tree.left), depth(tree.right))
    """


def record(source: str) -> SuiteRecording:
    return record_suite(dedent(source), load_settings())


@pytest.mark.parametrize(
    ("source", "tests"),
    [(WITH_PYTEST, ["points", "test_low", "TestGrades"]), (WITH_UNITTEST, ["Base", "Grades"])],
)
def test_the_tests_in_a_source_and_what_only_they_import_are_left_out(source: str, tests: list[str]) -> None:
    recording = record(source)
    assert recording.measurement.status == "usable", recording.measurement.reason
    assert recording.left_out == dict.fromkeys(tests, IS_TEST)
    assert recording.document is not None
    assert {case["call"] for case in recording.document["cases"]} == {"grade"}
    assert recording.measurement.branch_coverage == 1.0
    result = run_suite(dedent(CODE), parse_suite(recording.document), load_settings())
    assert result.test_pass_rate == 1.0


def test_what_the_tests_in_a_source_call_are_inputs() -> None:
    source = """
        import zlib

        def unlock(word: str) -> str:
            if zlib.crc32(word.encode()) == 793397484:
                return "open"
            return word.upper()

        class TestUnlock:
            def test_open(self):
                word = "cow-and-moon"
                assert unlock(word) == "open"
        """
    recording = record(source)
    assert recording.document is not None
    assert "cow-and-moon" in str(recording.document)


def test_what_only_looks_like_a_test_is_recorded() -> None:
    source = """
        def test_divisor(number: int, divisor: int) -> bool:
            if divisor == 0:
                return False
            return number % divisor == 0
        """
    assert leave_out_tests(dedent(source)).text == dedent(source)
    assert record(source).measurement.status == "usable"


def test_a_source_of_tests_only_has_no_suite_and_says_why() -> None:
    recording = record("def test_add():\n    assert 1 + 1 == 2\n")
    assert (recording.measurement.status, recording.document) == ("none", None)
    assert recording.measurement.reason == f"test_add: {IS_TEST}"


@pytest.mark.parametrize("start", ["", "from __future__ import annotations\n"])
def test_a_missing_file_that_only_annotations_need_is_not_missed(start: str) -> None:
    recording = record_suite(f"{start}from .node import (\n    Node,\n)\n{dedent(DEPTH)}", load_settings())
    assert recording.measurement.status == "usable", recording.measurement.reason


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        (
            f"from .node import Node\n{dedent(DEPTH)}\ndef leaf():\n    return Node(1)\n",
            ".node",
        ),  # it is made
        ("from .money import Money\ndef add(one: Money, other: Money):\n    return one + other\n", ".money"),
    ],
)
def test_a_missing_file_beside_the_source_is_named(source: str, missing: str) -> None:
    recording = record_suite(source, load_settings())
    assert (recording.measurement.status, recording.document) == ("none", None)
    assert f"it imports {missing}, which" in recording.measurement.reason


def test_lines_stay_where_they_are_and_programs_of_files_keep_their_imports() -> None:
    text = leave_out_tests(dedent(WITH_PYTEST)).text
    lines = dedent(WITH_PYTEST).splitlines()
    kept = text.splitlines()
    assert len(kept) == len(lines)
    assert kept.index("def grade(points: int) -> str:") == lines.index("def grade(points: int) -> str:")
    files = (
        f"# file: tree/node.py\nclass Node:\n    pass\n# file: tree/depth.py\nfrom .node import Node\n{DEPTH}"
    )
    assert leave_out_tests(files).text == files


@pytest.mark.parametrize(
    "source", ["def test_a(:\n", "import pytest; x = 1\n", "test = " + "(" * 5000, "test"]
)
def test_what_has_no_tests_stays_as_it_is(source: str) -> None:
    assert leave_out_tests(source).text == source
