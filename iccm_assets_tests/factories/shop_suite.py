"""Suite documents and a source for the tests of measured suites."""

from textwrap import dedent, indent

SHOP = '''
VERSION = "1.2"
LIMITS = {"low": 3, "high": 9}

def ember(x):
    """Return x plus 49."""
    return x + 49

def clamp(x, low=0, high=10):
    if x < low:
        return low
    if x > high:
        return high
    return x

class Box:
    size = 3
    def __init__(self, n=1):
        self.items = [n]
    def add(self, v):
        if v < 0:
            raise ValueError("negative")
        self.items.append(v)
        return len(self.items)
    def total(self):
        return sum(self.items)
'''


def make_cases(*written):
    return {"kind": "cases", "cases": list(written)}


def calls(name, *pairs):
    return [{"call": name, "args": [argument], "expect": expected} for argument, expected in pairs]


def make_pytest(text):
    return {"kind": "pytest", "files": {"test_x.py": dedent(text)}}


def make_tests(body, count=6):
    """Make a pytest suite of several tests with this body, in which NUMBER is that of the test."""
    tests = (f"def test_{n}():\n{indent(body, '    ')}".replace("NUMBER", str(n)) for n in range(count))
    return make_pytest("import contextlib, implementation as m\n" + "\n".join(tests))


SHOP_SUITE = make_cases(
    *calls("ember", (1, 50), (0, 49), (-49, 0)),
    *calls("clamp", (-1, 0), (0, 0), (5, 5), (10, 10), (11, 10)),
    {"call": "clamp", "args": [7], "kwargs": {"high": 6, "low": 2}, "expect": 6},
    {"new": "Box", "steps": [{"call": "add", "args": [4], "expect": 2}, {"call": "total", "expect": 5}]},
    {"new": "Box", "args": [7], "steps": [{"call": "add", "args": [0], "expect": 2}]},
    {"new": "Box", "args": [7], "steps": [{"call": "total", "expect": 7}]},
    {"new": "Box", "steps": [{"call": "add", "args": [-1], "raises": "ValueError"}]},
)
