import pytest

from iccm_assets.curation.canary_set import load_canary_set
from iccm_assets.curation.code_fingerprints import ast_hash, normalized_text_hash
from iccm_assets.curation.decontamination import (
    CanaryIndex,
    TextPair,
    find_contamination,
    load_canary_index,
)
from iccm_assets_tests.factories.training_pools import HashEmbedder, write_canary_set

PROGRAM = '''
def clamp(value, low, high):
    """Keep value between low and high."""
    if value < low:
        return low
    return min(value, high) + 3
'''


@pytest.mark.parametrize(
    "copy",
    [
        "def clamp(value,low,high):\n  # comment\n  if (value<low): return low\n  return min(value, high)+3",
        PROGRAM.replace("value", "x").replace("low", "a").replace("high", "b").replace("clamp", "limited"),
        PROGRAM.replace("Keep value", "Limit it"),
        PROGRAM.replace("value, low, high)", "value: int, low: int, high: int = 0) -> int").replace(
            " = 0", ""
        ),
        '"""A module."""\n' + PROGRAM,
    ],
)
def test_layout_names_comments_docstrings_and_annotations_do_not_hide_a_copy(copy):
    assert ast_hash(copy) == ast_hash(PROGRAM)


@pytest.mark.parametrize(
    "other",
    [
        PROGRAM.replace("3", "4"),
        PROGRAM.replace("min", "max"),
        PROGRAM.replace("value < low", "low < value"),
        PROGRAM.replace("return low", "return high"),
        PROGRAM.replace("3", "3.0"),
        PROGRAM + "\nx = 1\n",
    ],
)
def test_another_program_has_another_hash(other):
    assert ast_hash(other) != ast_hash(PROGRAM)


def test_names_of_builtin_methods_count_and_the_programs_own_do_not():
    assert ast_hash("def f(x): return x.upper()") != ast_hash("def f(x): return x.lower()")
    assert ast_hash("class A:\n def put(self): return self.box") == ast_hash(
        "class Queue:\n def push(self): return self.items"
    )
    assert ast_hash("class A:\n def take(self): return self.box.pop()") == ast_hash(
        "class Queue:\n def pop(me): return me.items.pop()"
    )
    assert ast_hash("import math\ndef f(x): return math.sqrt(x)") != ast_hash(
        "import cmath as math\ndef f(x): return math.sqrt(x)"
    )


@pytest.mark.parametrize(
    "source", ["", "# only a comment", '"""docs"""', "pass", "def f(:", "int main() {}", "\x00", "(" * 5000]
)
def test_text_that_is_not_a_program_has_no_hash(source):
    assert ast_hash(source) is None


def test_texts_are_compared_without_case_space_and_unicode_form():
    assert normalized_text_hash("It  SHALL\nbe ﬁne. ") == normalized_text_hash("it shall be fine.")
    assert normalized_text_hash(" \n") is None
    assert normalized_text_hash("a") != normalized_text_hash("b")


@pytest.fixture
def index(tmp_path):
    items = [
        {"item": "one", "source_code": PROGRAM, "requirements": "clamp shall keep the value in its bounds."},
        {"item": "two", "source_code": "SELECT 1;", "requirements": "It shall select one."},
    ]
    return load_canary_index(write_canary_set(tmp_path / "canary.jsonl", items))


def test_every_kind_of_overlap_is_found_and_named(index, engine):
    pairs = [
        TextPair("select  1;", "Something else entirely."),
        TextPair(PROGRAM.replace("value", "v"), "Something else entirely."),
        TextPair("x = 1", "it shall  select one."),
        TextPair("x = 1", "clamp shall keep a value in bounds, always."),
        TextPair("x = 1", "Something else entirely."),
    ]
    leaks = find_contamination(engine, pairs, index, HashEmbedder(disturbance=0.2), 0.9)
    assert [(leak.item, leak.overlap) if leak else None for leak in leaks] == [
        ("two", "the same source"),
        ("one", "the same program under other names"),
        ("two", "the same requirements"),
        ("one", "requirements as similar"),
        None,
    ]
    assert 0.9 <= leaks[3].similarity < 1 and leaks[0].similarity is None


def test_the_canary_set_is_embedded_once_and_only_if_hashes_do_not_decide(index, engine):
    embedder = HashEmbedder()
    assert find_contamination(engine, [TextPair("SELECT 1;", "x")], index, embedder, 0.9)[0].item == "two"
    assert embedder.encoded == []
    for _ in range(2):
        assert find_contamination(engine, [TextPair("x = 1", "y")], index, embedder, 0.9) == [None]
    assert len(embedder.encoded) == 3


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "canary.jsonl"
    write_canary_set(path, [{"item": "one", "source_code": "a = 1", "requirements": "r"}])
    assert load_canary_index(str(path)).find(TextPair("a=1", "-")).item == "one"
    write_canary_set(
        path,
        [
            {"item": "two", "source_code": "a = 1", "requirements": "r"},
            {"item": "3", "source_code": "b", "requirements": "s"},
        ],
    )
    assert load_canary_index(str(path)).find(TextPair("a=1", "-")).item == "two"
    assert vars(CanaryIndex(load_canary_set(path))) == vars(load_canary_index(str(path)))
