"""Code versions of assets: digests of the modules that decide what an asset holds."""

import ast
import hashlib
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
_BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")


def code_version(*modules: str) -> str:
    """Return a digest of the code of modules below `iccm_assets`, such as ``curation.filter_policy``.

    It moves with every change of a statement, and with no change of a comment, a docstring, an import or the
    layout: an asset is out of date where its logic changed. The modules are read, not imported.
    """
    digest = hashlib.sha256()
    for module in modules:
        path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
        digest.update(_normalize(path.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()[:8]


@lru_cache(maxsize=64)
def _normalize(source_code: str) -> str:
    """Return the statements of a module without docstrings and imports, in one layout."""
    tree = ast.parse(source_code)
    parents: list[ast.AST] = [tree]
    while parents:  # not `ast.walk`: expressions, which are most of a tree, hold no statements
        node = parents.pop()
        if isinstance(body := getattr(node, "body", None), list):
            body[:] = [statement for statement in body if not _is_ignored(statement)] or [ast.Pass()]
        for name in _BLOCKS:
            parents += getattr(node, name, ())
    return ast.unparse(tree)


def _is_ignored(statement: ast.stmt) -> bool:
    is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return is_text or isinstance(statement, ast.Import | ast.ImportFrom)
