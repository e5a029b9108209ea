"""`iccm erase`: confirmation, output, invalid requests (V2)."""

from __future__ import annotations

import json

import pytest
import sqlalchemy as sa
from click.testing import Result
from typer.testing import CliRunner

from iccm_assets.cli.main import build_app
from iccm_assets.db import tables as t
from iccm_assets.errors import InputError, OperationNotAllowedError, UsageError
from iccm_assets.settings import Settings, get_settings
from iccm_assets_tests.factories.platform_rows import conversation, training_run, version


def run(*arguments: str, answer: str | None = None) -> Result:
    """Run `iccm erase` in this process with this standard input."""
    get_settings.cache_clear()
    result = CliRunner().invoke(
        build_app("erase"), ("erase", *arguments), input=answer, env={"COLUMNS": "200"}
    )
    get_settings.cache_clear()
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def history(platform: Settings, engine: sa.Engine) -> sa.Engine:
    """Production was trained on two conversations of ann and one of bob, the base on none."""
    base = platform.home / "models" / "base"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    with engine.begin() as conn:
        for number, user in enumerate(("ann", "ann", "bob"), start=1):
            conversation(conn, number, user=user)
        version(conn, "v1-base", status="retired")
        version(conn, "v2-good", "v1-base", status="production")
        conn.execute(t.model_versions.update().values(path=str(base)))
        training_run(conn, 1, "v2-good", examples={1: "new", 2: "validation", 3: "new"})
    return engine


def test_erase_asks_for_confirmation_and_accepts_no(history: sa.Engine) -> None:
    with pytest.raises(OperationNotAllowedError, match="not confirmed, nothing was erased"):
        run("--user", "ann", answer="n\n")
    with history.connect() as conn:
        assert conn.execute(sa.text("select count(*) from iccm.erasures")).scalar_one() == 0
    output = run("--user", "ann", answer="y\n").stdout
    assert "2 conversations would be erased" in output and "2 conversations erased" in output
    assert "iccm retrain --base v1-base --reason 'erasure" in output
    assert "backups" in output and "--rewrite-tables" in output  # the server is not ours


def test_a_dry_run_and_the_erasure_print_the_same_json(history: sa.Engine) -> None:
    planned = json.loads(run("--user", "ann", "--dry-run", "--json").stdout)
    done = json.loads(run("--user", "ann", "--yes", "--rewrite-tables", "--json").stdout)
    assert planned["dry_run"] and planned["files"] is None and planned["erasure"] is None
    for key in ("conversations", "rows", "versions", "newly_erased"):
        assert planned[key] == done[key]
    assert done["conversations"] == [1, 2] and done["files"]["rewritten"]
    assert [
        (version["version"], version["examples"], version["in_service"]) for version in done["versions"]
    ] == [("v2-good", 2, True)]
    [replacement] = done["replacements"]
    assert replacement["base"] == "v1-base" and replacement["retrain"].startswith(
        "iccm retrain --base v1-base"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "exactly one of"),
        (["--user", "ann", "--session", "s1"], "exactly one of"),
        (["--user", ""], "a user is named by"),
        (["--conversation", "one"], "named by its number"),
        (["--user", "'; drop schema iccm cascade; --", "--yes"], "there is no user"),
        (["--session", "s99", "--dry-run"], "there is no session"),
        (["--user", "ann", "--yes", "--json", "--retrain"], "cannot be combined"),
    ],
)
def test_an_invalid_request_is_reported_in_one_line(
    history: sa.Engine, arguments: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(*arguments)


def test_json_asks_no_questions(history: sa.Engine) -> None:
    with pytest.raises(UsageError, match="Give --yes"):
        run("--user", "ann", "--json")
