"""Plant small faults in the modules that decide, one at a time, and count those that the tests notice.

`make mutate` runs this on a sample of every module in `mutation.toml`, which also lists each module's tests
and the faults that change no behaviour, each with its proof. Works in copies of the tree, never in the
checkout. Exits with 1 where a module's tests notice less than 95 % of the other faults, or more than 10 % of
a sample is declared to change nothing.
"""

from __future__ import annotations

import argparse
import ast
import collections
import concurrent.futures
import contextlib
import dataclasses
import gc
import importlib.util
import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

from iccm_assets.suites.mutants import Mutant, generate_mutants, select_mutants
from iccm_assets.suites.source_edits import SourceText, walk

ROOT = pathlib.Path(__file__).parents[1]
MIN_KILLED, MAX_EQUIVALENT = 0.95, 0.10
# Modules that most tests import: loaded once, before each fault gets a process of its own.
PRELOADED = (
    "hypothesis",
    "numpy",
    "pandas",
    "psycopg",
    "pydantic",
    "pydantic_settings",
    "pytest",
    "sqlalchemy",
)
_END_OF_BLOCK = (ast.Return, ast.Continue, ast.Break, ast.Raise)
# What a run of a few tests does not need takes half its time.
UNUSED_PLUGINS = ("anyio", "cacheprovider", "schemathesis", "unraisableexception", "xdist")
_COMMUTATIVE = {"_are_counts", "hypot", "logaddexp", "max", "maximum", "min", "minimum"}
_MEMORY_BYTES = 12 << 30
LOG = "pytest.log"


@dataclasses.dataclass(frozen=True)
class Fault:
    """A module with one fault: the line before and after, and the whole new source."""

    module: str
    kind: str
    line: int
    before: str
    after: str
    source: str


@dataclasses.dataclass(frozen=True)
class Module:
    """A module, the tests that must notice its faults, and (before, after) of lines that change nothing."""

    path: str
    tests: tuple[str, ...]
    equivalents: frozenset[tuple[str, str]]


def main() -> int:
    """Run the study; return 1 where too many faults survive."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--module", default="", help="only modules whose path contains this text")
    parser.add_argument("--limit", type=int, default=40, help="faults per module (default 40)")
    parser.add_argument("--seed", default="", help="draws another sample")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    arguments = parser.parse_args()
    modules = [module for module in read_modules() if arguments.module in module.path]
    context = multiprocessing.get_context("spawn")
    copies = pathlib.Path(tempfile.mkdtemp(prefix="iccm-mutate-"))
    failed = not modules
    try:
        with concurrent.futures.ProcessPoolExecutor(
            arguments.workers, mp_context=context, initializer=prepare_worker, initargs=(str(copies),)
        ) as pool:
            for module in modules:
                failed |= not study(module, pool, arguments.limit, arguments.seed)
    finally:
        shutil.rmtree(copies, ignore_errors=True)
    return int(failed)


def read_modules() -> list[Module]:
    """Read `mutation.toml`."""
    document = tomllib.loads((ROOT / "scripts/mutation.toml").read_text(encoding="utf-8"))
    equivalents = collections.defaultdict(set)
    for entry in document.get("equivalents", []):
        equivalents[entry["module"]].add((entry["before"], entry["after"]))
    return [
        Module(
            path,
            tuple(name if name.startswith("-") else f"iccm_assets_tests/{name}" for name in tests),
            frozenset(equivalents[path]),
        )
        for path, tests in document["modules"].items()
    ]


def study(module: Module, pool: concurrent.futures.Executor, limit: int, seed: str) -> bool:
    """Print the survivors of a module's sample, and its figures; return whether enough were noticed."""
    faults = draw_faults(module.path, limit, seed)
    equivalent = [fault for fault in faults if (fault.before, fault.after) in module.equivalents]
    others = [fault for fault in faults if fault not in equivalent]
    code, seconds, output = pool.submit(run_tests, module.path, None, module.tests, 900.0).result()
    if code != 0:
        report(f"{module.path}: its tests fail without a fault:\n{output}")
        return False
    timeout = 30 + 6 * seconds
    runs = {
        fault: pool.submit(run_tests, fault.module, fault.source, module.tests, timeout) for fault in others
    }
    survivors = [fault for fault, run in runs.items() if run.result()[0] == 0]
    for fault in survivors:
        report(f"  survives: {fault.module}:{fault.line} ({fault.kind})")
        report(f"    - {fault.before}\n    + {fault.after}")
    killed = len(others) - len(survivors)
    share = killed / len(others) if others else 1.0
    report(f"{module.path}: {killed} of {len(others)} noticed ({share:.0%}), {len(equivalent)} equivalent")
    return share >= MIN_KILLED and len(equivalent) <= MAX_EQUIVALENT * len(faults)


def report(text: str) -> None:
    """Print at once: a study takes minutes."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def draw_faults(path: str, limit: int, seed: str) -> list[Fault]:
    """Draw a sample of a module's faults, spread over kinds and lines."""
    text = (ROOT / path).read_text(encoding="utf-8")
    source = SourceText.parse(text)
    assert source is not None
    digits = [source.span(node.args[1]) for node in walk(source.tree) if is_rounding(node)]
    mutants = [
        mutant
        for mutant in generate_mutants(source)
        if is_decisive(mutant, text) and (mutant.start, mutant.end) not in digits
    ]
    mutants += generate_further_mutants(source)
    faults = []
    for mutant in select_mutants(mutants, source, limit, seed):
        start, end, replacement = mutant.edit
        changed = (source.data[:start] + replacement.encode() + source.data[end:]).decode()
        line = source.data[:start].count(b"\n")
        lines = text.splitlines()[line].strip(), changed.splitlines()[line].strip()
        with contextlib.suppress(SyntaxError):
            compile(changed, path, "exec")
            faults.append(Fault(path, mutant.kind, line + 1, *lines, changed))
    return faults


def is_rounding(node: ast.AST) -> TypeGuard[ast.Call]:
    """Whether a node rounds a number, for people or to be independent of the order of a sum."""
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "round" and len(node.args) == 2


def is_decisive(mutant: Mutant, text: str) -> bool:
    """Whether a mutant changes more than a text, a log line, an assertion, or False to None."""
    line = text.splitlines()[mutant.line - 1].strip()
    is_text = isinstance(mutant.replacement, str) and mutant.replacement[:2] in ("('", '("', "(b")
    is_falsy = mutant.kind == "return" and line.startswith("return False")
    is_prose = is_text or line.startswith(("log.", "assert ")) or "strict=" in line
    return not is_falsy and not is_prose


def generate_further_mutants(source: SourceText) -> Iterator[Mutant]:
    """Remove guard clauses, and swap two neighbouring arguments."""
    for node in walk(source.tree):
        if isinstance(node, ast.If) and not node.orelse and isinstance(node.body[-1], _END_OF_BLOCK):
            start, end = source.span(node)
            yield Mutant("guard", node.lineno, start, end, "pass")
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] not in _COMMUTATIVE:
            for left, right in zip(node.args, node.args[1:], strict=False):
                are_names = all(isinstance(side, ast.Name | ast.Attribute) for side in (left, right))
                if are_names and ast.unparse(left) != ast.unparse(right):
                    (start, middle), (resumed, end) = source.span(left), source.span(right)
                    between = source.data[middle:resumed].decode()
                    swapped = f"{ast.unparse(right)}{between}{ast.unparse(left)}"
                    yield Mutant("swap", node.lineno, start, end, swapped)


def prepare_worker(copies: str) -> None:
    """Copy the tree for this worker, and load what the tests import."""
    root = pathlib.Path(tempfile.mkdtemp(dir=copies))
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("iccm_assets", "iccm_assets_tests"):
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", root)
    os.chdir(root)
    sys.path.insert(0, str(root))
    os.environ |= {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    sys.dont_write_bytecode = False
    for name in [name for name in sys.modules if name.startswith("iccm_assets")]:
        del sys.modules[name]  # loaded from the checkout with this script
    for name in PRELOADED:
        __import__(name)
    gc.freeze()


def run_tests(path: str, source: str | None, tests: Sequence[str], timeout: float) -> tuple[int, float, str]:
    """Run tests in a process of their own against a module's new source.

    Returns the exit status, the seconds, and the end of the output.
    """
    module, began = pathlib.Path(path), time.monotonic()
    original = module.read_text(encoding="utf-8")
    compiled = pathlib.Path(importlib.util.cache_from_source(path))
    compiled.unlink(missing_ok=True)
    if source is not None:
        module.write_text(source, encoding="utf-8")
    try:
        child = os.fork()
        if child == 0:
            _run_pytest(tests)
        code, seconds = _wait(child, began + timeout), time.monotonic() - began
        return code, seconds, pathlib.Path(LOG).read_text(encoding="utf-8", errors="replace")[-2000:]
    finally:
        module.write_text(original, encoding="utf-8")
        compiled.unlink(missing_ok=True)


class _ExamplesFirst:
    """A pytest plugin: tests of single examples are quick and run before those of drawn ones."""

    @staticmethod
    def pytest_collection_modifyitems(items: list[Any]) -> None:
        """Sort the tests of all files."""
        items.sort(key=lambda item: hasattr(item.obj, "hypothesis"))


def _run_pytest(tests: Sequence[str]) -> None:
    """Run pytest, with its output in a file, and end this process with its exit status."""
    code = 1
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        log = os.open(LOG, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        for descriptor in (0, 1, 2):
            os.dup2(log, descriptor)
        import hypothesis
        import pytest

        quick = hypothesis.settings(max_examples=25, deadline=None, derandomize=True, database=None)
        hypothesis.settings.register_profile("mutate", quick)
        options = ["-x", "-q", "--assert=plain", "--hypothesis-profile=mutate", "-m", "not slow"]
        options += ["--override-ini=addopts=", *(f"-pno:{plugin}" for plugin in UNUSED_PLUGINS)]
        code = int(pytest.main([*options, *tests], plugins=[_ExamplesFirst()]))
    finally:
        os._exit(code)


def _wait(child: int, deadline: float) -> int:
    """Return the child's exit status; one that takes too long is killed, which counts as noticed."""
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


if __name__ == "__main__":
    sys.exit(main())
