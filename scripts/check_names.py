"""Check names against the rules of the language; `make check` runs this.

Fails on retired identifiers (variables, arguments, attributes, functions) in the package, its tests, the
benchmarks and the scripts; in the package also on public classes and modules that share a name, and on
contract ids in strings that a user can see.
"""

from __future__ import annotations

import ast
import collections
import pathlib
import re
import sys
from collections.abc import Iterator
from itertools import chain

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "iccm_assets"
OTHER_CODE = tuple(ROOT / name for name in ("iccm_assets_tests", "benchmarks", "scripts"))
# Words that are no names: pronouns, participles and adverbs that say nothing about the value.
RETIRED_NAMES = frozenset(
    {"one", "found", "told", "said", "seen", "mine", "theirs", "beside", "asked", "wanted", "gone", "taken"}
    | {"moment", "why"}
)
RETIRED_PATTERNS = (
    re.compile(r"^_?\w+_of$"),  # get_x, parse_x, find_x … say what the function does
    re.compile(r"^_?(MOST|FEWEST|LONGEST|HIGHEST|LOWEST|PATIENCE)(_|$)"),  # MAX_X, MIN_X, TIMEOUT
)
# A point in time, a column of the contract, and a rule of the grammar.
ALLOWED_NAMES = frozenset({"as_of", "duplicate_of", "any_of"})
SHARED_MODULES = frozenset({"__init__", "checks", "queries", "assets"})
# A rule of the contract (docs/reference/guarantees.md), such as F1 or R11, or a range such as R1-R9; T5 is
# also an architecture.
CONTRACT_ID = re.compile(
    r"(?<![-\w])(?:[A-X]\d{1,2}[-–][A-X]\d{1,2}|A[1-3]|C(?:[1-9]|10|3[ab])|D[1-7]|E[1-5]|F[1-4]|G[1-9]|J[1-6]|K[1-6]|L(?:[1-9]|1[0-3])"
    r"|M[1-3]|O[1-3]"
    r"|P[1-6]|R(?:[1-9]|1[0-2])|S[1-5]|T[1-46-8]|T5(?!,| model)|U[1-6]|V[1-6]|X[1-6])(?![-\w])"
)


SHOWN_DECORATOR = re.compile(r"(\.command|\.callback|dg\.(asset|op|job|sensor|schedule))\b")


def main() -> int:
    """Print every violation; return 1 if there is one."""
    problems = [*check(PACKAGE), *chain.from_iterable(map(check_identifiers, OTHER_CODE))]
    sys.stdout.write("\n".join(problems or ["names: no violations"]) + "\n")
    return int(bool(problems))


def check_identifiers(folder: pathlib.Path) -> Iterator[str]:
    """Yield each retired identifier below ``folder`` as ``path:line: message``."""
    for path in sorted(folder.rglob("*.py")):
        where = path.relative_to(folder.parent).as_posix()
        for line, name in identifiers(ast.parse(path.read_text(encoding="utf-8"))):
            if name not in ALLOWED_NAMES and is_retired(name):
                yield f"{where}:{line}: retired name `{name}`"


def check(package: pathlib.Path) -> Iterator[str]:
    """Yield each violation below ``package`` as ``path:line: message``."""
    yield from check_identifiers(package)
    classes: dict[str, list[str]] = collections.defaultdict(list)
    modules: dict[str, list[str]] = collections.defaultdict(list)
    for path in sorted(package.rglob("*.py")):
        where = path.relative_to(package.parent).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        is_history = path.parent.name == "versions"  # migrations that were applied do not change
        for line, text in () if is_history else visible_strings(tree):
            if match := CONTRACT_ID.search(text):
                yield f"{where}:{line}: contract id {match[0]} in a string"
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes[node.name].append(where)
        # A module of the command line is named after its command, a migration environment by Alembic.
        if path.stem not in SHARED_MODULES and path.parent.name not in {"cli", "migrations", "versions"}:
            modules[path.stem].append(where)
    for kind, names in (("class", classes), ("module", modules)):
        for name, places in names.items():
            if len(places) > 1:
                yield f"{places[0]}: {kind} `{name}` stands in {len(places)} places: {', '.join(places)}"


def is_retired(name: str) -> bool:
    """Whether a name is on the word list or matches a retired pattern."""
    return name in RETIRED_NAMES or any(pattern.match(name) for pattern in RETIRED_PATTERNS)


def identifiers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of every variable, argument, attribute definition, function and class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name


def visible_strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every string that is no docstring, and of docstrings shown as help."""
    shown = {
        id(node.body[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and _is_shown(node)
    }
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and id(node) not in shown
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def _is_shown(node: ast.ClassDef | ast.FunctionDef) -> bool:
    """Whether a docstring is shown: of commands, assets, ops, run configuration and errors."""
    if isinstance(node, ast.ClassDef):
        bases = {ast.unparse(base).rsplit(".", 1)[-1] for base in node.bases}
        return bool(bases & {"Config", "SettingsGroup", "IccmError"}) or node.name.endswith("Error")
    return any(SHOWN_DECORATOR.search(ast.unparse(decorator)) for decorator in node.decorator_list)


if __name__ == "__main__":
    sys.exit(main())
