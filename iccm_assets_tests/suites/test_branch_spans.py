"""In which branch a mutant lies: only inputs that reach it can tell the mutant from the source."""

from iccm_assets.suites.source_edits import SourceText
from iccm_assets.suites.source_variants import find_branch, insert_probes, list_branch_spans

SOURCE = """
def sign(n):
    if n > 0:
        return 1
    elif n < 0:
        return -1
    return 0 if n == 0 else None
"""


def parse(text: str) -> SourceText:
    source = SourceText.parse(text)
    assert source is not None
    return source


def find(source: SourceText, text: str) -> int | None:
    start = source.data.index(text.encode())
    return find_branch(list_branch_spans(source), start, start + len(text))


def test_code_lies_in_the_innermost_branch_around_it() -> None:
    source = parse(SOURCE)
    _, branches = insert_probes(source, "probe")
    numbers = [find(source, text) for text in ("n > 0", "return 1", "n < 0", "return -1", "None")]
    assert numbers[0] is None
    assert len(set(numbers)) == 5
    assert set(numbers[1:]) <= branches.keys()
    assert numbers[2] == numbers[1] + 1  # type: ignore[operator]  # the other side of the first condition


def test_nothing_is_known_of_branches_that_the_import_may_reach() -> None:
    assert list_branch_spans(parse(SOURCE + "\nTABLE = [sign(n) for n in range(3)]\n")) == []
    assert list_branch_spans(parse("def own(f):\n    return f\n\n@own\ndef g():\n    return 1\n")) == []
    assert list_branch_spans(parse(SOURCE + "\nTABLE = list(range(3))\n"))


def test_a_branch_of_a_method_is_known_whatever_the_class_inherits() -> None:
    text = "class A:\n    pass\n\nclass B(A):\n    def f(self, n):\n        return 2 if n else 3\n"
    assert find(parse(text), "2") is not None
