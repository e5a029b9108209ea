"""Run one test function of a ``pytest`` suite in its own process.

Standard library only, sent into the sandbox like ``case_runner.py``, its caller. The tests, pytest and the
implementation share this process: any of them may have written the reported outcome. (J1)
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing takes longer to import than everything else here together
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

OPTIONS = (
    *("-q", "-q", "--no-header", "--tb=short", "--color=no", "--rootdir=.", "-c", "/dev/null"),
    *("-p", "no:cacheprovider", "-p", "no:faulthandler", "-p", "no:junitxml"),
)
BOTH_NAMES = "import sys\nimport implementation\nsys.modules[__name__] = implementation\n"


class OutcomePlugin:
    """A pytest plugin that records how each run of the test function ended."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.detail = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._record("xfail" if hasattr(report, "wasxfail") else report.outcome, report)

    def pytest_collectreport(self, report: Any) -> None:
        if report.outcome == "failed":
            self._record("error", report)

    def _record(self, outcome: str, report: Any) -> None:
        self.outcomes.append(outcome)
        if outcome != "passed" and not self.detail:
            lines = [line.strip() for line in str(report.longreprtext).splitlines() if line.strip()]
            # The line that names the exception; pytest marks it with an E.
            self.detail = next(
                (line[1:].strip() for line in lines if line.startswith("E ")), (lines or [""])[0]
            )


def preload() -> None:
    """Import pytest and its own plugins once, before forks: that takes longer than most tests."""
    config = __import__("_pytest.config").config
    for name in config.default_plugins:
        try:
            __import__(f"_pytest.{name}")
        except ImportError:
            continue  # pytest will meet the same error and report it


def run_test(
    source: str,
    own_files: dict[str, str],
    test: str,
    files: dict[str, str],
    encode_text: Callable[[str], str],
) -> str:
    """Run one test function, with every parameter set of it; JSON ``["t", outcome, detail]``.

    ``own_files`` are those of an implementation of several files; the files of the suite have precedence.
    """
    names = {"implementation.py": source, "solution.py": BOTH_NAMES}
    for name, content in {**own_files, **files, **names}.items():
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
            file.write(content)
    sys.path.insert(0, os.getcwd())
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    plugin = OutcomePlugin()
    code = int(__import__("pytest").main([*OPTIONS, test], plugins=[plugin]))
    worst = next(
        (name for name in ("error", "failed", "skipped", "xfail") if name in plugin.outcomes), "passed"
    )
    if worst == "passed" and (code != 0 or not plugin.outcomes):
        return '["t","none","pytest ended with code ' + f"{code}" + '"]'
    return '["t",' + encode_text(worst) + "," + encode_text(plugin.detail) + "]"
