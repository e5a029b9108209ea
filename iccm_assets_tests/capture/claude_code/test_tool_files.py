"""Files that the developer attaches, and that tools read and write."""

from __future__ import annotations

import time

import pytest

from iccm_assets.capture.claude_code.file_limits import limit_files
from iccm_assets.capture.claude_code.session_builder import Turn
from iccm_assets.capture.claude_code.shell_files import parse_shell_command
from iccm_assets.capture.claude_code.tool_files import clean_shown_file
from iccm_assets_tests.factories.transcripts import ADD, ADD_REQUIREMENTS, TranscriptBuilder

DOCUMENT = f"# Requirements\n\n1. {ADD_REQUIREMENTS}\n"
NUMBERED = "     1→def add(a, b):\n     2→    return a + b"


def asking(prompt: str = "Write requirements for @add.py") -> TranscriptBuilder:
    transcript = TranscriptBuilder()
    transcript.prompt(prompt)
    return transcript


def test_a_mentioned_file_is_a_part_of_the_prompt():
    transcript = asking()
    transcript.attach_file("add.py", ADD)
    transcript.answer(ADD_REQUIREMENTS)
    assert transcript.files() == [("user", "attached", "add.py", ADD)]
    assert len(transcript.texts()) == 2
    assert (transcript.exchange().source, transcript.exchange().requirements) == (ADD, ADD_REQUIREMENTS)


@pytest.mark.parametrize(
    "attachment",
    [
        {"type": "file", "filename": "add.py", "content": ADD},
        {"type": "file", "filename": "add.py", "content": NUMBERED},
        {"type": "already_read_file", "filename": "add.py", "content": {"file": {"content": ADD}}},
        {"type": "file", "filename": "add.py", "content": {"type": "text", "text": ADD}},
        {"type": "selected_lines_in_ide", "filename": "add.py", "content": ADD, "lineStart": 1},
    ],
)
def test_every_form_of_an_attached_file_is_read(attachment):
    transcript = asking()
    transcript.attach(**attachment)
    assert transcript.files() == [("user", "attached", "add.py", ADD)]


@pytest.mark.parametrize(
    "attachment",
    [
        {"type": "edited_text_file", "filename": "add.py", "snippet": ADD},
        {"type": "hook_success", "content": ADD},
        {"type": "nested_memory", "content": {"content": ADD}},
        {"type": "file", "filename": "a.png", "content": {"type": "image", "file": {"base64": "xx"}}},
        {"type": "file", "filename": "add.py", "content": [ADD]},
        {"type": ["file"], "content": ADD},
    ],
)
def test_other_attachments_are_no_files(attachment):
    transcript = asking()
    transcript.attach(**attachment)
    assert transcript.files() == [] and len(transcript.texts()) == 1


def test_a_file_that_is_attached_before_the_prompt_is_read():
    transcript = TranscriptBuilder()
    transcript.attach_file("add.py", ADD)
    transcript.prompt("Write requirements for it")
    transcript.answer(ADD_REQUIREMENTS)
    assert transcript.exchange().source == ADD


def test_files_that_the_program_attaches_after_a_compaction_are_left_out():
    transcript = asking("Hello")
    transcript.add("system", parent=None, logicalParentUuid=transcript.last, subtype="compact_boundary")
    transcript.prompt("summary", isCompactSummary=True)
    transcript.attach_file("old.py", "old = 1")
    transcript.prompt("Now @add.py")
    transcript.attach_file("add.py", ADD)
    assert [path for _, _, path, _ in transcript.files()] == ["add.py"]


def test_a_file_that_a_tool_reads_is_a_part_of_its_result():
    transcript = asking("Write requirements for add.py")
    transcript.use("Read", {"file_path": "/w/add.py"}, NUMBERED)
    transcript.answer(ADD_REQUIREMENTS)
    assert transcript.files() == [("user", "read", "/w/add.py", ADD)]
    assert (transcript.exchange().source, transcript.exchange().requirements) == (ADD, ADD_REQUIREMENTS)


def test_a_long_file_is_read_in_full():
    source = "\n".join(f"x{number} = {number}" for number in range(2000))
    numbered = "\n".join(f"{number + 1:6}→x{number} = {number}" for number in range(2000))
    transcript = asking()
    transcript.use("Read", {"file_path": "x.py"}, numbered)
    assert transcript.files()[0][3] == source


def test_what_the_transcript_says_about_the_file_has_precedence():
    transcript = asking()
    file = {"filePath": "add.py", "content": ADD + "\n", "numLines": 2, "startLine": 1, "totalLines": 2}
    transcript.use("Read", {"file_path": "add.py"}, NUMBERED, details={"type": "text", "file": file})
    assert transcript.files()[0][3] == ADD + "\n"


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        ("     1→a\n     2→\n     3→b", "a\n\nb"),
        ("1\ta\n2\tb\n", "a\nb"),
        ("     1→a\n\n<system-reminder>\nBe careful.\n</system-reminder>\n", "a"),
        ("    98→a\n    99→b\n   100→c", "a\nb\nc"),
        ("a = 1\nb = 2", "a = 1\nb = 2"),
        ("1\ta\nno number", "1\ta\nno number"),
        ("1\ta\n3\tb", "1\ta\n3\tb"),
        ("     1→x = '→'", "x = '→'"),
    ],
)
def test_line_numbers_are_removed_and_nothing_else(shown, text):
    assert clean_shown_file(shown) == text


@pytest.mark.parametrize(
    ("name", "tool_input"),
    [
        ("mcp__filesystem__read_text_file", {"path": "add.py"}),
        ("mcp__github__get_file_contents", {"path": "add.py", "repo": "r"}),
        ("View", {"file_path": "add.py"}),
    ],
)
def test_other_tools_that_read_files_count_too(name, tool_input):
    transcript = asking()
    transcript.use(name, tool_input, [{"type": "text", "text": ADD}])
    assert transcript.files() == [("user", "read", "add.py", ADD)]


def test_a_failed_read_shows_no_file():
    transcript = asking()
    transcript.use("Read", {"file_path": "add.py"}, "File does not exist.", error=True)
    assert transcript.files() == []


@pytest.mark.parametrize(
    ("name", "tool_input"),
    [
        ("Write", {"file_path": "requirements.md", "content": DOCUMENT}),
        ("write_file", {"path": "requirements.md", "content": DOCUMENT}),
        ("mcp__filesystem__write_file", {"path": "requirements.md", "content": DOCUMENT}),
        (
            "str_replace_based_edit_tool",
            {"command": "create", "path": "requirements.md", "file_text": DOCUMENT},
        ),
        ("Bash", {"command": f"cat > requirements.md <<'EOF'\n{DOCUMENT}EOF"}),
        ("Bash", {"command": f"mkdir -p d && cat > requirements.md << EOF\n{DOCUMENT}EOF\nls"}),
        ("Edit", {"file_path": "requirements.md", "old_string": "", "new_string": DOCUMENT}),
    ],
)
def test_a_document_that_a_tool_writes_is_a_part_of_the_answer(name, tool_input):
    transcript = asking(f"Write requirements for\n```python\n{ADD}\n```\nSave them in requirements.md")
    transcript.use(name, tool_input)
    transcript.answer("I saved the requirements.")
    assert transcript.files() == [("assistant", "written", "requirements.md", DOCUMENT)]
    assert (transcript.exchange().source, transcript.exchange().requirements) == (ADD, DOCUMENT.strip())


@pytest.mark.parametrize("result", ["error", "none"])
def test_a_write_that_failed_or_did_not_end_is_none(result):
    transcript = asking(f"Write requirements for\n```python\n{ADD}\n```")
    tool = transcript.call("Write", {"file_path": "requirements.md", "content": DOCUMENT})
    if result == "error":
        transcript.result(tool, "The user doesn't want to proceed.", error=True)
    transcript.answer("Sorry.")
    assert transcript.files() == [] and transcript.exchange().requirements is None


@pytest.mark.parametrize(
    ("plan_input", "details"),
    [({"plan": DOCUMENT}, None), ({}, {"plan": DOCUMENT, "isAgent": False})],
)
def test_a_plan_is_a_document(plan_input, details):
    transcript = asking(f"Plan the requirements of\n```python\n{ADD}\n```")
    transcript.use("ExitPlanMode", plan_input, "User has approved your plan.", details=details)
    assert transcript.files() == [("assistant", "written", "plan.md", DOCUMENT)]
    assert transcript.exchange().requirements == DOCUMENT.strip()


def test_a_plan_that_was_refused_is_none():
    transcript = asking()
    transcript.use("ExitPlanMode", {"plan": DOCUMENT}, "The user refused.", error=True)
    assert transcript.files() == []


@pytest.mark.parametrize(
    ("name", "tool_input", "output"),
    [
        ("Write", {"file_path": "add.py", "content": ADD}, "ok"),
        ("Write", {"file_path": "add.py", "content": ADD}, "File created successfully at: add.py"),
        ("Edit", {"file_path": "add.py", "old_string": "a", "new_string": "b"}, "     1→x = 1"),
        ("NotebookEdit", {"notebook_path": "n.ipynb", "new_source": "x = 1"}, "x = 1"),
        ("Grep", {"pattern": "def", "path": "add.py"}, "def wrong(): pass"),
        ("Bash", {"command": "python add.py"}, "def wrong(): pass"),
        ("Task", {"prompt": "find it"}, "```python\ndef wrong(): pass\n```"),
    ],
)
def test_the_output_of_other_tools_is_not_the_source(name, tool_input, output):
    transcript = asking("Write requirements")
    transcript.use(name, tool_input, output)
    transcript.answer(ADD_REQUIREMENTS)
    assert transcript.exchange().source is None


def written(transcript: TranscriptBuilder) -> list[str]:
    return [text for _, action, _, text in transcript.files() if action == "written"]


def test_edits_apply_to_the_last_known_text():
    transcript = asking()
    transcript.use("Write", {"file_path": "r.md", "content": "one two two"})
    transcript.use("Edit", {"file_path": "r.md", "old_string": "one", "new_string": "1"})
    edits = [
        {"old_string": "two", "new_string": "2"},
        {"old_string": "two", "new_string": "3", "replace_all": True},
    ]
    transcript.use("MultiEdit", {"file_path": "r.md", "edits": edits})
    assert written(transcript) == ["one two two", "1 two two", "1 2 3"]


def test_edits_apply_to_a_file_that_was_read_or_attached():
    transcript = asking()
    transcript.attach_file("a.md", "old a")
    transcript.use("Read", {"file_path": "b.md"}, "     1→old b")
    for path in ("a.md", "b.md"):
        transcript.use("Edit", {"file_path": path, "old_string": "old", "new_string": "new"})
    assert written(transcript) == ["new a", "new b"]


def test_edits_apply_to_the_original_that_the_result_holds():
    transcript = asking()
    tool_input = {"file_path": "r.md", "old_string": "old", "new_string": "new"}
    transcript.use("Edit", tool_input, details={"originalFile": "an old text"})
    assert written(transcript) == ["an new text"]


@pytest.mark.parametrize("known", [None, "other text"])
def test_an_edit_of_an_unknown_text_gives_no_document(known):
    transcript = asking()
    if known is not None:
        transcript.use("Write", {"file_path": "r.md", "content": known})
    transcript.use("Edit", {"file_path": "r.md", "old_string": "old", "new_string": "new"})
    transcript.use("Edit", {"file_path": "r.md", "old_string": "other", "new_string": "new"})
    assert written(transcript) == ([] if known is None else [known])


def test_a_part_of_a_file_is_not_edited():
    transcript = asking()
    transcript.use("Read", {"file_path": "r.md", "offset": 10}, "    10→old line")
    transcript.use("Edit", {"file_path": "r.md", "old_string": "old", "new_string": "new"})
    assert written(transcript) == []


def test_notebooks_are_ignored():
    transcript = asking()
    transcript.use("NotebookEdit", {"notebook_path": "n.ipynb", "new_source": DOCUMENT})
    transcript.use("NotebookEdit", {"file_path": "n.ipynb", "content": DOCUMENT})
    assert transcript.files() == []


def test_a_written_text_is_stored_once():
    transcript = asking()
    transcript.use("Write", {"file_path": "r.md", "content": DOCUMENT})
    turn = transcript.read().sessions["s"].turns[1]
    assert turn.content[0]["input"] == {"file_path": "r.md"}


@pytest.mark.parametrize(
    ("command", "path", "text"),
    [
        ("cat add.py", "add.py", None),
        ("cat -n 'add.py'", "add.py", None),
        ("cd /w && cat add.py", "add.py", None),
        ("cat 'my file.py'", None, None),
        ("cat add.py | head", None, None),
        ("cat a.py b.py", None, None),
        ("cat > r.md <<'EOF'\na\nb\nEOF", "r.md", "a\nb\n"),
        ("cat <<EOF > r.md\na\nEOF\n", "r.md", "a\n"),
        ('cat > "r.md" <<"END"\nEND', "r.md", ""),
        ("cat > r.md <<'EOF'\nnever ends", None, None),
        ("python - <<'EOF'\nprint(1)\nEOF", None, None),
        ("echo concat > r.md", None, None),
    ],
)
def test_shell_commands_that_show_or_write_one_file(command, path, text):
    file = parse_shell_command(command)
    assert (file and (file.path, file.text)) == (path and (path, text))


def test_a_file_that_a_shell_command_shows_is_read():
    transcript = asking("Write requirements for add.py")
    transcript.use("Bash", {"command": "cat add.py"}, ADD)
    transcript.answer(ADD_REQUIREMENTS)
    assert transcript.files() == [("user", "read", "add.py", ADD)]
    assert transcript.exchange().source == ADD


def turn(role: str, *parts: tuple[str, str, str] | str) -> Turn:
    blocks = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else dict(zip(("type", "action", "path", "text"), ("file", *part), strict=True))
        for part in parts
    ]
    return Turn("m", None, role, blocks)


def kept(turns: list[Turn], max_chars: int) -> list[str]:
    return [
        block["text"]
        for turn in limit_files(turns, max_chars)
        for block in (turn.content if isinstance(turn.content, list) else [])
        if block["type"] == "file"
    ]


def test_the_newest_files_are_kept_up_to_the_limit():
    turns = [turn("user", ("read", f"{n}.py", str(n) * 10)) for n in range(5)]
    assert kept(turns, 25) == ["3" * 10, "4" * 10]


@pytest.mark.parametrize("prompt", ["more", [{"type": "text", "text": "more"}]])
def test_a_version_that_is_replaced_before_the_next_prompt_is_dropped(prompt):
    turns = [
        turn("assistant", ("written", "r.md", "v1")),
        Turn("m", None, "user", prompt),
        turn("assistant", ("written", "r.md", "v2"), ("written", "s.md", "s")),
        turn("assistant", ("written", "r.md", "v3")),
    ]
    assert kept(turns, 100) == ["v1", "s", "v3"]


def test_many_edits_of_a_large_file_take_bounded_time_and_memory():
    transcript = asking()
    transcript.use("Write", {"file_path": "r.md", "content": "x" * 200_000})
    for _ in range(3000):
        transcript.use("Edit", {"file_path": "r.md", "old_string": "x", "new_string": "y"})
    start = time.process_time()
    files = transcript.files()
    assert time.process_time() - start < 3
    assert sum(len(text) for _, _, _, text in files) < 20 * 2**20
