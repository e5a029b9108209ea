"""Transcripts give the same sources and requirements as posted conversations do."""

from __future__ import annotations

import pytest

from iccm_assets_tests.factories.requirement_forms import FENCED_FORMS, OTHER_ANSWERS, REQUIREMENT_FORMS
from iccm_assets_tests.factories.sources import ADD, FENCED_ADD, SOURCES
from iccm_assets_tests.factories.transcripts import TranscriptBuilder


def transcript(prompt: str, answer: str) -> TranscriptBuilder:
    builder = TranscriptBuilder()
    builder.prompt(prompt)
    builder.answer(answer)
    return builder


@pytest.mark.parametrize("form", REQUIREMENT_FORMS)
def test_requirements_of_every_form_are_read(form: str) -> None:
    exchange = transcript(FENCED_ADD, REQUIREMENT_FORMS[form]).exchange()
    assert (exchange.source, exchange.requirements) == (ADD, REQUIREMENT_FORMS[form].strip('"`'))


@pytest.mark.parametrize("language", FENCED_FORMS)
def test_requirements_in_a_fence_are_read(language: str) -> None:
    exchange = transcript(FENCED_ADD, f"Here:\n\n```{language}\n{FENCED_FORMS[language]}\n```").exchange()
    assert (exchange.source, exchange.requirements) == (ADD, FENCED_FORMS[language])


@pytest.mark.parametrize("form", REQUIREMENT_FORMS)
def test_requirements_that_a_tool_writes_are_read(form: str) -> None:
    builder = TranscriptBuilder()
    builder.prompt(f"{FENCED_ADD}\nSave its requirements in docs/requirements.md")
    builder.use("Write", {"file_path": "/w/docs/requirements.md", "content": REQUIREMENT_FORMS[form]})
    builder.answer("I saved the requirements to docs/requirements.md.")
    exchange = builder.exchange()
    assert (exchange.source, exchange.requirements) == (ADD, REQUIREMENT_FORMS[form].strip('"`'))


@pytest.mark.parametrize("kind", OTHER_ANSWERS)
def test_other_answers_are_refused_with_the_reason(kind: str) -> None:
    exchange = transcript(FENCED_ADD, OTHER_ANSWERS[kind]).exchange()
    assert (exchange.source, exchange.requirements) == (ADD, None)
    assert exchange.reason.startswith("no requirements (")


@pytest.mark.parametrize("kind", SOURCES)
def test_sources_of_every_kind_are_read(kind: str) -> None:
    content, source = SOURCES[kind]
    exchange = transcript(content, "The function `add` shall return the sum of `a` and `b`.").exchange()
    assert exchange.source == source
