"""Suites recorded from code that came without tests: what is recorded, what is left out, and why."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from iccm_assets.settings import JudgeSettings, load_settings
from iccm_assets.suites.input_pool import build_pool
from iccm_assets.suites.known_calls import find_known_calls, find_known_sequences
from iccm_assets.suites.outside_effects import choose_targets
from iccm_assets.suites.recorded_inputs import InputSearch
from iccm_assets.suites.source_edits import SourceText
from iccm_assets.suites.suite_recording import SuiteRecording, record_suite
from iccm_assets.suites.suite_runner import run_suite
from iccm_assets.suites.suite_values import new_object
from iccm_assets.suites.test_suites import parse_suite
from iccm_assets_tests.factories.host_probe import assert_unchanged, snapshot
from iccm_assets_tests.factories.implementations import HOSTILE


def record(source: str, texts: tuple[str, ...] = ()) -> SuiteRecording:
    return record_suite(dedent(source), load_settings(), texts)


def record_cases(source: str) -> list[dict]:
    """The cases of a suite that is usable, passes its source, and survives a JSON store."""
    recording = record(source)
    assert recording.measurement.status == "usable", recording.measurement.reason
    assert recording.document is not None
    suite = parse_suite(json.loads(json.dumps(recording.document)))
    assert 5 <= len(suite.cases) <= 40
    result = run_suite(dedent(source), suite, load_settings())
    assert result.test_pass_rate == 1.0 and not result.suspect
    return recording.document["cases"]


def refuses(cases: list[dict], implementation: str) -> bool:
    suite = parse_suite({"kind": "cases", "cases": cases})
    return run_suite(dedent(implementation), suite, load_settings()).test_pass_rate < 1.0


STACK = """
    class Stack:
        def __init__(self, limit=3):
            if limit < 1:
                raise ValueError("no room")
            self._items, self._limit = [], limit

        def push(self, item):
            if len(self._items) >= self._limit:
                raise OverflowError("full")
            self._items.append(item)

        def pop(self):
            if not self._items:
                raise IndexError("empty")
            return self._items.pop()

        @property
        def size(self):
            return len(self._items)
    """


def test_the_state_of_an_object_is_recorded_by_sequences_of_calls_and_properties() -> None:
    cases = record_cases(STACK)
    assert any(len(case.get("steps", [])) > 2 for case in cases)
    assert any("get" in step for case in cases for step in case.get("steps", []))
    assert any(step.get("raises") == "IndexError" for case in cases for step in case.get("steps", []))
    assert refuses(cases, STACK.replace(".pop()", ".pop(0)"))
    assert refuses(cases, STACK.replace("return len(self._items)", "return 0"))
    assert not refuses(cases, STACK.replace("_items", "_values"))


def test_arguments_changed_in_place_are_part_of_the_answer() -> None:
    source = """
        def bubble(items):
            for i in range(len(items)):
                for j in range(len(items) - 1 - i):
                    if items[j] > items[j + 1]:
                        items[j], items[j + 1] = items[j + 1], items[j]
        """
    cases = record_cases(source)
    assert any("args_after" in case for case in cases)
    assert refuses(cases, "def bubble(items):\n    pass\n")
    assert not refuses(cases, "def bubble(items):\n    items.sort()\n")


def test_the_items_of_a_generator_are_recorded() -> None:
    source = """
        def chunks(items: list, size: int):
            if size < 1:
                raise ValueError("size")
            for start in range(0, len(items), size):
                yield items[start : start + size]
        """
    cases = record_cases(source)
    assert any("$iterator" in str(case.get("expect")) for case in cases)
    assert any(case.get("raises") == "ValueError" for case in cases)
    assert not refuses(
        cases,
        """
        def chunks(items, size):
            if size < 1:
                raise ValueError
            return (items[i : i + size] for i in range(0, len(items), size))
        """,
    )


def test_of_a_generator_without_an_end_the_first_items_are_recorded() -> None:
    cases = record_cases(
        """
        def count_by(start: int, step: int):
            while True:
                yield start if step % 2 else start + step
                start += step
        """
    )
    assert {tuple(case["expect"]) for case in cases} == {("$stream",)}


def test_dataclasses_and_enumerations_are_arguments_and_results() -> None:
    source = """
        from dataclasses import dataclass
        from enum import Enum

        class Color(Enum):
            RED = "red"
            BLUE = "blue"

        @dataclass
        class Point:
            x: int
            y: int = 0

        def paint(point: Point, color: Color) -> Color:
            return Color.BLUE if point.x > point.y else color

        def mirror(point: Point) -> Point:
            if point.x < 0:
                return Point(point.x, -point.y)
            return Point(-point.x, point.y)
        """
    cases = record_cases(source)
    text = json.dumps(cases)
    assert '{"$new": ["Color", ["red"]]}' in text and '{"$new": ["Point", [' in text
    assert '{"$enum": ["Color", "' in text and '{"$object": ["Point", {"x": ' in text
    assert refuses(cases, dedent(source).replace("Point(-point.x, point.y)", "Point(-point.x, 0)"))


def test_only_an_exception_that_the_source_raises_itself_is_recorded() -> None:
    source = """
        class TooLarge(ValueError):
            pass

        def ratio(a: int, b: int):
            if a > 10:
                raise TooLarge(a)
            return [1, 2, 3][a] / b
        """
    cases = record_cases(source)
    assert {case["raises"] for case in cases if "raises" in case} == {"TooLarge"}


def test_recursion_keyword_only_arguments_and_inheritance() -> None:
    source = """
        def depth(value, *, limit: int = 5):
            if limit <= 0 or not isinstance(value, list):
                return 0
            return 1 + max((depth(item, limit=limit - 1) for item in value), default=0)
        """
    cases = record_cases(source)
    assert any("limit" in case.get("kwargs", {}) for case in cases)
    source = """
        class Shape:
            def __init__(self, width: int, height: int):
                self.width, self.height = width, height

            def area(self):
                return self.width * self.height

        class Square(Shape):
            def __init__(self, side: int):
                super().__init__(side, side)

            def scale(self, factor: int):
                self.width *= factor
                self.height *= factor
                return self.area()
        """
    cases = record_cases(source)
    used = {(case["new"], step["call"]) for case in cases for step in case["steps"] if "call" in step}
    assert {("Shape", "area"), ("Square", "area"), ("Square", "scale")} <= used


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return open('/etc/hostname').read() + x", "it uses files"),
        ("import os\n    return len(os.listdir('.')) + x", "it uses files"),
        ("import random\n    return random.random() + x", "it uses randomness"),
        ("import time\n    return time.time() + x", "it reads the clock"),
        ("import datetime\n    return datetime.datetime.now().year + x", "it reads the clock"),
        ("import urllib.request\n    return urllib.request.urlopen(x)", "it uses the network"),
        ("import subprocess\n    return subprocess.run([x])", "it starts processes or threads"),
        ("return input() + x", "it reads input"),
        ("global total\n    total = x\n    return total", "it changes global state"),
        ("return helper(x)", "it uses randomness"),
    ],
)
def test_a_function_with_outside_effects_is_left_out_by_name_and_reason(body: str, reason: str) -> None:
    source = f"import random as r\ndef helper(x):\n    return r.choice([x])\ndef g(x):\n    {body}\n"
    recording = record(source)
    assert recording.left_out["g"] == reason
    assert not recording.document or all(case["call"] != "g" for case in recording.document["cases"])


def test_what_only_a_function_with_effects_calls_is_left_out_as_well() -> None:
    helper = "".join(f"    if seed == {number}:\n        return {3 * number}\n" for number in range(20, 40))
    source = f"import random\n\ndef pick():\n    return _draw(random.random())\n\ndef _draw(seed):\n{helper}"
    source += "\ndef double(number: int) -> int:\n    return 2 * number if number > 0 else _negate(number)\n"
    source += "\ndef _negate(number):\n    return 0 if number == 0 else -number\n"
    measurement = record(source).measurement
    assert (measurement.status, measurement.branch_coverage) == ("usable", 1.0), measurement.reason


def test_the_pure_functions_of_a_source_are_recorded_beside_others() -> None:
    source = """
        import time

        def stamp(x):
            return time.time() + x

        def grade(score: int) -> str:
            if score < 0:
                raise ValueError(score)
            if score >= 90:
                return "A"
            return "B" if score >= 75 else "C"
        """
    recording = record(source)
    assert recording.left_out == {"stamp": "it reads the clock"}
    assert {case["call"] for case in recording.document["cases"]} == {"grade"}


@pytest.mark.parametrize(
    "source",
    [
        "counter = []\ndef f(x: int):\n    counter.append(x)\n    return len(counter)\n",  # of earlier calls
        "def f(x: str):\n    return list({x, x + 'a', x + 'b', x + 'c'})\n",  # of the hash seed
        "def f(x: str):\n    return hash(x)\n",
        "def f(x: int):\n    return object()\n",
        "def f(x: int):\n    while True:\n        pass\n",
        "def f(x: int):\n    return x.missing\n",
    ],
)
def test_what_is_not_the_same_each_time_or_no_value_is_not_recorded(source: str) -> None:
    recording = record(source)
    assert recording.measurement.status == "none"
    assert recording.measurement.reason


def test_literal_calls_of_docstrings_comments_and_the_conversation_are_inputs() -> None:
    source = """
        def parse(text):
            '''Parse a code.

            >>> parse("AB-12")
            ('AB', 12)
            '''
            # for example parse("ZZ-007") or parse('Q-1')
            letters, digits = text.split("-")
            if not letters.isupper():
                raise ValueError(text)
            return letters, int(digits)
        """
    texts = ("What does parse('XY-99') give?",)
    known = find_known_calls(SourceText.parse(dedent(source)), texts)
    written = {"AB-12", "ZZ-007", "Q-1", "XY-99"}
    assert {args[0] for args, _ in known["parse"]} == written
    assert written & {case["args"][0] for case in record(source, texts).document["cases"]}


def test_arguments_of_examples_are_names_objects_and_functions_of_python() -> None:
    source = '''
        class Node:
            def __init__(self, value, following=None):
                self.value, self.following = value, following
        def apply(function, items, start=0):
            """Apply.

            >>> items = [1, 2, 3]
            >>> apply(abs, items)
            >>> items = [items, items]
            >>> apply(operator.add, items, start=float("inf"))
            >>> items = input()
            >>> apply(len, items)
            >>> apply(str.upper, tuple(range(2)))
            >>> apply(max, Node(1, Node(2)))
            >>> apply(open, [1])
            """
        '''
    known = find_known_calls(SourceText.parse(dedent(source)), ())
    assert known["apply"] == [
        ([new_object("$function", ["abs"]), [1, 2, 3]], {}),
        ([new_object("$function", ["operator.add"]), [[1, 2, 3], [1, 2, 3]]], {"start": float("inf")}),
        ([new_object("$function", ["str.upper"]), (0, 1)], {}),
        ([new_object("$function", ["max"]), new_object("Node", [1, new_object("Node", [2])])], {}),
    ]


def test_an_example_that_grows_is_not_followed() -> None:
    lines = ["a = [0, 0]", *(["a = [a, a]"] * 60), "f(a)", "f([range(10 ** 9)])", "f(list(range(10 ** 9)))"]
    doubling = "\n".join(f">>> {line}" for line in lines)
    known = find_known_calls(SourceText.parse("def f(x): return x\n"), (doubling,))
    assert known.get("f", []) == []


def test_linked_nodes_are_made_also_where_the_source_defines_no_class() -> None:
    source = """
        def total(head):
            result = 0
            while head:
                result += head.val
                head = head.next
            return result
        """
    cases = record_cases(source)
    assert '{"$new": ["SimpleNamespace", [], {}, {"val": ' in json.dumps(cases)


def test_nodes_without_a_class_may_be_two_arguments_and_in_a_tree_of_both() -> None:
    source = """
        def find_common(root, p, q):
            if root is None or root is p or root is q:
                return root
            left, right = find_common(root.left, p, q), find_common(root.right, p, q)
            if left is not None and right is not None:
                return root
            return left if left else right
        """
    cases = record_cases(source)
    assert refuses(
        cases, source.replace("return root\n            return", "return left\n            return")
    )


def test_objects_are_made_of_the_class_that_has_what_the_source_uses() -> None:
    source = """
        class Corner:
            def __init__(self, east, north):
                self.east, self.north = east, north

        class Box:
            def __init__(self, first, second):
                self.low, self.high = first.east, second.east

        def is_apart(one, two):
            return one.low > two.high or two.low > one.high

        def measure(many):
            return [item.high - item.low for item in many]
        """
    called = {case.get("call") for case in record_cases(source)}
    assert {"is_apart", "measure"} <= called


def test_what_only_changes_its_arguments_is_no_constant() -> None:
    source = """
        def swap(root):
            if root is None:
                return
            root.left, root.right = root.right, root.left
            swap(root.left)
            swap(root.right)
        """
    cases = record_cases(source)
    assert refuses(cases, "def swap(root): pass")


def test_lists_whose_nodes_refer_to_each_other_are_answers() -> None:
    source = """
        def close(first):
            if first is None:
                return None
            last = first
            while last.next:
                last = last.next
            last.next = first
            return last
        """
    assert refuses(record_cases(source), source.replace("return last", "return first"))


def test_two_nodes_that_are_compared_may_be_the_same_one() -> None:
    source = """
        class Item:
            def __init__(self, value):
                self.value, self.next = value, None

        def is_endless(item):
            slow = fast = item
            while fast and fast.next:
                slow, fast = slow.next, fast.next.next
                if slow == fast:
                    return True
            return False
        """
    cases = [case for case in record_cases(source) if case.get("call") == "is_endless"]
    assert {case["expect"] for case in cases} == {True, False}


def test_what_only_declares_fields_is_tested_by_them() -> None:
    source = """
        from dataclasses import dataclass

        @dataclass
        class Point:
            east: int
            north: int = 0
            name: str = "here"
        """
    cases = record_cases(source)
    assert refuses(cases, source.replace("here", "there"))
    assert refuses(cases, source.replace("            east: int\n", ""))


def test_a_condition_that_touches_its_keyword_is_probed() -> None:
    source = (
        "def f(n: int):\n    if(n > 3) and n != 7:\n        return 'a'\n    return 'b' if(n < 0)else 'c'\n"
    )
    assert record(source).measurement.branch_coverage == 1.0


def test_a_source_that_imports_what_the_judge_lacks_says_so() -> None:
    recording = record("import not_a_package\ndef f(x: int): return x\n")
    assert recording.measurement.status == "none"
    assert "not_a_package" in recording.measurement.reason


@pytest.mark.parametrize("source", ["", "x = 1\n", "def f(:\n", "(" * 5000])
def test_what_cannot_be_recorded_has_a_reason(source: str) -> None:
    recording = record(source)
    assert (recording.measurement.status, recording.document) == ("none", None)
    assert recording.measurement.reason


PROGRAM = """
import json, sys
from iccm_assets.settings import load_settings
from iccm_assets.suites.input_pool import build_pool
from iccm_assets.suites.known_calls import find_known_calls
from iccm_assets.suites.source_edits import SourceText
from iccm_assets.suites.suite_recording import record_suite
print(json.dumps(record_suite(sys.stdin.read(), load_settings()).document))
"""


def test_the_same_source_gives_the_same_bytes_under_other_hash_seeds() -> None:
    source = (
        dedent(STACK) + "def mean(numbers: list[float]):\n    return sum(numbers) / max(len(numbers), 1)\n"
    )
    written = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input=source,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "7")
    }
    assert len(written) == 1 and written != {"null\n"}


@pytest.mark.slow
@pytest.mark.parametrize("hostile", [pytest.param(item, id=item.name) for item in HOSTILE])
def test_recording_a_hostile_source_harms_nothing_and_gives_no_suite(hostile, monkeypatch) -> None:
    monkeypatch.setenv("PLANTED_SECRET", "s3cret-of-the-host")
    limits = JudgeSettings().model_copy(update={"wall_seconds": 4.0, "cpu_seconds": 1})
    before = snapshot()
    recording = record_suite(hostile.source, load_settings().model_copy(update={"judge": limits}))
    if hostile.suspicion:  # others, such as one that returns a float, are wrong answers and no attacks
        assert recording.measurement.status != "usable", recording.document
    assert "s3cret" not in repr(recording)
    assert_unchanged(before)


POSITIVE = """
class Positive:
    def __init__(self, n: int):
        if n < 0:
            raise ValueError(n)
        self.n = n

    def larger(self, other: "Positive") -> bool:
        return self.n > other.n

def halve(value: Positive) -> int:
    return value.n // 2 if value.n > 4 else value.n
"""


def test_an_object_that_cannot_be_made_is_an_outcome_of_its_call() -> None:
    raising = {"call": "halve", "args": [{"$new": ["Positive", [-1]]}], "raises": "ValueError"}
    steps = [{"call": "larger", "args": [{"$new": ["Positive", [-1]]}], "raises": "ValueError"}]
    suite = parse_suite(
        {"kind": "cases", "cases": [raising, {"new": "Positive", "args": [3], "steps": steps}]}
    )
    assert run_suite(POSITIVE, suite, load_settings()).test_pass_rate == 1.0
    lacking = run_suite("def halve(value):\n    return 1\n", suite, load_settings())
    assert [case.verdict for case in lacking.results] == ["failed", "error"]
    assert not lacking.suspect
    assert {"ValueError"} == {case["raises"] for case in record_cases(POSITIVE) if "raises" in case}


def test_the_pool_reads_attributes_and_makes_objects_of_the_same_class() -> None:
    cases = [
        {"new": "Positive", "args": [3], "steps": [{"get": "n", "expect": 3}]},
        {"call": "halve", "args": [{"$new": ["Positive", [8]]}], "expect": 4},
    ]
    suite = parse_suite({"kind": "cases", "cases": cases})
    plans = build_pool(SourceText.parse(POSITIVE), suite, "seed")
    reads = [step for plan in plans if plan[0] == "new" for step in plan[4] if step[0] == "n"]
    made = [plan[2][0][...] for plan in plans if plan[1] == "halve"]
    assert set(reads) == {("n", None, None)}
    assert {name for name, *_ in made} == {"Positive"} and len({tuple(args) for _, args, *_ in made}) > 5


NEEDS = {
    "what methods do with what the constructor was given": """
        class Pair:
            def __init__(self, first=None, second=None):
                self.first, self.second = first, second

            def add(self):
                if len(self.first) != len(self.second) or len(self.first[0]) != len(self.second[0]):
                    raise ValueError("other shapes")
                return [
                    [x + y for x, y in zip(*rows, strict=True)]
                    for rows in zip(self.first, self.second, strict=True)
                ]

            def turn(self):
                return [[row[place] for row in self.first] for place in range(len(self.first[0]))]
        """,
    "weights of neighbors, and a node of the object's own graph": """
        class Routes:
            def __init__(self, graph):
                self.graph = graph
                self.known = list(graph.keys())

            def lengths(self, start):
                if start not in self.known:
                    raise ValueError("unknown")
                found, pending = {start: 0}, [start]
                while pending:
                    node = pending.pop(0)
                    for other, length in self.graph.get(node, []):
                        if other not in found or found[node] + abs(length) < found[other]:
                            found[other] = found[node] + abs(length)
                            pending.append(other)
                return found
        """,
    "a graph whose neighbors are sets": """
        def visit(graph, first_node):
            if first_node not in graph or not graph[first_node]:
                return None
            visited, pending = set(), [first_node]
            while pending:
                node = pending.pop(0)
                if node not in visited:
                    visited.add(node)
                    pending.extend(sorted(graph[node] - visited))
            return visited
        """,
    "objects that only have attributes": """
        def overlap(spans: list) -> bool:
            spans = sorted(spans, key=lambda item: item.start)
            for place in range(1, len(spans)):
                if spans[place].start < spans[place - 1].end:
                    return True
            return False
        """,
    "keyword arguments that are looked up": """
        class Box:
            def __init__(self, *args, **kwargs):
                if len(args) == 2:
                    self.width, self.height = args
                else:
                    self.width, self.height = kwargs["width"], kwargs.get("height", 1)

            def area(self, **options):
                if "scale" in options:
                    return self.width * self.height * options["scale"] ** 2
                return self.width * self.height
        """,
    "dicts with the keys that are read": """
        def cheapest(orders):
            best = None
            for order in orders:
                total = order["price"] * order["amount"]
                if order["amount"] > 0 and (best is None or total < best):
                    best = total
            return best
        """,
    "texts of which the methods are called": """
        def find_others(term, _list):
            return [entry for entry in _list if entry.lower() != term and set(entry.lower()) == set(term)]
        """,
    "an object that calls of its methods fill": """
        class Net:
            def __init__(self, size):
                self.size, self.after = size, {node: [] for node in range(size)}

            def connect(self, node, other):
                self.after[node].append(other)

        def reached(net: Net):
            if net.size < 2:
                return []
            known = [0]
            for node in known:
                for other in net.after[node]:
                    if other not in known and other < net.size:
                        known.append(other)
            return known[1:]
        """,
    "a filled object": """
        class Queue:
            def __init__(self):
                self.head, self.items = None, {}

            def start(self, item):
                self.head = item
                self.items[item] = [item]

            def add(self, item):
                self.items[self.head].append(item)

            def drop(self):
                if len(self.items[self.head]) > 2:
                    return self.items[self.head].pop(1)
                return self.items[self.head].pop()

            def size(self):
                return sum(map(len, self.items.values()))
        """,
    "a graph and one of its nodes": """
        def reach(graph, start):
            if start not in graph:
                return None
            reached, queue = [], [start]
            while queue:
                node = queue.pop(0)
                if node not in reached:
                    reached.append(node)
                    queue.extend(sorted(graph[node]))
            return reached
        """,
    "an element of a sorted list": """
        def locate(numbers: list[int], low: int, high: int, wanted: int) -> int:
            while low <= high:
                middle = (low + high) // 2
                if numbers[middle] == wanted:
                    return middle
                if numbers[middle] < wanted:
                    low = middle + 1
                else:
                    high = middle - 1
            return -1
        """,
    "lists of one length": """
        def total(prices, counts):
            if type(prices) is not list:
                raise TypeError("prices")
            if len(prices) != len(counts):
                raise ValueError("lengths")
            result = 0
            for price, count in zip(prices, counts):
                if count > 3:
                    price -= 1
                result += price * count
            return result
        """,
    "nodes that another class follows": """
        class Walk:
            def __init__(self, root):
                self.stack = []
                while root:
                    self.stack.append(root)
                    root = root.left

            def has_next(self):
                return bool(self.stack)

            def next(self):
                if not self.stack:
                    raise StopIteration
                node = self.stack.pop()
                value, node = node.val, node.right
                while node:
                    self.stack.append(node)
                    node = node.left
                return value
        """,
    "a function, a key and a predicate": """
        from functools import reduce
        def fold(numbers: list[int], combine, key=None, keep=bool):
            kept = [key(n) if key else n for n in filter(keep, numbers)]
            if not kept:
                return None
            return reduce(combine, kept) if len(kept) < 4 else combine(kept[0], kept[-1])
        """,
    "functions by their hints": """
        from collections.abc import Callable
        class Pipeline:
            def __init__(self, limit: int):
                self.limit, self.steps = limit, []
            def add(self, step: Callable[[float], float]) -> int:
                if len(self.steps) >= self.limit:
                    raise ValueError("full")
                self.steps.append(step)
                return len(self.steps)
            def run(self, value: float) -> float:
                for step in self.steps:
                    value = step(value)
                return value if self.steps else -1.0
        """,
    "complex numbers": """
        def turn(point: complex, quarters: int) -> complex:
            if quarters < 0:
                return point.conjugate() * -1j
            for _ in range(quarters % 4):
                point *= 1j
            return point if abs(point) > 2 else point * 2
        """,
    "what an example names": '''
        def cover(universe, parts, costs):
            """Choose parts.

            >>> whole = {1, 2, 3, 4, 5}
            >>> parts = {"a": {4, 1, 3}, "b": {2, 5}, "c": {1, 4, 3, 2}}
            >>> cover(whole, parts, {"a": 5, "b": 10, "c": 3})
            ['c', 'b']
            """
            if {item for part in parts.values() for item in part} != universe:
                return None
            covered, chosen = set(), []
            while covered != universe:
                best, ratio = None, float("inf")
                for name, items in parts.items():
                    new = len(items - covered)
                    if new != 0 and costs[name] / new < ratio:
                        best, ratio = name, costs[name] / new
                chosen.append(best)
                covered |= parts[best]
            return chosen
        ''',
    "objects with an equality of their own": '''
        class Span:
            def __init__(self, start: int = 0, end: int = 0):
                self.start, self.end = start, end
            def __eq__(self, other):
                return isinstance(other, Span) and (self.start, self.end) == (other.start, other.end)
            @staticmethod
            def merge(spans: list["Span"]) -> list["Span"]:
                """Merge: Span.merge([Span(1, 3), Span(2, 6)]) is [Span(1, 6)]."""
                merged = []
                for span in sorted(spans, key=lambda span: span.start):
                    if merged and span.start <= merged[-1].end:
                        merged[-1].end = max(merged[-1].end, span.end)
                    else:
                        merged.append(span)
                return merged
        ''',
    "an empty tree": """
        def levels(root):
            if not root:
                return []
            answer, level = [], [root]
            while level:
                answer.append([node.val for node in level])
                level = [part for node in level for part in (node.left, node.right) if part]
            return answer
        """,
    "an abstract class": """
        from abc import ABC, abstractmethod
        class Shape(ABC):
            @abstractmethod
            def area(self): ...
            @abstractmethod
            def scale(self, factor):
                raise NotImplementedError
        class Square(Shape):
            def __init__(self, side: int):
                self.side = side
            def area(self):
                return self.side * self.side if self.side > 0 else 0
            def scale(self, factor: int):
                self.side = self.side * factor
                return self.area()
            def __iter__(self):
                while True:
                    yield self.side
        """,
    "what docstrings quote": '''
        def join(operators, numbers):
            """Join numbers with operators such as '+', '-' and '*', and evaluate that."""
            text = str(numbers[0])
            for operator, number in zip(operators, numbers[1:]):
                if operator not in ("+", "-", "*"):
                    raise ValueError(operator)
                text += operator + str(number)
            return eval(text)
        ''',
    "a table by pairs": """
        def lengths(count, length_by_edge):
            known = dict(length_by_edge)
            for middle in range(count):
                for start in range(count):
                    for end in range(count):
                        if (start, middle) in known and (middle, end) in known:
                            new = known[start, middle] + known[middle, end]
                            known[start, end] = min(new, known.get((start, end), new))
            return known
        """,
    "nodes that refer to several others": """
        class Node:
            def __init__(self, value=0, children=()):
                self.value = value
                self.children = list(children)

        def total(node):
            result = node.value
            for child in node.children:
                result += 2 * total(child)
            return result
        """,
}


NODES = """
class Node:
    def __init__(self, label=None, follower=None, successors=(), predecessors=()):
        self.label, self.next = label, follower
        self.successors, self.predecessors = list(successors), list(predecessors)

"""
FAULTS = {
    "two arguments that are one node": (
        NODES,
        """
        def is_reachable(first_node, last_node):
            known, pending = {first_node}, [first_node]
            while pending:
                node = pending.pop(0)
                if node is last_node:
                    return True
                further = [other for other in node.successors if other not in known]
                known.update(further)
                pending.extend(further)
            return False
        """,
        ("pending.extend(further)", "pending.extend(further[:1])"),
    ),
    "edges seen from both ends": (
        NODES,
        """
        def arrange(nodes):
            done = [node for node in nodes if not node.predecessors]
            for node in done:
                for other in node.successors:
                    if other not in done and all(part in done for part in other.predecessors):
                        done.append(other)
            return done
        """,
        ("all(", "any("),
    ),
    "what is known of two nodes": (
        NODES,
        """
        def measure(costs, first_node, last_node):
            best, pending = {first_node: 0}, [first_node]
            while pending:
                node = pending.pop(0)
                for other in node.successors:
                    cost = best[node] + abs(costs[node, other])
                    if other not in best or cost < best[other]:
                        best[other] = cost
                        pending.append(other)
            return best.get(last_node, -1)
        """,
        ("best[node] + abs(", "0 * best[node] + abs("),
    ),
    "a list that ends in a circle": (
        NODES,
        """
        def has_circle(node):
            slow = fast = node
            while fast is not None and fast.next is not None:
                slow, fast = slow.next, fast.next.next
                if slow is fast:
                    return True
            return False
        """,
        ("return True", "return slow is not node"),
    ),
    "values and signs in an order": (
        "",
        """
        def evaluate(tokens):
            known = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
            waiting = []
            for token in tokens:
                if isinstance(token, int):
                    waiting.append(token)
                else:
                    right = waiting.pop()
                    waiting.append(known[token](waiting.pop(), right))
            return waiting.pop()
        """,
        ("(waiting.pop(), right)", "(right, waiting.pop())"),
    ),
    "texts with parts in common": (
        "",
        """
        def count_common(a, b):
            rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
            for i, x in enumerate(a):
                for j, y in enumerate(b):
                    rows[i + 1][j + 1] = rows[i][j] + 1 if x == y else max(rows[i][j + 1], rows[i + 1][j])
            return rows[-1][-1]
        """,
        ("rows[i][j] + 1", "rows[i][j + 1] + 1"),
    ),
    "pairs as keys": (
        "",
        """
        def spread(source, costs):
            known = {end: 1000 for pair in costs for end in pair}
            known[source] = 0
            for _ in known:
                for (start, end), cost in costs.items():
                    known[end] = min(known[end], known[start] + abs(cost))
            return known
        """,
        ("known[start] + abs(cost)", "known[source] + abs(cost)"),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_that_only_related_inputs_show_are_refused(name: str) -> None:
    classes, function, (right, wrong) = FAULTS[name]
    source = classes + dedent(function)
    recording = record(source)
    assert recording.measurement.status == "usable", recording.measurement
    suite, settings = parse_suite(recording.document), load_settings()
    assert run_suite(source, suite, settings).test_pass_rate == 1
    assert run_suite(source.replace(right, wrong), suite, settings).test_pass_rate < 1


@pytest.mark.parametrize("name", NEEDS)
def test_inputs_that_fit_together_are_drawn(name: str) -> None:
    recording = record(NEEDS[name])
    assert recording.measurement.status == "usable", recording.measurement


@pytest.mark.parametrize("call", ["print(", "write = sys.stderr.write; write("])
def test_a_source_that_prints_more_than_it_may_fails_its_own_suite(call: str) -> None:
    recording = record(f"""
        import sys
        def shout(n):
            {call}"a" * 300_000)
            return n * 3
        """)
    assert recording.measurement.status == "mismatch"
    assert "output_limit" in recording.measurement.reason


def test_what_examples_do_with_an_object_is_a_case() -> None:
    source = '''
        class Counter:
            """Count words.

            >>> counter = Counter(2)
            >>> counter.add("tea")
            >>> counter.add("tea")
            1
            """

            def __init__(self, step):
                self.step, self.counts = step, {}

            def add(self, word):
                if word in self.counts:
                    self.counts[word] += self.step
                    return self.counts[word] // self.step
                self.counts[word] = self.step
                return None
        '''
    cases = record_cases(source)
    steps = [[(step["call"], step["args"]) for step in case["steps"]] for case in cases if "steps" in case]
    assert [("add", ["tea"]), ("add", ["tea"])] in steps
    classes = find_known_sequences(SourceText.parse(dedent(source)), (), ["Counter"])
    assert classes == {"Counter": [([2], {}, [("add", ["tea"], {}), ("add", ["tea"], {})])]}


def test_a_method_that_reads_its_own_text_spoils_no_other() -> None:
    source = """
        import inspect
        class Node:
            def __init__(self, value):
                self.value = value
            @staticmethod
            def get_code():
                return inspect.getsource(Node)
        def first(value: int):
            return Node(value).value + 1 if value > 2 else 0
        def text():
            return Node(1).get_code()
        """
    recording = record(source)
    left_out = {name for name, reason in recording.left_out.items() if reason == "it reads its own text"}
    assert left_out == {"Node.get_code", "text"}
    assert recording.measurement.status == "usable", recording.measurement


@pytest.mark.parametrize("name", sorted(sys.stdlib_module_names)[::4])
def test_the_search_for_inputs_reads_any_source(name: str) -> None:
    spec = importlib.util.find_spec(name)
    if spec is None or not (spec.origin or "").endswith(".py"):
        return
    source = SourceText.parse(Path(spec.origin).read_text("utf-8"))
    targets, _ = choose_targets(source.tree)
    search = InputSearch(source, targets[:10], (), "seed")
    assert search.propose_types(False) is not None and search.propose_types(True) is not None
