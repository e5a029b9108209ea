"""`iccm backup` and `iccm restore` say what they did, and what they did not do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from iccm_assets.db import tables as t
from iccm_assets.errors import BackupError, OperationNotAllowedError, UsageError
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.commands import Run


def test_a_backup_is_restored_into_the_home_and_database_of_the_settings(
    platform: Settings,
    new_database: Callable[..., str],
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backups = str(tmp_path / "backups")
    with pytest.raises(BackupError, match="no complete backup"):
        run("restore", backups)
    made = json.loads(run("backup", backups, "--json").stdout)
    assert made["production"] is None and made["missing"] == {} and Path(made["path"]).is_dir()
    assert "is intact" in run("restore", backups, "--verify").stdout
    with pytest.raises(UsageError):
        run("restore", backups, "--verify", "--replace")
    monkeypatch.setenv("ICCM_HOME", str(tmp_path / "new"))
    monkeypatch.setenv("ICCM_DATABASE_URL", new_database(empty=True))
    restored = json.loads(run("restore", backups, "--backup", made["name"], "--json").stdout)
    assert restored["restored"] and restored["name"] == made["name"]
    (tmp_path / "new" / "models" / "m").mkdir()
    with pytest.raises(OperationNotAllowedError, match=r"not empty: .*models"):
        run("restore", backups)
    assert "In production: none." in run("restore", backups, "--replace").stdout


def test_a_backup_without_a_model_of_a_version_exits_3_and_names_it(
    platform: Settings, run: Run, tmp_path: Path, engine: sa.Engine
) -> None:
    with engine.begin() as conn:
        conn.execute(
            t.model_versions.insert().values(version="v1", status="production", digest="d", path="models/d")
        )
    result = run("backup", str(tmp_path / "backups"), exit_code=3)
    assert "Not in the backup: models/d: the files of v1 (production) are not in the home." in result.stdout
