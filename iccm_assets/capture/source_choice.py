"""Choose the source that requirements are about, from the code in a developer's turns. (C3)"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from iccm_assets.capture.code_candidates import MARKED, READ, CodeCandidate, find_identifiers
from iccm_assets.capture.code_recognition import CodeNames, find_names

_MARKED_NAME = re.compile(
    r"[`*'\"“]{1,2}(?:\w+\.)*(\w+)(?:\([^`\n]{0,200})?[`*'\"”]{1,2}|\b(\w+)\("
    r"|\b(?i:function|method|class|module|type|component|interface|struct|procedure|operation|routine"
    r"|endpoint|constant"
    r"|funktion|methode|klasse|fonction|méthode|classe|función|método|clase|関数|メソッド|クラス|函数|方法"
    r"|类)\s{0,2}[`*'\"“]{0,2}(\w+)"
)
_FILE_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Naming:
    """The names in a text and a suite. ``called``: by tests; ``marked``: as code; ``words``: any word.

    ``mentioned`` are the words of the developer, among them names of files.
    """

    called: frozenset[str]
    marked: frozenset[str]
    words: frozenset[str]
    mentioned: frozenset[str]

    @cached_property
    def named(self) -> frozenset[str]:
        """The names that are called or marked."""
        return self.called | self.marked

    def is_marked_in(self, source: str) -> bool:
        """Whether the source defines a name that is marked or called."""
        return not self.named.isdisjoint(find_names(source).defined)


@dataclass(frozen=True)
class KnownSource:
    """The source of the previous exchange."""

    text: str

    @cached_property
    def names(self) -> CodeNames:
        """What it defines and binds."""
        return find_names(self.text)

    @cached_property
    def lines(self) -> frozenset[str]:
        """Its lines, without the spaces around them."""
        return frozenset(map(str.strip, self.text.split("\n")))


def build_naming(requirements: str, request: str, called: frozenset[str]) -> Naming:
    """Collect the names in requirements and in a request; ``called`` are those that a test suite calls."""
    marked = {name for match in _MARKED_NAME.finditer(requirements) for name in match.groups() if name}
    mentioned = frozenset(word.strip(".") for word in _FILE_NAME.findall(request))
    return Naming(called, frozenset(marked), find_identifiers(requirements), mentioned)


def find_called_names(suite: object) -> frozenset[str]:
    """Return the names that a test suite calls: of a document or a parsed suite."""
    return frozenset(_iterate_called_names(suite))


def _iterate_called_names(suite: object) -> Iterator[str]:
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


def choose_source(
    candidates: Sequence[CodeCandidate], naming: Naming, previous: KnownSource | None
) -> str | None:
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
    names_previous = previous is not None and not naming.named.isdisjoint(previous.names.defined)
    if names_previous and not _is_named(best, naming):
        return None
    return best.text if best.path else _join(code, index, naming)


def _is_named(candidate: CodeCandidate, naming: Naming) -> bool:
    return not naming.named.isdisjoint(candidate.names.defined) or _is_mentioned(candidate, naming)


def _is_mentioned(candidate: CodeCandidate, naming: Naming) -> bool:
    return bool(candidate.file_name) and candidate.file_name in naming.mentioned


def _is_new(candidate: CodeCandidate, naming: Naming, previous: KnownSource) -> bool:
    if _repeats(candidate, previous):
        return False
    if candidate.rank == READ:
        return _is_named(candidate, naming)
    names = candidate.names
    if names.defined:
        return True
    return bool(names.bound) and candidate.identifiers.isdisjoint(previous.names.defined)


def _repeats(candidate: CodeCandidate, source: KnownSource) -> bool:
    return all(line.strip() in source.lines for line in candidate.text.split("\n") if line.strip())


def _rate(candidate: CodeCandidate, naming: Naming, position: int) -> tuple[int, ...]:
    names = candidate.names
    return (
        len(naming.called & names.defined),
        len(naming.marked & names.defined),
        bool(names.defined),
        _is_mentioned(candidate, naming),
        len(naming.named & names.bound),
        -candidate.rank,
        not naming.words.isdisjoint(names.defined),
        position,
    )


def _join(code: Sequence[CodeCandidate], index: int, naming: Naming) -> str:
    """Join the best block with blocks that it uses or that are named, each in its last version, in order."""
    best, chosen = code[index], {index}
    defined, needed = set(best.names.defined | best.names.bound), set(best.identifiers)
    known = KnownSource(best.text)
    for position in reversed(range(len(code))):
        item = code[position]
        names = item.names
        if position == index or item.rank != MARKED or item.path or not names.defined.isdisjoint(defined):
            continue
        if not _same_language(item, best) or _repeats(item, known):
            continue
        own = names.defined | names.bound
        if not (own - defined).isdisjoint(needed) or not naming.named.isdisjoint(names.defined):
            chosen.add(position)
            defined |= own
            needed |= item.identifiers
    if len(chosen) == 1:
        return best.text
    return "\n\n".join(code[position].text.strip("\n") for position in sorted(chosen)) + "\n"


def _same_language(item: CodeCandidate, other: CodeCandidate) -> bool:
    return not item.language or not other.language or item.language == other.language
