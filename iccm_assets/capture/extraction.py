"""Extract the examples of a conversation: a source, and the requirements that answer it.

A session holds exchanges, each ending with the last requirements answer to its source. Pure functions; for
what is no conversation the result is empty, never an exception. (C3, M3)
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from iccm_assets.capture.code_candidates import CodeCandidate, find_candidates, find_identifiers
from iccm_assets.capture.messages import ChatMessage, parse_messages
from iccm_assets.capture.requirement_changes import may_change, merge_changes
from iccm_assets.capture.requirement_statements import find_requirements, is_informal
from iccm_assets.capture.requirement_talk import is_other_request, is_requirements_request
from iccm_assets.capture.source_choice import (
    KnownSource,
    Naming,
    build_naming,
    choose_source,
    find_called_names,
)

# Characters of requirements that are compared with answers which change single items of them; after that,
# every answer counts as a whole text, so that the time stays linear.
_MAX_COMPARED = 1 << 21
_MAX_REOPENED = 20  # exchanges before the last one that an answer may change
_NO_REQUEST = "it answers no request for requirements"
_MIN_SHARED = 5  # one in so many words of an informal answer is known from what it replaces


@dataclass(frozen=True)
class Exchange:
    """A source and the requirements that answer it; ``reason`` says what is missing, "" if nothing is."""

    source: str | None
    requirements: str | None
    reason: str = ""


def extract_exchange(messages: object, metadata: object, suite: object = None) -> Exchange:
    """Extract the last accepted exchange. (C3)

    ``metadata.source_code`` and ``metadata.requirements`` have precedence, unchanged: the other half is then
    that of the exchange with this source or text. ``suite``: a test suite; source that defines what it calls
    is preferred.
    """
    source, requirements = _text(metadata, "source_code"), _text(metadata, "requirements")
    if source is not None and requirements is not None:
        return Exchange(source, requirements)
    parsed = parse_messages(messages)
    if source is not None and _is_one_answer(parsed):
        answer, refusal = _read_one_answer(*parsed)
        return _explain(Exchange(source, answer), refusal)
    called = find_called_names(suite)
    drafts, open_draft, refusal = _read(parsed, called)
    if requirements is not None:
        return _explain(_find_answered(drafts, open_draft, requirements, called), "")
    if source is not None:
        return _explain(_find_asked(drafts, open_draft, source), refusal)
    last = drafts[-1].exchange if drafts else Exchange(open_draft.choose("", called), None)
    return _explain(last, refusal)


def extract_exchanges(messages: object, metadata: object, suite: object = None) -> list[Exchange]:
    """Extract all exchanges in order; the last is that of ``extract_exchange``, if it is complete."""
    drafts, _, _ = _read(parse_messages(messages), find_called_names(suite))
    accepted = extract_exchange(messages, metadata, suite)
    exchanges = [_explain(draft.exchange, "") for draft in drafts]
    others = [item for item in exchanges if item.requirements != accepted.requirements]
    return [*others, accepted] if accepted.requirements is not None else others


def extract_source(messages: object, metadata: object, suite: object = None) -> str | None:
    """Extract the source of the last accepted exchange, else of the open question, or None."""
    return extract_exchange(messages, metadata, suite).source


def extract_requirements(messages: object, metadata: object, suite: object = None) -> str | None:
    """Extract the requirements of the last accepted exchange, or None."""
    return extract_exchange(messages, metadata, suite).requirements


def find_source(messages: object, metadata: object, source_sha256: str | None) -> str | None:
    """Find the source with a digest (sha256, hex) in a conversation, or None."""
    return (
        None
        if source_sha256 is None
        else find_sources(messages, metadata, {source_sha256}).get(source_sha256)
    )


def find_sources(messages: object, metadata: object, digests: Collection[str | None]) -> dict[str, str]:
    """Find the sources with these digests in a conversation, by digest.

    ``metadata.request_sources`` holds those that the messages do not show; a message may show a source with
    other line breaks around it.
    """
    sources: dict[str, str] = {}
    count = len({digest for digest in digests if digest is not None})
    for text in _sources(messages, metadata) if count else ():
        for variant in dict.fromkeys((text, text.rstrip("\r\n") + "\n", text.strip("\r\n"), text.strip())):
            if (digest := sha256_of_text(variant)) in digests:
                sources.setdefault(digest, variant)
        if len(sources) == count:
            break
    return sources


def sha256_of_text(text: str) -> str:
    """Return the sha256 of a text, hex; lone surrogates, which no stored text has, do not fail."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(eq=False)
class _Draft:
    """An exchange while the conversation is read: the developer's words and code, and the answer to them."""

    previous: KnownSource | None = None
    words: list[str] = field(default_factory=list)
    candidates: list[CodeCandidate] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    exchange: Exchange = Exchange(None, None)

    def add(self, message: ChatMessage) -> None:
        """Add what the developer wrote, or what a tool read for the answer."""
        if message.role == "user":
            self.words.append(message.text)
        edited = {file.path for file in message.files if file.action == "written"} & self.paths
        if edited:
            self.candidates = [item for item in self.candidates if item.path not in edited]
        new = find_candidates(message, edited)
        self.candidates += new
        self.paths.update(item.path for item in new if item.path)

    def choose(self, answer: str, called: frozenset[str]) -> str | None:
        """Choose the source that an answer is about; None if it is the previous one."""
        return choose_source(self.candidates, self.name(answer, called), self.previous)

    def is_named(self, naming: Naming) -> bool:
        """Whether its source defines a name in an answer."""
        return naming.is_marked_in(self.exchange.source or "")

    def name(self, answer: str, called: frozenset[str]) -> Naming:
        """Collect the names in an answer and in the words before it."""
        return build_naming(answer, "\n".join(self.words), called)


class _Reader:
    """Reads a conversation into exchanges; ``draft`` is what comes after the last answer.

    ``refusal``: why the last answer is no requirements.
    """

    def __init__(self, called: frozenset[str]) -> None:
        self.drafts: list[_Draft] = []
        self.draft = _Draft()
        self.refusal = "there is no answer"
        self._called = called
        self._compared = 0

    def add_answers(self, answers: list[str]) -> None:
        """Add the answers of a turn: requirements, changes of some, or neither."""
        answer, self.refusal = _choose_answer(answers)
        text = "\n".join(answers)
        drafts = self.drafts if answer is None else self._reopen(text)
        changed = self._merge(drafts, answers[-1])
        if answer is None and changed is None:
            return
        source = self.draft.choose(text, self._called)
        last = drafts[-1] if drafts and source in {None, drafts[-1].exchange.source} else None
        if answer is not None and changed is None and self._is_remark(answer, last):
            self.refusal = _NO_REQUEST
            return
        if last is not None:
            last.exchange = replace(last.exchange, requirements=answer if changed is None else changed)
            last.words += self.draft.words
        elif answer is not None:
            self.draft.exchange = Exchange(source, answer)
            drafts = [*drafts, self.draft]
        else:
            return
        self.drafts = drafts
        known = _know(drafts[-1].exchange.source, self.draft.previous)
        self.draft = _Draft(known, paths=self.draft.paths)

    def _merge(self, drafts: list[_Draft], answer: str) -> str | None:
        words = "\n".join(self.draft.words)
        if not drafts or self._compared >= _MAX_COMPARED or not may_change(answer, words):
            return None
        text = drafts[-1].exchange.requirements
        self._compared += len(text or "")
        return merge_changes(text, answer, words)

    def _reopen(self, answer: str) -> list[_Draft]:
        """Return the exchanges; the one whose source the answer names is moved to the end."""
        recent = self.drafts[-_MAX_REOPENED:]
        if len(recent) < 2 or self._compared >= _MAX_COMPARED:
            return self.drafts
        self._compared += sum(len(item.exchange.source or "") for item in recent)
        naming = self.draft.name(answer, self._called)
        named = next((item for item in reversed(recent) if item.is_named(naming)), None)
        if named in {None, recent[-1]} or self.draft.choose(answer, self._called) is not None:
            return self.drafts
        return [*(item for item in self.drafts if item is not named), *([named] if named else [])]

    def _is_remark(self, answer: str, last: _Draft | None) -> bool:
        """Whether sentences in everyday words are no requirements here.

        About new code: the developer asks for something else. Else they share too few words with the exchange
        that they would change.
        """
        if self._compared >= _MAX_COMPARED or not is_informal(answer):
            return False
        exchange = Exchange("", "") if last is None else last.exchange
        text = f"{exchange.source or ''}\n{exchange.requirements or ''}".lower()
        self._compared += len(text) + sum(map(len, self.draft.words))
        if is_requirements_request(self.draft.words):
            return False
        if last is None:
            return is_other_request(self.draft.words)
        words = {word for word in find_identifiers(answer.lower()) if len(word) > 2}
        return _MIN_SHARED * len(words & find_identifiers(text)) < len(words)


def _read(messages: list[ChatMessage], called: frozenset[str]) -> tuple[list[_Draft], _Draft, str]:
    """Return the exchanges, what came after the last answer, and the reason why the last answer is none."""
    reader = _Reader(called)
    for answers, message in _group(messages):
        if message is not None:
            reader.draft.add(message)
        else:
            reader.add_answers(answers)
    return reader.drafts, reader.draft, reader.refusal


def _is_one_answer(messages: Sequence[ChatMessage]) -> bool:
    """Whether this is a question and its answer without files, as the gateway records a request."""
    return [message.role for message in messages] == ["user", "assistant"] and all(
        message.text.strip() and not message.files for message in messages
    )


def _read_one_answer(question: ChatMessage, answer: ChatMessage) -> tuple[str | None, str]:
    """Return the requirements in the only answer and why there are none, as ``_read`` would.

    The code in the question, which takes most of the time to find, decides nothing where the source is given.
    """
    text, refusal = _choose_answer([answer.text])
    words = [question.text]
    is_remark = text is not None and is_other_request(words) and not is_requirements_request(words)
    return (None, _NO_REQUEST) if is_remark and is_informal(text or "") else (text, refusal)


def _know(source: str | None, known: KnownSource | None) -> KnownSource | None:
    if source is None or (known is not None and known.text == source):
        return None if source is None else known
    return KnownSource(source)


def _group(messages: list[ChatMessage]) -> Iterator[tuple[list[str], ChatMessage | None]]:
    """Yield the developer's messages and files read by tools, and after each turn its answers together."""
    answers: list[str] = []
    for message in messages:
        if message.role == "user" and message.text.strip() and answers:
            yield answers, None
            answers = []
        if message.role in {"user", "tool"}:
            yield [], message
        elif message.role == "assistant":
            if message.text.strip():
                answers.append(message.text)
            answers += [file.text for file in message.files if file.action == "written"]
            if message.files:
                yield [], ChatMessage("tool", "", message.files)
    if answers:
        yield answers, None


def _choose_answer(answers: list[str]) -> tuple[str | None, str]:
    """Return the requirements among the answers of a turn: the last ones, or longer ones before them."""
    best, refusal = None, ""
    for answer in answers:
        match = find_requirements(answer)
        if match.text is None:
            refusal = match.reason
        elif best is None or 2 * len(match.text) >= len(best):
            best = match.text
    return best, "" if best is not None else refusal


def _find_answered(drafts: list[_Draft], open_draft: _Draft, text: str, called: frozenset[str]) -> Exchange:
    """Return the exchange of a given text: the one with this answer, else the last whose source it names."""
    words = text.split()
    for draft in reversed(drafts):
        if (draft.exchange.requirements or "").split() == words:
            return Exchange(draft.exchange.source, text)
    naming = build_naming(text, "", called)
    open_source = open_draft.choose(text, called)
    for source in (open_source, *(draft.exchange.source for draft in reversed(drafts))):
        if source is not None and naming.is_marked_in(source):
            return Exchange(source, text)
    last = drafts[-1].exchange.source if drafts else None
    return Exchange(open_source if open_source is not None else last, text)


def _find_asked(drafts: list[_Draft], open_draft: _Draft, source: str) -> Exchange:
    """Return the exchange of a given source: the last one that shows it, else the last one.

    A source that was shown without an answer has no requirements yet.
    """
    key, words = source.strip(), source.split()
    for draft in reversed(drafts):
        if (draft.exchange.source or "").split() == words or _shows(draft, key):
            return Exchange(source, draft.exchange.requirements)
    if _shows(open_draft, key) or not drafts:
        return Exchange(source, None)
    return Exchange(source, drafts[-1].exchange.requirements)


def _shows(draft: _Draft, source: str) -> bool:
    """Whether a source stands in the developer's words or files."""
    return any(source in text for text in draft.words) or any(
        source in candidate.text for candidate in draft.candidates
    )


def _explain(exchange: Exchange, refusal: str) -> Exchange:
    missing = [] if exchange.source is not None else ["no source code"]
    if exchange.requirements is None:
        missing.append(f"no requirements ({refusal})" if refusal else "no requirements")
    return Exchange(exchange.source, exchange.requirements, ", ".join(missing))


def _sources(messages: object, metadata: object) -> Iterator[str]:
    """Yield every text of a conversation that may be a source."""
    yield from _recorded_sources(metadata)
    parsed = parse_messages(messages)
    drafts, _, _ = _read(parsed, frozenset())
    yield from (draft.exchange.source for draft in drafts if draft.exchange.source is not None)
    for message in parsed:
        if message.role in {"user", "tool"}:
            yield from (message.text, message.text.strip())
            yield from (candidate.text for candidate in find_candidates(message))
            yield from (file.text for file in message.files)
    for entry in messages if isinstance(messages, list) else ():
        content = entry.get("content") if isinstance(entry, Mapping) else None
        if isinstance(content, str):
            yield content


def _recorded_sources(metadata: object) -> Iterator[str]:
    sources = metadata.get("request_sources") if isinstance(metadata, Mapping) else None
    texts = [_text(metadata, "source_code"), *(sources if isinstance(sources, list) else ())]
    return (text for text in texts if isinstance(text, str))


def _text(metadata: object, name: str) -> str | None:
    value = metadata.get(name) if isinstance(metadata, Mapping) else None
    return value if isinstance(value, str) and value.strip() else None
