"""The lenient reconstructor: replaces odd wording by its probable meaning and continues.

Synonyms become the language's own phrases; "about" moves a boundary; "small" and "large" stand for a typical
number of the text; an unknown name becomes the most similar parameter, and an attribute that was never set
the most similar one that was. It writes plain loops and assignments.
"""

from __future__ import annotations

import re
from difflib import get_close_matches

from iccm_assets.simulation.language import ast
from iccm_assets.simulation.language.grammar import (
    RequirementsError,
    Signature,
    parse_sentence,
    sentences,
)
from iccm_assets.simulation.reconstructors.signature import (
    ReconstructionError,
    check_syntax,
    find_signature,
)

_SYNONYMS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), phrase)
    for pattern, phrase in (
        (r"^(?:If|Whenever|In case)\b", "When"),
        (r"^(?:Else|In all other cases|In other cases|By default)\b,?", "Otherwise"),
        (r"^Otherwise,? (?:return|give)\b", "Otherwise it shall return"),
        (r"\b(?:should|must|will|would|has to)\b", "shall"),
        (r"\b(?:give back|give|output|yield|produce|answer|be)\b(?= [`'\d-])", "return"),
        (r"\b(?:raise an error|fail|complain|refuse|raise an exception)\b", "raise ValueError"),
        (r"\bis (?:less than|under|below) (?:about|around|roughly) ", "is at most "),
        (r"\bis (?:at most|up to) (?:about|around|roughly) ", "is less than "),
        (r"\bis (?:more than|over|above) (?:about|around|roughly) ", "is at least "),
        (r"\bis at least (?:about|around|roughly) ", "is more than "),
        (r"\b(?:about|around|roughly|approximately|nearly) (?=[`'\d-])", ""),
        (r"\bis (?:under|below|lower than|smaller than)\b", "is less than"),
        (r"\bis (?:over|above|greater than|bigger than|higher than|beyond)\b", "is more than"),
        (r"\bis (?:up to|no more than|not more than)\b", "is at most"),
        (r"\bis (?:no less than|not less than)\b", "is at least"),
        (r"\bis (?:equal to|exactly)\b", "is"),
        (r"\bis not equal to\b", "is not"),
        (r"\b(?:multiplied by)\b", "times"),
        (r"\badded to\b", "plus"),
        (r"\breduced by\b", "minus"),
        (r"\b(?:a few|some|several)\b", "3"),
    )
)
_SMALL = re.compile(r"\bis (?:quite |rather |too |very )?(?:small|low|little|short)\b")
_LARGE = re.compile(r"\bis (?:quite |rather |too |very )?(?:large|big|high|long|great)\b")
_LIMIT = re.compile(
    r"\b(?:a|the|some) (?:certain |usual |given )?(?:limit|threshold|amount|number|value|text)\b"
)
_NUMBER = re.compile(r"(?<![\w'])-?\d+")
_RETURN = re.compile(r"\breturn\b.*$")
_OPERATORS = {
    "plus": "({} + {})", "minus": "({} - {})", "times": "({} * {})",
    "divided by": "({} // {})", "modulo": "({} % {})",
    "is less than": "{} < {}", "is at most": "not {} > {}", "is more than": "{} > {}",
    "is at least": "not {} < {}", "is": "{} == {}", "is not": "not {} == {}",
    "is longer than": "len({}) > {}", "is shorter than": "len({}) < {}",
    "starts with": "{0}[:len({1})] == {1}", "ends with": "{}.endswith({})", "contains": "{1} in {0}",
}  # fmt: skip
_EDITS = {
    "stripped": "{0}.strip()", "in lower case": "{0}.lower()", "in upper case": "{0}.upper()",
    "capitalised": "{0}.capitalize()", "replaced": "{0}.replace({1}, {2})", "cut": "{0}[0:{1}]",
    "in front": "{1} + {0}", "at the end": "{0} + {1}", "sorted": "sorted({0})", "reversed": "{0}[::-1]",
    "without repeats": "[one for at, one in enumerate({0}) if one not in {0}[:at]]",
}  # fmt: skip
_AGGREGATES = {
    "count": "len({0})",
    "sum": "sum({0})",
    "largest": "max({0}) if len({0}) else {1!r}",
    "smallest": "min({0}) if len({0}) else {1!r}",
}


def reconstruct(text: str) -> str:
    """Write Python for the probable meaning of the text; raises ``ReconstructionError`` without a name."""
    signature = find_signature(text)
    numbers = sorted(int(number[:15]) for number in _NUMBER.findall(text)[:64])
    typical = numbers[len(numbers) // 2] if numbers else 10
    parts = [part for sentence in sentences(text) if (part := _guess(sentence, typical)) is not None]
    statements = [part for part in parts if not isinstance(part, Signature)]
    if not statements:
        raise ReconstructionError("no sentence of the text can be guessed")
    first, params = parts[0], signature.params
    if isinstance(first, Signature) and first.kind != "method" and len({*first.params}) == len(first.params):
        params = first.params
    if signature.is_class:
        return check_syntax(_class(signature.name, params, parts))
    return check_syntax(_Writer(signature.name, params).function(statements))


def _class(name: str, params: tuple[str, ...], parts: list[Signature | ast.Statement]) -> str:
    """Write constructor and methods, each with the statements after its signature; equal names are merged."""
    methods: dict[str, tuple[tuple[str, ...], list[ast.Statement]]] = {"__init__": (params, [])}
    current = methods["__init__"]
    for part in parts:
        if not isinstance(part, Signature):
            current[1].append(part)
        elif part.kind == "method":
            current = methods.setdefault(part.name, (part.params, []))
    attributes = tuple(
        part.action.target.name
        for _, statements in methods.values()
        for part in statements
        if isinstance(part, ast.ActionStatement | ast.ConditionalAction)
        and isinstance(part.action, ast.SetAttribute)
    )
    lines = [f"class {name}:"]
    for method, (method_params, statements) in methods.items():
        lines += [f"    {line}" for line in _Writer(method, method_params, attributes).method(statements)]
    return "\n".join(lines) + "\n"


def _guess(sentence: str, typical: int) -> Signature | ast.Statement | None:
    plain = sentence
    for pattern, phrase in (
        *_SYNONYMS,
        (_SMALL, f"is less than {typical}"),
        (_LARGE, f"is more than {typical}"),
        (_LIMIT, str(typical)),
    ):
        plain = pattern.sub(phrase, plain)
    tail = _RETURN.search(plain)
    attempts = [sentence, plain, plain.rstrip(".") + ".", *([f"It shall {tail[0]}"] if tail else [])]
    for attempt in attempts:
        try:
            return parse_sentence(attempt)
        except RequirementsError:
            continue
    return None


def _most_similar(name: str, known: tuple[str, ...], fallback: str) -> str:
    if name in known:
        return name
    return (get_close_matches(name, known, n=1, cutoff=0.0) or [*known, fallback])[0]


class _Writer:
    """Writes one function or method line by line; ``attributes`` are those of the object."""

    def __init__(self, name: str, params: tuple[str, ...], attributes: tuple[str, ...] = ()) -> None:
        self.name, self.params, self.attributes = name, params, attributes
        self.lines: list[str] = []
        self.variables = 0

    def method(self, statements: list[ast.Statement]) -> list[str]:
        """Write a method; its last outcome stays conditional, unlike that of a function."""
        self._put(0, f"def {self.name}({', '.join(('self', *self.params))}):")
        self._put(1, "running = 0")
        for statement in statements:
            depth = self._open(statement)
            match statement:
                case ast.When() | ast.Otherwise() | ast.Always():
                    self._finish(depth, statement.outcome)
                case ast.ActionStatement() | ast.ConditionalAction():
                    self._perform(depth, statement.action)
        return self.lines

    def function(self, statements: list[ast.Statement]) -> str:
        """Write a function; if its last outcome is conditional, it also ends with that outcome."""
        self._put(0, f"def {self.name}({', '.join(self.params)}):")
        loop_is_written = False
        last: ast.Outcome | None = None
        if not any(isinstance(part, ast.InitTotal) for part in statements):
            self._put(1, "running = 0")
        for statement in statements:
            match statement:
                case ast.When() | ast.Otherwise() | ast.Always():
                    self._finish(self._open(statement), statement.outcome)
                    last = statement.outcome if isinstance(statement, ast.When) else None
                case ast.InitTotal(value):
                    self._put(1, f"running = {value.value!r}")
                case ast.ForEach(source) if source is not None and not loop_is_written:
                    loop_is_written = True
                    self._loop(source, statements)
        if last is not None:
            self._finish(1, last)
        return "\n".join(self.lines) + "\n"

    def _put(self, depth: int, line: str) -> None:
        self.lines.append("    " * depth + line)

    def _open(self, statement: ast.Statement) -> int:
        """Write the condition of a statement, if it has one; return the depth of what follows."""
        if not isinstance(statement, ast.When | ast.ConditionalAction):
            return 1
        self._put(1, f"if {self._condition(statement.condition)}:")
        return 2

    def _perform(self, depth: int, action: ast.Action) -> None:
        if isinstance(action, ast.Append):
            self._put(depth, f"{self._atom(action.target)} += [{self._chain(action.value)}]")
        else:
            value = self._value(depth, action.value)
            self._put(depth, f"self.{action.target.name} = {value}")

    def _loop(self, source: ast.Parameter, statements: list[ast.Statement]) -> None:
        limits = [self._limit(part) for part in statements if isinstance(part, ast.ClampTotal)]
        self._put(1, f"for element in {self._atom(source)}:")
        for loop in (part for part in statements if isinstance(part, ast.ForEach)):
            self._put(2, f"if {self._all(loop.tests)}:")
            sign = "+" if loop.op == "add" else "-"
            for line in (f"running = running {sign} ({self._chain(loop.amount)})", *limits, "continue"):
                self._put(3, line)
        for line in limits:
            self._put(2, line)

    def _limit(self, limit: ast.ClampTotal) -> str:
        sign, value = "<" if limit.side == "at least" else ">", repr(limit.limit.value)
        return f"running = {value} if running {sign} {value} else running"

    def _finish(self, depth: int, outcome: ast.Outcome) -> None:
        if isinstance(outcome, ast.Raise):
            self._put(depth, f"raise {outcome.error}()")
        else:
            value = self._value(depth, outcome.value)
            self._put(depth, f"return {value}")

    def _value(self, depth: int, expression: ast.Expression) -> str:
        """Return the code of a value, after writing the lines that compute it."""
        match expression:
            case ast.Chain():
                return self._chain(expression)
            case ast.EditedText(name, edits):
                return self._edited(depth, self._assign(depth, self._atom(name)), edits)
            case ast.ListComp():
                return self._items(depth, expression)
            case ast.Aggregate(kind, items, default):
                values = self._items(depth, items)
                return _AGGREGATES[kind].format(values, 0 if default is None else default.value)
            case ast.ConditionValue(condition):
                return f"True if {self._condition(condition)} else False"
            case ast.Clamp(chain, low, high):
                return self._clamp(depth, self._assign(depth, self._chain(chain)), low, high)
            case ast.EndItem(end, source, removed):
                item = f"{self._atom(source)}[{-1 if end == 'last' else 0}]"
                if removed:
                    variable = self._assign(depth, item)
                    self._put(depth, f"del {item}")
                    return variable
                return item
            case ast.EmptyList():
                return "[]"

    def _clamp(
        self, depth: int, variable: str, low: ast.NumberLiteral | None, high: ast.NumberLiteral | None
    ) -> str:
        for sign, limit in ((">", high), ("<", low)):
            if limit:
                value = repr(limit.value)
                self._put(depth, f"if {variable} {sign} {value}: {variable} = {value}")
        return variable

    def _assign(self, depth: int, code: str) -> str:
        self.variables += 1
        self._put(depth, f"held_{self.variables} = {code}")
        return f"held_{self.variables}"

    def _edited(self, depth: int, variable: str, edits: tuple[ast.Edit, ...]) -> str:
        for edit in edits:
            change = _EDITS[edit.kind].format(variable, *(repr(arg.value) for arg in edit.args))
            self._put(depth, f"{variable} = {change}")
        return variable

    def _items(self, depth: int, items: ast.ListComp) -> str:
        variable = self._assign(depth, "[]")
        self._put(depth, f"for element in {self._atom(items.source)}:")
        self._put(depth + 1, f"if {self._all(items.tests)}:")
        self._put(depth + 2, f"{variable}.append({self._steps('element', items.steps)})")
        if not items.edits:
            return variable
        return self._edited(depth, self._assign(depth, variable), items.edits)

    def _condition(self, condition: ast.Condition) -> str:
        return f" {condition.joiner} ".join(f"({self._test(test)})" for test in condition.tests)

    def _all(self, tests: tuple[ast.Test, ...]) -> str:
        return " and ".join(map(self._test, tests)) or "True"

    def _test(self, test: ast.Test) -> str:
        left = self._chain(test.left)
        match test:
            case ast.IsEmpty():
                return f"not len({left})"
            case ast.IsBetween(_, low, high):
                return f"not ({left} < {self._atom(low)} or {left} > {self._atom(high)})"
            case ast.Compare(_, op, right):
                return _OPERATORS[op].format(left, self._atom(right))

    def _chain(self, chain: ast.Chain) -> str:
        return self._steps(self._atom(chain.base), chain.steps)

    def _steps(self, code: str, steps: tuple[ast.Step, ...]) -> str:
        for step in steps:
            code = _OPERATORS[step.op].format(code, self._atom(step.operand))
        return code

    def _atom(self, atom: ast.Atom) -> str:
        match atom:
            case ast.Parameter(name):
                return _most_similar(name, self.params, "0")
            case ast.CurrentItem():
                return "element"
            case ast.RunningTotal():
                return "running"
            case ast.Attribute(name):
                return f"self.{_most_similar(name, self.attributes, name)}"
            case ast.Length(source):
                return f"len({self._atom(source)})"
            case ast.NumberLiteral(value) | ast.TextLiteral(value) | ast.BoolLiteral(value):
                return f"({value!r})"
