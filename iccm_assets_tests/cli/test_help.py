"""The help of every command shows what is declared, and commands start without packages they do not use."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from iccm_assets.cli.main import COMMANDS, build_app, build_command, list_commands

HEAVY = (
    *("torch", "transformers", "dagster", "sqlalchemy", "psycopg", "alembic", "scipy", "pandas"),
    *("fastapi", "uvicorn", "httpx", "matplotlib", "apprise"),
)
PROBE = f"""
import atexit, sys
from iccm_assets.cli.main import main
heavy = {HEAVY!r}
atexit.register(lambda: print("loaded:", *[name for name in heavy if name in sys.modules], file=sys.stderr))
main()
"""
Invoke = Callable[..., str]


def walk(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """List a command and all commands below it with their words."""
    yield path, command
    for name, subcommand in getattr(command, "commands", {}).items():
        yield from walk(subcommand, *path, name)


DECLARED = dict(walk(typer.main.get_command(build_app())))


@pytest.fixture
def show_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Invoke:
    def call(*words: str, columns: int) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        arguments = [*words, "--help"]
        build_command(arguments)(arguments, standalone_mode=False)
        return capsys.readouterr().out

    return call


def squeeze(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("words", [path for path in DECLARED if path], ids=" ".join)
def test_the_help_of_every_command_shows_its_texts_and_defaults(
    words: tuple[str, ...], show_help: Invoke
) -> None:
    command, printed = DECLARED[words], squeeze(show_help(*words, columns=1000))
    for paragraph in (command.help or "").split("\n\n"):
        assert squeeze(paragraph) in printed
    for parameter in command.params:
        assert squeeze(parameter.help or "") in printed
    at_80 = show_help(*words, columns=80)
    assert max(map(len, at_80.splitlines())) <= 80 and "…" not in at_80.replace("__…", "")


def test_every_command_that_shows_something_has_json() -> None:
    runs = {("dev",), ("serve",), ("mcp",), ("orchestra", "serve"), ("db", "shell")}
    for words, command in DECLARED.items():
        has_json = any("--json" in parameter.opts for parameter in command.params)
        assert has_json != (words in runs or hasattr(command, "commands")), words


def test_brackets_are_no_markup_and_paragraphs_wrap_at_the_width(
    show_help: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("iccm_bracket_command")

    def probe(
        limit: Annotated[int | None, typer.Option(help="At most so many [no limit].")] = None,
        names: Annotated[str, typer.Argument(help="Names [all], [bold]not bold[/], C:\\[x].")] = "",
    ) -> None:
        """Probe [everything].

        A paragraph that the source breaks
        after a few [several weeks: 3] words.
        """

    module.__dict__["probe"] = probe
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(COMMANDS, "probe", module.__name__)
    printed = show_help("probe", columns=120)
    for text in (
        "Probe [everything].",
        "At most so many [no limit].",
        "Names [all], [bold]not bold[/], C:\\[x].",
    ):
        assert text in printed
    assert "A paragraph that the source breaks after a few [several weeks: 3] words." in printed


def test_the_overview_names_every_command_with_a_summary(show_help: Invoke) -> None:
    printed = show_help(columns=200)
    for name in list_commands():
        assert re.search(rf"│ {name} +[A-Z`][^│]{{12,}}", printed), name


def run_probe(*arguments: str, home: Path) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ICCM_")}
    process = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**inherited, "ICCM_HOME": str(home)},
        check=False,
    )
    return process, process.stderr.splitlines()[-1].split()[1:]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    rows = [{"id": number, "embedding": [1.0, float(number)]} for number in range(3)]
    (tmp_path / "new.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "suite.json").write_text(
        json.dumps({"kind": "cases", "cases": [{"call": "f", "args": [1], "expect": 1}]})
    )
    (tmp_path / "f.py").write_text("def f(x):\n    return x\n")
    return tmp_path


def test_no_command_loads_a_heavy_package_to_show_its_help() -> None:
    modules = COMMANDS.values()
    program = f"import sys, {', '.join(modules)}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("config", "show"),
        ("dedup", "--new", "new.jsonl", "--json"),
        ("judge", "--implementation", "f.py", "--suite", "suite.json", "--json"),
    ],
    ids=" ".join,
)
def test_a_command_that_needs_neither_model_nor_database_loads_none(
    arguments: tuple[str, ...], files: Path
) -> None:
    paths = [str(files / word) if (files / word).is_file() else word for word in arguments]
    process, loaded = run_probe(*paths, home=files / "home")
    assert process.returncode == 0, process.stderr
    assert loaded == []


BARE = """
import typer, rich.console, rich.table
app = typer.Typer(rich_markup_mode="rich")
for name in {names}:
    app.command(name, help=name)(lambda: None)
app(["--help"])
"""
SETTINGS = "import typer, rich.console, rich.table, iccm_assets.settings"


@pytest.mark.parametrize(
    ("arguments", "base"),
    [(("--help",), BARE.format(names=list_commands())), (("config", "show"), SETTINGS)],
    ids=["overview", "config show"],
)
def test_a_command_starts_within_one_and_a_half_times_of_what_it_uses(
    arguments: tuple[str, ...], base: str, tmp_path: Path
) -> None:
    """CPU time, the best of interleaved starts: whatever else the machine does slows both."""
    ours, bare = [], []
    for _ in range(15):
        ours.append(cpu_seconds("-c", "from iccm_assets.cli.main import main; main()", *arguments))
        bare.append(cpu_seconds("-c", base))
        if min(ours) <= 1.5 * min(bare):
            return
    assert min(ours) <= 1.5 * min(bare)


def cpu_seconds(*arguments: str) -> float:
    """Run Python and return the CPU time of the process."""
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime
