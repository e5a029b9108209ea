"""Follow a how-to page as its reader does: run its code blocks in order, and compare what it shows of them.

A `text` block shows the output of the block before it, with `…` for what differs from machine to machine.
What a `bash` block exports is there in the next one.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path

from iccm_assets_tests.factories.processes import BIN, ROOT, bare_environment

HOW_TO = ROOT / "docs" / "how-to"
_FENCE = r"^```(?P<language>\w*)\n(?P<code>.*?)^```$"
_PIECE = re.compile(rf"^#+ (?P<heading>[^\n]+)$|{_FENCE}", re.MULTILINE | re.DOTALL)
Step = Callable[[], object]


@dataclass(frozen=True)
class PageBlock:
    """A code block; its name is the heading above it and its number below that: `Connect 2`."""

    name: str
    language: str
    code: str
    output: str | None = None


def read_page_blocks(page: str) -> list[PageBlock]:
    """Read the code blocks of a page of docs/how-to; an output belongs to the block before it."""
    text = (HOW_TO / page).read_text(encoding="utf-8")
    blocks: list[PageBlock] = []
    heading, number = "", 0
    for piece in _PIECE.finditer(text):
        if piece["heading"] is not None:
            heading, number = piece["heading"], 0
        elif piece["language"] == "text":
            last = blocks.pop()
            assert last.output is None, f"{page}: two outputs of {last.name}"
            blocks.append(replace(last, output=piece["code"]))
        else:
            number += 1
            blocks.append(PageBlock(f"{heading} {number}", piece["language"], piece["code"]))
    outputs = sum(block.output is not None for block in blocks)
    assert text.count("```") == 2 * (len(blocks) + outputs), f"{page}: a fence that is not read"
    return blocks


@dataclass
class PageReader:
    """A person with a home, whose machine differs from the page's only by the replacements."""

    home: Path
    replacements: Mapping[str, str]
    variables: Mapping[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)

    def follow(
        self, page: str, *, skipped: Mapping[str, str], after: Mapping[str, Step] | None = None
    ) -> None:
        """Run every block that is not skipped with a reason; `after` does what no block says."""
        steps = after or {}
        blocks = read_page_blocks(page)
        names = {block.name for block in blocks}
        assert names and len(names) == len(blocks), f"{page}: two headings are the same"
        assert names >= {*skipped, *steps}, (
            f"{page} has no blocks {({*skipped, *steps}) - names}, but {names}"
        )
        for block in blocks:
            if block.name not in skipped:
                self.run(page, block)
                steps.get(block.name, lambda: None)()

    def run(self, page: str, block: PageBlock) -> None:
        """Run a block, and compare its output with the page's."""
        runs = {"bash": self._run_bash, "python": self._run_python}
        assert block.language in runs, f"{page}: nobody can run {block.name}, which is {block.language!r}"
        output = runs[block.language](self.replace(block.code))
        self.outputs[block.name] = output
        if block.output is not None and not is_shown(output, self.replace(block.output)):
            raise AssertionError(f"{page}, {block.name} prints\n{output}\ninstead of\n{block.output}")

    def environment(self) -> dict[str, str]:
        """The reader's environment: the platform of `variables`, and its commands on the path."""
        environment = bare_environment()
        path = f"{BIN}:{environment['PATH']}"
        own = {"HOME": str(self.home), "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        return environment | own | dict(self.variables)

    def read_variable(self, name: str) -> str:
        """Read a variable that a block exported."""
        script = f'. {shlex.quote(str(self._state))}; printf %s "${name}"'
        return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout

    def replace(self, text: str) -> str:
        for old, new in self.replacements.items():
            text = text.replace(old, new)
        return text

    @property
    def _state(self) -> Path:
        return self.home / "exported"

    def _run_bash(self, code: str) -> str:
        state = shlex.quote(str(self._state))
        lines = ("set -euo pipefail", f"[ ! -e {state} ] || . {state}", code, f"export -p > {state}")
        done = subprocess.run(
            ["bash", "-c", "\n".join(lines)],
            stdin=subprocess.DEVNULL,
            env=self.environment(),
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}"
        return done.stdout

    def _run_python(self, code: str) -> str:
        """Run a program in this process: its libraries may be loaded already."""
        output = io.StringIO()
        with redirect_stdout(output):
            exec(code, {"__name__": "__main__"})
        return output.getvalue()


def is_shown(output: str, page: str) -> bool:
    """Whether an output is the one that a page shows."""
    pattern = ".*".join(re.escape(part) for part in page.strip().split("…"))
    return re.fullmatch(pattern, output.strip(), re.DOTALL) is not None
