"""Recognize source code: by its fence's language and by its lines, in any programming language.

Output, tracebacks, console sessions, data, diffs and tests alone are no source of an example. Lines are read,
nothing is parsed as a program: hostile text costs linear time. (C3)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from iccm_assets.capture.fences import language_set

CodeKind = Literal["code", "tests", "data", "prose"]

# Fences of these languages hold no program, whatever is in them.
DATA_LANGUAGES = language_set(
    """
    json jsonl json5 jsonc ndjson geojson yaml yml toml ini cfg conf env dotenv properties csv tsv xml svg
    console shell-session shellsession sh-session terminal session output stdout stderr result results lock
    traceback pytb py3tb stacktrace pycon pycon3 doctest python-repl python-console repl irb ipynb
    diff patch udiff http log logs ipython-session rconsole
    mermaid plantuml dot graphviz latex tex bibtex gherkin feature cucumber
    """
)
# Fences of these hold text, which may be code that somebody pasted.
PROSE_LANGUAGES = language_set("text txt plaintext plain none md markdown mdx rst asciidoc adoc raw spec")
_SHELL_LANGUAGES = language_set("bash sh shell zsh fish ksh powershell ps1 pwsh bat cmd batch dosbatch")
_DATA_SUFFIXES = DATA_LANGUAGES | {"md", "rst", "adoc", "pdf", "docx", "png", "html", "htm", "lock"}
_TEST_PATH = re.compile(
    r"test_.*|.*_test\.\w+|.*[.-](?:test|spec)\.\w+|.*(?:Test|Tests|Spec|IT)\.(?:java|kt|cs|scala)"
    r"|conftest\.py|.*_spec\.rb"
)

_MODIFIERS = (
    r"(?:(?:export|default|pub(?:\([^()\n]{0,40}\))?|public|private|protected|internal|static|final|abstract"
    r"|async|unsafe|extern|inline|virtual|override|sealed|partial|open|data|const|constexpr|local"
    r"|declare)[ \t]+)"
)
# The name that a line defines; every alternative has a group.
_DEFINITION = re.compile(
    "|".join(
        (
            r"(?:async[ \t]+)?def[ \t]+(?:self\.)?(\w+[?!]?)[ \t]*(?:[\[(:=]|$|do\b)",
            rf"{_MODIFIERS}{{0,6}}(?:class|struct|interface|trait|enum|union|record|protocol|object"
            rf"|module)[ \t]+(\w+)"
            r"[ \t]*(?:[:({<;\[]|$|(?:extends|implements|for|where|impl)\b)",
            rf"{_MODIFIERS}{{0,6}}function\*?[ \t]+(\w+)[ \t]*[(<{{]",
            rf"{_MODIFIERS}{{0,6}}(?:fn|fun|func|proc"
            rf"|sub)[ \t]+(?:\([^()\n]{{0,80}}\)[ \t]*)?(\w+)[ \t]*[(<\[{{]",
            rf"{_MODIFIERS}{{0,6}}(?:const|let|var|val)[ \t]+(\w+)[^=\n]{{0,80}}=[ \t]*"
            r"(?:async\b|function\b|\(|<|\w+[ \t]*=>)",
            rf"{_MODIFIERS}{{0,6}}type[ \t]+(\w+)[^=\n{{]{{0,60}}(?:=|struct\b|interface\b|func\b)",
            rf"{_MODIFIERS}{{1,6}}[\w<>\[\],.?]{{1,60}}[ \t]+(\w+)[ \t]*\([^;\n]{{0,200}}$",
            r"(?:unsigned |const |static )?(?:int|void|char|float|double|bool|long|short|size_t|auto|string"
            r"|std::\w+)"
            r"[ \t*&]+(\w+)[ \t]*\([^;\n]{0,200}$",
            r"(?i:create (?:or replace )?(?:function|procedure|table|view|trigger))[ \t]+(\w+)",
            r"(\w+)[ \t]*\(\)[ \t]*\{",
            r"(\w+)[ \t]*(?:<-|=)[ \t]*(?:function|lambda)\b",
            r"\((?:defn?|defun|define|defmacro)[ \t]+\(?([\w-]+)",
            r"(\w+)[ \t]*::[ \t]*\S",
        )
    )
)
_BINDING = re.compile(
    r"(?:const |let |var |val |export |final |static )*(\w+)[ \t]*(?::[^=\n]{1,80})?(?<![=!<>])=(?![=>])"
)
_IMPORT = re.compile(
    r"(?:from[ \t]+[\w.]+[ \t]+import\b|import[ \t]+(?:[\w.*{,]+(?:[ \t]+as[ \t]+\w+)?[ \t]*(?:,|;|$)"
    r"|[\w{*\"'][^\n]{0,200}"
    r"\bfrom[ \t]+[\"']|[\"'(])|#include[ \t]*[<\"]|using[ \t]+[\w.:]+;|use[ \t]+[\w:{}, ]+;"
    r"|package[ \t]+[\w.]+;?$"
    r"|require(?:_relative)?[ \t]*\(?[\"']|(?:const|let|var)[ \t].{1,100}=[ \t]*require\()"
)
_IMPORTED = re.compile(r"\w+")
_STATEMENT = re.compile(
    r"(?:return\b|raise\b|throw\b|yield\b|await\b|break;?$|continue;?$|pass$|else:?$|try:?$|finally:?$|@\w"
    r"|#!|/[/*]|\*/"
    r"|(?:if|elif|for|while|with|except|match|case|switch|catch)\b.*[:{)]$|print\w*\(|assert\b|del "
    r"|global |nonlocal "
    r"|(?i:select\b.+\bfrom|insert into|update \w+ set|delete from|alter table)\b|end;?$|[\])}]+[;,)]*$"
    r"|\}[ \t]*else)"
)
_CODE_END = re.compile(r"[;{}]$|\)[ \t]*:$|=>[ \t]*[{(]?$|\)[ \t]*->[^\n]{1,80}:$")
_CALL = re.compile(r"[\w.]{1,80}\([^\n]*\)[;,]?$")
_AUGMENTED = re.compile(
    r"[\w.\[\]]{1,80}(?::[ \t]*[\w.]{1,60}(?:\[[^\]\n]{0,80}\])?(?:[ \t]*\|[ \t]*[\w.]{1,40}){0,4})?"
    r"[ \t]*(?:[-+*/%&|^]|//|\*\*|<<|>>|:)?=(?!=)[ \t]*\S"
)
_COMMENT = re.compile(r"#[ \t]|//|/\*|--[ \t]|\"\"\"|'''")
_STRONG_LINE = re.compile(
    "|".join(item.pattern for item in (_STATEMENT, _AUGMENTED, _IMPORT, _DEFINITION)),
)
_CODE_LINE = re.compile("|".join(item.pattern for item in (_COMMENT, _CALL, _STRONG_LINE)))
_OUTPUT = re.compile(
    r"(?m)^[ \t]*(?:Traceback \(most recent call last\)|>>> |In \[\d{1,4}\]: |diff --git |@@ -\d|\$ \w"
    r"|PS [A-Z]:\\"
    r"|Exception in thread |goroutine \d+ \[|thread '[^'\n]{1,60}' panicked|={3,} (?:FAILURES|test session)"
    r"|(?:DEBUG|INFO|WARN|WARNING|ERROR|CRITICAL|FATAL)\b[ :\]]|\d{4}-\d\d-\d\d[T ]\d\d:\d\d)"
)
_SECTION = re.compile(r"\[[\w.\-: \"']{1,80}\]")
_OPTION = re.compile(r"[\w.-]{1,80}[ \t]*[=:]|[#;]")
_LITERAL = re.compile(r"[\s\d.,+\-eE_()\[\]{}:'\"]*|(?:True|False|None|null|true|false|undefined|nil)")
_TEST_LINE = re.compile(
    r"(?m)^[ \t]*(?:(?:async )?def test|class (?:Test|\w+Tests?\b)|(?:describe|it|test|suite|specify"
    r"|context)\s?(?:\.\w+)?\("
    r"|func Test\w*\(|@Test\b|#\[test\]|assert\b|self\.assert|expect\(|\[(?:Fact|Theory|TestMethod|Test)\])"
)
_TEST_NAME = re.compile(
    r"tests?(?:_\w+|[A-Z]\w*|$)|Test\w*|\w+(?:Tests?|TestCase|Spec)$|\w*fixture\w*|setUp\w*|tearDown\w*"
)
_FIXTURE = re.compile(
    r"@(?:pytest\.)?fixture\b|@pytest\.|@given\b|@settings\b|@Before|@After|@Test\b|@parameterized"
)
_MAX_LINE = 300  # characters of a line that are read


@dataclass(frozen=True)
class CodeNames:
    """Names in a block: of functions and types it defines, at its top level, of values it binds."""

    defined: frozenset[str]
    top_level: frozenset[str]
    bound: frozenset[str]


def find_names(text: str) -> CodeNames:
    """Find what a block of code defines and binds."""
    defined, top_level, bound = set[str](), set[str](), set[str]()
    is_fixture = False
    for line in text.split("\n"):
        code = line[:_MAX_LINE].strip()
        is_indented = line[:1] in {" ", "\t"}
        if name := find_definition(code):
            defined.add(name)
            if not is_indented and not is_fixture:
                top_level.add(name)
        elif not is_indented:
            if _IMPORT.match(code):
                bound.update(_IMPORTED.findall(code))
            elif binding := _BINDING.match(code):
                bound.add(binding[1])
        if code:
            is_fixture = _FIXTURE.match(code) is not None or (is_fixture and code.startswith("@"))
    return CodeNames(frozenset(defined), frozenset(top_level), frozenset(bound))


def find_definition(code: str) -> str | None:
    """Return the name that a stripped line defines, or None."""
    match = _DEFINITION.match(code)
    return None if match is None or match.lastindex is None else match[match.lastindex]


def classify_block(text: str, language: str = "", path: str = "") -> CodeKind:
    """Decide what a block is; of an unknown or textual language, its lines decide."""
    name = PurePosixPath(path.replace("\\", "/")).name
    suffix = name.rpartition(".")[2].lower() if "." in name else ""
    if language in DATA_LANGUAGES or suffix in _DATA_SUFFIXES or _is_data(text, language):
        return "data"
    is_prose = not language or language in PROSE_LANGUAGES
    if is_prose and suffix in {"", "txt"} and not looks_like_code(text):
        return "prose"
    return "tests" if (name and _TEST_PATH.fullmatch(name)) or _is_tests(text) else "code"


def is_code_line(code: str) -> bool:
    """Whether a stripped line reads as code."""
    code = code[:_MAX_LINE]
    return _CODE_LINE.match(code) is not None or _CODE_END.search(code) is not None


def looks_like_code(text: str) -> bool:
    """Whether at least half of the lines are code, and one of them does something."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    code = sum(map(is_code_line, lines))
    strong = any(_is_strong(line[:_MAX_LINE]) for line in lines)
    return strong and 2 * code >= len(lines)


def _is_strong(code: str) -> bool:
    return _STRONG_LINE.match(code) is not None


def _is_data(text: str, language: str) -> bool:
    """Whether a block holds values, output, or commands of a shell that define nothing."""
    if any(matches(text) for matches in (_is_literal, _is_output, _is_json, _is_options)):
        return True
    return language in _SHELL_LANGUAGES and not (find_names(text).defined or text.startswith("#!"))


def _is_literal(text: str) -> bool:
    return _LITERAL.fullmatch(text.strip()) is not None


def _is_output(text: str) -> bool:
    """Whether the block shows what a program printed: a marker at the start of a line, and no definition."""
    match = _OUTPUT.search(text)
    return match is not None and not any(_definition_lines(text[: match.start()]))


def _definition_lines(text: str) -> Iterator[str]:
    return (line for line in text.split("\n") if find_definition(line[:_MAX_LINE].strip()))


def _is_options(text: str) -> bool:
    """Whether the block is a file of options: names with values, in sections."""
    lines = [line[:_MAX_LINE].strip() for line in text.split("\n") if line.strip()]
    others = [line for line in lines if not _SECTION.fullmatch(line)]
    return len(others) < len(lines) and all(_OPTION.match(line) for line in others)


def _is_json(text: str) -> bool:
    stripped = text.strip()
    if stripped[:1] not in {"{", "["} or stripped[-1:] not in {"}", "]"}:
        return False
    try:
        json.loads(stripped)
    except (ValueError, RecursionError):
        return False
    return True


def _is_tests(text: str) -> bool:
    if _TEST_LINE.search(text) is None:
        return False
    names = find_names(text)
    others = [name for name in names.top_level if not _TEST_NAME.fullmatch(name)]
    if names.defined:
        return not others
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    checks = sum(_TEST_LINE.match(line) is not None for line in lines)
    imports = sum(_IMPORT.match(line) is not None for line in lines)
    return checks > 0 and 2 * checks >= len(lines) - imports
