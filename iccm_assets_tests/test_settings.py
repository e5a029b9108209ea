"""Settings: unknown names and impossible values are errors; the profile follows the base model (S3, X5)."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest

import iccm_assets
from iccm_assets.db.tables import EVIDENCE_KINDS, SUITE_ORIGINS
from iccm_assets.errors import SettingsError
from iccm_assets.settings import PACKAGED_REHEARSAL, Settings, SettingsGroup, known_variables, load_settings


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ICCM_")]:
        monkeypatch.delenv(name)


def test_the_packaged_model_brings_the_local_profile_and_its_rehearsal() -> None:
    settings = load_settings()
    assert settings.profile == "local"
    assert settings.training.learning_rate > 1e-5
    assert settings.rehearsal == str(PACKAGED_REHEARSAL)


def test_another_base_model_brings_the_production_numbers_and_no_foreign_rehearsal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ICCM_BASE_MODEL", "org/model")
    settings = load_settings()
    assert settings.profile == "production"
    assert (settings.training.learning_rate, settings.training.epochs) == (1e-6, 5)
    assert settings.rehearsal == ""


def test_a_rehearsal_that_is_asked_for_is_used_with_any_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICCM_BASE_MODEL", "org/model")
    monkeypatch.setenv("ICCM_REHEARSAL", str(PACKAGED_REHEARSAL))
    assert load_settings().rehearsal == str(PACKAGED_REHEARSAL)


def test_the_environment_is_stronger_than_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICCM_TRAINING__LEARNING_RATE", "0.25")
    settings = load_settings()
    assert settings.training.learning_rate == 0.25
    assert settings.training.rehearsal_fraction == load_settings(profile="local").training.rehearsal_fraction


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ICCM_NO_SUCH_THING", "1", "ICCM_NO_SUCH_THING"),
        ("ICCM_TRAINING__NO_SUCH_THING", "1", "ICCM_TRAINING__NO_SUCH_THING"),
        ("ICCM_TRAINING", "{}", "ICCM_TRAINING"),
        ("ICCM_TRAINING__EPOCHS", "0", "ICCM_TRAINING__EPOCHS"),
        ("ICCM_TRAINING__EPOCHS", "many", "ICCM_TRAINING__EPOCHS"),
        ("ICCM_TRAINING__LEARNING_RATE", "nan", "finite"),
        ("ICCM_CURATION__HOLDOUT_FRACTION", "1", "ICCM_CURATION__HOLDOUT_FRACTION"),
        ("ICCM_DATABASE_URL", "sqlite:///x.db", "postgresql://"),
        ("ICCM_SANDBOX", "none", "ICCM_SANDBOX"),
        ("ICCM_PROFILE", "staging", "ICCM_PROFILE"),
        ("ICCM_OWNERS", "ml-platform", "'ml-platform' is neither team:NAME nor an e-mail address"),
        ("ICCM_OWNERS", "team:a,", "'' is neither"),
        ("ICCM_FIRST_DAY", "0001-01-01", "ICCM_FIRST_DAY"),
        ("ICCM_FIRST_DAY", "yesterday", "ICCM_FIRST_DAY"),
    ],
)
def test_an_unknown_variable_or_an_impossible_value_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=words):
        load_settings()


def test_every_variable_has_a_name_that_can_be_set_and_an_empty_one_counts_as_unset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in known_variables():
        monkeypatch.setenv(name, "")
    assert load_settings().training.epochs >= 1


def test_every_setting_has_a_reader() -> None:
    """An attribute of the setting's name is read outside of settings.py, or by a property that is."""
    package = Path(iccm_assets.__file__).parent
    read = {
        node.attr
        for path in package.rglob("*.py")
        if path.name != "settings.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    fields = {
        name: annotation.model_fields
        for name, field in Settings.model_fields.items()
        if isinstance(annotation := field.annotation, type) and issubclass(annotation, SettingsGroup)
    }
    names = {f"{group}.{name}" for group, members in fields.items() for name in members}
    names |= set(Settings.model_fields)
    # settings.py reads them, for others
    names -= {"profile", "retention.history_retention_days", "training.report_to"}
    assert {"history_retention", "trackers"} <= read
    assert sorted(name for name in names if name.rsplit(".", 1)[-1] not in read) == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ICCM_CURATION__EVIDENCE", "case", "'case' unknown; known: cases, pytest"),
        ("ICCM_CURATION__EVIDENCE", "cases,", "'' unknown"),
        ("ICCM_CURATION__EVIDENCE", "cases pytest", "known: cases, pytest"),
        (
            "ICCM_CURATION__SUITE_ORIGINS",
            "attached,own",
            "'own' unknown; known: attached, collected",
        ),
    ],
)
def test_an_unknown_kind_or_origin_of_suites_is_an_error_that_names_the_known_ones(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=re.escape(words)) as error:
        load_settings()
    assert name in str(error.value)


def test_every_kind_and_origin_of_suites_may_teach_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    curation = load_settings().curation
    assert curation.allowed_evidence == {*EVIDENCE_KINDS}
    assert curation.allowed_suite_origins == {*SUITE_ORIGINS}
    monkeypatch.setenv("ICCM_CURATION__EVIDENCE", " cases ")
    assert load_settings().curation.allowed_evidence == {"cases"}
