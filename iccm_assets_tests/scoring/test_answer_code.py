"""Which code of a chat answer is the implementation: thinking, block tags, and the choice of blocks (O3)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iccm_assets.sandbox.source_files import split_files
from iccm_assets.scoring.answer_code import extract_code, find_named, is_python_info
from iccm_assets.scoring.answer_text import UnclosedThinkingError, drop_thinking
from iccm_assets.scoring.chat_responses import ChatAnswer, InvalidResponse
from iccm_assets_tests.factories.growth import assert_linear, cpu_seconds
from iccm_assets_tests.factories.programs import CART, PRICES
from iccm_assets_tests.factories.programs import TESTS as SHOP_TESTS

pytestmark = pytest.mark.usefixtures("frozen_heap")

TEXT = "The function `rate` shall take `weight` and return 5. The limit shall be read by `get_limit`."
RATE = "def rate(weight):\n    return 5\n"
OTHER = "def rate(weight):\n    return 6\n"


def fenced(code: str, tag: str = "python", fence: str = "```") -> str:
    return f"{fence}{tag}\n{code.rstrip()}\n{fence}\n"


def extract(text: str, requirements: str = TEXT, *, ended: bool = False) -> str:
    return extract_code(ChatAnswer(text, ended), requirements)


THINKING = [
    "<think>{}</think>",
    "<think>\n{}\n</think>\n",
    "{}</think>",
    "{}\n</think>\n\n",
    "<thinking>{}</thinking>",
    "<Thinking budget='high'>{}</Thinking>",
    "[THINK]{}[/THINK]",
    "<reasoning>{}</reasoning>",
    "<reflection>{}</reflection>",
    "<thought>{}</thought>",
    "<scratchpad>{}</scratchpad>",
    "<inner_monologue>{}</inner_monologue>",
    "<|think|>{}<|/think|>",
    "<analysis>{}</analysis>",
    "<seed:think>{}</seed:think>",
    "◁think▷{}◁/think▷",
    "<|begin_of_thought|>{}<|end_of_thought|>",
    "<|START_THINKING|>{}<|END_THINKING|>",
    "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>",
    "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>commentary<|message|>I write it."
    "<|end|><|start|>assistant<|channel|>final<|message|>",
    "<|start|>assistant<|channel|>analysis<|message|>{}<|channel|>final <|constrain|>code<|message|>",
    "analysis{}assistantfinal",
    "<think>a</think><think>{}</think>",
    "<think>{} <reasoning>in it</reasoning> </think>",
]


@pytest.mark.parametrize("shape", THINKING)
@pytest.mark.parametrize(
    "draft",
    [
        "First, `rate`. ",
        f"\n{fenced(OTHER)}Or not.\n",
        "\n```python\ndef rate(weight):\n    ret",
        f"\n{fenced('# ends with </think>' + chr(10) + OTHER)}",
    ],
)
def test_thinking_is_dropped_with_its_drafts_finished_or_not(shape: str, draft: str) -> None:
    assert extract(shape.replace("{}", draft) + fenced(RATE)) == RATE


@pytest.mark.parametrize("shape", [shape for shape in THINKING if not shape.startswith("{}")])
def test_thinking_after_the_code_leaves_the_code(shape: str) -> None:
    if "final" not in shape:  # the final channel comes last by its definition
        assert extract(f"{fenced(RATE)}\n{shape.replace('{}', 'That was easy.')}\nDone.") == RATE


@pytest.mark.parametrize(
    "line",
    [
        "# the model writes </think> here",
        "MARK = '</think>'",
        'MARK = """\n</think>\n"""',
        "# <think> never ends",
        "MARKS = ('[THINK]', '<reasoning>')",
        "TOKEN = '<|channel|>final<|message|>'",
    ],
)
def test_marks_of_thinking_in_code_are_code(line: str) -> None:
    code = f"{line}\n{RATE}"
    assert extract(fenced(code)) == code
    assert extract(f"<think>hm</think>{fenced(code)}") == code
    assert extract(code, ended=True) == code.rstrip()


def test_a_quoted_mark_is_talk_about_it() -> None:
    assert extract(f"{fenced(RATE)}It writes no `</think>` and no '<think>'.") == RATE


def test_an_answer_that_ends_in_its_thinking_is_none() -> None:
    for text in (f"<think>{fenced(RATE)}", f"{fenced(OTHER)}<reasoning>but", "[THINK]hm"):
        with pytest.raises(InvalidResponse, match="stops inside the model's reasoning"):
            extract(text)
    with pytest.raises(UnclosedThinkingError):
        drop_thinking("<think>hm")
    with pytest.raises(InvalidResponse, match="no code block"):
        extract(f"<think>{fenced(RATE)}</think>I cannot.")


@pytest.mark.parametrize(
    "end", ["<|return|>", "<|end|>", "</s>", "<|im_end|>\n", "<|eot_id|><|endoftext|>", "<end_of_turn>"]
)
def test_stop_tokens_at_the_end_are_no_part_of_the_answer(end: str) -> None:
    assert extract(fenced(RATE).strip() + end) == RATE


@pytest.mark.parametrize(
    "tag",
    [
        "", "python", "Python", "PYTHON", "py", "python3", "py3", "python3.11", "{python}", "{.python}",
        "ipython", "ipython3", "python:rate.py", "python title=rate.py", "title=rate.py",
        'title="src/rate.py"', "rate.py", "src/rate.py", "python {1,3}", "{.python .numberLines}",
        "python,linenos", "lang=python",
        "language-python", "text/x-python", "pypy3", "micropython", "filename: rate.py", "code", "text",
    ],
)  # fmt: skip
def test_a_block_with_any_tag_that_means_python_counts(tag: str) -> None:
    assert extract(fenced(RATE, tag)) == RATE
    assert extract(f"{fenced('x = 1', 'json')}{fenced(RATE, tag)}") == RATE


@pytest.mark.parametrize(
    "tag",
    ["bash", "json", "javascript", "pycon", "python-repl", "pythonconsole", "pytb", "toml", "pseudocode"],
)
def test_a_block_of_another_language_does_not_count(tag: str) -> None:
    assert is_python_info(tag) is False
    with pytest.raises(InvalidResponse, match="no code block is Python"):
        extract(fenced(RATE, tag))


TESTS = "from rate import rate\n\ndef test_rate():\n    assert rate(1) == 5\n"
SUITE = (
    "import unittest\n\nclass Checks(unittest.TestCase):\n    def test_it(self):\n        assert rate(1)\n"
)
FIXTURES = "import pytest\n\n@pytest.fixture\ndef weight():\n    return 1\n\ndef test_it(weight):\n    pass\n"


@pytest.mark.parametrize(
    "answer",
    [
        fenced(RATE) + fenced(TESTS),
        fenced(TESTS) + fenced(RATE),
        fenced(RATE) + fenced(SUITE),
        fenced(RATE) + fenced(FIXTURES),
        fenced(RATE) + "Use it:\n" + fenced("print(rate(1))"),
        fenced(RATE) + fenced("def main():\n    print(rate(2))\n\nmain()"),
        fenced(RATE) + fenced("print([*map(lambda n: rate(n), range(3))])"),
        fenced("pip install nothing", "bash") + fenced(RATE) + fenced('{"weight": 1}', "json"),
        fenced(RATE) + fenced('{"weight": 1}', ""),
        fenced(RATE) + fenced(RATE),
        fenced(RATE) + "Again, with a comment:\n" + fenced("# the rate\n" + RATE),
        fenced("def draft():\n    return 1") + fenced(RATE),
        "- Here it is:\n\n  ```python\n  def rate(weight):\n      return 5\n  ```\n",
        "1. ```python\n   def rate(weight):\n       return 5\n   ```\n2. Done",
        "* Step\n    ```py\n    def rate(weight):\n        return 5\n    ```",
        "```python\n    def rate(weight):\n        return 5\n```",
        fenced(RATE).replace("\n", "\r\n"),
        fenced(RATE, fence="~~~~"),
        "Sure! ```rate``` is simple:\n" + fenced(RATE),
        "Here it is: " + fenced(RATE),
        "1. Code: ```python3\n" + RATE + "   ```\n",
        f"<think>Code: ```python\n{OTHER}```\n</think>Here: {fenced(RATE)}",
        "\ufeff" + fenced(RATE),
        fenced(RATE, "1:2:src/rate.py"),
        fenced(RATE, "{#listing .python}"),
        fenced("def rate(weight): ...") + "In full:\n" + fenced(RATE),
        fenced(RATE) + fenced('def rate(weight):\n    """The rate."""\n    raise NotImplementedError'),
        f"```markdown\n# Answer\n{fenced(RATE)}Done.\n```",
        f"<answer>\n{fenced(RATE).strip()}</answer>",
        fenced(RATE, "{code-cell} ipython3"),
    ],
)
def test_of_several_blocks_the_one_that_defines_what_the_requirements_name_counts(answer: str) -> None:
    assert extract(answer) == RATE


HELPER = "LIMIT = 3\n\ndef get_base():\n    return LIMIT\n"
MAIN = "def rate(weight):\n    return get_base() + 2\n"


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ((HELPER, MAIN), 5),
        ((MAIN, HELPER), 5),
        ((HELPER, MAIN, TESTS, "print(rate(1))"), 5),
        ((HELPER, f"from helper import get_base\n\n{MAIN}"), 5),
        ((HELPER, f"from .helper import get_base\nfrom __future__ import annotations\n{MAIN}"), 5),
        (("import math", "def rate(weight):\n    return math.floor(5.5)\n"), 5),
        (("BASE = 5", "def rate(weight):\n    return BASE\n"), 5),
        (
            (
                "class Table:\n    base = 5\n",
                "class Rates(Table):\n    pass\n",
                "rate = lambda w: Rates.base\n",
            ),
            5,
        ),
        (("from __future__ import annotations\n" + HELPER, "from __future__ import annotations\n" + MAIN), 5),
        ((RATE, "def get_limit():\n    return 3\n"), 5),
        (("import math\n" + RATE, "import math\n\ndef get_limit():\n    return math.pi\n"), 5),
    ],
)
def test_blocks_that_need_each_other_are_joined_in_order(blocks: tuple[str, ...], expected: int) -> None:
    code = extract("Then:\n".join(map(fenced, blocks)))
    namespace: dict[str, object] = {}
    exec(compile(code, "answer", "exec", dont_inherit=True), namespace)
    assert namespace["rate"](1) == expected  # type: ignore[operator]
    assert "get_limit" not in "".join(blocks) or "get_limit" in namespace
    assert "print(" not in code and "test_rate" not in code


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ((RATE, OTHER), "2 different implementations of 'rate'"),
        ((RATE, f"{HELPER}\n{MAIN}"), "2 different implementations of 'rate'"),
        ((HELPER, HELPER.replace("3", "4"), MAIN), "2 different implementations of"),
        (("def first():\n    return 5\n", "def second():\n    return 6\n"), "2 different implementations in"),
        (("def rate(weight): ...", RATE, OTHER), "2 different implementations of 'rate'"),
        ((HELPER, f"from helper import get_base as base\n\n{MAIN}"), "under other names"),
        ((TESTS,), "tests alone"),
        ((TESTS, SUITE), "tests alone"),
        (("print(1)",), "no code block is Python that defines"),
        ((RATE,) * 101, "more than 100 code blocks"),
    ],
)
def test_blocks_that_contradict_each_other_are_no_answer(blocks: tuple[str, ...], words: str) -> None:
    with pytest.raises(InvalidResponse, match=words) as raised:
        extract("".join(map(fenced, blocks)))
    assert raised.value.max_retries == 1 and raised.value.answer


def test_a_test_that_the_requirements_name_is_the_implementation() -> None:
    code = "def test_port(port):\n    return True\n"
    assert extract(fenced(code), "The function `test_port` shall tell whether a port is open.") == code
    assert extract(fenced(code) + fenced(RATE), "`test_port` shall check.") == code


def test_fences_inside_of_a_docstring_end_no_block() -> None:
    code = f'{RATE}\n\ndef use():\n    """Use it so.\n\n```python\nrate(1)\n```\n"""\n'
    assert extract(fenced(code)) == code
    assert extract(fenced(code) + "Done.") == code


@pytest.mark.parametrize("text", [RATE, f"\n\n{RATE}", f"python\n{RATE}", f"import math\n\n{RATE}\n\nX = 1"])
def test_a_whole_answer_that_is_python_needs_no_fence_if_the_server_says_that_it_ended(text: str) -> None:
    assert extract(text, ended=True).strip() == text.replace("python\n", "").strip()
    with pytest.raises(InvalidResponse, match="no code block in the answer"):
        extract(text)
    with pytest.raises(InvalidResponse, match="no code block in the answer"):
        extract(f"Here it is:\n{text}", ended=True)


def test_names_are_those_marked_as_code_or_else_words() -> None:
    names = ["rate", "weight", "check", "getLimit", "max_size", "Stack", "zoom"]
    assert find_named("`rate` shall check 'weight'.", names) == {"rate", "weight"}
    assert find_named("The call check(x) shall use max_size and getLimit.", names) == {
        "check", "max_size", "getLimit",
    }  # fmt: skip
    assert find_named("The rate shall be 5.", names) == {"rate"}
    assert find_named("`Stack.zoom` shall exist", names) == {"Stack", "zoom"}
    assert find_named("Nothing of it.", names) == frozenset()


PIECES = [
    "```",
    "```python\n",
    "~~~\n",
    "<think>",
    "</think>",
    "[THINK]",
    "<|channel|>final<|message|>",
    "\n",
]
PIECES += [
    "def f():\n    return 1\n",
    "<|channel|>analysis<|message|>",
    "<|end|>",
    "x",
    " ",
    "- ",
    "`",
    "</s>",
]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_every_text_is_code_or_an_invalid_response(text: str) -> None:
    try:
        assert "def f" in extract(text, ended=True)
    except InvalidResponse as problem:
        assert problem.reason


HOSTILE = {
    "thinking with an open fence": "<think>```\n</think>\n",
    "thinking on one line": "<think>a</think>",
    "ends on one line": "</think>```a",
    "tildes on one line": "</think>~~~ a`",
    "open marks": "<think ",
    "channels": "<|channel|>analysis <|constrain|>",
    "blanks": "</think>            ",
    "fences": "```python\nx = 1\n```\n",
    "open fences": "```python\n",
    "definitions": "```python\ndef f{n}(): return f{m}()\n```\n",
    "unfenced definitions": "def f{n}(): return f{m}()\n",
    "one name": "```python\ndef f(): return {n}\n```\n",
    "stop tokens": "</s>",
    "backticks": "`",
    "words": "python",
    "late fences": "a ```py\n",
    "late fences on one line": "</think>aaa ```py ",
    "blanks alone": " ",
    "list items": "- - - ```\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", HOSTILE)
def test_the_time_grows_with_the_length_and_not_faster(shape: str) -> None:
    def seconds(size: int) -> float:
        text = repeated(HOSTILE[shape], size)
        return cpu_seconds(lambda: extract(text, text[: 1 << 16], ended=True), (InvalidResponse,))

    assert_linear(seconds, 1 << 16)


def repeated(piece: str, size: int) -> str:
    """As many numbered pieces as ``size`` characters hold."""
    texts, length = list[str](), 0
    while length < size:
        number = len(texts)
        texts.append(piece.replace("{n}", str(number)).replace("{m}", str(number + 1)))
        length += len(texts[-1])
    return "".join(texts[:-1])


SHOP_TEXT = (
    "`price` shall return what `name` costs. `Cart.total` shall be the sum; `total` shall leave out others."
)


@pytest.mark.parametrize(
    "block",
    [
        lambda path, code: fenced(code, f"python {path}"),
        lambda path, code: fenced(code, f"python:{path}"),
        lambda path, code: fenced(code, f'python title="{path}"'),
        lambda path, code: fenced(code, path),
        lambda path, code: fenced(code, f"py ./{path}"),
        lambda path, code: fenced(f"# {path}\n{code}"),
        lambda path, code: fenced(f"# file: {path}\n{code}"),
        lambda path, code: f"**`{path}`**\n\n{fenced(code)}",
        lambda path, code: f"### File: {path}\n{fenced(code)}",
        lambda path, code: f"{path}:\n{fenced(code)}",
    ],
)
def test_blocks_with_paths_are_the_files_of_a_program(block) -> None:
    answer = "I write two files.\n\n" + block("shop/prices.py", PRICES) + "\n" + block("shop/cart.py", CART)
    tested = (
        answer + block("tests/test_shop.py", SHOP_TESTS) + "Use it:\n" + fenced("print(total([]))", "python")
    )
    for text in (answer, tested):
        files = {path: code for path, code, _ in split_files(extract(text, SHOP_TEXT))}
        assert list(files) == ["shop/prices.py", "shop/cart.py"]
        assert PRICES.strip() in files["shop/prices.py"] and CART.strip() in files["shop/cart.py"]


def test_blocks_with_paths_that_contradict_each_other_are_no_program() -> None:
    versions = fenced(RATE, "python v1.py") + fenced(OTHER, "python v2.py")
    with pytest.raises(InvalidResponse, match="2 different implementations of 'rate'"):
        extract(versions)
    helper = "def get_limit():\n    return 9\n"
    twice = fenced(RATE, "python a.py") + fenced(OTHER, "python a.py") + fenced(helper, "python b.py")
    with pytest.raises(InvalidResponse, match="'rate'"):
        extract(twice)
    unnamed = fenced(helper, "python b.py") + fenced("LIMIT = 1\n", "python c.py") + fenced(RATE, "python")
    assert split_files(extract(unnamed)) == []  # what has no path defines what is asked for
