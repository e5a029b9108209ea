"""Messages of simulated developers: questions, corrections, small talk, vague and mistyped text (X4)."""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import SequenceMatcher
from random import Random

from iccm_assets.simulation.developers.personas import Trait
from iccm_assets.simulation.language.grammar import sentences

_ASKS = (
    "Write the requirements for this code.",
    "What does this code have to do? Requirements, please.",
    "Please turn this into requirements I can hand over.",
    "I need the requirements of the code below.",
    "Requirements for the following, please.",
)
_ASKS_AGAIN = (
    "Once more about this one, I rewrote it. What are its requirements?",
    "I asked about something like this before and lost the answer. Requirements, please.",
    "Same thing, cleaned up a little. What does it have to do?",
)
_GREETINGS = (
    ("Good morning! Do you have a minute for a bit of old code?", "Of course, show me the code."),
    ("hi, back again :)", "Welcome back. What is it about?"),
    ("Guten Morgen, ich habe wieder eine kleine Frage zu altem Code.", "Gern, zeig mir den Code."),
    ("Salut ! Tu peux m'aider encore une fois ?", "Bien sûr, montre-moi le code."),
    ("おはようございます。コードを見てもらえますか。", "はい、コードを送ってください。"),
)
_THANKS = ("Thanks, that saves my day.", "Perfect, merci !", "Danke, das war's.", "cheers 👍", "👌")
_RIGHT = ("That is right, thanks.", "Good, I take it as it is.", "Yes, exactly.")
_WRONG = (
    "Not quite. The requirements are:",
    "No, that misses the point. It should read:",
    "Please correct it to:",
)
_BLOCKS = (
    "This is how I try it:\n\n```bash\npython -m pytest tests -q\n```\n\nAnd this is the code:",
    "The settings it runs with:\n\n```json\n{\"debug\": false, \"retries\": 3}\n```\n\nThe code itself:",
    "It was called like this, which no longer matters:\n\n```python\nprint(run(3))\n```\n\nThe code:",
    "What the log says:\n\n```\nINFO  started\nINFO  done in 12 ms\n```\n\nWhat I mean is this:",
)  # fmt: skip


def write_greeting(rng: Random) -> list[dict[str, str]]:
    """Draw small talk before the question: a message of the developer and CET-D's reply."""
    message, reply = rng.choice(_GREETINGS)
    return [{"role": "user", "content": message}, {"role": "assistant", "content": reply}]


def write_question(source_code: str, traits: Collection[Trait], again: bool, rng: Random) -> str:
    """Write the message with the code, which is its last block."""
    words = rng.choice(_ASKS_AGAIN if again else _ASKS)
    if "typos" in traits:
        words = add_typo(words, rng)
    if "several_blocks" in traits:
        words = f"{words} {rng.choice(_BLOCKS)}"
    return f"{words}\n\n```python\n{source_code}```"


def write_approval(traits: Collection[Trait], rng: Random) -> str:
    """Write the message that accepts an answer as it is."""
    return f"{rng.choice(_RIGHT)} {rng.choice(_THANKS)}" if "chatty" in traits else rng.choice(_RIGHT)


def write_correction(accepted: str, rng: Random) -> str:
    """Write the message that corrects an answer."""
    return f"{rng.choice(_WRONG)}\n\n{accepted}"


_WORD = re.compile(r"`[^`]*`|'[^']*'|(?P<word>[A-Za-z]{4,})")


def add_typo(text: str, rng: Random) -> str:
    """Swap two letters of one word; names and constants do not change, because people copy them."""
    words = [match for match in _WORD.finditer(text) if match["word"]]
    if not words:
        return text
    word = rng.choice(words)
    index = word.start() + rng.randrange(1, len(word[0]) - 2)
    return text[:index] + text[index + 1] + text[index] + text[index + 2 :]


def correct_half(answer: str, right: str, rng: Random) -> str:
    """Correct half of the answer's wrong sentences, rounded up, and keep the others."""
    answered, true = sentences(answer), sentences(right)
    parts: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    for tag, a, b, c, d in SequenceMatcher(None, answered, true, autojunk=False).get_opcodes():
        if tag == "replace" and b - a == d - c:
            parts += [((old,), (new,)) for old, new in zip(answered[a:b], true[c:d], strict=True)]
        else:
            parts.append((answered[a:b], true[c:d]))
    wrong = [index for index, (old, new) in enumerate(parts) if old != new]
    corrected = set(rng.sample(wrong, (len(wrong) + 1) // 2))
    return " ".join(
        sentence for index, pair in enumerate(parts) for sentence in pair[1 if index in corrected else 0]
    )


def make_vague(requirements: str, rng: Random) -> str:
    """Rewrite requirements as a hurried person would: a blurred boundary, a missing case, loose words."""
    opening, *rest = sentences(requirements)
    if len(rest) > 1 and rest[-1].startswith("Otherwise") and rng.random() < 0.3:
        return " ".join((opening, *rest[:-1]))
    for index in rng.sample(range(len(rest)), min(len(rest), rng.choice((1, 1, 2)))):
        rest[index] = _blur(rest[index], rng)
    return " ".join((opening, *rest))


_RELATION = re.compile(r"\bis (?:less than|at most|more than|at least) (?=\d)")
_CONSTANT = re.compile(r"(?<= )(?:\d+|'[^']*')(?=[ .,]|$)")
_LOOSE = (
    ("is less than", "is under"), ("is more than", "is over"), ("is at most", "is up to"), ("When", "If"),
    ("is at least", "is no less than"), ("shall", "should"),
)  # fmt: skip


def _blur(sentence: str, rng: Random) -> str:
    roll = rng.random()
    if _RELATION.search(sentence) and roll < 0.5:
        return _RELATION.sub(lambda match: f"{match[0]}about ", sentence)
    if _RELATION.search(sentence) and roll < 0.65:
        size = "small" if "is less than" in sentence or "is at most" in sentence else "large"
        return re.sub(_RELATION.pattern + r"\d+", f"is {size}", sentence)
    if _CONSTANT.search(sentence) and roll < 0.75:
        return _CONSTANT.sub(
            rng.choice(("a certain value", "some number", "the usual amount")), sentence, count=1
        )
    for exact, loose in _LOOSE:
        sentence = sentence.replace(exact, loose)
    return sentence
