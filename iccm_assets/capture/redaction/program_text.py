"""Redaction inside of programs: code that could be parsed still can be. (C4)

A placeholder is no expression: ``card = <CARD>`` is no program. In Python and JSON, only literals and
comments change: a placeholder stays inside of its string, and that of a number becomes a string. Names,
operators and half an escape sequence do not change.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache

from iccm_assets.capture.fences import CodeBlock, split_fences
from iccm_assets.capture.redaction.rules import Place, Span
from iccm_assets.sandbox.python_source import parse_python

_LITERAL = re.compile(
    r"(?P<comment>#)[^\n]*|(?P<prefix>[A-Za-z]{0,2})(?P<quote>\"{3}|'{3}|[\"'])"
    r"(?>(?<=\"{3})(?:[^\"\\]|\\.|\"(?!\"\"))*|(?<='{3})(?:[^'\\]|\\.|'(?!''))*"
    r"|(?<=\")(?:[^\"\\\n]|\\.)*|(?<=')(?:[^'\\\n]|\\.)*)(?P=quote)",
    re.DOTALL,
)
# What a program has and a list of settings does not.
_OF_PROGRAMS = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Call, ast.For,
    ast.While, ast.If, ast.With, ast.Try, ast.Assert, ast.Return,
)  # fmt: skip
_NUMBER = re.compile(r"\d+(?: ?- ?\d+)*")
# The beginning of an escape sequence, and one of which the end is missing.
_HALF_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*(?P<x>\\(?:x[0-9a-fA-F]?|u[0-9a-fA-F]{0,3}|U[0-9a-fA-F]{0,7})?)$")
_ONE_WORD = re.compile(r"[^\s\"'#=:,;()\[\]{}]*")
_MAX_VALUE = 200
_HEAD_OF_VALUE = re.compile(r"[^\s\"'#=:,;()\[\]{}]+\Z")
_REST_OF_VALUE = re.compile(r"[^\s\"'#=:,;()\[\]{}]{0,200}")
_LAST_BACKSLASHES = re.compile(r"\\+$")


def get_program_kind(text: str) -> str:
    """Return ``program`` for Python and JSON, ``values`` for names and expressions only, else ''.

    The latter may be Python, or a ``.env`` file or a table, where values without quotes are no names; a
    single word is a value and no program.
    """
    if text.lstrip()[:1] in ("{", "["):
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            return "program"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = parse_python(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    if any(isinstance(node, _OF_PROGRAMS) for node in ast.walk(tree)):
        return "program"
    return "values" if tree.body and _ONE_WORD.fullmatch(text) is None else ""


def keep_programs(before: str, after: str, redact_again: Callable[[str, Place], str]) -> str:
    """Return ``after``, ``before`` redacted, with every program that no longer is one redacted anew."""
    if kind := get_program_kind(before):
        return after if get_program_kind(after) else redact_again(before, _PLACES[kind])
    if "```" not in before and "~~~" not in before:
        return after
    old, new = (
        [part.content for part in split_fences(text) if isinstance(part, CodeBlock)]
        for text in (before, after)
    )
    if len(old) != len(new):
        return after
    parts, position = [], 0
    for block, redacted in zip(old, new, strict=True):
        if block != redacted and (kind := get_program_kind(block)) and not get_program_kind(redacted):
            start = after.find(redacted, position)
            if start < 0:  # an indented block: to search for each one takes too long
                break
            parts += [after[position:start], redact_again(block, _PLACES[kind])]
            position = start + len(redacted)
    return "".join([*parts, after[position:]])


@lru_cache(maxsize=2)
def _find_literals(text: str) -> tuple[list[int], list[re.Match[str]]]:
    """Return the starts of the literals and comments of a program, and the matches."""
    matches = list(_LITERAL.finditer(text))
    return [match.start() for match in matches], matches


def place_in_program(text: str, span: Span) -> tuple[int, int, str] | None:
    """Say what of a program to replace for a span, and by what; None to keep it."""
    start, end, kind = span
    first = _get_literal(text, start)
    if first is None:
        alone = text[start - 1 : start] not in (".", "_") and not text[start - 1 : start].isalnum()
        return (start, end, f'"<{kind}>"') if alone and _NUMBER.fullmatch(text, start, end) else None
    begin, stop = _get_content(first)
    start, last = max(start, begin), _get_literal(text, end - 1)
    if end > stop:
        # Over several strings: the first and the last of one kind become one.
        joined = last is not None and last["quote"] == first["quote"] and end <= _get_content(last)[1]
        end = end if joined else stop
    if "f" in (first["prefix"] or "").lower() and re.search(r"[{}]", text[start:end]):
        return None
    return (*_complete_escapes(text, start, end), f"<{kind}>") if start < end else None


def _get_literal(text: str, position: int) -> re.Match[str] | None:
    starts, matches = _find_literals(text)
    index = bisect_right(starts, position) - 1
    return matches[index] if index >= 0 and position < matches[index].end() else None


def _get_content(literal: re.Match[str]) -> tuple[int, int]:
    """Return where the text within the quotes, or after the mark of a comment, starts and ends."""
    if literal["comment"]:
        return literal.start() + 1, literal.end()
    return literal.end("quote"), literal.end() - len(literal["quote"])


def _complete_escapes(text: str, start: int, end: int) -> tuple[int, int]:
    """Return a span that cuts no escape sequence."""
    half = _HALF_ESCAPE.search(text[max(0, start - 200) : start])
    if half is not None and half["x"]:
        start -= len(half["x"])
    backslashes = _LAST_BACKSLASHES.search(text[start:end][-200:])
    if backslashes is not None and len(backslashes[0]) % 2:
        end -= 1
    return start, end


def _place_in_values(text: str, span: Span) -> tuple[int, int, str] | None:
    """Say the same for a text of values: one that is no literal is that of a ``.env`` file or a table.

    It becomes a string as a whole: a part of it would be none.
    """
    if (placed := place_in_program(text, span)) is not None or _get_literal(text, span[0]) is not None:
        return placed
    start, end, kind = span
    if text[start] == "+" and text[max(0, start - 2) : start].strip():
        return start + 1, end, f'"<{kind}>"'  # an operator, behind another value
    head = _HEAD_OF_VALUE.search(text, max(0, start - _MAX_VALUE), start)
    tail = _REST_OF_VALUE.match(text, end)
    return head.start() if head else start, tail.end() if tail else end, f'"<{kind}>"'


_PLACES: dict[str, Place] = {"program": place_in_program, "values": _place_in_values}
