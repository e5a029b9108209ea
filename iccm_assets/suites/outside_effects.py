"""Which functions of a source reach outside it: files, network, the clock, randomness, global state.

Their answers are no behaviour that requirements of the source alone could state, so none is recorded. Read
from the text, through every function that one may call by name. (D3)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache

from iccm_assets.suites.signatures import Target, find_targets
from iccm_assets.suites.source_edits import CACHED_TREES, FunctionNode

_FILES, _NETWORK, _PROCESSES = "it uses files", "it uses the network", "it starts processes or threads"
_EXIT_HOOK = "its module registers an exit hook"
_CLOCK, _RANDOMNESS, _STATE = "it reads the clock", "it uses randomness", "it changes global state"
_MACHINE, _INPUT, _TEXT = "it depends on the machine", "it reads input", "it reads its own text"
_BUILTINS = {"open": _FILES, "input": _INPUT, "breakpoint": _INPUT, "id": _MACHINE, "exit": _PROCESSES,
             "quit": _PROCESSES}  # fmt: skip
_MODULES = {
    **dict.fromkeys(("shutil", "tempfile", "glob", "fileinput", "sqlite3", "dbm", "shelve", "mmap"), _FILES),
    **dict.fromkeys(("socket", "ssl", "urllib.request", "http", "ftplib", "smtplib"), _NETWORK),
    **dict.fromkeys(("requests", "httpx", "aiohttp", "urllib3", "select", "selectors"), _NETWORK),
    **dict.fromkeys(("subprocess", "multiprocessing", "threading", "concurrent", "signal"), _PROCESSES),
    **dict.fromkeys(("random", "secrets", "uuid", "numpy.random"), _RANDOMNESS),
    **dict.fromkeys(("platform", "getpass", "ctypes", "gc", "locale", "sysconfig", "resource"), _MACHINE),
    "time": _CLOCK,
}  # fmt: skip
_NAMES = {
    **dict.fromkeys(("datetime.datetime.now", "datetime.datetime.today", "datetime.date.today"), _CLOCK),
    **dict.fromkeys(("datetime.datetime.utcnow", "datetime.now", "datetime.today", "date.today"), _CLOCK),
    **dict.fromkeys(("sys.stdin", "sys.argv", "os.environ", "os.getenv", "os.getpid"), _MACHINE),
    **dict.fromkeys(("sys.exit", "os._exit", "os.fork", "os.system", "os.popen", "os.kill"), _PROCESSES),
    **dict.fromkeys(("io.open", "os.urandom"), _FILES),
    **dict.fromkeys(
        (f"inspect.{name}" for name in ("getsource", "getsourcelines", "getfile", "stack")), _TEXT
    ),
}
_PURE = frozenset(
    {"time.struct_time", "random.Random", "uuid.UUID", "uuid.uuid3", "uuid.uuid5", "os.path"}
    | {
        f"os.{name}"
        for name in [
            "sep",
            "altsep",
            "extsep",
            "pathsep",
            "linesep",
            "curdir",
            "pardir",
            "fspath",
            "PathLike",
        ]
    }
)
MAX_TARGETS, MAX_FOLLOWED = 40, 300  # a suite has no more cases; definitions that one may reach
TOO_MANY = f"only the first {MAX_TARGETS} functions and classes are recorded"
NOT_FOLLOWED = "it calls more functions than are followed"
_PATH_METHODS = frozenset(
    {"read_text", "write_text", "read_bytes", "write_bytes", "iterdir", "mkdir", "unlink", "rglob", "touch"}
)


class EffectFinder:
    """Finds why a function, method or class of one module has effects outside."""

    def __init__(self, tree: ast.Module) -> None:
        self._imports = dict(_list_imports(tree))
        self._described: dict[int, tuple[str, list[str], list[str]]] = {}
        self._definitions = {
            node.name: node for node in tree.body if isinstance(node, FunctionNode | ast.ClassDef)
        }

    def find(self, node: ast.AST, methods: Mapping[str, ast.AST] | None = None) -> str:
        """Return why a definition has effects outside, or an empty string.

        ``methods`` are those that it may call on ``self``.
        """
        pending: list[ast.AST] = [node]
        known, attributes = {id(node)}, set[str]()
        unused: dict[int, FunctionNode] = {}  # methods of classes whose objects are made, not called so far
        while pending:
            reason, names, used = self._describe(pending.pop())
            if reason:
                return reason
            if len(known) > MAX_FOLLOWED:
                return NOT_FOLLOWED
            attributes.update(used)
            for name in names:
                definition = self._definitions.get(name) or (methods or {}).get(name)
                parts = _split_class(definition) if isinstance(definition, ast.ClassDef) else [definition]
                for part in parts:
                    if part is None or id(part) in known:
                        continue
                    if isinstance(part, FunctionNode) and part is not definition and not _is_special(part):
                        unused[id(part)] = part
                    else:
                        known.add(id(part))
                        pending.append(part)
            if not pending:
                called = [key for key, method in unused.items() if method.name in attributes]
                pending += [unused.pop(key) for key in called]
                known.update(called)
        return ""

    def registers_exit_hook(self, tree: ast.Module) -> bool:
        """Whether the module itself, when it is imported, registers what runs at the end of the process."""
        calls = [
            node.value.func
            for node in tree.body
            if isinstance(node, ast.Expr | ast.Assign) and isinstance(node.value, ast.Call)
        ]
        names = (_dotted_name(function).partition(".")[0] for function in calls)
        return any(self._imports.get(name, "").partition(".")[0] == "atexit" for name in names)

    def _describe(self, node: ast.AST) -> tuple[str, list[str], list[str]]:
        """Return why a definition itself has effects, the names that it uses, and its attributes' names."""
        if id(node) not in self._described:
            names = list(dict.fromkeys(_list_names(node)))
            used = [part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)]
            self._described[id(node)] = next(self._list_effects(node), ""), names, list(dict.fromkeys(used))
        return self._described[id(node)]

    def _list_effects(self, node: ast.AST) -> Iterator[str]:
        local = set(_list_arguments(node))
        for part in ast.walk(node):
            if isinstance(part, ast.Global):
                yield _STATE
            elif isinstance(part, ast.Attribute) and part.attr in _PATH_METHODS:
                yield _FILES
            elif isinstance(part, ast.Name | ast.Attribute):
                yield from self._check_name(part, local)

    def _check_name(self, node: ast.Name | ast.Attribute, local: set[str]) -> Iterator[str]:
        name = _dotted_name(node)
        first, _, rest = name.partition(".")
        if first in local or not name:
            return
        if first not in self._imports:
            if isinstance(node, ast.Name) and first in _BUILTINS and first not in self._definitions:
                yield _BUILTINS[first]
            return
        full = ".".join(part for part in (self._imports[first], rest) if part)
        if reason := _classify(full):
            yield reason


def _split_class(node: ast.ClassDef) -> list[ast.AST]:
    """Return what runs where a class is defined or an object of it made, and each of its methods."""
    return [*node.bases, *node.decorator_list, *node.body]


def _is_special(node: FunctionNode) -> bool:
    return node.name.startswith("__")


def _classify(name: str) -> str:
    parts = name.split(".")
    prefixes = [".".join(parts[:size]) for size in range(len(parts), 0, -1)]
    if any(prefix in _PURE for prefix in prefixes):
        return ""
    for prefix in prefixes:
        if prefix in _NAMES:
            return _NAMES[prefix]
        if prefix in _MODULES and (len(parts) > 1 or prefix == name):
            return _MODULES[prefix]
    return _FILES if parts[0] == "os" and len(parts) > 1 else ""


def _list_imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                yield alias.asname or first, alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _list_arguments(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.arg):
            yield part.arg


def _list_names(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute) and getattr(part.value, "id", "") in ("self", "cls"):
            yield f"self.{part.attr}"


def _dotted_name(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


# ---- what is recorded ----------------------------------------------------------------------------


def choose_targets(tree: ast.Module) -> tuple[list[Target], dict[str, str]]:
    """Choose what of a source is recorded, and say by name why the rest is not.

    That is what is public and reaches nothing outside; what is private only where nothing is public.
    """
    chosen, left_out = _choose_targets(tree)
    return list(chosen), dict(left_out)


@lru_cache(maxsize=CACHED_TREES)  # a recording asks four times
def _choose_targets(tree: ast.Module) -> tuple[list[Target], dict[str, str]]:
    everything = find_targets(tree)
    public = [target for target in everything if not target.name.startswith("_")]
    finder = EffectFinder(tree)
    if finder.registers_exit_hook(tree):
        return [], {target.name: _EXIT_HOOK for target in everything}
    chosen: list[Target] = []
    left_out: dict[str, str] = {}
    named = public or [item for item in everything if not item.name.startswith("__")]
    left_out |= dict.fromkeys((target.name for target in named[MAX_TARGETS:]), TOO_MANY)
    for target in named[:MAX_TARGETS]:
        target, reasons = _leave_out_effects(target, finder)
        left_out |= reasons
        if target.name not in reasons:
            chosen.append(target)
    return chosen, left_out


def find_left_out_lines(tree: ast.Module) -> frozenset[int]:
    """Find the lines of the functions and methods that reach outside, and of what only these call."""
    targets, reasons = choose_targets(tree)
    left_out = {name for name, reason in reasons.items() if reason not in (TOO_MANY, NOT_FOLLOWED)}
    if left_out:
        left_out |= _find_private(tree) - _find_reached(tree, targets)
    lines: set[int] = set()
    for node in tree.body:
        for part in [node, *(node.body if isinstance(node, ast.ClassDef) else [])]:
            name = getattr(part, "name", "")
            if name in left_out or (part is not node and f"{getattr(node, 'name', '')}.{name}" in left_out):
                lines.update(range(part.lineno, (part.end_lineno or part.lineno) + 1))
    return frozenset(lines)


def _find_private(tree: ast.Module) -> set[str]:
    named = (getattr(node, "name", "") for node in tree.body)
    return {name for name in named if name.startswith("_")}


def _find_reached(tree: ast.Module, targets: list[Target]) -> set[str]:
    """Find the definitions that the targets and the module itself use, by name."""
    definitions = {node.name: node for node in tree.body if isinstance(node, FunctionNode | ast.ClassDef)}
    pending: list[ast.AST] = [part for target in targets for part in target.nodes]
    pending += [node for node in tree.body if not isinstance(node, FunctionNode | ast.ClassDef)]
    reached: set[str] = set()
    while pending:
        names = {name for name in _list_names(pending.pop()) if name in definitions} - reached
        reached |= names
        pending += [definitions[name] for name in names]
    return reached


def _leave_out_effects(target: Target, finder: EffectFinder) -> tuple[Target, dict[str, str]]:
    """Return the target without the methods that reach outside, and by name why they, or it itself, do."""
    if not target.is_class:
        node = target.nodes[0]
        reason = "it is asynchronous" if isinstance(node, ast.AsyncFunctionDef) else finder.find(node)
        return target, {target.name: reason} if reason else {}
    functions: dict[str, ast.AST] = {
        f"self.{part.name}": part
        for owner in reversed(target.nodes)
        for part in getattr(owner, "body", [])
        if isinstance(part, FunctionNode)
    }
    reasons: dict[str, str] = {}
    for name in ("__init__", "__post_init__", "__new__", *target.methods, *target.properties):
        function = functions.get(f"self.{name}")
        reason = finder.find(function, functions) if function else ""
        if isinstance(function, ast.AsyncFunctionDef):
            reason = "it is asynchronous"
        if reason:
            reasons[f"{target.name}.{name}" if not name.startswith("__") else target.name] = reason
    methods = {
        name: target.methods[name] for name in target.methods if f"{target.name}.{name}" not in reasons
    }
    properties = [name for name in target.properties if f"{target.name}.{name}" not in reasons]
    return replace(target, methods=methods, properties=tuple(properties)), reasons
