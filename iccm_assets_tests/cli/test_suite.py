"""`iccm suite record` and `iccm suite show`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa

from iccm_assets.errors import InputError, RecordNotFoundError
from iccm_assets.scoring.suite_recordings import record_missing_suites
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.commands import Run, iccm
from iccm_assets_tests.factories.scorable_rows import SOURCE, put_conversation

KEYS = set(
    [
        "source",
        "status",
        "origin",
        "strength",
        "branch_coverage",
        "reason",
        "suite",
        "environment",
        "left_out",
    ]
)


def test_files_and_folders_are_recorded_one_json_line_each(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "double.py").write_text(SOURCE)
    (tmp_path / "dice.py").write_text("import random\ndef roll(n):\n    return random.randint(1, n)\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "notes.txt").write_text("no Python")
    done = iccm("suite", "record", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    rows = {Path(row["source"]).name: row for row in map(json.loads, done.stdout.splitlines())}
    assert {name: row["status"] for name, row in rows.items()} == {
        "double.py": "usable",
        "dice.py": "none",
        "broken.py": "none",
    }
    assert all(set(row) == KEYS and row["origin"] == "recorded" for row in rows.values())
    assert rows["dice.py"]["left_out"] == {"roll": "it uses randomness"}
    suite = tmp_path / "suite.json"
    suite.write_text(json.dumps(rows["double.py"]["suite"]))
    judged = iccm("judge", "--implementation", str(tmp_path / "inner" / "double.py"), "--suite", str(suite))
    assert judged.returncode == 0, judged.stderr


def test_a_person_sees_each_source_and_what_is_left_out(tmp_path: Path, run: Run) -> None:
    (tmp_path / "both.py").write_text(SOURCE + "import time\ndef stamp(x):\n    return time.time() + x\n")
    output = run("suite", "record", str(tmp_path / "both.py")).output
    assert "stamp is left out: it reads the clock" in output and "1 usable" in output


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda folder: folder / "missing.py", "no such file or folder"),
        (lambda folder: folder, "holds no Python file"),
        (lambda folder: (folder / "a.py").write_bytes(b"# \xe9\n") and folder / "a.py", "is not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_a_clear_error(tmp_path: Path, run: Run, make, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        run("suite", "record", str(make(tmp_path)))


def test_the_suite_of_a_session_is_shown(platform: Settings, engine: sa.Engine, run: Run) -> None:
    put_conversation(engine, platform, "one", suite=None)
    put_conversation(engine, platform, "two", suite=None, source="def f(x): return input()\n")
    record_missing_suites(engine, platform)
    (shown,) = json.loads(run("suite", "show", "one", "--json").output)
    assert (shown["origin"], shown["status"]) == ("recorded", "usable")
    assert shown["suite"]["cases"] and shown["strength"] >= 0.8
    (shown,) = json.loads(run("suite", "show", "two", "--json").output)
    assert (shown["status"], shown["suite"]) == ("none", None) and shown["reason"]
    assert '"cases"' in run("suite", "show", "one").output
    with pytest.raises(RecordNotFoundError, match="nobody"):
        run("suite", "show", "nobody")
