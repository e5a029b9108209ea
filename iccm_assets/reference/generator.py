"""Draws examples: source code, its requirements and a test suite, all from one document (X1)."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from random import Random
from typing import Any

from iccm_assets.reference import document as ast
from iccm_assets.reference.families.writing import INDENT, Draft
from iccm_assets.reference.language import render
from iccm_assets.reference.suites import suite
from iccm_assets.reference.words import Lexicon
from iccm_assets.reference.world import FAMILIES


@dataclass(frozen=True)
class Sketch:
    """Source code and requirements drawn from one document, without tests: all that training needs."""

    source_code: str
    requirements: str
    family: str
    style: str
    draft: Draft

    @property
    def document(self) -> ast.Document | ast.ClassDocument:
        """The function or class in the requirements language."""
        return self.draft.document


@dataclass(frozen=True)
class Example(Sketch):
    """A function or class as a developer has it: code, true requirements, tests."""

    test_suite: dict[str, Any]


def sketch(family: str, rng: Random) -> Sketch:
    """Draw source code and requirements of one family."""
    draft = FAMILIES[family].draw(rng, Lexicon(rng))
    return rewritten(Sketch("", render(draft.document), family, "", draft), rng)


def generate(family: str, rng: Random, *, cases: int = 8) -> Example:
    """Draw a whole example: source code, requirements and a suite of ``cases`` cases."""
    return with_suite(sketch(family, rng), rng, cases=cases)


def with_suite(item: Sketch, rng: Random, *, cases: int = 8) -> Example:
    """Draw a test suite for the program."""
    return Example(**vars(item), test_suite=suite(item.draft, rng, cases))


def rewritten(item: Sketch, rng: Random) -> Sketch:
    """Write the same function or class again, perhaps in another style."""
    family = FAMILIES[item.family]
    style = rng.choice(family.styles)
    source = _source(item.draft, family.write(item.document, style, rng), rng)
    return dataclasses.replace(item, source_code=source, style=style)


def shape(document: ast.Document | ast.ClassDocument) -> str:
    """Render a document with numbered names and no purpose: equal signatures mean the same program twice."""
    numbers: dict[str, str] = {}
    text = render(dataclasses.replace(document, purpose=None))
    return re.sub(r"`(\w+)`", lambda match: numbers.setdefault(match[1], f"`n{len(numbers)}`"), text)


def _source(draft: Draft, body: list[str], rng: Random) -> str:
    document = draft.document
    if isinstance(document, ast.ClassDocument):
        return "\n".join(body) + "\n"
    has_hints = rng.random() < 0.4
    form, returns = ("{}: {}", f" -> {draft.gives}") if has_hints else ("{}", "")
    params = ", ".join(map(form.format, document.params, draft.kinds))
    lines = [f"def {document.name}({params}){returns}:"]
    if document.purpose:
        form = rng.choice(("Return the {}.", "Compute the {}.", "The {}.", "Gives the {}", "# {}"))
        text = form.format(document.purpose)
        lines.append(INDENT + (text if form.startswith("#") else f'"""{text}"""'))
    return "\n".join((*lines, *(INDENT + line for line in body))) + "\n"
