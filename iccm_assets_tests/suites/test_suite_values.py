"""Values: written, sent, compared."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.sandbox.case_runner import AnswerTooLargeError, Encoder, NestingTooDeepError
from iccm_assets.suites.suite_values import InvalidValueError, canonical_form, check_encoded, decode, encode
from iccm_assets.suites.value_differences import diff, format_value

hashable = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text() | st.binary(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=4),
    max_leaves=8,
)
values = st.recursive(
    hashable,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.sets(hashable, max_size=4)
        | st.dictionaries(hashable, inner, max_size=4)
    ),
    max_leaves=12,
)


def send(value: object) -> list:
    """Return what arrives outside when an implementation answers ``value``."""
    return check_encoded(json.loads(Encoder(1 << 20).encode(value)))


@given(values)
def test_an_answer_is_the_same_as_itself_sent_out_of_the_sandbox(value):
    assert diff(encode(value), send(value)) == ""


@given(values, values)
def test_two_values_agree_exactly_when_their_canonical_forms_do_or_floats_are_close(left, right):
    same = not diff(encode(left), encode(right))
    if canonical_form(encode(left)) == canonical_form(encode(right)):
        assert same
    assert same == (not diff(encode(right), encode(left)))


@given(values)
def test_formatting_a_value_never_fails_and_stays_short(value):
    assert len(format_value(encode(value))) <= 80


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (1, True),
        (0, False),
        (1, 1.0),
        (1.0, 1),
        ([1], (1,)),
        ((1,), [1]),
        ({1}, frozenset([1])),
        ({1}, {True}),
        ({1: "a"}, {True: "a"}),
        ({1: "a"}, {1.0: "a"}),
        ("1", 1),
        ("a", b"a"),
        (None, False),
        (None, 0),
        ([], None),
        ({}, []),
        ([1, 2], [2, 1]),
        ([1, 2], [1, 2, 3]),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 1, "b": 2}, {"a": 1}),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": True}]}),
        (1.0, 1.0 + 1e-8),
        (float("nan"), 0.0),
        (1 + 1j, 1 + 1.00001j),
        (1 + 0j, 1.0),
        (1.7e308 + 1.7e308j, 1.7e308 + 1.6e308j),
        (complex("nan+1j"), complex("nan+2j")),
        ([1e-300j], [2e-300j]),
        (float("inf"), float("-inf")),
        (0.0, 1e-300),
        ({0.5}, {0.6}),
        ("é", "e\u0301"),
    ],
)
def test_values_of_other_types_or_content_are_different(expected, actual):
    assert diff(encode(expected), send(actual))


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (0.3, 0.1 + 0.2),
        (1e300, 1e300 * (1 + 1e-10)),
        (float("nan"), -math.nan),
        (0.0, -0.0),
        ({0.3, 1.0}, {1.0, 0.1 + 0.2}),
        (0.3 + 1j, 0.1 + 0.2 + 1j),
        (1j, 1e-17 + 1j),
        ({0.3 + 1j}, {0.1 + 0.2 + 1j}),
        (complex("nan+infj"), complex("nan+infj")),
        (-0.0 - 0j, 0j),
        ({0.3: "a"}, {0.1 + 0.2: "a"}),
        ({("a", 0.3)}, {("a", 0.1 + 0.2)}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({(1, 2): {3}}, {(1, 2): {3}}),
        pytest.param(10**5000, 10**5000, id="a huge integer"),
        ("\ud800", "\ud800"),
    ],
)
def test_floats_within_the_tolerance_and_unordered_containers_agree(expected, actual):
    assert diff(encode(expected), send(actual)) == ""


def test_a_difference_names_its_position():
    assert diff(encode({"a": [1, 2]}), encode({"a": [1, 3]})) == "at ['a'][1]: expected 2, got 3"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ({"$tuple": [1, {"$tuple": []}]}, (1, ())),
        ({"$set": [1, "a"]}, {1, "a"}),
        ({"$frozenset": [1]}, frozenset([1])),
        ({"$dict": [[1, 2], [{"$tuple": [1]}, [3]]]}, {1: 2, (1,): [3]}),
        ({"$bytes": "AAE="}, b"\0\1"),
        ({"$float": "inf"}, math.inf),
        ({"$complex": [1, -0.5]}, 1 - 0.5j),
        ({"$complex": [{"$float": "inf"}, 0]}, complex(math.inf, 0)),
        ({"a": {"$tuple": [1]}, "$set": 2}, {"a": (1,), "$set": 2}),
        ({"$dict": [["$set", 1]]}, {"$set": 1}),
    ],
)
def test_encodings_for_values_json_cannot_express(written, value):
    assert decode(written) == value
    assert type(decode(written)) is type(value)


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ({"$list": []}, "unknown encoding"),
        ({"$set": [[1]]}, "unhashable"),
        ({"$dict": [[[], 1]]}, "unhashable"),
        ({"$dict": [[1]]}, "pairs"),
        ({"$bytes": "no base64!"}, "base64"),
        ({"$float": "one"}, "number as text"),
        ({"$complex": [1]}, "real part"),
        ({"$complex": [True, 1]}, "real part"),
        ({"$complex": ["1", 1]}, "real part"),
        ({"$complex": [10**400, 1]}, "too large"),
        ({"$function": "os.system"}, "takes one of"),
        ({"$function": ["abs"]}, "takes one of"),
        ({"$tuple": "ab"}, "takes a list"),
        (float("nan"), "write"),
        ({"$set": list(range(20_000))}, "more than 10000"),
        ({"$new": ["Graph", [], {}, {}, "add"]}, "calls are"),
        ({"$new": ["Graph", [], {}, {}, [[]]]}, "calls are"),
        ({"$new": ["Graph", [], {}, {}, [["__init__", []]]]}, "calls are"),
        ({"$new": ["Graph", [], {}, {}, [["add", 1]]]}, "calls are"),
        ({"$new": ["Graph", [], {}, {}, [["add", [], {"__x": 1}]]]}, "calls are"),
        ({"$new": ["Graph", [], {}, {}, [["add", [{"$set": [[1]]}]]]]}, "unhashable"),
    ],
)
def test_what_cannot_be_decoded_is_explained(written, complaint):
    with pytest.raises(InvalidValueError, match=complaint):
        decode(written)


def test_a_value_nested_too_deep_is_rejected_on_both_sides():
    nested: list = []
    for _ in range(150):
        nested = [nested]
    with pytest.raises(InvalidValueError, match="nested"):
        decode(nested)
    with pytest.raises(NestingTooDeepError):
        Encoder(1 << 20).encode(nested)


def test_an_answer_may_not_grow_past_its_limit():
    with pytest.raises(AnswerTooLargeError):
        Encoder(100).encode("x" * 101)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        ["?"],
        ["i"],
        ["i", "xyz"],
        ["i", 3],
        ["i", "1", 2],
        ["b", 2],
        ["b", True, 1],
        ["f", "1.0.0"],
        ["s", 1],
        ["y", "0"],
        ["l", "ab"],
        ["l", [["i", "1"], 3]],
        ["d", [[["i", "1"]]]],
        ["d", ["ab"]],
        ["u", "X"],
        [["i"], "1"],
        {"i": 1},
    ],
)
def test_an_answer_that_is_no_encoded_value_is_rejected(answer):
    with pytest.raises(InvalidValueError):
        check_encoded(answer)
