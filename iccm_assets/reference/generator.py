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
    """An example without its test suite: all that training needs."""

    source_code: str
    requirements: str
    family: str
    style: str
    draft: Draft

    @property
    def entry_point(self) -> str:
        """The name of the function or class."""
        return self.draft.document.name


@dataclass(frozen=True)
class Example:
    """A function or class as a developer has it: code, true requirements, tests."""

    source_code: str
    requirements: str
    test_suite: dict[str, Any]
    family: str
    style: str
    entry_point: str
    document: ast.Document | ast.ClassDocument


def sketch(family: str, rng: Random) -> Sketch:
    """Draw source code and requirements of one family."""
    chosen = FAMILIES[family]
    draft = chosen.draw(rng, Lexicon(rng))
    style = rng.choice(chosen.styles)
    source = _source(draft, chosen.write(draft.document, style, rng), rng)
    return Sketch(source, render(draft.document), family, style, draft)


def generate(family: str, rng: Random, *, cases: int = 8) -> Example:
    """Draw a whole example: source code, requirements and a suite of ``cases`` cases."""
    return with_suite(sketch(family, rng), rng, cases=cases)


def with_suite(item: Sketch, rng: Random, *, cases: int = 8) -> Example:
    """The sketch with a test suite drawn for it."""
    document = item.draft.document
    return Example(
        source_code=item.source_code,
        requirements=item.requirements,
        test_suite=suite(item.draft, rng, cases),
        family=item.family,
        style=item.style,
        entry_point=item.entry_point,
        document=document,
    )


def rewritten(item: Sketch, rng: Random) -> Sketch:
    """The same function or class written again, perhaps in another style."""
    chosen = FAMILIES[item.family]
    style = rng.choice(chosen.styles)
    source = _source(item.draft, chosen.write(item.draft.document, style, rng), rng)
    return dataclasses.replace(item, source_code=source, style=style)


def shape(document: ast.Document | ast.ClassDocument) -> str:
    """What a document says with its names blinded: equal shapes are the same code twice."""
    short: dict[str, str] = {}
    text = render(dataclasses.replace(document, purpose=None))
    return re.sub(r"`(\w+)`", lambda found: short.setdefault(found[1], f"`n{len(short)}`"), text)


def _source(draft: Draft, body: list[str], rng: Random) -> str:
    document = draft.document
    if isinstance(document, ast.ClassDocument):
        return "\n".join(body) + "\n"
    hints = rng.random() < 0.4
    params = ", ".join(
        f"{name}: {kind}" if hints else name for name, kind in zip(document.params, draft.kinds, strict=True)
    )
    opening = f"def {document.name}({params}){f' -> {draft.gives}' if hints else ''}:"
    lines = [opening]
    if document.purpose:
        form = rng.choice(("Return the {}.", "Compute the {}.", "The {}.", "Gives the {}", "# {}"))
        text = form.format(document.purpose)
        lines.append(f"{INDENT}{text}" if form.startswith("#") else f'{INDENT}"""{text}"""')
    return "\n".join((*lines, *(INDENT + line for line in body))) + "\n"
