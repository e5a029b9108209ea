"""Programs of several files as one text, in which a line `# file: shop/cart.py` begins each file. (J6)

So a program of several files is stored, compared, learned from and changed like any other source. Standard
library only: also sent into the sandbox, where its files are modules of their own.
"""

from __future__ import annotations

import marshal
import sys

TYPE_CHECKING = False  # typing takes longer to import than everything else here together
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import CodeType, ModuleType
    from typing import Any

MARK = "# file: "
MAX_FILES, MAX_PATH, MAX_FOLDERS = 100, 200, 10
MAX_PACKED_BYTES = 1 << 20
SOURCE_FOLDER = "src/"  # no part of a module's name
# Names that stand for the whole program, or that pytest would run by itself.
_RESERVED = ("implementation.py", "solution.py", "conftest.py")


class SourceFilesError(ValueError):
    """Files that are no program."""


def find_path_problem(path: object) -> str:
    """Say what is wrong with the path of a file of a program; empty if nothing is."""
    if not isinstance(path, str) or not path.endswith(".py") or len(path) > MAX_PATH:
        return f"a path ends with .py and has at most {MAX_PATH} characters"
    parts = path.removesuffix(".py").removeprefix(SOURCE_FOLDER).split("/")
    if len(parts) > MAX_FOLDERS or not all(part.isascii() and part.isidentifier() for part in parts):
        return "a path is relative, of names of Python packages and modules"
    return "the name is reserved" if path.rpartition("/")[2] in _RESERVED else ""


def is_test_path(path: str) -> bool:
    """Whether a file holds tests, by its name or folder."""
    *folders, name = path.removesuffix(".py").split("/")
    return name.startswith("test_") or name.endswith("_test") or name == "conftest" or "tests" in folders


def join_files(files: Mapping[str, str], main: str | None = None) -> str:
    """Write the files of a program as one text; the file with the text ``main`` comes last.

    Where no file has this text, it becomes one more file: `main.py`, in the folder of the others if it
    imports from them relatively. Raises ``SourceFilesError``.
    """
    files = dict(files)
    for path, text in files.items():
        if problem := find_path_problem(path):
            raise SourceFilesError(f"file {path!r}: {problem}"[:300])
        if not isinstance(text, str):
            raise SourceFilesError(f"file {path!r}: its content must be text")
    if main is not None:
        known = next((path for path, text in files.items() if text.strip() == main.strip()), "")
        main_path = known or _choose_main_path(files, main)
        files[main_path] = files.pop(main_path, main)
    if len(files) > MAX_FILES:
        raise SourceFilesError(f"{len(files)} files; at most {MAX_FILES}")
    folders = {_module_path(path).rpartition("/")[0] for path in files}
    if clash := next((path for path in files if _module_path(path).removesuffix(".py") in folders), ""):
        raise SourceFilesError(f"file {clash!r}: there is a folder of the same name")
    if len(files) < 2:
        return next(iter(files.values()), "")
    return "".join(f"{MARK}{path}\n{_hide_marks(text)}" for path, text in files.items())


def _choose_main_path(files: Mapping[str, str], main: str) -> str:
    relative = any(line.lstrip().startswith("from .") for line in main.split("\n"))
    folder = min((path.rpartition("/")[0] for path in files), key=len, default="") if relative else ""
    names = (f"{folder}/{name}" if folder else name for name in ("main.py", "main_module.py"))
    return next((name for name in names if name not in files), "main_program.py")


def _hide_marks(text: str) -> str:
    """Change comments that look like the beginning of a file."""
    lines = text.removesuffix("\n").split("\n")
    return "".join(
        f"#  file: {line[len(MARK) :]}\n" if line.startswith(MARK) else f"{line}\n" for line in lines
    )


def split_files(source: str) -> list[tuple[str, str, int]]:
    """Return (path, text, number of lines before it) of each file; nothing for a source of one file."""
    if not source.startswith(MARK):
        return []
    lines = source.split("\n")
    starts = [number for number, line in enumerate(lines) if line.startswith(MARK)]
    paths = [lines[number][len(MARK) :].rstrip() for number in starts]
    if not 2 <= len(paths) <= MAX_FILES or len(set(paths)) < len(paths) or any(map(find_path_problem, paths)):
        return []
    ends = [*starts[1:], len(lines)]
    return [
        (path, "\n".join(lines[start + 1 : end]).removesuffix("\n") + "\n", start + 1)
        for path, start, end in zip(paths, starts, ends, strict=True)
    ]


def _module_path(path: str) -> str:
    return path.removeprefix(SOURCE_FOLDER)


def module_name(path: str) -> str:
    """Return the name that a file is imported by."""
    return _module_path(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def list_modules(source: str) -> list[str]:
    """List the top-level modules of a program of several files."""
    return list(dict.fromkeys(module_name(path).partition(".")[0] for path, _, _ in split_files(source)))


# ---- in the sandbox ------------------------------------------------------------------------------


class FileFinder:
    """Imports the files of a program from their texts; lines are numbered as in the whole text."""

    def __init__(self, files: list[tuple[str, str, int]], filename: str, names: dict[str, Any]) -> None:
        self.filename, self.names = filename, names
        self.spec = sys.modules["_frozen_importlib"].ModuleSpec
        self.modules: dict[str, tuple[str, bool, str, int]] = {}
        for path, text, before in files:
            is_package = path.endswith("/__init__.py")
            self.modules[module_name(path)] = (path, is_package, text, before)
        for name in list(self.modules):
            while "." in name:  # a folder is a package without a file of its own, too
                name = name.rpartition(".")[0]
                self.modules.setdefault(name, ("", True, "", 0))

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Find one of the modules."""
        if name not in self.modules:
            return None
        return self.spec(name, self, is_package=self.modules[name][1])

    def create_module(self, spec: Any) -> None:
        """Let Python create the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the text of a module."""
        path, _, text, before = self.modules[module.__name__]
        module.__file__ = path
        module.__dict__.update(self.names)
        code = compile("\n" * before + text, self.filename, "exec", dont_inherit=True)
        exec(code, module.__dict__)


def compile_source(source: str, filename: str) -> CodeType | None:
    """Compile a source of one file; None for several."""
    source = source.removeprefix("\ufeff")
    return None if split_files(source) else compile(source, filename, "exec", dont_inherit=True)


def pack_code(code: CodeType | None) -> bytes:
    """Return the code as bytes that load as the same code, or nothing where they might not."""
    try:
        packed = b"" if code is None or not _keeps_order(code) else marshal.dumps(code)
    except ValueError:  # nested too deep
        return b""
    return packed if len(packed) <= MAX_PACKED_BYTES else b""


def _keeps_order(value: Any) -> bool:
    """Whether a constant iterates like its copy: a set may not, and ``for x in {8, 0}`` holds one."""
    if isinstance(value, tuple):
        return all(map(_keeps_order, value))
    return all(map(_keeps_order, getattr(value, "co_consts", ()))) and not isinstance(value, frozenset)


def run_source(source: str, module: ModuleType, filename: str, code: CodeType | None = None) -> list[str]:
    """Run a source in ``module``, which gets the names of all files; return the names of their modules.

    Of a name in several files, that of the last one counts. What ``module`` has before, each file has. The
    ``code`` of a source that is compiled already runs as it is.
    """
    code = code or compile_source(source, filename)
    if code is not None:
        exec(code, module.__dict__)
        return []
    files = split_files(source.removeprefix("\ufeff"))
    before = {key: value for key, value in vars(module).items() if not key.startswith("__")}
    finder = FileFinder(files, filename, before)
    sys.meta_path.insert(0, finder)
    for name in finder.modules:
        sys.modules.pop(name, None)  # of another variant, or a preloaded module that a file replaces
    names = [module_name(path) for path, _, _ in files if not path.endswith("__main__.py")]
    for name in names:
        imported = __import__(name, None, None, ["*"])
        values = {key: value for key, value in vars(imported).items() if not key.startswith("__")}
        module.__dict__.update(values)
    for name in names:
        root = name.partition(".")[0]
        module.__dict__.setdefault(root, sys.modules[root])
    return names


def write_shim(source: str) -> tuple[dict[str, str], str]:
    """Return the files of a source by path, and the module that has the names of all of them."""
    files = split_files(source)
    if not files:
        return {}, source
    names = [module_name(path) for path, _, _ in files if not path.endswith("__main__.py")]
    shim = (
        "import importlib as _importlib\n"
        f"for _name in {names!r}:\n"
        "    _module = vars(_importlib.import_module(_name))\n"
        "    globals().update({key: _module[key] for key in _module if not key.startswith('__')})\n"
    )
    return {_module_path(path): text for path, text, _ in files}, shim
