"""Suites that test nothing are weak, and hostile sources do not make them usable."""

import hashlib
from textwrap import dedent

import pytest

from iccm_assets.settings import load_settings
from iccm_assets.suites.input_pool import build_pool
from iccm_assets.suites.source_edits import SourceText
from iccm_assets.suites.suite_strength import measure_suite
from iccm_assets.suites.test_suites import parse_suite
from iccm_assets_tests.factories.shop_suite import SHOP, calls, make_cases, make_pytest, make_tests


@pytest.fixture(scope="module")
def settings():
    return load_settings()


def measure(source, document, settings, **options):
    return measure_suite(dedent(source), parse_suite(document), settings, **options)


WEAK = {
    "one case, repeated": (make_cases(*calls("ember", *[(1, 50)] * 6)), "fewer than 5 cases"),
    "the same answer to everything": (
        make_cases(*calls("clamp", *((n, 10) for n in range(11, 20)))),
        "a constant",
    ),
    "the same error for everything": (
        make_cases(
            *(
                {"new": "Box", "steps": [{"call": "add", "args": [-n], "raises": "ValueError"}]}
                for n in range(1, 7)
            )
        ),
        "a constant",
    ),
    "steps without expectations": (
        make_cases(*({"new": "Box", "args": [n], "steps": [{"call": "add", "args": [n]}]} for n in range(6))),
        "a constant|a stub returning None passes it",
    ),
    "methods of a constant": (
        make_cases(
            *(
                {"call": f"VERSION.{name}", "expect": "1.2"}
                for name in ("upper", "lower", "title", "strip", "swapcase")
            )
        ),
        "a stub returning None passes it",
    ),
    "entries of a constant": (
        make_cases(*calls("LIMITS.get", ("low", 3), ("high", 9), ("a", None), ("b", None), ("c", None))),
        "a stub returning None passes it",
    ),
    "only what a constructor keeps": (
        make_cases(
            *({"new": "Box", "args": [n], "steps": [{"call": "items.copy", "expect": [n]}]} for n in range(6))
        ),
        "branch coverage is below",
    ),
    "one function of three": (
        make_cases(*calls("ember", *((n, n + 49) for n in range(6)))),
        "branch coverage is below",
    ),
    "pytest: assert True": (make_pytest("def test_ok():\n    assert True\n"), "fewer than 5 cases"),
    "pytest: many times assert True": (make_tests("assert True\n"), "an empty module passes it"),
    "pytest: an import, and no call": (
        make_tests("assert NUMBER + 1 > NUMBER\n"),
        "an empty module passes it",
    ),
    "pytest: callable": (
        make_tests("assert callable(m.ember) and m.VERSION\n"),
        "a stub returning None passes it",
    ),
    "pytest: calls without assertions": (make_tests("m.ember(NUMBER)\n"), "a stub returning None passes it"),
    "pytest: not None": (
        make_tests("assert m.ember(NUMBER) is not None\n"),
        "a stub returning True passes it",
    ),
    "pytest: a type": (make_tests("assert type(m.ember(NUMBER)) is int\n"), "a stub returning 1 passes it"),
    "pytest: equal to itself": (
        make_tests("assert m.ember(NUMBER) == m.ember(NUMBER)\n"),
        "a stub returning None passes it",
    ),
    "pytest: errors ignored": (
        make_tests("try:\n    assert m.ember(NUMBER) == NUMBER + 49\nexcept Exception:\n    pass\n"),
        "an empty module passes it",
    ),
    "pytest: assertions suppressed": (
        make_tests("with contextlib.suppress(AssertionError):\n    assert m.ember(NUMBER) == NUMBER + 49\n"),
        "a stub returning None passes it",
    ),
    "pytest: the text of the source": (
        make_tests("assert 'x + 49' in open(m.__file__).read()\n"),
        "it reads the text of the source",
    ),
    "pytest: the text of the source, which also runs": (
        make_tests(
            "text = open(m.__file__).read()\n"
            "assert 'x + 49' in text and 'low' in text\n"
            "assert 'negative' in text and 'sum(' in text\n"
            "m.ember(1), m.clamp(-1), m.clamp(99), m.clamp(5)\n"
            "box = m.Box()\nbox.add(1), box.total()\n"
            "with contextlib.suppress(ValueError):\n    box.add(-1)\n"
        ),
        "it reads the text of the source",
    ),
    "pytest: every line of the source": (
        make_tests(
            "import inspect\n"
            "text = ''.join(map(inspect.getsource, (m.ember, m.clamp, m.Box)))\n"
            "for part in ('x + 49', 'x < low', 'return low', 'x > high', 'return high', 'return x\\n',\n"
            "    'low=0', 'high=10', 'n=1', '[n]', 'v < 0', 'append(v)', 'len(self', 'sum(self'):\n"
            "    assert part in text\n"
            "m.ember(1), m.clamp(-1), m.clamp(99), m.clamp(5)\n"
            "box = m.Box()\nbox.add(1), box.total()\n"
            "with contextlib.suppress(ValueError):\n    box.add(-1)\n"
        ),
        "it reads the text of the source",
    ),
}


@pytest.mark.parametrize("name", WEAK)
def test_a_suite_that_tests_nothing_is_weak_and_says_what_passes_it(name, settings):
    document, reason = WEAK[name]
    measurement = measure(SHOP, document, settings)
    assert measurement.status == "weak", measurement
    assert any(part in measurement.reason for part in reason.split("|")), measurement


@pytest.mark.parametrize(
    ("check", "stub"), [("isinstance(m.g(NUMBER), float)", "1.5"), ("type(m.h(NUMBER)) is dict", "{}")]
)
def test_a_type_of_results_alone_is_weak(check, stub, settings):
    source = "def g(n):\n    return n / 4 + 1\ndef h(n):\n    return {n: n + 1}\n"
    measurement = measure(source, make_tests(f"assert {check}\nm.g(NUMBER), m.h(NUMBER)\n"), settings)
    assert measurement.status == "weak"
    assert measurement.reason == f"a stub returning {stub} passes it"


GRADES = """
def grade(n):
    if n < 10:
        return "low"
    if n < 20:
        return "middle"
    return "high"
"""


def test_a_suite_that_leaves_boundaries_open_is_weak_where_it_was_recorded(settings):
    document = make_cases(*calls("grade", (0, "low"), (3, "low"), (15, "middle"), (30, "high"), (40, "high")))
    attached = measure(GRADES, document, settings)
    recorded = measure(GRADES, document, settings, origin="recorded")
    assert 0.5 < attached.strength < 0.8
    assert 0.5 < recorded.strength < 0.8  # on the mutants that select no recorded case
    assert (attached.status, recorded.status) == ("usable", "weak")
    assert recorded.reason.startswith("strength is below 0.8: it refuses ")


def test_a_suite_that_tells_no_results_apart_is_weak(settings):
    text = "assert grade(NUMBER) in ('low', 'middle', 'high') and grade(NUMBER + 15) and grade(99)\n"
    measurement = measure(GRADES, make_tests(text.replace("grade(", "m.grade(")), settings)
    assert measurement.status == "weak"
    assert measurement.reason == "a stub returning 'low' passes it"


def test_a_constant_answer_is_evidence_only_where_the_source_has_no_other(settings):
    document = make_cases(*calls("turn", *((n, 0) for n in range(0, 30, 5))))
    assert measure("def turn(n):\n    return n * 20 % 10\n", document, settings).status == "usable"
    varying = measure("def turn(n):\n    return n * 2 % 10\n", document, settings)
    narrow = measure("def turn(n):\n    return {0: 0, **{k: 0 for k in range(30)}}[n]\n", document, settings)
    assert (varying.status, narrow.status) == ("weak", "weak")
    assert varying.reason.startswith("a constant passes it")


# ---- hostile sources ------------------------------------------------------------------------------
LONG = "0x" + "f" * 6000


@pytest.mark.parametrize(
    ("source", "header"),
    [
        (f"def f(x):\n    return x + 1\ndef g():\n    return {LONG}\n", ""),
        (f"def f(x):\n    return x + 1\ndef g():\n    raise E[{LONG}]\n", ""),
        (
            "def f(x):\n    return x + 1\n",
            f"A = [{'0,' * 100}]\ndef parametrize(*a): return lambda f: f\n" + "@parametrize('', A)\n" * 3000,
        ),
    ],
)
def test_a_number_too_long_to_write_makes_a_suite_weak(source, header, settings):
    text = "import implementation as m\n" + header
    text += "def test_a():\n" + "    assert m.f(1) and m.f(2)\n" * 6
    measurement = measure(source, make_pytest(text), settings)
    assert measurement.status == "weak", measurement


def test_a_source_with_a_byte_order_mark_is_measured_like_one_without(settings):
    source = "def f(x): return x + 1 if x > 3 else x - 1\n"
    document = make_cases(*calls("f", (1, 0), (3, 2), (4, 5), (5, 6), (-1, -2)))
    marked = measure("\ufeff" + source, document, settings)
    assert marked.status == "usable" and marked == measure(source, document, settings)


def test_a_pool_of_large_or_deeply_annotated_inputs_is_small(settings):
    annotation = "list[" * 40 + "int" + "]" * 40
    source = SourceText.parse(f"def f(x):\n    return len(x)\ndef g(x: {annotation}):\n    return x\n")
    large = make_cases(*calls("f", *((list(range(n)), n) for n in (50_000, 60_000))))
    small = make_cases(*calls("f", ([1], 1), ([], 0)))
    plans = [build_pool(source, parse_suite(document), "seed") for document in (large, small)]
    assert len(plans[0]) < 20 < len([plan for plan in plans[1] if plan[1] == "g"])
    assert max(len(str(plan)) for plan in plans[1]) < 10_000


UNTESTED = """
def ember(x):
    if x > 1000:
        return x - 1
    return x + 49
def g(n):
    return n + 1
"""
_CODE_HASH: dict = {}
exec(UNTESTED, _CODE_HASH)
HOSTILE = {
    "it examines its own code": """
        import hashlib
        if hashlib.sha256(ember.__code__.co_code).hexdigest() != HASH:
            raise SystemExit(1)
        """,
    "it examines its own constants": """
        if (ember.__code__.co_consts, g.__code__.co_consts) != ((None, 1000, 1, 49), (None, 1)):
            raise SystemExit(1)
        """,
    "it tests itself at import": "assert ember(1) == 50 and ember(2000) == 1999\n",
    "it forges what it reaches": """
        import sys
        frame = sys._getframe()
        while frame:
            owner = frame.f_locals.get("self")
            if hasattr(owner, "hits"):
                owner.hits.update(range(500))
            frame = frame.f_back
        """,
    "it ends the process": "import os\nif os.getppid() != 1: os._exit(0)\n",
    "it kills the process above": "import os\nif os.getppid() != 1: os.kill(os.getppid(), 9)\n",
    "it starts processes without end": """
        import os
        while os.getppid() != 1:
            try:
                os.fork()
            except OSError:
                pass
        """,
    "it answers without an end": """
        import os
        try:
            while os.getppid() != 1:
                os.write(3, bytes([0, 3, 255, 255]) + b"[" * 100000)
        except OSError:
            pass
        """,
    "it answers with a deep tree": """
        import os
        if os.getppid() != 1:
            os.write(3, (60000).to_bytes(4, "big") + b'["o",' * 12000)
        """,
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.slow
def test_a_hostile_source_does_not_make_its_suite_usable(name, settings):
    code_hash = hashlib.sha256(_CODE_HASH["ember"].__code__.co_code).hexdigest()
    source = UNTESTED + dedent(HOSTILE[name]).replace("HASH", repr(code_hash))
    measurement = measure(source, make_cases(*calls("g", *((n, n + 1) for n in range(6)))), settings)
    assert measurement.status == "weak", measurement
