"""The literal reconstructor: takes each sentence at its word, on its own, and skips what it cannot read.

It writes data-flow code: a list of (condition, result) thunks tried in order. A missing constant is 0; if no
rule applies, the function returns None. A class keeps its state in one dict, in which an attribute that was
never set is None.
"""

from __future__ import annotations

import re

from iccm_assets.simulation.language import ast
from iccm_assets.simulation.language.grammar import (
    RequirementsError,
    Signature,
    parse_sentence,
    sentences,
)
from iccm_assets.simulation.reconstructors.signature import (
    PartialSignature,
    ReconstructionError,
    check_syntax,
    find_signature,
)

_NO_CONSTANT = re.compile(
    r"\b(less than|at most|more than|at least|is not|longer than|shorter than|plus|minus|times|modulo|return)"
    r" (?![`'\d-]|true|false|its `|an empty|each item|whether"
    r"|the (?:item|total|count|sum|largest|smallest|size|first|last)\b)"
    r"[^,.`']*"
)
_OPERATORS = {
    "plus": "{} + {}", "minus": "{} - {}", "times": "{} * {}",
    "divided by": "{} // {}", "modulo": "{} % {}",
    "is less than": "({} < {})", "is at most": "({} <= {})", "is more than": "({} > {})",
    "is at least": "({} >= {})", "is": "({} == {})", "is not": "({} != {})",
    "is longer than": "(len({}) > {})", "is shorter than": "(len({}) < {})",
    "starts with": "{}.startswith({})", "ends with": "{}.endswith({})", "contains": "({1} in {0})",
}  # fmt: skip
_TEXT_EDITS = {
    "stripped": "{}.strip()", "in lower case": "{}.lower()", "in upper case": "{}.upper()",
    "capitalised": "{}.capitalize()", "replaced": "{}.replace({}, {})", "cut": "{}[:{}]",
    "in front": "''.join([{1}, {0}])", "at the end": "''.join([{0}, {1}])",
}  # fmt: skip
_LIST_EDITS = {
    "sorted": "sorted({})", "reversed": "list(reversed({}))", "without repeats": "[*dict.fromkeys({})]",
    "cut": "{}[:{}]",
}  # fmt: skip
_INDEX = {"first": 0, "last": -1}
_AGGREGATES = {
    "count": "sum(1 for _ in {})",
    "sum": "sum({})",
    "largest": "(sorted({}) or [{!r}])[-1]",
    "smallest": "(sorted({}) or [{!r}])[0]",
}

_APPLY_RULES = """    ]
    for applies, result in rules:
        if applies():
            value = result()
            if isinstance(value, type):
                raise value
            return value
    return None
"""


def reconstruct(text: str) -> str:
    """Write Python from the readable sentences; raises ``ReconstructionError`` if there is no name."""
    signature = find_signature(text)
    parts = [part for part in map(_parse, sentences(text)) if part is not None]
    statements = [part for part in parts if not isinstance(part, Signature)]
    if not statements:
        raise ReconstructionError("no sentence of the text can be read")
    if signature.is_class:
        return check_syntax(_class(signature, parts))
    params = signature.params
    for part in reversed(parts):  # the first signature without a repeated name wins
        if isinstance(part, Signature) and part.kind == "function" and _are_unique(part.params):
            params = part.params
    return check_syntax(_Writer(signature.name, params).function(statements))


def _are_unique(params: tuple[str, ...]) -> bool:
    return len(set(params)) == len(params)


def _class(signature: PartialSignature, parts: list[Signature | ast.Statement]) -> str:
    """Write each method with the statements after its signature; a second one of the same name is skipped."""
    signatures = [part for part in parts if isinstance(part, Signature) and part.kind == "class"]
    params = signatures[0].params if signatures else signature.params
    current: tuple[tuple[str, ...], list[ast.Statement]] = (params, [])
    methods = {"__init__": current}
    for part in parts:
        if not isinstance(part, Signature):
            current[1].append(part)
        elif part.kind == "method":
            current = (part.params, [])
            methods.setdefault(part.name, current)
    lines = [f"class {signature.name}:"]
    for name, (params, statements) in methods.items():
        lines += ["    " + line for line in _Writer(name, params).method(statements)]
    return "\n".join(lines) + "\n"


def _parse(sentence: str) -> Signature | ast.Statement | None:
    for attempt in (sentence, _NO_CONSTANT.sub(r"\1 0", sentence)):
        try:
            return parse_sentence(attempt)
        except RequirementsError:
            continue
    return None


class _Writer:
    """Writes one function or method."""

    def __init__(self, name: str, params: tuple[str, ...]) -> None:
        self.name, self.params = name, params

    def function(self, statements: list[ast.Statement]) -> str:
        lines = [f"def {self.name}({', '.join(self.params)}):"]
        lines += [f"    {line}" for line in self._running_total(statements)]
        lines.append("    rules = [")
        for statement in statements:
            if isinstance(statement, ast.When | ast.Otherwise | ast.Always):
                outcome = statement.outcome
                result = outcome.error if isinstance(outcome, ast.Raise) else self._value(outcome.value)
                lines.append(f"        (lambda: {self._guard(statement)}, lambda: {result}),")
        return "\n".join((*lines, _APPLY_RULES))

    def method(self, statements: list[ast.Statement]) -> list[str]:
        lines = [f"def {self.name}({', '.join(('self', *self.params))}):"]
        if self.name == "__init__":
            lines.append("    self.state = {}")
        for statement in statements:
            if isinstance(statement, ast.ActionStatement | ast.ConditionalAction):
                lines += [f"    if {self._guard(statement)}:", f"        {self._action(statement.action)}"]
            elif isinstance(statement, ast.When | ast.Otherwise | ast.Always):
                lines += [f"    if {self._guard(statement)}:", f"        {self._outcome(statement.outcome)}"]
        return [*lines, "    return None"]

    def _guard(self, statement: ast.Statement) -> str:
        if isinstance(statement, ast.When | ast.ConditionalAction):
            return self._condition(statement.condition)
        return "True"

    def _action(self, action: ast.Action) -> str:
        value = self._value(action.value)
        if isinstance(action, ast.Append):
            return f"{self._atom(action.target)}.append({value})"
        return f"self.state[{action.target.name!r}] = {value}"

    def _outcome(self, outcome: ast.Outcome) -> str:
        if isinstance(outcome, ast.Raise):
            return f"raise {outcome.error}"
        return f"return {self._value(outcome.value)}"

    def _running_total(self, statements: list[ast.Statement]) -> list[str]:
        starts = [part for part in statements if isinstance(part, ast.InitTotal)]
        loops = [part for part in statements if isinstance(part, ast.ForEach)]
        lines = [f"total = {starts[0].value.value if starts else 0!r}"]
        source = next((loop.source for loop in loops if loop.source), None)
        if source is not None:
            gains = " else ".join(map(self._gain, loops))
            lines += [f"for it in {self._atom(source)}:", f"    gain = {gains} else 0"]
            lines += [f"    total = {self._clamped('total + gain', statements)}"]
        return lines

    def _gain(self, loop: ast.ForEach) -> str:
        amount = self._value(loop.amount)
        return f"{amount if loop.op == 'add' else f'-({amount})'} if {self._all(loop.tests) or 'True'}"

    def _clamped(self, code: str, statements: list[ast.Statement]) -> str:
        for limit in statements:
            if isinstance(limit, ast.ClampTotal):
                code = f"{'max' if limit.side == 'at least' else 'min'}({code}, {limit.limit.value!r})"
        return code

    def _value(self, expression: ast.Expression) -> str:
        match expression:
            case ast.Chain(base, steps):
                return self._steps(self._atom(base), steps)
            case ast.EditedText(name, edits):
                return _edited(self._atom(name), edits, _TEXT_EDITS)
            case ast.ListComp(source, tests, steps, edits):
                filters = f" if {self._all(tests)}" if tests else ""
                code = f"[{self._steps('it', steps)} for it in {self._atom(source)}{filters}]"
                return _edited(code, edits, _LIST_EDITS)
            case ast.Aggregate(kind, items, default):
                return _AGGREGATES[kind].format(self._value(items), default and default.value)
            case ast.ConditionValue(condition):
                return self._condition(condition)
            case ast.Clamp(chain, low, high):
                return _clamp(self._value(chain), low, high)
            case ast.EndItem(end, source, removed):
                form = "{}.pop({})" if removed else "{}[{}]"
                return form.format(self._atom(source), _INDEX[end])
            case ast.EmptyList():
                return "list()"

    def _condition(self, condition: ast.Condition) -> str:
        tests = [self._test(test) for test in condition.tests]
        if len(tests) == 1:
            return tests[0]
        return f"{'all' if condition.joiner == 'and' else 'any'}([{', '.join(tests)}])"

    def _all(self, tests: tuple[ast.Test, ...]) -> str:
        return " and ".join(map(self._test, tests))

    def _test(self, test: ast.Test) -> str:
        left = self._value(test.left)
        match test:
            case ast.IsEmpty():
                return f"(len({left}) < 1)"
            case ast.IsBetween(_, low, high):
                return f"({left} >= {self._atom(low)} and {left} <= {self._atom(high)})"
            case ast.Compare(_, op, right):
                return _OPERATORS[op].format(left, self._atom(right))

    def _steps(self, code: str, steps: tuple[ast.Step, ...]) -> str:
        for step in steps:
            code = f"({_OPERATORS[step.op].format(code, self._atom(step.operand))})"
        return code

    def _atom(self, atom: ast.Atom) -> str:
        match atom:
            case ast.Parameter(name):
                return name if name in self.params else "None"
            case ast.CurrentItem():
                return "it"
            case ast.RunningTotal():
                return "total"
            case ast.Attribute(name):
                return f"self.state.get({name!r})"
            case ast.Length(source):
                return f"len({self._atom(source)})"
            case ast.NumberLiteral(value) | ast.TextLiteral(value) | ast.BoolLiteral(value):
                return f"({value!r})"


def _clamp(code: str, low: ast.NumberLiteral | None, high: ast.NumberLiteral | None) -> str:
    code = f"min({high.value!r}, {code})" if high else code
    return f"max({low.value!r}, {code})" if low else code


def _edited(code: str, edits: tuple[ast.Edit, ...], templates: dict[str, str]) -> str:
    for edit in edits:
        code = templates[edit.kind].format(code, *(repr(arg.value) for arg in edit.args))
    return code
