"""Hashes of programs and texts that survive reformatting and renaming (F4)."""

from __future__ import annotations

import ast
import builtins
import hashlib
import re
import unicodedata
import warnings
from collections.abc import Iterator

# Names a copy cannot change without changing what the program does.
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


def text_hash(text: str) -> str | None:
    """Of a text without regard to case, white space and Unicode form; None for one without content."""
    normal = _SPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()
    return _hash(normal) if normal else None


def program_hash(source: str) -> str | None:
    """Of a Python program without regard to comments, layout, annotations, docstrings and chosen names.

    Names are numbered by first use, so ``a - b`` and ``b - a`` differ; builtins, methods of builtin
    types, imported names and constants count. None for what is not Python or holds no statement.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
        tokens = " ".join(_Blind(tree).tokens())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    says_something = any(not isinstance(node, ast.Pass) for node in _undocumented(tree, tree.body))
    return _hash(tokens) if says_something else None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


class _Blind:
    """The tree as a stream of tokens, chosen names replaced by numbers."""

    def __init__(self, tree: ast.Module) -> None:
        self._tree = tree
        self._numbers: dict[str, str] = {}
        self._own = _bound_names(tree)
        self._selves = _first_parameters(tree)

    def tokens(self) -> Iterator[str]:
        yield from self._node(self._tree)

    def _node(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            node = ast.Assign(targets=[node.target], value=node.value)
        yield f"({type(node).__name__}"
        for name, value in ast.iter_fields(node):
            if name not in _IGNORED_FIELDS:
                undocumented = (
                    _undocumented(node, value) if isinstance(value, list) and name == "body" else value
                )
                yield from self._field(node, name, undocumented)
        yield ")"

    def _field(self, node: ast.AST, name: str, value: object) -> Iterator[str]:
        if isinstance(value, list):
            yield "["
            for one in value:
                yield from self._field(node, name, one)
            yield "]"
        elif isinstance(value, ast.AST):
            yield from self._node(value)
        elif isinstance(value, str) and name in _NAME_FIELDS and not isinstance(node, ast.Constant):
            yield self._name(node, name, value)
        else:
            yield f"{type(value).__name__}:{value!r}"

    def _name(self, node: ast.AST, field: str, name: str) -> str:
        imported = isinstance(node, ast.alias) and field == "name"
        attribute = (
            isinstance(node, ast.Attribute) and name in _BUILTIN_ATTRIBUTES and not self._of_self(node)
        )
        dunder = name.startswith("__") and name.endswith("__")
        builtin = isinstance(node, ast.Name) and name in _BUILTIN_NAMES and name not in self._own
        if imported or attribute or dunder or builtin:
            return name
        return self._numbers.setdefault(name, f"#{len(self._numbers)}")

    def _of_self(self, node: ast.Attribute) -> bool:
        return isinstance(node.value, ast.Name) and node.value.id in self._selves


def _first_parameters(tree: ast.Module) -> frozenset[str]:
    """What methods call their object: an attribute of it is the program's own, whatever its name."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    methods = [one for node in classes for one in node.body if isinstance(one, ast.FunctionDef)]
    return frozenset(one.args.args[0].arg for one in methods if one.args.args)


def _bound_names(tree: ast.Module) -> frozenset[str]:
    """Names the program itself gives a meaning to, be they builtins elsewhere."""
    bound = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound.add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
    return frozenset(bound)


def _undocumented(node: ast.AST, body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements of a module, class or function without its docstring."""
    documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    if documented and body and _is_text(body[0]):
        return body[1:] or [ast.Pass()]
    return body


def _is_text(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
