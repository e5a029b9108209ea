import pytest

from iccm_assets.curation.canary_set import load_canary_set
from iccm_assets.curation.fingerprints import program_hash, text_hash
from iccm_assets.curation.leaks import CanaryIndex, Text, find_leaks, load_index
from iccm_assets_tests.curation.worlds import HashEmbedder, write_canary_set

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
    assert program_hash(copy) == program_hash(PROGRAM)


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
    assert program_hash(other) != program_hash(PROGRAM)


def test_methods_of_builtins_count_and_own_ones_do_not():
    assert program_hash("def f(x): return x.upper()") != program_hash("def f(x): return x.lower()")
    assert program_hash("class A:\n def put(self): return self.box") == program_hash(
        "class Queue:\n def push(self): return self.items"
    )
    assert program_hash("class A:\n def take(self): return self.box.pop()") == program_hash(
        "class Queue:\n def pop(me): return me.items.pop()"
    )
    assert program_hash("import math\ndef f(x): return math.sqrt(x)") != program_hash(
        "import cmath as math\ndef f(x): return math.sqrt(x)"
    )


@pytest.mark.parametrize(
    "source", ["", "# only a comment", '"""docs"""', "pass", "def f(:", "int main() {}", "\x00", "(" * 5000]
)
def test_what_is_no_program_has_no_hash(source):
    assert program_hash(source) is None


def test_texts_are_compared_without_case_space_and_unicode_form():
    assert text_hash("It  SHALL\nbe ﬁne. ") == text_hash("it shall be fine.")
    assert text_hash(" \n") is None
    assert text_hash("a") != text_hash("b")


@pytest.fixture
def index(tmp_path):
    items = [
        {"item": "one", "source_code": PROGRAM, "requirements": "clamp shall keep the value in its bounds."},
        {"item": "two", "source_code": "SELECT 1;", "requirements": "It shall select one."},
    ]
    return load_index(write_canary_set(tmp_path / "canary.jsonl", items))


def test_every_kind_of_overlap_is_found_and_named(index, engine):
    texts = [
        Text("select  1;", "Something else entirely."),
        Text(PROGRAM.replace("value", "v"), "Something else entirely."),
        Text("x = 1", "it shall  select one."),
        Text("x = 1", "clamp shall keep a value in bounds, always."),
        Text("x = 1", "Something else entirely."),
    ]
    leaks = find_leaks(engine, texts, index, HashEmbedder(disturbance=0.2), 0.9)
    assert [(leak.item, leak.how) if leak else None for leak in leaks] == [
        ("two", "the same source"),
        ("one", "the same program under other names"),
        ("two", "the same requirements"),
        ("one", "requirements as similar"),
        None,
    ]
    assert 0.9 <= leaks[3].similarity < 1 and leaks[0].similarity is None


def test_the_canary_set_is_embedded_once_and_nothing_when_all_is_seen_without(index, engine):
    embedder = HashEmbedder()
    assert find_leaks(engine, [Text("SELECT 1;", "x")], index, embedder, 0.9)[0].item == "two"
    assert embedder.encoded == []
    for _ in range(2):
        assert find_leaks(engine, [Text("x = 1", "y")], index, embedder, 0.9) == [None]
    assert len(embedder.encoded) == 3


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "canary.jsonl"
    write_canary_set(path, [{"item": "one", "source_code": "a = 1", "requirements": "r"}])
    assert load_index(str(path)).find(Text("a=1", "-")).item == "one"
    write_canary_set(
        path,
        [
            {"item": "two", "source_code": "a = 1", "requirements": "r"},
            {"item": "3", "source_code": "b", "requirements": "s"},
        ],
    )
    assert load_index(str(path)).find(Text("a=1", "-")).item == "two"
    assert vars(CanaryIndex(load_canary_set(path))) == vars(load_index(str(path)))
