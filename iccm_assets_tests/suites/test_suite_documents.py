"""Suite documents: which are valid, and how an invalid one names its case."""

import json

import pytest

from iccm_assets import errors
from iccm_assets.sandbox import pytest_suites
from iccm_assets.suites.test_suites import load_suite_file, parse_suite

GOOD = {"call": "f", "args": [1], "expect": 2}


def make_suite(*cases: object) -> dict:
    return {"kind": "cases", "cases": list(cases)}


def test_the_plan_of_a_case_holds_inputs_and_no_expectation():
    suite = parse_suite(
        make_suite(
            {"call": "f", "args": [{"$tuple": [1]}], "kwargs": {"k": 2}, "expect": "secret"},
            {"call": "f", "raises": "SecretError"},
            {
                "new": "Stack",
                "args": [3],
                "steps": [{"call": "push", "args": [1]}, {"call": "pop", "expect": "secret"}],
            },
        )
    )
    plans = [case.inputs() for case in suite.cases]
    assert plans == [
        ("call", "f", [(1,)], {"k": 2}),
        ("call", "f", [], {}),
        ("new", "Stack", [3], {}, [("push", [1], {}), ("pop", [], {})]),
    ]
    assert "ecret" not in repr(plans)


def test_an_expected_none_is_an_expectation():
    (case,) = parse_suite(make_suite({"call": "f", "expect": None})).cases
    assert case.expected.value == ["n"]


def test_equal_content_has_an_equal_digest_in_any_order_of_keys():
    same = {"expect": 2, "args": [1], "call": "f"}
    assert parse_suite(make_suite(GOOD)).digest == parse_suite(make_suite(same)).digest
    assert parse_suite(make_suite(GOOD)).digest != parse_suite(make_suite(GOOD, GOOD)).digest


@pytest.mark.parametrize(
    ("suite", "complaint"),
    [
        (None, "a suite is an object"),
        ([], "a suite is an object"),
        ("{}", "a suite is an object"),
        ({}, "kind is None"),
        ({"kind": "unittest"}, "kind is 'unittest'"),
        ({"kind": "cases"}, "at least one case"),
        ({"kind": "cases", "cases": []}, "at least one case"),
        ({"kind": "cases", "cases": {}}, "at least one case"),
        ({"kind": "cases", "cases": [GOOD], "extra": 1}, "unknown key 'extra'"),
        (make_suite(*[GOOD] * 1001), "at most 1000"),
        (make_suite({"call": "f", "args": ["x" * (1 << 20)], "expect": 1}), "larger than 1 MiB"),
        (make_suite(GOOD, 3), "case 1: a case is an object"),
        (make_suite(GOOD, {}), "case 1: a case has either 'call' or 'new'"),
        (make_suite({**GOOD, "new": "A"}), "case 0: a case has either"),
        (make_suite({"call": "f"}), "case 0: a case has either 'expect' or 'raises'"),
        (make_suite({**GOOD, "raises": "ValueError"}), "case 0: a case has either 'expect' or 'raises'"),
        (make_suite({**GOOD, "expected": 1}), "case 0: unknown key 'expected'"),
        (make_suite({**GOOD, "args": 1}), "case 0: 'args' must be a list"),
        (make_suite({**GOOD, "args": {"$tuple": [1]}}), "case 0: 'args' must be a list"),
        (make_suite({**GOOD, "kwargs": [1]}), "case 0: 'kwargs' must be an object"),
        (make_suite({**GOOD, "kwargs": {"$dict": [[1, 2]]}}), "case 0: 'kwargs' must be an object"),
        (make_suite({**GOOD, "call": "f()"}), "case 0: 'call' must be a name"),
        (make_suite({**GOOD, "call": 3}), "case 0: 'call' must be a name"),
        (make_suite({"call": "f", "raises": "not a name"}), "case 0: 'raises' must be the name"),
        (make_suite({"call": "f", "raises": "int"}), "case 0: 'raises' must be the name"),
        (make_suite({**GOOD, "expect": {"$set": [[]]}}), "case 0: expect: .*unhashable"),
        (make_suite({**GOOD, "args": [{"$nope": 1}]}), "case 0: args: unknown encoding"),
        (make_suite({"new": "A"}), "case 0: 'new' needs 'steps' or 'raises'"),
        (make_suite({"new": "A", "steps": []}), "case 0: 'new' needs 'steps' or 'raises'"),
        (make_suite({"new": "A", "steps": {}}), "case 0: 'steps' must be a list"),
        (make_suite({"new": "A", "steps": [{"args": []}]}), "case 0: step 0: a step is an object"),
        (
            make_suite({"new": "A", "steps": [{"call": "f", "expect": 1, "raises": "E"}]}),
            "step 0: .* exclude",
        ),
        (make_suite({"new": "A", "raises": "E", "steps": [{"call": "f"}]}), "case 0: .* has no steps"),
        (make_suite({"new": "A", "expect": 1, "steps": [{"call": "f"}]}), "case 0: unknown key 'expect'"),
        (make_suite({**GOOD, "call": "__name__.upper"}), "case 0: 'call' .* double underscores"),
        (make_suite({**GOOD, "call": "f.__class__"}), "case 0: 'call' .* double underscores"),
        (make_suite({**GOOD, "call": "Shop.__private"}), "case 0: 'call' .* double underscores"),
        (make_suite({"new": "f.__class__", "raises": "E"}), "case 0: 'new' .* double underscores"),
        (
            make_suite({"new": "A", "steps": [{"call": "__doc__.upper"}]}),
            "case 0: step 0: 'call' .* double underscores",
        ),
        (make_suite({**GOOD, "expect": float("nan")}), "case 0: expect: write"),
        ({"kind": "cases", "cases": [GOOD], 3: 4, "x": object()}, "not JSON data"),
    ],
)
def test_a_broken_suite_says_where_and_what(suite, complaint):
    with pytest.raises(errors.TestSuiteError, match=complaint):
        parse_suite(suite)


def test_a_suite_nested_too_deep_is_rejected():
    text = '{"kind": "cases", "cases": [{"call": "f", "args": ' + "[" * 150 + "]" * 150 + ', "expect": 1}]}'
    with pytest.raises(errors.TestSuiteError, match="case 0: args: nested more than 100 deep"):
        parse_suite(json.loads(text))


def test_a_missing_or_unreadable_file_is_an_input_error(tmp_path):
    with pytest.raises(errors.InputError, match="No such file"):
        load_suite_file(tmp_path / "none.json")
    for content in (b"{", b"\xff\xfe", b"", b"[" * 100_000):
        (tmp_path / "broken.json").write_bytes(content)
        with pytest.raises(errors.TestSuiteError, match="is not JSON"):
            load_suite_file(tmp_path / "broken.json")


def test_a_duplicate_key_is_rejected_by_name(tmp_path):
    for text in (
        '{"kind": "cases", "cases": [{"call": "f", "expect": 1, "expect": 2}]}',
        '{"kind": "cases", "cases": [{"call": "f", "kwargs": {"expect": 1, "expect": 2}, "expect": 1}]}',
    ):
        (tmp_path / "twice.json").write_text(text, encoding="utf-8")
        with pytest.raises(errors.TestSuiteError, match="duplicate key 'expect'"):
            load_suite_file(tmp_path / "twice.json")


# ---- the kind pytest -------------------------------------------------------------------------------

TESTS = """
import pytest, unittest

def test_one(): pass
async def test_two(): pass
def helper(): pass

@pytest.mark.parametrize("n", range(100))
def test_three(n): pass

class TestThing:
    def test_four(self): pass
    class TestInner:
        def test_five(self): pass

class Unit(unittest.TestCase):
    def test_six(self): pass

class Other:
    def test_not_collected(self): pass
"""


def test_a_pytest_suite_plans_its_test_functions_before_anything_is_collected():
    files = {"tests/test_x.py": TESTS, "conftest.py": "def test_no(): pass\n", "data/rows.csv": "a,b\n"}
    suite = parse_suite({"kind": "pytest", "files": files})
    assert [case.test.partition("::")[2] for case in suite.cases] == [
        "test_one",
        "test_two",
        "test_three",
        "TestThing::test_four",
        "TestThing::TestInner::test_five",
        "Unit::test_six",
    ]
    assert suite.cases[0].inputs() == ("test", "tests/test_x.py::test_one")


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (None, "'files' must be an object"),
        ({}, "'files' must be an object"),
        (["test_x.py"], "'files' must be an object"),
        ({"/etc/test_x.py": TESTS}, "a path is relative"),
        ({"../test_x.py": TESTS}, "a path is relative"),
        ({"a/../../test_x.py": TESTS}, "a path is relative"),
        ({"a//test_x.py": TESTS}, "a path is relative"),
        ({"./test_x.py": TESTS}, "a path is relative"),
        ({"a\\test_x.py": TESTS}, "a path is relative"),
        ({"test_x.py\0": TESTS}, "a path is relative"),
        ({"test_\n.py": TESTS}, "a path is relative"),
        ({"-p": TESTS}, "a path is relative"),
        ({"": TESTS}, "a path is relative"),
        ({"/".join("a" * 12) + "/test_x.py": TESTS}, "folders deep"),
        ({"implementation.py": "", "test_x.py": TESTS}, "reserved for the implementation"),
        ({"solution.py": "", "test_x.py": TESTS}, "reserved for the implementation"),
        ({"pytest.ini": "", "test_x.py": TESTS}, "does not configure"),
        ({"test_x.py": 3}, "must be text"),
        ({"test_x.py": "\ud800"}, "not valid Unicode"),
        ({"test_x.py": "def test_(:"}, "'test_x.py': not Python"),
        ({"test_x.py": "x = 1"}, "no test function"),
        ({"check.py": TESTS}, "no test function"),
        ({"test_x.py": TESTS, "test_x.py/data": ""}, "is also the folder"),
        ({f"test_{n}.py": TESTS for n in range(101)}, "at most 100"),
        ({"test_x.py": "\n".join(f"def test_{n}(): pass" for n in range(1001))}, "at most 1000"),
    ],
)
def test_a_broken_pytest_suite_says_what_is_wrong(files, complaint):
    with pytest.raises(errors.TestSuiteError, match=complaint):
        parse_suite({"kind": "pytest", "files": files})


def test_a_pytest_suite_without_pytest_is_rejected_with_a_hint(monkeypatch):
    pytest_suites.find_packages.cache_clear()
    monkeypatch.setattr(pytest_suites.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.TestSuiteError, match=r"not installed.*pip install pytest"):
        parse_suite({"kind": "pytest", "files": {"test_x.py": TESTS}})
    pytest_suites.find_packages.cache_clear()


NODE = {"$new": ["Node", [1], {}, {"next": {"$ref": "a"}}]}
SHARED = {"shared": {"a": NODE}, "call": "f", "args": [{"$ref": "a"}], "expect": {"$ref": "a"}}


def test_shared_values_go_into_the_sandbox_beside_the_arguments_that_refer_to_them():
    after = {"args_after": [{"$ref": "a"}], "shared_after": {"a": [{"$ref": "a"}]}}
    suite = parse_suite(make_suite(SHARED, {**SHARED, "shared": {"a": [{"$ref": "a"}]}, **after}))
    node = {...: ("Node", [1], {}, {"next": (..., "a")})}
    assert [case.inputs() for case in suite.cases] == [
        ("call", "f", [(..., "a")], {}, {"a": node}),
        ("call", "f", [(..., "a")], {}, {"a": [(..., "a")]}, "arguments"),
    ]
    assert suite.cases[0].expected.value == ["R", "a"]
    assert suite.cases[1].expected.arguments == [
        "l",
        [["R", "a"], ["d", [[["s", "a"], ["l", [["R", "a"]]]]]]],
    ]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"shared": {}}, "there is no shared value a"),
        ({"expect": [{"$ref": "b"}]}, "there is no shared value b"),
        ({"shared": {"a": {"$new": ["Node", [{"$ref": "a"}]]}}}, "needs the object that it makes"),
        ({"shared": {"a": 3}}, "only objects, lists and dicts are shared"),
        ({"shared": {"a": {"$function": "abs"}}}, "only objects, lists and dicts are shared"),
        ({"shared": {"a": [{"$enum": ["Color", "RED"]}]}}, "describe what is expected"),
        ({"shared": {"a b": NODE}}, "must be an identifier"),
        ({"shared": [NODE]}, "'shared' must be an object"),
        ({"args": [{"$ref": 3}]}, "the name of a shared value"),
        ({"args_after": []}, "come together"),
        ({"args_after": [], "shared_after": {}}, "an object with all shared values"),
    ],
)
def test_an_invalid_shared_value_is_named(change, complaint):
    with pytest.raises(errors.TestSuiteError, match=complaint):
        parse_suite(make_suite({**SHARED, **change}))


def test_constructors_of_shared_values_may_need_each_other_in_any_order_of_names():
    shared = {"a": {"$new": ["Edge", [{"$ref": "b"}]]}, "b": {"$new": ["Node", []]}}
    assert parse_suite(make_suite({**SHARED, "shared": shared})).cases[0].shared
