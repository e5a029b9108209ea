"""What a process costs before it works: the overview of the commands, and the code location."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

from benchmarks.harness import Comparison, Options, Target, expect

HELP = "import sys; sys.argv = ['iccm', '--help']; from iccm_assets.cli.main import main; main()"
# The same overview, by the two libraries alone.
PLAIN_HELP = """
import json, sys, typer
app = typer.Typer(name="iccm", help="Keep CET-D learning from its own production traffic.", 
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
app.callback()(lambda: None)
for name, summary in json.loads({commands!r}):
    app.command(name, help=summary)(lambda: None)
sys.argv = ["iccm", "--help"]
app()
"""
HEAVY = {"torch", "transformers", "sentence_transformers", "psycopg", "psycopg2", "matplotlib", "pandas"}
MODULES = "import sys, json; print(json.dumps(sorted(sys.modules)))"


def compare(options: Options) -> Iterator[Comparison]:
    """Yield the comparisons of processes."""
    from iccm_assets.cli.main import build_command, list_commands

    commands = build_command([]).commands
    listed = json.dumps([(name, commands[name].help) for name in list_commands()])
    yield Comparison(
        "iccm --help",
        {"iccm": run(HELP), "typer and rich": run(PLAIN_HELP.format(commands=listed))},
        lambda results: expect(results["iccm"] == results["typer and rich"], "the overviews differ"),
        [Target("typer and rich", 1 / 1.5)],
        7,
    )
    bare = "import dagster as dg; dg.Definitions().get_repository_def(); "
    for name, code, peer, peer_code in (
        (
            "import of the definitions",
            "import iccm_assets.definitions; ",
            "import dagster",
            "import dagster; ",
        ),
        (
            "loading of the definitions",
            "from iccm_assets.definitions import defs; defs().get_repository_def(); ",
            "an empty code location",
            bare,
        ),
    ):
        yield Comparison(
            name,
            {"iccm": run(code + MODULES), peer: run(peer_code + MODULES)},
            check_modules,
            [Target(peer, 1 / 1.3)],
            7,
        )


def run(code: str) -> Callable[[], str]:
    """Return a contender that runs code in a process of its own and returns its output."""
    # Compiled files are kept, as on any machine.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code]
    return lambda: subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def check_modules(results: dict[str, str]) -> None:
    heavy = HEAVY & set(json.loads(results["iccm"]))
    expect(not heavy, f"imports {', '.join(sorted(heavy))}")
