"""Choose the source that requirements are about, from the code in a developer's turns. (C3)"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from iccm_assets.capture.code_candidates import MARKED, READ, CodeCandidate, find_identifiers
from iccm_assets.capture.code_recognition import find_names

_MARKED_NAME = re.compile(
    r"[`*'\"“]{1,2}(?:\w+\.)*(\w+)(?:\([^`\n]{0,200})?[`*'\"”]{1,2}|\b(\w+)\("
    r"|\b(?i:function|method|class|module|type|component|interface|struct|procedure|operation|routine"
    r"|endpoint|constant"
    r"|funktion|methode|klasse|fonction|méthode|classe|función|método|clase|関数|メソッド|クラス|函数|方法"
    r"|类)\s{0,2}[`*'\"“]{0,2}(\w+)"
)


@dataclass(frozen=True)
class Naming:
    """The names in a text and a suite. ``called``: by tests; ``marked``: as code; ``words``: any word.

    ``request`` is what the developer wrote.
    """

    called: frozenset[str]
    marked: frozenset[str]
    words: frozenset[str]
    request: str

    def is_marked_in(self, source: str) -> bool:
        """Whether the source defines a name that is marked or called."""
        return bool((self.called | self.marked) & find_names(source).defined)


def build_naming(requirements: str, request: str, suite: object) -> Naming:
    """Collect the names in requirements, in a request and in a test suite (a document or a parsed one)."""
    marked = {name for match in _MARKED_NAME.finditer(requirements) for name in match.groups() if name}
    return Naming(frozenset(_called_names(suite)), frozenset(marked), find_identifiers(requirements), request)


def _called_names(suite: object) -> Iterator[str]:
    document = suite if isinstance(suite, Mapping) else vars(suite) if hasattr(suite, "cases") else {}
    files = document.get("files")
    for text in files.values() if isinstance(files, Mapping) else ():
        if isinstance(text, str):
            yield from find_identifiers(text) - find_names(text).defined
    cases = document.get("cases")
    for case in cases if isinstance(cases, (list, tuple)) else ():
        if isinstance(case, Mapping):
            name = case.get("call", case.get("new"))
        else:
            name = getattr(getattr(case, "call", None), "name", None)
        if isinstance(name, str):
            yield from name.split(".")


def choose_source(candidates: Sequence[CodeCandidate], naming: Naming, previous: str | None) -> str | None:
    """Return the best code, joined with the blocks that it needs; None if none is new.

    With a ``previous`` source, code that only uses or repeats it, or that a tool read unasked, is not new.
    """
    code = [item for item in candidates if item.kind == "code" and item.text.strip()]
    if previous is not None:
        code = [item for item in code if _is_new(item, naming, previous)]
    if not code:
        return None
    index = max(range(len(code)), key=lambda position: _rate(code[position], naming, position))
    best = code[index]
    if previous is not None and not _is_named(best, naming) and naming.is_marked_in(previous):
        return None
    return best.text if best.path else _join(code, index, naming)


def _is_named(candidate: CodeCandidate, naming: Naming) -> bool:
    return bool((naming.called | naming.marked) & candidate.names.defined) or _is_mentioned(candidate, naming)


def _is_mentioned(candidate: CodeCandidate, naming: Naming) -> bool:
    return bool(candidate.file_name) and candidate.file_name in naming.request


def _is_new(candidate: CodeCandidate, naming: Naming, previous: str) -> bool:
    if candidate.text.strip() in previous:
        return False
    if candidate.rank == READ:
        return _is_named(candidate, naming)
    names = candidate.names
    if names.defined:
        return True
    uses = candidate.identifiers & find_names(previous).defined
    return bool(names.bound) and not uses


def _rate(candidate: CodeCandidate, naming: Naming, position: int) -> tuple[int, ...]:
    names = candidate.names
    return (
        len(naming.called & names.defined),
        len(naming.marked & names.defined),
        bool(names.defined),
        _is_mentioned(candidate, naming),
        len((naming.called | naming.marked) & names.bound),
        -candidate.rank,
        bool(naming.words & names.defined),
        position,
    )


def _join(code: Sequence[CodeCandidate], index: int, naming: Naming) -> str:
    """Join the best block with blocks that it uses or that are named, each in its last version, in order."""
    chosen = {index}
    defined = set(code[index].names.defined | code[index].names.bound)
    needed = set(code[index].identifiers)
    for position in reversed(range(len(code))):
        item = code[position]
        names = item.names
        if position == index or item.rank != MARKED or item.path or names.defined & defined:
            continue
        if not _same_language(item, code[index]) or item.text.strip() in code[index].text:
            continue
        own = names.defined | names.bound
        if (own - defined) & needed or (naming.called | naming.marked) & names.defined:
            chosen.add(position)
            defined |= own
            needed |= item.identifiers
    if len(chosen) == 1:
        return code[index].text
    return "\n\n".join(code[position].text.strip("\n") for position in sorted(chosen)) + "\n"


def _same_language(item: CodeCandidate, other: CodeCandidate) -> bool:
    return not item.language or not other.language or item.language == other.language
