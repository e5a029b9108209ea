"""`iccm config show`: every setting, its source, and no secret."""

from __future__ import annotations

import json
from typing import Any

import pytest

from iccm_assets.cli.config import mask_secrets
from iccm_assets.errors import OrchestraError, SettingsError, UsageError
from iccm_assets.settings import known_variables
from iccm_assets_tests.factories.commands import Run


def shown(run: Run) -> dict[str, dict[str, Any]]:
    return {
        setting["variable"]: setting
        for setting in json.loads(run("config", "show", "--json").stdout)["settings"]
    }


def test_every_variable_is_listed_with_its_description(run: Run) -> None:
    settings = shown(run)
    assert set(settings) == set(known_variables())
    assert settings["ICCM_TRIGGERS__MIN_EXAMPLES"]["value"] == 20
    assert settings["ICCM_TRIGGERS__MIN_EXAMPLES"]["name"] == "triggers.min_examples"
    assert "below it a run is skipped" in settings["ICCM_TRIGGERS__MIN_EXAMPLES"]["description"]


def test_the_source_of_each_value_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICCM_TRAINING__EPOCHS", "7")
    monkeypatch.setenv("ICCM_ORCHESTRA", "")
    settings = shown(run)
    assert (settings["ICCM_TRAINING__EPOCHS"]["value"], settings["ICCM_TRAINING__EPOCHS"]["source"]) == (
        7,
        "environment",
    )
    assert settings["ICCM_TRAINING__LEARNING_RATE"]["source"] == "profile"
    assert settings["ICCM_TRAINING__SEED"]["source"] == "default"
    assert (settings["ICCM_ORCHESTRA"]["value"], settings["ICCM_ORCHESTRA"]["source"]) == (
        "builtin",
        "default",
    )
    monkeypatch.setenv("ICCM_PROFILE", "production")
    assert shown(run)["ICCM_TRAINING__LEARNING_RATE"]["source"] == "default"


def test_a_set_value_that_equals_the_profiles_still_comes_from_the_environment(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "ICCM_TRAINING__LEARNING_RATE", str(shown(run)["ICCM_TRAINING__LEARNING_RATE"]["value"])
    )
    assert shown(run)["ICCM_TRAINING__LEARNING_RATE"]["source"] == "environment"


def test_no_secret_is_printed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "ICCM_DATABASE_URL", "postgresql://app:hunter2@db.example/iccm?password=hunter2&sslmode=require"
    )
    monkeypatch.setenv("ICCM_DAGSTER_DATABASE_URL", "postgresql://app:hunter2@db.example/dagster")
    monkeypatch.setenv("ICCM_ALERT_URLS", "slack://hunter2/B/C,mailto://me:hunter2@example.org")
    for arguments in (("config", "show"), ("config", "show", "--json")):
        printed = run(*arguments).output
        assert "hunter2" not in printed
        assert "postgresql://app:***@db.example/iccm" in printed
        assert "slack://***,mailto://***" in printed


def test_the_overrides_of_members_are_shown_as_they_are_set_and_without_secrets(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICCM_ORCHESTRA", "openai:http://host/v1#gpt-5,builtin")
    members = {"gpt-5": {"temperature": None, "request": {"user_token": "hunter2", "max_tokens": 5}}}
    monkeypatch.setenv("ICCM_ENDPOINTS__MEMBERS", json.dumps(members))
    setting = shown(run)["ICCM_ENDPOINTS__MEMBERS"]
    assert setting["value"] == {
        "gpt-5": {"temperature": None, "request": {"user_token": "***", "max_tokens": 5}}
    }
    assert "{'gpt-5': {'temperature': None" in run("config", "show").stdout


def test_an_invalid_orchestra_is_reported_after_the_list(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICCM_ORCHESTRA", "nobody")
    with pytest.raises(OrchestraError, match="unknown member 'nobody'"):
        run("config", "show")
    monkeypatch.setenv("ICCM_ORCHESTRA", "openai:https://key:hunter2@llm.example/v1#big")
    with pytest.raises(SettingsError, match=r"ICCM_ORCHESTRA.*holds a password") as refused:
        run("config", "show")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("tokens", "abc", "***"),
        ("max_source_tokens", 2048, 2048),
        ("database_url", "postgresql://db/iccm", "postgresql://db/iccm"),
        ("database_url", "postgresql://app@db/iccm", "postgresql://app@db/iccm"),
        ("alert_urls", "", ""),
        ("tokens", ["a", "b"], ["***", "***"]),
        ("anything", None, None),
    ],
)
def test_masking_hides_secrets_and_nothing_else(name: str, value: object, expected: object) -> None:
    assert mask_secrets(name, value) == expected


def test_the_plain_list_can_be_searched(run: Run) -> None:
    lines = run("config", "show").stdout.splitlines()
    assert {line.split()[0] for line in lines if line.startswith("ICCM_")} == set(known_variables())
    position = lines.index("ICCM_TRIGGERS__MIN_EXAMPLES = 20 examples  (default)")
    assert lines[position + 1].startswith("    Minimum examples of any training")


def test_a_part_of_a_name_filters_the_list(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("config", "show", "rollout").stdout.splitlines()
    names = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert names == [name for name in known_variables() if name.startswith("ICCM_ROLLOUT__")]
    assert "ICCM_ROLLOUT__MAX_HOLD_DAYS = 14.0 days  (default)" in lines
    assert max(map(len, lines)) <= 80
    [setting] = json.loads(run("config", "show", "ICCM_rollout__alpha", "--json").stdout)["settings"]
    assert (setting["name"], setting["value"], setting["unit"]) == ("rollout.alpha", 0.05, "")
    for part in ("nowhere", "[bold]", "x" * 5000, "\x1b[31m"):
        with pytest.raises(UsageError, match="no setting is named like"):
            run("config", "show", part)


def test_an_unknown_variable_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICCM_TRIGGERS__FLOR_EXAMPLES", "3")
    with pytest.raises(SettingsError, match="ICCM_TRIGGERS__FLOR_EXAMPLES"):
        run("config", "show")
