"""Hashes of programs and texts that survive reformatting and renaming (F4)."""

from __future__ import annotations

import ast
import builtins
import hashlib
import re
import unicodedata
import warnings
from collections.abc import Iterator

from iccm_assets.sandbox.python_source import parse_python

# Names that a copy cannot change without changing the behavior of the program.
_BUILTIN_NAMES = frozenset(dir(builtins))
_BUILTIN_ATTRIBUTES = frozenset(
    name
    for kind in (str, bytes, int, float, list, tuple, dict, set, frozenset, type, BaseException, property)
    for name in dir(kind)
)
_IGNORED_FIELDS = frozenset(
    {"annotation", "returns", "type_comment", "kind", "ctx", "type_ignores", "type_params"}
)
_NAME_FIELDS = frozenset({"id", "arg", "name", "asname", "rest", "attr", "names", "kwd_attrs"})
_SPACE = re.compile(r"\s+")


def content_sha256(text: str) -> str:
    """Return the key of a text: sha256 of its UTF-8 bytes, hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def normalized_text_hash(text: str) -> str | None:
    """Hash a text, ignoring case, white space and Unicode form; None for an empty text."""
    normalized = _SPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()
    return content_sha256(normalized) if normalized else None


def ast_hash(source: str) -> str | None:
    """Hash a Python program, ignoring comments, layout, annotations, docstrings and the names it chose.

    Names are numbered by first use, so ``a - b`` and ``b - a`` differ within a program; builtins, methods of
    builtin types, imported names and constants count. None for text that is not Python or has no statement.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = parse_python(source)
        tokens = " ".join(_NameBlindTokens(tree).tokenize(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    has_statement = any(not isinstance(node, ast.Pass) for node in _without_docstring(tree, tree.body))
    return content_sha256(tokens) if has_statement else None


class _NameBlindTokens:
    """A syntax tree as a stream of tokens in which the names the program chose are numbers."""

    def __init__(self, tree: ast.Module) -> None:
        # Name -> "#n", in order of first use.
        self._numbers: dict[str, str] = {}
        self._bound = _bound_names(tree)
        self._self_names = _first_parameters(tree)

    def tokenize(self, node: ast.AST) -> Iterator[str]:
        """Yield the tokens of a node."""
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            node = ast.Assign(targets=[node.target], value=node.value)
        yield f"({type(node).__name__}"
        for name, value in ast.iter_fields(node):
            if name not in _IGNORED_FIELDS:
                is_body = name == "body" and isinstance(value, list)
                yield from self._field(node, name, _without_docstring(node, value) if is_body else value)
        yield ")"

    def _field(self, node: ast.AST, name: str, value: object) -> Iterator[str]:
        if isinstance(value, list):
            yield "["
            for element in value:
                yield from self._field(node, name, element)
            yield "]"
        elif isinstance(value, ast.AST):
            yield from self.tokenize(value)
        elif isinstance(value, str) and name in _NAME_FIELDS and not isinstance(node, ast.Constant):
            yield self._name(node, name, value)
        else:
            yield f"{type(value).__name__}:{value!r}"

    def _name(self, node: ast.AST, field: str, name: str) -> str:
        fixed = name.startswith("__") and name.endswith("__")
        if isinstance(node, ast.alias):
            fixed |= field == "name"
        elif isinstance(node, ast.Name):
            fixed |= name in _BUILTIN_NAMES and name not in self._bound
        elif isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in self._self_names
            fixed |= name in _BUILTIN_ATTRIBUTES and not own
        return name if fixed else self._numbers.setdefault(name, f"#{len(self._numbers)}")


def _first_parameters(tree: ast.Module) -> frozenset[str]:
    """Return the names of the methods' first parameters: their attributes are always the program's own."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    methods = [member for node in classes for member in node.body if isinstance(member, ast.FunctionDef)]
    return frozenset(method.args.args[0].arg for method in methods if method.args.args)


def _bound_names(tree: ast.Module) -> frozenset[str]:
    """Return the names that the program binds itself, even if they shadow builtins."""
    bound = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound.add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
    return frozenset(bound)


def _without_docstring(node: ast.AST, body: list[ast.stmt]) -> list[ast.stmt]:
    """Return the statements of a module, class or function without its docstring."""
    match node, body:
        case (
            ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef(),
            [ast.Expr(value=ast.Constant(value=str())), *rest],
        ):
            return rest or [ast.Pass()]
    return body
