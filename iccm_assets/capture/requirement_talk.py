"""Tell statements of what software does from talk about them: chat, questions, explanations, doubts. (C3a)"""

from __future__ import annotations

import re

from iccm_assets.capture.requirement_words import HEADING_WORDS

FIRST_PERSON = re.compile(
    r"(?:i|i've|i'll|i'm|we|we've|we'll|let me|let's|let us|you|your|feel free|please|sorry|thanks|sure|ok"
    r"|okay|great|hi|hello)\b",
    re.IGNORECASE,
)
_SUBJECT = (
    r"(?:requirements?|items?|points?|statements?|sentences?|criterion|rules?|clauses?|numbers?|no\.|r|req|fr"
    r"|it|this|that|which|first|second|third|fourth|fifth|last|one|two|text|wording|word|meaning|error"
    r"|message"
    r"|traceback|documentation|docs|docstring|comment|manual|log|warning|standard|code|tests?|specification"
    r"|rfc)"
)
# Searched in whole sentences, so it is in small letters, as their text then: ignoring case takes 3 x as long.
_EXPLANATION = re.compile(
    rf"\b{_SUBJECT}[ #-]{{0,2}}(?:\d{{1,4}}|above|below)?\s+(?:only |just |also |simply |already |really )?"
    r"(?:says?|said|means?|meant|states? that|stated|tells?|explains?|explained|describes?|requires? that"
    r"|expresses|reflects|refers?|defines|exists?|comes? from"
    r"|(?:is|was|are|were) (?:there|about|because|needed|included|added|so|meant|intended))\b"
    r"|\b(?:tests?|assertions?|build|linter|compiler|mypy|pytest) (?:fails?|failed|expects?|checks?|assumes?"
    r"|complains?|reports?)\b"
    r"|\bi (?:mean|meant|said|wrote|chose|used|put|added|assumed)\b|\bthat(?:'s| is) (?:because|why"
    r"|so that)\b"
    r"|\bin other words\b|\bthe reason\b|\bas (?:requirement|item|point|number) \d|\baccording to (?:rfc"
    r"|the)\b"
    r"|\b(?:by|with|in|under|according to|because of) (?:requirement|item|point|number|statement|r|req|fr)"
    r"[ #-]{0,2}\d|\b(?:i\.e\.|namely) because\b"
)
_NUMBERED = re.compile(
    r"\b(?:requirement|item|point|number|statement|req|fr|r)[ #-]{0,2}\d|\b(?:first|second|third"
    r"|last) (?:one|requirement"
    r"|item|point|statement)\b",
    re.IGNORECASE,
)
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|i think|i guess|i wonder|i believe|(?:i am|i'm) (?:not sure|unsure)|i don't know"
    r"|not sure (?:if|whether)|do(?:es)?(?:n't| not) (?:say|state|specify|define|tell)"
    r"|(?:is|are) (?:unclear|not clear|unknown|unspecified|undefined) (?:what|whether|if|how|which))\b"
    r"|^in (?:python|java\w*|typescript|go|rust|ruby|c\+\+|general|most|practice)\b"
)
_ERROR = re.compile(r"(?:[\w.]{0,80}(?:Error|Exception|Warning)\b[:(]|(?:error|warning|fatal|npm ERR!)[: ])")
_REASON = re.compile(
    r"(?:because|since|good question)\b|(?:yes|no|exactly|correct|right|indeed"
    r"|true)\s{0,3}[,.!:;—-]",
    re.IGNORECASE,
)


_REVIEW = re.compile(
    r"\W*(?:(?:some|a few|my|here are (?:some|my)) )?"
    r"(?:code review\b|review(?: (?:of|comments?|notes?)\b|\W*$)"
    r"|(?:review )?(?:comments?|feedback|suggestions?|findings|remarks|nits) (?:on|for|about)\b"
    r"|(?:issues|problems|findings)(?: found)?\W*$)",
    re.IGNORECASE,
)
# A request for something else than requirements, and words that ask for them.
_OTHER_REQUEST = re.compile(
    r"[\s*_]*(?:(?:can|could|would|will) you |please |now |then |and |also |ok(?:ay)?,? |thanks[.,!]? )*"
    r"(?:why\b|how (?:do|can|could|would|is|to|fast|slow|long)\b|is (?:this|that|it|there)\b"
    r"|what(?:'s| is) wrong\b"
    r"|(?:review|debug|fix|refactor|optimi[sz]e|implement|port|test|run|deploy|install|commit|profile)\b"
    r"(?![ \t]*(?:[=(.\[]|:[ \t]*\w+[ \t]*=))"
    r"|(?:write|add|generate) (?:\w+ ){0,2}(?:tests?|docs|documentation|docstrings?|readme)\b)",
    re.IGNORECASE,
)
_WANTED = re.compile(
    r"\b(?:must|should|shall|ha(?:s|ve) to|needs? to|supposed|expected|behav\w*|specif\w*|describe|state)\b",
    re.IGNORECASE,
)


def is_requirements_request(texts: list[str]) -> bool:
    """Whether a developer's words ask what software has to do."""
    return any(HEADING_WORDS.search(text) or _WANTED.search(text) for text in texts)


def is_other_request(texts: list[str]) -> bool:
    """Whether the last words of a developer ask for something else than requirements."""
    last = next((text for text in reversed(texts) if text.strip()), "")
    return _OTHER_REQUEST.match(last[:500]) is not None


def is_review(text: str) -> bool:
    """Whether the first line announces remarks on code."""
    return _REVIEW.match(text.lstrip()[:200].partition("\n")[0]) is not None


def is_question(sentence: str) -> bool:
    """Whether a sentence ends like a question."""
    return sentence.rstrip("*_\"')” ").endswith(("?", "？", "ですか。", "ますか。"))


def is_doubt(sentence: str) -> bool:
    """Whether a sentence guesses, or speaks of programs in general."""
    return _HEDGE.search(sentence.lower()) is not None


def is_error(line: str) -> bool:
    """Whether a line is a message of a program."""
    return _ERROR.match(line.lstrip()[:200]) is not None


def rate_explanation(sentence: str) -> int:
    """Return how clearly a sentence explains: 0 not at all, more than 1 if it names a requirement."""
    if _EXPLANATION.search(sentence.lower()) is None:
        return 0
    return 3 if _NUMBERED.search(sentence) else 1


def begins_with_explanation(text: str) -> bool:
    """Whether a text begins like a sentence that explains."""
    return _EXPLANATION.match(text.lower()) is not None


def is_reason(sentence: str) -> bool:
    """Whether a sentence begins like the answer to a question."""
    return _REASON.match(sentence) is not None
