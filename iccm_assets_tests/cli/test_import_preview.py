"""`iccm import claude-code`: dry runs, files of other kinds, and several files of which some are good."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa

from iccm_assets.cli.main import build_app
from iccm_assets.errors import InputError, SkippedFilesError
from iccm_assets.settings import Settings, get_settings
from iccm_assets_tests.factories.commands import iccm
from iccm_assets_tests.factories.transcripts import (
    ADD,
    ADD_REQUIREMENTS,
    SUB,
    SUB_REQUIREMENTS,
    TranscriptBuilder,
    ask,
)

SECRET = "AKIAIOSFODNN7EXAMPLQ"


def session(name: str = "s", source: str = ADD, requirements: str = ADD_REQUIREMENTS) -> TranscriptBuilder:
    transcript = TranscriptBuilder(name)
    transcript.prompt(ask(source))
    transcript.answer(requirements)
    return transcript


@pytest.fixture
def run(monkeypatch):
    from typer.testing import CliRunner

    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        get_settings.cache_clear()
        result = CliRunner().invoke(build_app("import"), ["import", "claude-code", *arguments])
        if result.exception is not None:
            raise result.exception
        return result.stdout

    yield call
    get_settings.cache_clear()


def preview(run, *arguments: str) -> list[dict]:
    return [json.loads(line) for line in run(*arguments, "--dry-run", "--json").splitlines()]


def test_a_dry_run_prints_one_line_for_each_session(run, tmp_path):
    good, other = session("one").write(tmp_path), TranscriptBuilder("two")
    other.prompt("Hello")
    other.answer("Hi.")
    reason = "no test file of the session imports the source; a suite is recorded later"
    suite = {"origin": None, "status": "none", "reason": reason}
    alone, greeting = preview(run, good, other.write(tmp_path))
    assert alone == {
        "session_id": "one",
        "source_code": ADD,
        "requirements": ADD_REQUIREMENTS,
        "suite": suite,
        "reason": "",
    }
    assert (greeting.pop("reason"), greeting) == (
        "no source code, no requirements (it does not say what software has to do)",
        {"session_id": "two", "source_code": None, "requirements": None, "suite": suite},
    )


def test_a_dry_run_needs_no_database_and_starts_none(tmp_path):
    path = session().write(tmp_path)
    result = iccm(
        "import",
        "claude-code",
        path,
        "--dry-run",
        "--json",
        ICCM_HOME=str(tmp_path / "home"),
        HOME=str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["source_code"] == ADD
    assert not (tmp_path / "home").exists()


def test_a_dry_run_without_json_is_a_table(run, tmp_path):
    printed = run(session("one").write(tmp_path), "--dry-run")
    assert "nothing stored" in printed and "one" in printed and ADD_REQUIREMENTS in printed


def test_a_dry_run_shows_the_texts_that_an_import_stores(run, platform: Settings, engine, tmp_path):
    source = f'key = "{SECRET}"\nhost = "a\x00b"\n{ADD}'
    path = session(source=source, requirements=f"{ADD_REQUIREMENTS} Ask ann.lee@example.org.").write(tmp_path)
    (shown,) = preview(run, path)
    with engine.connect() as conn:
        assert conn.execute(sa.text("select count(*) from iccm.conversations")).scalar_one() == 0
    run(path)
    with engine.connect() as conn:
        content = conn.execute(sa.text("select content from iccm.conversations")).scalar_one()
        text = conn.execute(sa.text("select text from iccm.requirements")).scalar_one()
    assert shown["requirements"] == text and "<EMAIL>" in text
    assert shown["source_code"] in content[0]["content"] and SECRET not in shown["source_code"]


def test_a_session_in_several_files_is_one_line_of_a_dry_run(run, tmp_path):
    first = session()
    second = first.next_file()
    second.prompt(ask(SUB))
    second.answer(SUB_REQUIREMENTS)
    (shown,) = preview(run, first.write(tmp_path, "a.jsonl"), second.write(tmp_path, "b.jsonl"))
    assert (shown["source_code"], shown["requirements"]) == (SUB, SUB_REQUIREMENTS)


FOREIGN = {
    "Codex rollout": '{"type": "session_meta", "payload": {}}\n{"type": "event_msg", "payload": {}}\n',
    "stream-json": '{"type": "user", "session_id": "a", "message": {"role": "user", "content": "hi"}}\n',
    "OpenAI messages": '{"messages": [{"role": "user", "content": "hi"}]}\n',
    "JSON array": "[]\n",
    "CSV table": "a,b\n1,2\n",
    "is empty": "",
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("options", [[], ["--json"], ["--dry-run"], ["--dry-run", "--json"]])
def test_a_file_of_another_kind_is_an_error_that_names_the_kind(run, tmp_path, kind, options, monkeypatch):
    def refuse() -> None:
        raise AssertionError("no database is needed")

    monkeypatch.setattr("iccm_assets.cli.import_.open_platform", refuse)
    path = tmp_path / "other.jsonl"
    path.write_text(FOREIGN[kind])
    with pytest.raises(InputError, match=rf"other\.jsonl .*{kind}"):
        run(str(path), *options)


@pytest.mark.parametrize("kind", FOREIGN)
def test_the_good_files_are_imported_and_the_others_named(run, platform, engine, tmp_path, kind):
    (tmp_path / "bad.jsonl").write_text(FOREIGN[kind])
    good = [session(name).write(tmp_path) for name in ("one", "two")]
    with pytest.raises(SkippedFilesError, match=rf"bad\.jsonl .*{kind}"):
        run(good[0], str(tmp_path / "bad.jsonl"), good[1])
    with engine.connect() as conn:
        assert conn.execute(sa.text("select count(*) from iccm.conversations")).scalar_one() == 2


def test_the_exit_code_is_1_for_a_file_of_another_kind(tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text(FOREIGN["Codex rollout"])
    result = iccm("import", "claude-code", str(path), ICCM_HOME=str(tmp_path / "home"), HOME=str(tmp_path))
    assert result.returncode == 1 and "Codex rollout" in result.stderr and result.stdout == ""
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    "lines",
    [
        [{"type": "summary", "summary": "x", "leafUuid": "u"}],
        [
            {
                "type": "user",
                "isSidechain": True,
                "sessionId": "s",
                "message": {"role": "user", "content": "hi"},
            }
        ],
        [{"type": "user", "sessionId": "s", "message": {"role": "user", "content": "  "}}],
    ],
)
def test_a_file_without_a_conversation_is_an_error_unless_a_directory_holds_it(
    run, platform, tmp_path, lines
):
    folder = tmp_path / "projects"
    folder.mkdir()
    path = folder / "agent.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=r"agent\.jsonl holds no conversation"):
        run(str(path))
    with pytest.raises(InputError, match=r"agent\.jsonl holds no conversation"):
        run(str(folder))
    session().write(folder)
    assert "agent.jsonl holds no conversation" in run(str(folder))


def test_what_claude_code_keeps_besides_its_sessions_is_no_error_in_a_directory(run, platform, tmp_path):
    session().write(tmp_path)
    (tmp_path / "history.jsonl").write_text('{"display": "hi", "pastedContents": {}, "project": "/w"}\n')
    workflow = tmp_path / "s" / "subagents" / "workflows"
    workflow.mkdir(parents=True)
    (workflow / "journal.jsonl").write_text('{"event": "started"}\n')
    report = json.loads(run(str(tmp_path), "--json"))
    assert (report["files"], report["errors"]) == (2, [])
    with pytest.raises(InputError, match="prompt history of Claude Code"):
        run(str(tmp_path / "history.jsonl"))


def test_a_file_of_another_kind_in_a_directory_is_an_error(run, platform, tmp_path):
    session().write(tmp_path)
    (tmp_path / "codex.jsonl").write_text(FOREIGN["Codex rollout"])
    with pytest.raises(SkippedFilesError, match="Codex rollout"):
        run(str(tmp_path))


def test_many_files_of_other_kinds_are_named_up_to_ten(run, tmp_path):
    paths = [tmp_path / f"{number}.jsonl" for number in range(14)]
    for path in paths:
        path.write_text("")
    with pytest.raises(InputError, match="and 4 more files"):
        run(*map(str, paths), "--dry-run")


def test_a_report_counts_the_forks_without_requirements(run, platform, tmp_path):
    first = session("first")
    second = first.fork("second")
    second.prompt("Thanks.")
    report = run(first.write(tmp_path), second.write(tmp_path))
    assert "1 of them continue another session without new requirements" in report
    report = json.loads(run(str(Path(tmp_path)), "--json"))
    assert report["forks_without_requirements"] == 1 and report["sessions"] == {"unchanged": 2}


def test_a_directory_without_transcripts_and_a_missing_file_are_errors(run, tmp_path):
    with pytest.raises(InputError, match=r"no \.jsonl file"):
        run(str(tmp_path))
    with pytest.raises(InputError, match="No such file"):
        run(str(tmp_path / "missing.jsonl"))


def test_the_test_files_of_a_repository_are_the_suite_of_a_session(run, tmp_path):
    repository = tmp_path / "project"
    for folder, text in (("tests", "assert add(1, 2) == 3"), (".venv/lib", "assert add(1, 2) == 4")):
        (repository / folder).mkdir(parents=True)
        test = f"from calc import add\ndef test_add():\n    {text}\n"
        (repository / folder / "test_calc.py").write_text(test)
    (repository / "tests" / "test_latin.py").write_bytes(b"# \xe9\n")
    transcript = session("one").write(tmp_path)
    (with_tests,) = preview(run, transcript, "--repository", str(repository))
    assert (with_tests["suite"]["origin"], with_tests["suite"]["status"]) == ("collected", "unmeasured")
    (alone,) = preview(run, transcript)
    assert alone["suite"]["origin"] is None
    with pytest.raises(InputError, match="is not a folder"):
        run(transcript, "--repository", str(tmp_path / "missing"))
