"""Exceptions are described by the process that raised them: a forged description passes nothing. (J1)"""

import configparser
import decimal
import io
import json
from textwrap import dedent

import pytest

from iccm_assets.settings import load_settings
from iccm_assets.suites.raised_classes import BUILTIN, RaisedClasses, check_classes
from iccm_assets.suites.suite_runner import run_suite
from iccm_assets.suites.suite_values import InvalidValueError
from iccm_assets.suites.test_suites import parse_suite

BUILTIN_NAMES = ("ValueError", "KeyError", "TypeError", "IndexError")
OWN_NAMES = ("NotFound", "EmptyStackError", "LimitReached", "Closed")


def described(kind):
    """Describe a class as an honest process does."""
    return [[item.__name__, int(BUILTIN.get(item.__name__) is item)] for item in kind.__mro__]


def expecting(*names, source=""):
    cases = [{"call": "f", "raises": name} for name in names]
    return RaisedClasses(parse_suite({"kind": "cases", "cases": cases}).cases, source)


class Mixin:
    pass


class NotFound(Mixin, KeyError, ValueError):
    pass


@pytest.mark.parametrize(
    "kind",
    [
        *(pytest.param(kind, id=name) for name, kind in BUILTIN.items()),
        NotFound,
        json.JSONDecodeError,
        io.UnsupportedOperation,
        decimal.FloatOperation,
        configparser.NoSectionError,
        type("Both", (ExceptionGroup, RuntimeError), {}),
        type("ValueError", (ValueError,), {}),
    ],
)
def test_every_real_class_is_an_answer(kind):
    check_classes(described(kind))


IMPOSSIBLE = {
    "nothing": [],
    "no list": "ValueError",
    "not the root": [["ValueError", 1], ["Exception", 1], ["BaseException", 1]],
    "no bases": [["ValueError", 1], ["object", 0]],
    "a kind twice": [*[["ValueError", 1]] * 2, ["Exception", 1], ["BaseException", 1], ["object", 0]],
    "kinds without their bases": [[name, 1] for name in BUILTIN_NAMES] + described(Exception),
    "bases in another order": [["E", 0], ["LookupError", 1], *described(KeyError)],
    "one of Python's own with more bases": [*described(KeyError)[:-1], ["Mixin", 0], ["object", 0]],
    "two of Python's own": [["ValueError", 1], *described(KeyError)],
    "layouts that exclude each other": [["E", 0], ["OSError", 1], ["SyntaxError", 1], *described(Exception)],
    "own, but unknown": [["NoError", 1], *described(Exception)],
    "a truth value": [["E", False], *described(Exception)],
    "a name that is none": [[["E"], 0], *described(Exception)],
    "more than a class has": [[f"E{number}", 0] for number in range(300)] + described(Exception),
    "an entry too short": [["E"], *described(Exception)],
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_list_that_no_class_can_have_is_not_an_answer(name):
    with pytest.raises(InvalidValueError):
        check_classes(IMPOSSIBLE[name])


HIERARCHY = """
class AppError(Exception): pass
class NotFound(AppError, KeyError, ValueError): pass
Missing = NotFound
class UserNotFound(Missing): pass
Closed = type("Closed", (AppError,), {})
class Other(Exception): pass
"""


@pytest.mark.parametrize(
    ("classes", "expected", "many"),
    [
        (["NotFound", "AppError"], ["NotFound", "AppError"], False),
        (["UserNotFound", "NotFound", "AppError"], ["UserNotFound", "NotFound", "AppError"], False),
        (["Closed", "AppError"], ["Closed", "AppError", "Exception"], False),
        (["NotFound", "Other"], ["NotFound", "Other"], True),
        (["Unknown", "Other"], ["Unknown", "Other"], True),
        (["Unknown", "Other"], ["Other"], False),
        (["AppError", "NotFound"], ["NotFound", "Other"], False),
    ],
)
def test_names_of_the_suites_own_must_be_related_in_the_source(classes, expected, many):
    described_classes = [[name, 0] for name in classes] + described(Exception)
    assert expecting(*expected, source=HIERARCHY).is_of_many_kinds(described_classes) is many


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (json.JSONDecodeError, ["JSONDecodeError", "ValueError"]),
        (io.UnsupportedOperation, ["OSError", "ValueError", "UnsupportedOperation"]),
        (decimal.FloatOperation, ["TypeError", "ArithmeticError"]),
        (configparser.NoSectionError, ["Error", "NoSectionError"]),
        (UnicodeDecodeError, ["ValueError", "UnicodeError", "Exception"]),
        (ExceptionGroup, ["BaseExceptionGroup", "Exception"]),
    ],
)
def test_the_standard_librarys_classes_need_no_source(kind, expected):
    assert not expecting(*expected).is_of_many_kinds(described(kind))


def test_two_unrelated_kinds_need_a_class_that_combines_them():
    classes = [["NotFound", 0], ["KeyError", 1], ["LookupError", 1], ["ValueError", 1], *described(Exception)]
    check_classes(classes)
    assert expecting("KeyError", "ValueError").is_of_many_kinds(classes)
    assert not expecting("KeyError", "ValueError", source=HIERARCHY).is_of_many_kinds(classes)
    assert not expecting("KeyError").is_of_many_kinds(classes)


@pytest.mark.parametrize("source", ["(" * 5000, "\0", "class", "\ud800", "x." * 50_000 + "y"])
def test_a_source_that_cannot_be_parsed_defines_nothing(source):
    assert RaisedClasses((), source).bases == {}


# ---- forged in the sandbox --------------------------------------------------------------------------

FORGERS = {
    "a patched frame": """
        import sys
        frame = sys._getframe()
        while frame:
            for space in (frame.f_globals, frame.f_locals):
                if "encode_exception" in space:
                    space["encode_exception"] = FORGED
            frame = frame.f_back
        """,
    "the main module": """
        import sys
        for value in list(vars(sys.modules["__main__"]).values()):
            for module in value.values() if isinstance(value, dict) else [value]:
                if hasattr(module, "encode_exception"):
                    module.encode_exception = FORGED
        """,
    "a patched encoder of text": """
        import sys
        frame = sys._getframe()
        while frame:
            if "encode_text" in frame.f_globals:
                names = iter(NAMES * 100)
                frame.f_globals["encode_text"] = lambda text: '"' + next(names) + '"'
                frame.f_globals["BUILTIN_EXCEPTIONS"] = type("All", (), {"__contains__": lambda s, x: True})()
            frame = frame.f_back
        """,
    "an answer of its own": """
        import os, sys
        frame = sys._getframe()
        while frame:
            if "nonce" in frame.f_locals:
                nonce, answer_fd = frame.f_locals["nonce"], frame.f_locals["answer_fd"]
            frame = frame.f_back
        def h(x):
            text = FORGED(None).encode()
            os.write(answer_fd, nonce + len(text).to_bytes(4, "big") + text)
            os._exit(0)
        """,
    "a class with a forged order": """
        class Meta(type):
            def mro(cls):
                return [cls, *KINDS, *super().mro()[1:]]
        def h(x):
            raise Meta("Raised", (Exception,), {})
        """,
    "a class that claims to be any": """
        class Meta(type):
            def __subclasscheck__(cls, other): return True
            def __instancecheck__(cls, other): return True
            __mro__ = property(lambda cls: KINDS)
        class Raised(Exception, metaclass=Meta): pass
        def h(x):
            raise Raised
        """,
    "patched builtins": """
        import builtins, atexit, sys
        builtins.type = lambda *args: ValueError
        builtins.id = lambda *args: 0
        builtins.isinstance = builtins.issubclass = lambda *args: True
        atexit.register(print)
        sys.excepthook = print
        """,
}
PROLOGUE = """
NAMES = {names!r}
KINDS = [vars(__import__("builtins")).get(name) or type(name, (Exception,), {{}}) for name in NAMES]
def FORGED(error):
    return '["r",[' + ",".join('["%s",{own}]' % name for name in NAMES for _ in (0, 1)) + '],"",0]'
def h(x):
    raise OSError
"""


@pytest.mark.parametrize("names", [BUILTIN_NAMES, OWN_NAMES, OWN_NAMES[:2]])
@pytest.mark.parametrize("forger", FORGERS)
def test_no_forged_exception_passes(forger, names):
    own = int(names == BUILTIN_NAMES)
    source = PROLOGUE.format(names=list(names), own=own) + dedent(FORGERS[forger])
    suite = parse_suite({"kind": "cases", "cases": [{"call": "h", "args": [1], "raises": n} for n in names]})
    result = run_suite(source, suite, load_settings())
    assert not result.reason
    assert not [case for case in result.results if case.verdict == "passed"], result.results


def test_a_forged_order_that_a_class_could_have_passes_no_more_than_that_class():
    classes = ["Raised", *(kind.__name__ for kind in NotFound.__mro__[2:-1])]
    text = json.dumps([[name, int(name in BUILTIN)] for name in classes] + [["object", 0]])
    source = PROLOGUE.format(names=[], own=1) + dedent(
        f"""
        FORGED = lambda error: '["r",{text},"",0]'
        """
        + FORGERS["a patched frame"]
    )
    cases = [{"call": "h", "args": [1], "raises": name} for name in ("KeyError", "ValueError")]
    result = run_suite(source, parse_suite({"kind": "cases", "cases": cases}), load_settings())
    assert [case.verdict for case in result.results] == ["failed"] * 2
    assert result.suspect
