"""Dagster's daily partitions begin with the first conversation; its location always has the same name."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from dagster._core.workspace.load_target import ModuleTarget, WorkspaceFileTarget

from iccm_assets.capture.conversations import Conversation, upsert_conversation
from iccm_assets.cli import dev
from iccm_assets.cli.env import get_dagster_environment, load_first_day
from iccm_assets.settings import MIN_FIRST_DAY, Settings
from iccm_assets_tests.factories.commands import iccm
from iccm_assets_tests.factories.processes import bare_environment
from iccm_assets_tests.factories.transcripts import ADD, ADD_REQUIREMENTS, TranscriptBuilder, ask

ROOT = Path(__file__).parents[2]


def arrive(engine: sa.Engine, session: str, day: date) -> None:
    with engine.begin() as conn:
        upsert_conversation(
            conn,
            Conversation(
                session_id=session,
                user_id="u",
                timestamp=datetime(day.year, day.month, day.day, 9, tzinfo=UTC),
                messages=[{"role": "user", "content": "hello"}],
                origin="import",
            ),
        )


def today() -> date:
    return datetime.now(UTC).date()


def test_without_conversations_the_days_that_the_daily_job_looks_back_on_have_partitions(
    engine: sa.Engine, settings: Settings
) -> None:
    assert load_first_day(engine, settings) == today() - timedelta(days=settings.curation.lookback_days)


@pytest.mark.parametrize(
    ("conversation", "setting", "expected"),
    [
        (date(2024, 5, 3), None, date(2024, 5, 3)),
        (date(2024, 5, 3), date(2025, 1, 1), date(2024, 5, 3)),
        (date(2024, 5, 3), date(2023, 1, 1), date(2023, 1, 1)),
        (date(1970, 1, 1), None, MIN_FIRST_DAY),
    ],
)
def test_the_first_day_is_the_first_conversations_or_an_earlier_one_that_is_set(
    engine: sa.Engine, settings: Settings, conversation: date, setting: date | None, expected: date
) -> None:
    arrive(engine, "first", conversation)
    arrive(engine, "second", today())
    assert load_first_day(engine, settings.model_copy(update={"first_day": setting})) == expected


def test_a_transcript_of_2024_has_a_partition_and_the_import_names_the_new_first_day(
    engine: sa.Engine, settings: Settings, tmp_path: Path
) -> None:
    transcript = TranscriptBuilder("old")
    transcript.prompt(ask(ADD))
    transcript.answer(ADD_REQUIREMENTS)
    path = Path(transcript.write(tmp_path))
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for row in rows:
        row["timestamp"] = "2024" + row["timestamp"][4:]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    own = {"ICCM_HOME": str(settings.home), "ICCM_DATABASE_URL": str(settings.database_url)}
    imported = iccm("import", "claude-code", str(path), **own)
    assert imported.returncode == 0, imported.stderr
    first_day = load_first_day(engine, settings)
    assert first_day.year == 2024 and f"begin on {first_day} " in imported.stderr
    assert "begin on" not in iccm("import", "claude-code", str(path), **own).stderr
    script = (
        "from iccm_assets.defs.partitions import daily_partitions as d; print(d.get_first_partition_key())"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env=bare_environment() | get_dagster_environment(settings), timeout=120,
    ).stdout  # fmt: skip
    assert shown.strip() == first_day.isoformat()


def test_the_code_location_has_one_name_however_dagster_is_started() -> None:
    """Dagster keys cursors, ticks and states of schedules and sensors by it."""
    module = ModuleTarget("iccm_assets.definitions", None, None, None)
    [by_module] = module.create_origins()
    [by_file] = WorkspaceFileTarget([str(ROOT / "workspace.yaml")]).create_origins()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["dg"]["project"]
    assert by_module.location_name == by_file.location_name == project["code_location_name"]


def test_dagster_starts_in_its_own_directory_with_the_same_files_and_module(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the repository Dagster would warn that its `dagster.yaml` is not used."""
    started: list[tuple[list[str], dict[str, Any]]] = []

    def start(command: list[str], **options: Any) -> SimpleNamespace:
        started.append((command, options))
        return SimpleNamespace(poll=lambda: 0, wait=lambda timeout: 0)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    values = {"ICCM_BASE_MODEL": "model", "ICCM_EMBEDDER": "org/name", "ICCM_REHEARSAL": ""}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dev.subprocess, "Popen", start)
    with dev._dagster(settings, 3100):
        pass
    [(command, options)] = started
    assert options["cwd"] == str(settings.home / "dagster")
    assert options["env"]["ICCM_BASE_MODEL"] == str(tmp_path / "model")
    assert (options["env"]["ICCM_EMBEDDER"], options["env"]["ICCM_REHEARSAL"]) == ("org/name", "")
    words = " ".join(command)
    assert " dagster dev -m iccm_assets.definitions -h" in words and "is superseded" in words
