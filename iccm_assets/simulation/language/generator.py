"""Draw examples: source code, its requirements and a test suite, all from one document (X1)."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from random import Random
from typing import Any

from iccm_assets.simulation.language import ast
from iccm_assets.simulation.language.families import FAMILIES
from iccm_assets.simulation.language.families.common import INDENT, TypedDocument
from iccm_assets.simulation.language.grammar import render
from iccm_assets.simulation.language.suite_generator import generate_complete_suite
from iccm_assets.simulation.language.vocabulary import Vocabulary


@dataclass(frozen=True)
class ProgramDraft:
    """Source code and requirements drawn from one document, without tests: all that training needs."""

    source_code: str
    requirements: str
    family: str
    typed_document: TypedDocument

    @property
    def document(self) -> ast.FunctionDocument | ast.ClassDocument:
        """The function or class in the requirements language."""
        return self.typed_document.document


@dataclass(frozen=True)
class GeneratedExample(ProgramDraft):
    """A function or class as a developer has it: code, true requirements, tests."""

    test_suite: dict[str, Any]


def draw_program(family: str, rng: Random) -> ProgramDraft:
    """Draw source code and requirements of one family."""
    draft = FAMILIES[family].draw(rng, Vocabulary(rng))
    return rewrite(ProgramDraft("", render(draft.document), family, draft), rng)


def generate_example(family: str, rng: Random, *, cases: int = 8) -> GeneratedExample:
    """Draw a whole example: source code, requirements and a suite of ``cases`` cases."""
    return add_suite(draw_program(family, rng), rng, cases=cases)


def add_suite(draft: ProgramDraft, rng: Random, *, cases: int = 8) -> GeneratedExample:
    """Draw a test suite for the program."""
    suite = generate_complete_suite(draft.typed_document, rng, cases)
    return GeneratedExample(**vars(draft), test_suite=suite)


def rewrite(draft: ProgramDraft, rng: Random) -> ProgramDraft:
    """Write the same function or class again, perhaps in another style."""
    family = FAMILIES[draft.family]
    body = family.write(draft.document, rng.choice(family.styles), rng)
    return dataclasses.replace(draft, source_code=_source(draft.typed_document, body, rng))


def structural_signature(document: ast.FunctionDocument | ast.ClassDocument) -> str:
    """Render a document with numbered names and no purpose: equal signatures mean the same program twice."""
    numbers: dict[str, str] = {}
    text = render(dataclasses.replace(document, purpose=None))
    return re.sub(r"`(\w+)`", lambda match: numbers.setdefault(match[1], f"`n{len(numbers)}`"), text)


def _source(draft: TypedDocument, body: list[str], rng: Random) -> str:
    document = draft.document
    if isinstance(document, ast.ClassDocument):
        return "\n".join(body) + "\n"
    has_hints = rng.random() < 0.4
    form, returns = ("{}: {}", f" -> {draft.return_type}") if has_hints else ("{}", "")
    params = ", ".join(map(form.format, document.params, draft.param_types))
    lines = [f"def {document.name}({params}){returns}:"]
    if document.purpose:
        form = rng.choice(("Return the {}.", "Compute the {}.", "The {}.", "Gives the {}", "# {}"))
        text = form.format(document.purpose)
        lines.append(INDENT + (text if form.startswith("#") else f'"""{text}"""'))
    return "\n".join((*lines, *(INDENT + line for line in body))) + "\n"
