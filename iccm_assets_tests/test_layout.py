"""How the tests are laid out: what modules share lies in `factories`, and each runs without the others."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def is_shareable(module: str, importer: Path) -> bool:
    """Whether a module of the tests lies in `factories`, or is a helper of the importer's own folder."""
    names = module.split(".")[1:]
    if any(name == "conftest" or name.startswith("test_") for name in names):
        return False
    return names[0] in ("factories", *importer.relative_to(TESTS).parts[:1])


def test_no_module_imports_a_test_module_or_a_conftest() -> None:
    wrong = [
        f"{path.relative_to(TESTS)} imports {module}"
        for path in sorted(TESTS.rglob("*.py"))
        for module in imported_modules(path)
        if module.startswith(f"{TESTS.name}.") and not is_shareable(module, path)
    ]
    assert wrong == []


def test_factories_import_no_other_part_of_the_tests() -> None:
    wrong = [
        f"{path.name} imports {module}"
        for path in sorted((TESTS / "factories").glob("*.py"))
        for module in imported_modules(path)
        if module.startswith(f"{TESTS.name}.") and not module.startswith(f"{TESTS.name}.factories.")
    ]
    assert wrong == []
