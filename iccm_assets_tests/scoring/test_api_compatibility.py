"""API compatibility (E2): what callers of the original can still call; nothing hostile stops the judge."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.scoring.api_compatibility import MAX_CHARACTERS, api_compatibility

DATACLASS = "from dataclasses import dataclass, field\n@dataclass(frozen=True)\nclass P:\n    x: int\n"


@pytest.mark.parametrize(
    ("original", "implementation", "retained"),
    [
        pytest.param("def f(a, b): ...", "def f(a, b): return a", 1.0, id="the same"),
        pytest.param("def f(a): ...", "def f(a: int) -> str: ...", 1.0, id="annotations"),
        pytest.param("def f(a): ...", "def f(a, more=1): ...", 1.0, id="an optional parameter more"),
        pytest.param("def f(a): ...", "def f(a, more): ...", 0.0, id="a required parameter more"),
        pytest.param("def f(a, b): ...", "def f(b, a): ...", 0.0, id="another order"),
        pytest.param("def f(a): ...", "def f(x): ...", 0.0, id="another name"),
        pytest.param("def f(a, *, k): ...", "def f(a, k): ...", 1.0, id="keyword-only relaxed"),
        pytest.param("def f(a, k): ...", "def f(a, *, k): ...", 0.0, id="keyword-only now"),
        pytest.param("def f(a=1): ...", "def f(a=2): ...", 0.0, id="another default"),
        pytest.param("def f(a=1): ...", "def f(a): ...", 0.0, id="no default any more"),
        pytest.param("async def f(a): ...", "def f(a): ...", 0.0, id="no longer async"),
        pytest.param("def f(a): ...", "f = 3", 0.0, id="no longer a function"),
        pytest.param("def f(): ...\ndef g(): ...", "def f(): ...", 0.5, id="one of two"),
        pytest.param("def f(): ...\ndef _g(): ...", "def f(): ...", 1.0, id="an underscore is private"),
        pytest.param(
            "__all__ = ['f']\ndef f(): ...\ndef g(): ...", "def f(): ...", 1.0, id="only what __all__ names"
        ),
        pytest.param(
            "class A:\n    def m(self): ...\n", "class B: ...", 0.0, id="a class and its method lost"
        ),
        pytest.param(
            "class A:\n    def m(self): ...\n    def n(self): ...\n",
            "class A:\n    def m(self): ...\n",
            2 / 3,
            id="a class, and one of its two methods",
        ),
        pytest.param(
            "class A:\n    def __init__(self, n): ...\n", "class A: ...", 0.5, id="constructor lost"
        ),
        pytest.param(
            "class A:\n    @property\n    def p(self): ...\n",
            "class A:\n    def p(self): ...\n",
            0.5,
            id="a property became a method",
        ),
        pytest.param(
            "class A:\n    @staticmethod\n    def s(a): ...\n",
            "class A:\n    def s(a): ...\n",
            0.5,
            id="a static method became a method",
        ),
        pytest.param(
            "class A:\n    async def m(self): ...\n    @classmethod\n    def c(cls): ...\n",
            "class A:\n    def m(self): ...\n    def c(cls): ...\n",
            1 / 3,
            id="async and class methods",
        ),
        pytest.param(
            DATACLASS + "    y: int = 1\n",
            "class P:\n    def __init__(self, x, y=1): ...\n",
            1.0,
            id="a dataclass written out",
        ),
        pytest.param(
            DATACLASS + "    y: int = 1\n",
            DATACLASS.replace("x: int", "y: int") + "    x: int = 1\n",
            0.5,
            id="a dataclass's fields swapped",
        ),
        pytest.param(
            DATACLASS + "    y: list = field(default_factory=list)\n    z: int = field(init=False)\n",
            DATACLASS + "    y: list = field(default_factory=list)\n",
            1.0,
            id="fields outside the constructor",
        ),
    ],
)
def test_what_callers_can_still_call_is_counted(original: str, implementation: str, retained: float) -> None:
    assert api_compatibility(original, implementation) == pytest.approx(retained)


@pytest.mark.parametrize("original", ["", "x = 3", "import os\nfrom re import match", "def _f(): ..."])
def test_a_module_without_a_public_interface_has_no_compatibility(original: str) -> None:
    assert api_compatibility(original, "def f(): ...") is None


HOSTILE = {
    "a syntax error": "def f(",
    "a null byte": "def f(a): ...\x00",
    "half a surrogate pair": "\ud800",
    "a megabyte": "def f(a): ...\n" + "# " + "x" * (1 << 20),
    "brackets": "(" * 5000 + ")" * 5000,
    "minus signs": "x = " + "-" * 60_000 + "1",
    "a sum": "x = 1" + "+1" * 30_000,
    "attributes": "x" + ".a" * 30_000,
    "a huge number": "x = " + "9" * 6000,
    "a name given to itself": "from m import *\nf = f\n",
    "a circle of bases": "class A(B): ...\nclass B(A): ...\n",
    "a twisted __all__": "__all__ = [f for f in x] + __all__",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_source_is_a_number_and_never_an_error(name: str) -> None:
    assert api_compatibility("def f(a): ...", HOSTILE[name]) == 0.0
    assert api_compatibility(HOSTILE[name], "def f(a): ...") in (None, 0.0, 1 / 3)


def test_code_beyond_the_size_limit_is_not_parsed() -> None:
    longest = "def f(a): ...\n#".ljust(MAX_CHARACTERS, "x")
    assert api_compatibility("def f(a): ...", longest) == 1.0
    assert api_compatibility("def f(a): ...", longest + "x") == 0.0
    assert api_compatibility(longest + "x", "def f(a): ...") is None


NAMES = st.sampled_from(["f", "g", "A", "__all__", "self", "_p", "x"])
PIECES = st.one_of(
    st.builds("def {0}({1}): ...".format, NAMES, NAMES),
    st.builds("class {0}({1}):\n    {2}: int = {1}\n    def {2}(self): ...".format, NAMES, NAMES, NAMES),
    st.builds("{0} = {1}".format, NAMES, NAMES),
    st.builds("from {0} import {1}".format, NAMES, NAMES),
    st.builds("@{0}\ndef {1}(): ...".format, NAMES, NAMES),
    st.text(max_size=20),
)


@given(st.lists(PIECES, max_size=5).map("\n".join), st.lists(PIECES, max_size=5).map("\n".join))
def test_any_two_texts_give_a_fraction_or_none_and_a_module_is_compatible_with_itself(
    first: str, second: str
) -> None:
    fraction = api_compatibility(first, second)
    assert fraction is None or 0.0 <= fraction <= 1.0
    assert api_compatibility(first, first) in (None, 1.0)
