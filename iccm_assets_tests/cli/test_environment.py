"""`iccm environment`, and what becomes of texts that lacked a package (J5)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from iccm_assets.errors import InputError, MissingPackageError
from iccm_assets.scoring.orchestra import LocalReconstructor, Orchestra
from iccm_assets.scoring.scoring_pass import score_unscored
from iccm_assets.scoring.suite_recordings import record_missing_suites
from iccm_assets.settings import Settings
from iccm_assets_tests.factories.commands import Run
from iccm_assets_tests.factories.scorable_rows import make_orchestra, put_conversation
from iccm_assets_tests.factories.wheels import build_wheel, write_requirements

SOURCE = "import tinylib\n\ndef f(x: int) -> int:\n    return tinylib.twice(x) + 1\n"
SUITE = {"kind": "cases", "cases": [{"call": "f", "args": [n], "expect": 2 * n + 1} for n in range(6)]}
ROWS = sa.text("select test_pass_rate, test_suite_origin, evidence from iccm.requirements order by id")


@pytest.fixture
def requirements(tmp_path: Path) -> Path:
    wheel = build_wheel(tmp_path / "wheels", "tinylib", "1.0", "def twice(x):\n    return 2 * x\n")
    return write_requirements(tmp_path, "requirements.txt", wheel)


def load_rows(engine: sa.Engine) -> list[sa.Row]:
    with engine.connect() as conn:
        return list(conn.execute(ROWS))


def answer_with(source: str) -> Orchestra:
    def read(text: str) -> str:
        return source

    return replace(make_orchestra(), members=tuple(LocalReconstructor(name, read) for name in "ab"))


def test_texts_that_lacked_a_package_are_scored_in_the_new_environment(
    run: Run, platform: Settings, engine: sa.Engine, requirements: Path
) -> None:
    session = put_conversation(engine, platform, "attached", suite=SUITE, source=SOURCE)
    put_conversation(engine, platform, "without tests", suite=None, source=SOURCE + "\nONE = 1\n")
    put_conversation(engine, platform, "other", suite=None, source="import elsewhere\ndef g(): pass\n")
    orchestra = answer_with(SOURCE)
    assert record_missing_suites(engine, platform).sources == {"none": 2}
    assert score_unscored(engine, orchestra, platform).inconclusive == 1
    assert "iccm environment create" in load_rows(engine)[0].evidence["reason"]
    assert score_unscored(engine, orchestra, platform).selected_rows == 0

    create = ("environment", "create", "tiny", "--requirements", str(requirements), "--json")
    built = json.loads(run(*create).stdout)
    assert built["packages"] == ["tinylib==1.0"] and built["is_new"]
    assert built["texts_to_score_again"] == 2
    assert record_missing_suites(engine, platform).sources == {"usable": 1}
    assert score_unscored(engine, orchestra, platform).scored == 2
    rows = load_rows(engine)
    assert [row.test_pass_rate for row in rows] == [1.0, 1.0, None]
    assert [row.test_suite_origin for row in rows] == ["attached", "recorded", None]
    assert {row.evidence["environment"] for row in rows[:2]} == {built["digest"]}
    with engine.connect() as conn:
        measured = conn.execute(sa.text("select distinct environment from iccm.test_suites")).scalars()
        assert set(measured) == {None, built["digest"]}
        stored = conn.execute(sa.text("select digest, name, packages from iccm.environments")).one()
    assert tuple(stored) == (built["digest"], "tiny", ["tinylib==1.0"])
    traced = json.loads(run("lineage", "--conversation", str(session), "--json").stdout)
    assert traced["environment"] == built["digest"]
    assert f"in environment {built['digest'][:12]}" in run("lineage", "--conversation", str(session)).stdout

    again = json.loads(run(*create).stdout)
    assert not again["is_new"] and again["texts_to_score_again"] == 0
    listed = json.loads(run("environment", "list", "--json").stdout)
    assert [item["name"] for item in listed] == ["tiny"]
    assert "tinylib==1.0" in run("environment", "list").stdout


@pytest.mark.slow
def test_a_score_is_used_again_only_where_the_environment_is_the_same(
    run: Run, platform: Settings, engine: sa.Engine, requirements: Path, tmp_path: Path
) -> None:
    run("environment", "create", "tiny", "--requirements", str(requirements))
    put_conversation(engine, platform, "a", suite=SUITE, source=SOURCE)
    orchestra = answer_with(SOURCE)
    assert score_unscored(engine, orchestra, platform).counts()["texts_sent"] == 1
    copy = sa.text(
        "insert into iccm.requirements (session_id, conversation_id, kind, text, source_sha256, test_suite,"
        " test_suite_origin) select session_id, conversation_id, 'model', text, source_sha256, test_suite,"
        " test_suite_origin from iccm.requirements order by id limit 1"
    )
    with engine.begin() as conn:
        conn.execute(copy)
    assert score_unscored(engine, orchestra, platform).counts()["texts_reused"] == 1
    wheel = build_wheel(tmp_path / "new", "tinylib", "2.0", "def twice(x):\n    return x + x\n")
    run("environment", "create", "tiny", "--requirements", str(write_requirements(tmp_path, "2", wheel)))
    with engine.begin() as conn:
        conn.execute(copy)
    assert score_unscored(engine, orchestra, platform).counts()["texts_sent"] == 1


def test_a_deleted_environment_is_gone_and_wrong_input_is_a_clear_error(
    run: Run, platform: Settings, requirements: Path
) -> None:
    assert "There is no environment." in run("environment", "list").stdout
    printed = run("environment", "create", "tiny", "--requirements", str(requirements)).stdout
    assert printed.startswith("tiny ") and "1 package" in printed
    assert "is deleted" in run("environment", "delete", "tiny").stdout
    with pytest.raises(MissingPackageError, match=r"no environment 'tiny'.*known: none"):
        run("environment", "delete", "tiny")
    with pytest.raises(InputError, match="no such file"):
        run("environment", "create", "tiny", "--requirements", str(requirements.parent / "missing"))
