"""Which text is requirements: one rule, with its reason."""

from __future__ import annotations

import pytest

from iccm_assets.capture.requirement_statements import find_requirements
from iccm_assets_tests.factories.answers import STATEMENTS, TALK
from iccm_assets_tests.factories.requirement_forms import FENCED_FORMS, OTHER_ANSWERS, REQUIREMENT_FORMS


@pytest.mark.parametrize("form", REQUIREMENT_FORMS)
def test_every_usual_form_is_requirements(form: str) -> None:
    text = REQUIREMENT_FORMS[form]
    match = find_requirements(f"\n{text}\n")
    assert match.reason
    assert match.text == text.strip('"`')


@pytest.mark.parametrize("language", FENCED_FORMS)
def test_requirements_in_a_fence_are_its_content(language: str) -> None:
    content = FENCED_FORMS[language]
    match = find_requirements(f"Here you are:\n\n```{language}\n{content}\n```\n\nAnything else?")
    assert (match.text, bool(match.reason)) == (content, True)


@pytest.mark.parametrize("form", REQUIREMENT_FORMS)
@pytest.mark.parametrize("language", ["text", "markdown", ""])
def test_every_usual_form_counts_in_a_fence_of_text(form: str, language: str) -> None:
    assert find_requirements(f"```{language}\n{REQUIREMENT_FORMS[form]}\n```").text is not None


@pytest.mark.parametrize("kind", OTHER_ANSWERS)
def test_what_is_no_statement_of_what_software_does_is_refused_with_a_reason(kind: str) -> None:
    match = find_requirements(OTHER_ANSWERS[kind])
    assert match.text is None
    assert match.reason


@pytest.mark.parametrize("text", STATEMENTS)
def test_siblings_of_the_forms_are_requirements(text: str) -> None:
    assert find_requirements(text).text is not None


@pytest.mark.parametrize("text", TALK)
def test_talk_is_refused(text: str) -> None:
    assert find_requirements(text).text is None
