"""Code of a chat answer: choose the implementation among its code blocks (O3).

Strict on purpose, because no answer is better than a wrong one: an answer whose blocks contradict each other
raises `InvalidResponse`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from iccm_assets.sandbox.source_files import (
    SourceFilesError,
    find_path_problem,
    is_test_path,
    join_files,
)
from iccm_assets.scoring.answer_text import (
    AnswerBlock,
    UnclosedThinkingError,
    drop_thinking,
    find_after_thinking,
    find_outer_block,
    normalize_text,
    split_blocks,
)
from iccm_assets.scoring.chat_responses import ChatAnswer, InvalidResponse
from iccm_assets.scoring.code_units import (
    CodeUnit,
    ConflictError,
    find_needed,
    is_connected,
    join_units,
    parse_unit,
    without_outlines,
)

# No answer to one function has as many: to parse thousands of blocks takes seconds.
MAX_BLOCKS = 100
_PATH = r"(?P<path>[\w./-]{1,200}\.py)"
_INFO_PATH = re.compile(rf"(?<![\w./-]){_PATH}\b")
_COMMENTED_PATH = re.compile(rf"#\s{{0,9}}(?:(?:file|filename|path)\s{{0,9}}:\s{{0,9}})?{_PATH}\s{{0,9}}")
_TITLE_PATH = re.compile(
    rf"[^\w./-]{{0,9}}(?:(?:file|filename|path)\W{{1,9}})?{_PATH}[^\w./-]{{0,9}}", re.IGNORECASE
)
# The words of an info string: `{.python}`, `python:a.py`, `lang=python`.
_INFO_WORD = re.compile(r"[^\s{}:,;=\"'(\[]+")
_ATTRIBUTES = frozenset(
    {
        "title",
        "file",
        "filename",
        "name",
        "path",
        "lang",
        "language",
        "class",
        "id",
        "code-cell",
        "code-block",
    }
)
_WRAPPERS = frozenset({"markdown", "md"})
_OTHER_TEXT = frozenset({"code", "none", "plain", "plaintext", "text", "txt"})
_NOT_CODE = ("repl", "console", "traceback", "session")
_PYTHON_WORD = re.compile(r"py(?:py)?[\d.]*")
_WORD = re.compile(r"\w+")
_QUOTES = frozenset("`'\"“”‘’")


def extract_code(answer: ChatAnswer, requirements: str = "") -> str:
    """Return the implementation in an answer: closed code blocks that are Python and define something.

    Of several blocks those count that define what the requirements name, and the blocks they need. Without
    any fence the whole answer counts if it is Python and the server says that it is complete.

    Raises:
        InvalidResponse: no such block, blocks that contradict each other, or an answer that stops inside a
            block or inside the model's thinking.
    """
    text = normalize_text(answer.text)
    try:
        unit = _parse_unfenced(text) if answer.ended else None
        return unit.code if unit else _extract_from(drop_thinking(text), requirements, answer)
    except UnclosedThinkingError:
        raise _invalid("the answer stops inside the model's reasoning", answer) from None
    except InvalidResponse:
        # A draft that is never closed hides the end of the thinking.
        rest = find_after_thinking(text)
        if rest is None:
            raise
        return _extract_from(rest, requirements, answer)
    except RecursionError:
        raise _invalid("the code is nested too deeply", answer) from None


def is_python_info(info: str) -> bool | None:
    """Whether an info string names Python; None if it names no language."""
    words = [word.lower().strip(".#") for word in _INFO_WORD.findall(info[:200])]
    words = [word for word in words if word and not word.isdigit()]  # `12:20:rate.py`
    if info.startswith("{") and any(map(_is_python, words)):  # `{#listing .python}`
        return True
    if not words or words[0] in _OTHER_TEXT:
        return None
    if words[0] in _ATTRIBUTES:
        return True if any(map(_is_python, words[1:])) else None
    return _is_python(words[0])


def find_named(requirements: str, names: Iterable[str]) -> frozenset[str]:
    """Return the names that the requirements mark as code; if there are none, those that are words of it.

    A word is marked by quotes, by a parenthesis behind it, or by its form (`snake_case`, `CamelCase`).
    """
    words, marked = set[str](), set[str]()
    for match in _WORD.finditer(requirements):
        word, start, end = match[0], match.start(), match.end()
        before, after = requirements[max(start - 1, 0) : start], requirements[end : end + 1]
        words.add(word)
        if (
            before in _QUOTES
            or after in _QUOTES
            or after == "("
            or "_" in word
            or word[1:] != word[1:].lower()
        ):
            marked.add(word)
    defined = frozenset(names)
    return (defined & marked) or (defined & words)


def _extract_from(text: str, requirements: str, answer: ChatAnswer) -> str:
    if answer.ended and (unit := _parse_unfenced(text.strip("\n"))):
        return unit.code
    text, outer = _unwrap(text)
    blocks = list(split_blocks(text))
    if len(blocks) > MAX_BLOCKS:
        raise _invalid(f"more than {MAX_BLOCKS} code blocks in one answer", answer)
    is_open = bool(blocks) and not blocks[-1].closed
    for group in ([] if is_open else blocks, [outer] if outer else []):
        units = list(_parse_blocks(group))
        if any(unit.defines for unit in units):
            return _choose(units, requirements, answer)
    if is_open:
        raise _invalid("the answer stops inside a code block", answer)
    problem = "no code block is Python that defines something" if blocks else "no code block in the answer"
    raise _invalid(f"{problem}: {text.strip()[:80]!r}", answer)


def _unwrap(text: str) -> tuple[str, AnswerBlock | None]:
    """Return the text, out of a block of Markdown around it all, and its outer block."""
    outer = find_outer_block(text)
    if outer is not None and outer.info.lower() in _WRAPPERS:
        return outer.code, find_outer_block(outer.code)
    return text, outer


def _choose(units: Sequence[CodeUnit], requirements: str, answer: ChatAnswer) -> str:
    """Return the code of the units that implement the requirements."""
    named = find_named(requirements, (name for unit in units for name in unit.definitions))
    units = without_outlines([unit for unit in units if not unit.is_tests or unit.tests & named])
    if files := _join_files(units, named):
        return files
    selected = _select_defining(units, named)
    if not selected:
        raise _invalid("the code blocks are tests alone", answer)
    is_named = units[selected[0]].definitions & named
    if not is_named and not is_connected([units[number] for number in selected]):
        raise _invalid(f"{len(selected)} different implementations in one answer", answer)
    try:
        return join_units([units[number] for number in find_needed(selected, units)])
    except ConflictError as error:
        raise _invalid(f"{error} in one answer", answer) from None


def _join_files(units: Sequence[CodeUnit], named: frozenset[str]) -> str:
    """Return the files of an answer as one text; empty where it is not a program of several files.

    It is none where two blocks define one of the ``named``, or one without a path does.
    """
    units = [unit for unit in units if not is_test_path(unit.path)]
    files = {unit.path: unit.code for unit in units if unit.path}
    owners = [unit.path for name in named for unit in units if name in unit.bindings]
    is_clear = len(owners) == len(named & frozenset().union(*(unit.bindings for unit in units)))
    if len(files) < 2 or len(files) < sum(bool(unit.path) for unit in units) or not is_clear or "" in owners:
        return ""
    try:
        return join_files(files)
    except SourceFilesError:
        return ""


def _select_defining(units: Sequence[CodeUnit], named: frozenset[str]) -> list[int]:
    """Return the positions of the units that define what is named, else of those that define something."""
    defining = [number for number, unit in enumerate(units) if unit.definitions]
    defining = defining or [number for number, unit in enumerate(units) if unit.defines]
    return [number for number in defining if units[number].definitions & named] or defining


def _invalid(reason: str, answer: ChatAnswer) -> InvalidResponse:
    return InvalidResponse(reason, endpoint_works=True, max_retries=1, answer=answer.text)


def _is_python(word: str) -> bool:
    if "python" in word:
        return not any(part in word for part in _NOT_CODE)
    return word.endswith((".py", ".pyi", "/py")) or _PYTHON_WORD.fullmatch(word) is not None


def _parse_blocks(blocks: Iterable[AnswerBlock]) -> Iterator[CodeUnit]:
    """Yield the blocks of Python, without repetitions."""
    digests: set[str] = set()
    for block in blocks:
        unit = _parse_block(block)
        if unit is not None and unit.digest not in digests:
            digests.add(unit.digest)
            yield unit


def _parse_block(block: AnswerBlock) -> CodeUnit | None:
    if not block.closed or is_python_info(block.info) is False:
        return None
    unit = parse_unit(block.code) or parse_unit(textwrap.dedent(block.code))
    return unit and replace(unit, path=_find_path(block))


def _find_path(block: AnswerBlock) -> str:
    """Return the path of the file that a block is: behind the language, in its first line, or above it."""
    comment = block.code[:300].lstrip().partition("\n")[0]
    matches = (
        _INFO_PATH.search(block.info[:300]),
        _COMMENTED_PATH.fullmatch(comment),
        _TITLE_PATH.fullmatch(block.title[:300].strip()),
    )
    path = next((match["path"] for match in matches if match), "").removeprefix("./")
    return "" if find_path_problem(path) else path


def _parse_unfenced(text: str) -> CodeUnit | None:
    """Return a whole answer that is Python and defines something, without the tag of a lost fence."""
    if "```" in text or "~~~" in text:
        return None
    first, _, rest = text.partition("\n")
    unit = parse_unit(rest if is_python_info(first) and " " not in first.strip() else text)
    return unit if unit is not None and unit.definitions else None
