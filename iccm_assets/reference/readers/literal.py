"""The literal reader: takes each sentence at its word, alone, and leaves out what it cannot read.

It writes data-flow code: a list of (condition, result) thunks tried in order. Where a constant is
missing it takes 0; where no rule speaks, the function returns None. A class keeps its state in one dict,
and an attribute that was never set is None there.
"""

from __future__ import annotations

import re

from iccm_assets.reference import document as ast
from iccm_assets.reference.language import RequirementsError, Signature, parse_sentence, sentences
from iccm_assets.reference.readers.opening import Opening, ReaderError, checked, find_opening

_NO_CONSTANT = re.compile(
    r"\b(less than|at most|more than|at least|is not|longer than|shorter than|plus|minus|times|modulo|return)"
    r" (?![`'\d-]|true|false|its `|an empty|each item|whether"
    r"|the (?:item|total|count|sum|largest|smallest|size|first|last)\b)"
    r"[^,.`']*"
)
_INFIX = {"plus": "+", "minus": "-", "times": "*", "divided by": "//", "modulo": "%", "is less than": "<"} | {
    "is at most": "<=", "is more than": ">", "is at least": ">=", "is": "==", "is not": "!=",
}  # fmt: skip
_METHODS = {
    "stripped": "strip",
    "in lower case": "lower",
    "in upper case": "upper",
    "capitalised": "capitalize",
}


def read(text: str) -> str:
    """Python from the sentences that can be read; ``ReaderError`` when the text names nothing."""
    opening = find_opening(text)
    parts = [part for part in map(_parse, sentences(text)) if part is not None]
    if not any(not isinstance(part, Signature) for part in parts):
        raise ReaderError("no sentence of the text can be read")
    if opening.is_class:
        return checked(_class(opening, parts))
    params: tuple[str, ...] | None = None
    for part in parts:
        if isinstance(part, Signature) and part.kind == "function" and params is None:
            params = part.params if len(set(part.params)) == len(part.params) else None
    known = Opening(opening.name, opening.params if params is None else params)
    return checked(_Writer(known).function([part for part in parts if not isinstance(part, Signature)]))


def _class(opening: Opening, parts: list[Signature | ast.Statement]) -> str:
    """Every method with the statements that follow its opening; a second one of the same name is left out."""
    params = next((one.params for one in parts if isinstance(one, Signature) and one.kind == "class"), None)
    methods: dict[str, tuple[tuple[str, ...], list[ast.Statement]]] = {}
    current = methods.setdefault("__init__", (opening.params if params is None else params, []))
    for part in parts:
        if not isinstance(part, Signature):
            current[1].append(part)
        elif part.kind == "method":
            current = (part.params, [])
            methods.setdefault(part.name, current)
    lines = [f"class {opening.name}:"]
    for name, (names, statements) in methods.items():
        body = _Writer(Opening(name, names)).method(statements)
        lines += ["    " + line for line in body]
    return "\n".join(lines) + "\n"


def _parse(sentence: str) -> Signature | ast.Statement | None:
    for attempt in (sentence, _NO_CONSTANT.sub(r"\1 0", sentence)):
        try:
            return parse_sentence(attempt)
        except RequirementsError:
            continue
    return None


class _Writer:
    """Writes one function."""

    def __init__(self, opening: Opening) -> None:
        self.opening = opening

    def function(self, statements: list[ast.Statement]) -> str:
        lines = [f"def {self.opening.name}({', '.join(self.opening.params)}):"]
        lines += [f"    {line}" for line in self._total(statements)]
        lines.append("    rules = [")
        for statement in statements:
            if isinstance(statement, ast.When):
                condition, result = self._condition(statement.condition), self._result(statement.outcome)
                lines.append(f"        (lambda: {condition}, {result}),")
            elif isinstance(statement, ast.Otherwise | ast.Always):
                lines.append(f"        (lambda: True, {self._result(statement.outcome)}),")
        lines += ["    ]", "    for applies, result in rules:", "        if applies():"]
        lines += ["            value = result()", "            if isinstance(value, type):"]
        lines += ["                raise value", "            return value", "    return None"]
        return "\n".join(lines) + "\n"

    def method(self, statements: list[ast.Statement]) -> list[str]:
        lines = [f"def {self.opening.name}({', '.join(('self', *self.opening.params))}):"]
        if self.opening.name == "__init__":
            lines.append("    self.state = {}")
        for part in statements:
            condition = self._condition(part.condition) if isinstance(part, ast.When | ast.WhenDo) else "True"
            if isinstance(part, ast.Do | ast.WhenDo):
                lines += [f"    if {condition}:", f"        {self._action(part.action)}"]
            elif isinstance(part, ast.When | ast.Otherwise | ast.Always):
                lines += [f"    if {condition}:", f"        {self._end(part.outcome)}"]
        return [*lines, "    return None"]

    def _action(self, action: ast.Action) -> str:
        if isinstance(action, ast.Append):
            return f"{self._atom(action.target)}.append({self._chain(action.value)})"
        return f"self.state[{action.target.name!r}] = {self._expression(action.value)}"

    def _end(self, outcome: ast.Outcome) -> str:
        if isinstance(outcome, ast.Raise):
            return f"raise {outcome.error}"
        return f"return {self._expression(outcome.value)}"

    def _total(self, statements: list[ast.Statement]) -> list[str]:
        starts = [part for part in statements if isinstance(part, ast.Start)]
        eaches = [part for part in statements if isinstance(part, ast.Each)]
        keeps = [part for part in statements if isinstance(part, ast.Keep)]
        source = next((each.source for each in eaches if each.source), None)
        lines = [f"total = {starts[0].value.value if starts else 0!r}"]
        if source is None:
            return lines if starts else ["total = 0"]
        gains = " else ".join(f"{self._gain(each)} if {self._tests(each.tests) or 'True'}" for each in eaches)
        after = "total + gain"
        for keep in keeps:
            after = f"{'max' if keep.side == 'at least' else 'min'}({after}, {keep.limit.value!r})"
        walk = [f"for it in {self._atom(source)}:", f"    gain = {gains} else 0", f"    total = {after}"]
        return [*lines, *walk]

    def _gain(self, each: ast.Each) -> str:
        amount = self._chain(each.amount)
        return amount if each.op == "add" else f"-({amount})"

    def _result(self, outcome: ast.Outcome) -> str:
        return (
            f"lambda: {outcome.error if isinstance(outcome, ast.Raise) else self._expression(outcome.value)}"
        )

    def _expression(self, expression: ast.Expression) -> str:
        match expression:
            case ast.Chain():
                return self._chain(expression)
            case ast.Edited(name, edits):
                return self._edited(self._atom(name), edits)
            case ast.Items(source, tests, steps, edits):
                where = f" if {self._tests(tests)}" if tests else ""
                return self._listed(
                    f"[{self._steps('it', steps)} for it in {self._atom(source)}{where}]", edits
                )
            case ast.Aggregate(kind, items, default):
                found = self._expression(items)
                if kind == "count":
                    return f"sum(1 for _ in {found})"
                if kind == "sum":
                    return f"sum({found})"
                last = None if default is None else default.value
                return f"(sorted({found}) or [{last!r}])[{-1 if kind == 'largest' else 0}]"
            case ast.Whether(condition):
                return self._condition(condition)
            case ast.Limited(value, low, high):
                ends = [repr(end.value) for end in (low, high) if end is not None]
                code = self._chain(value)
                if low and high:
                    return f"max({ends[0]}, min({ends[1]}, {code}))"
                return f"{'max' if low else 'min'}({ends[0]}, {code})"
            case ast.EndItem(end, source, taken):
                code, at = self._atom(source), -1 if end == "last" else 0
                return f"{code}.pop({at})" if taken else f"{code}[{at}]"
            case ast.EmptyList():
                return "list()"

    def _edited(self, code: str, edits: tuple[ast.Edit, ...]) -> str:
        for edit in edits:
            args = [repr(arg.value) for arg in edit.args]
            if edit.kind in _METHODS:
                code = f"{code}.{_METHODS[edit.kind]}()"
            elif edit.kind == "replaced":
                code = f"{code}.replace({', '.join(args)})"
            elif edit.kind == "cut":
                code = f"{code}[:{args[0]}]"
            else:
                code = (
                    f"''.join([{f'{args[0]}, {code}' if edit.kind == 'in front' else f'{code}, {args[0]}'}])"
                )
        return code

    def _listed(self, code: str, edits: tuple[ast.Edit, ...]) -> str:
        for edit in edits:
            match edit.kind:
                case "sorted":
                    code = f"sorted({code})"
                case "reversed":
                    code = f"list(reversed({code}))"
                case "without repeats":
                    code = f"[*dict.fromkeys({code})]"
                case _:
                    code = f"{code}[:{edit.args[0].value!r}]"
        return code

    def _condition(self, condition: ast.Condition) -> str:
        tests = [self._test(test) for test in condition.tests]
        return (
            tests[0]
            if len(tests) == 1
            else f"{'all' if condition.joiner == 'and' else 'any'}([{', '.join(tests)}])"
        )

    def _tests(self, tests: tuple[ast.Test, ...]) -> str:
        return " and ".join(self._test(test) for test in tests)

    def _test(self, test: ast.Test) -> str:
        left = self._chain(test.left)
        match test:
            case ast.Empty():
                return f"(len({left}) < 1)"
            case ast.Between(_, low, high):
                return f"({left} >= {self._atom(low)} and {left} <= {self._atom(high)})"
            case ast.Compare(_, op, right):
                value = self._atom(right)
                if op in _INFIX:
                    return f"({left} {_INFIX[op]} {value})"
                if op in {"is longer than", "is shorter than"}:
                    return f"(len({left}) {'>' if op == 'is longer than' else '<'} {value})"
                if op == "contains":
                    return f"({value} in {left})"
                return f"{left}.{'startswith' if op == 'starts with' else 'endswith'}({value})"

    def _chain(self, chain: ast.Chain) -> str:
        return self._steps(self._atom(chain.base), chain.steps)

    def _steps(self, code: str, steps: tuple[ast.Step, ...]) -> str:
        for number, step in enumerate(steps):
            code = f"({code})" if number else code
            code = f"{code} {_INFIX[step.op]} {self._atom(step.operand)}"
        return f"({code})" if steps else code

    def _atom(self, atom: ast.Atom) -> str:
        match atom:
            case ast.Name(name):
                return name if name in self.opening.params else "None"
            case ast.Item():
                return "it"
            case ast.Total():
                return "total"
            case ast.Own(name):
                return f"self.state.get({name!r})"
            case ast.Size(of):
                return f"len({self._atom(of)})"
            case ast.Number(value) | ast.Text(value) | ast.Truth(value):
                return f"({value!r})"
