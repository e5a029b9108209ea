"""The guessing reader: turns odd wording into what was probably meant, and goes on.

Synonyms become the language's own phrases; "about" moves a boundary; "small" and "large" stand for a
number of the text; a name that is not a parameter becomes the most similar one, an attribute that was never
set the most similar one that was. It writes plain loops and assignments to one result variable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches

from iccm_assets.reference import document as ast
from iccm_assets.reference.language import RequirementsError, Signature, parse_sentence, sentences
from iccm_assets.reference.readers.opening import ReaderError, checked, find_opening

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


def read(text: str) -> str:
    """Python for what the text probably means; ``ReaderError`` when it names nothing."""
    opening = find_opening(text)
    numbers = sorted(int(number[:15]) for number in _NUMBER.findall(text)[:64])
    typical = numbers[len(numbers) // 2] if numbers else 10
    parts = [part for sentence in sentences(text) if (part := _guess(sentence, typical)) is not None]
    statements = [part for part in parts if not isinstance(part, Signature)]
    if not statements:
        raise ReaderError("no sentence of the text can be guessed at")
    params = opening.params
    if (
        isinstance(parts[0], Signature)
        and parts[0].kind != "method"
        and len(set(parts[0].params)) == len(parts[0].params)
    ):
        params = parts[0].params
    if opening.is_class:
        return checked(_class(opening.name, params, parts))
    return checked(_Writer(opening.name, params).function(statements))


def _class(name: str, params: tuple[str, ...], parts: list[Signature | ast.Statement]) -> str:
    """Creation and methods, each with what is said after its name; two of one name are put together."""
    methods: dict[str, tuple[tuple[str, ...], list[ast.Statement]]] = {"__init__": (params, [])}
    current = methods["__init__"]
    for part in parts:
        if not isinstance(part, Signature):
            current[1].append(part)
        elif part.kind == "method":
            current = methods.setdefault(part.name, (part.params, []))
    own = tuple(
        part.action.target.name
        for _, statements in methods.values()
        for part in statements
        if isinstance(part, ast.Do | ast.WhenDo) and isinstance(part.action, ast.Set)
    )
    lines = [f"class {name}:"]
    for method, (names, statements) in methods.items():
        lines += [f"    {line}" for line in _Writer(method, names, own).method(statements)]
    return "\n".join(lines) + "\n"


def _guess(sentence: str, typical: int) -> Signature | ast.Statement | None:
    plain = sentence
    for pattern, phrase in _SYNONYMS:
        plain = pattern.sub(phrase, plain)
    plain = _SMALL.sub(f"is less than {typical}", plain)
    plain = _LARGE.sub(f"is more than {typical}", plain)
    plain = _LIMIT.sub(str(typical), plain)
    tail = _RETURN.search(plain)
    attempts = [sentence, plain, plain.rstrip(".") + ".", *([f"It shall {tail[0]}"] if tail else [])]
    for attempt in attempts:
        try:
            return parse_sentence(attempt)
        except RequirementsError:
            continue
    return None


class _Writer:
    """Writes one function or method, line by line; ``own`` are the attributes of the object."""

    def __init__(self, name: str, params: tuple[str, ...], own: tuple[str, ...] = ()) -> None:
        self.name, self.params, self.own = name, params, own
        self.lines: list[str] = []
        self.count = 0

    def method(self, statements: list[ast.Statement]) -> list[str]:
        """The lines of a method; unlike a function's, its last condition is never taken for granted."""
        self._put(0, f"def {self.name}({', '.join(('self', *self.params))}):")
        self._put(1, "running = 0")
        for statement in statements:
            match statement:
                case ast.When(condition, outcome):
                    self._put(1, f"if {self._condition(condition)}:")
                    self._finish(2, outcome)
                case ast.Otherwise(outcome) | ast.Always(outcome):
                    self._finish(1, outcome)
                case ast.Do(action):
                    self._act(1, action)
                case ast.WhenDo(condition, action):
                    self._put(1, f"if {self._condition(condition)}:")
                    self._act(2, action)
        return self.lines

    def _act(self, depth: int, action: ast.Action) -> None:
        if isinstance(action, ast.Append):
            self._put(depth, f"{self._atom(action.target)} += [{self._chain(action.value)}]")
        else:
            value = self._expression(depth, action.value)
            self._put(depth, f"self.{action.target.name} = {value}")

    def function(self, statements: list[ast.Statement]) -> str:
        self._put(0, f"def {self.name}({', '.join(self.params)}):")
        looped = False
        last: ast.Outcome | None = None
        if not any(isinstance(part, ast.Start) for part in statements):
            self._put(1, "running = 0")
        for statement in statements:
            match statement:
                case ast.When(condition, outcome):
                    test = self._condition(condition)
                    self._put(1, f"if {test}:")
                    self._finish(2, outcome)
                    last = outcome
                case ast.Otherwise(outcome) | ast.Always(outcome):
                    self._finish(1, outcome)
                    last = None
                case ast.Start(value):
                    self._put(1, f"running = {value.value!r}")
                case ast.Each(source, _, _, _) if source is not None and not looped:
                    looped = True
                    self._run_along(source, statements)
        if last is not None:
            self._finish(1, last)
        return "\n".join(self.lines) + "\n"

    def _put(self, depth: int, line: str) -> None:
        self.lines.append("    " * depth + line)

    def _run_along(self, source: ast.Name, statements: list[ast.Statement]) -> None:
        self._put(1, f"for element in {self._atom(source)}:")
        for each in (part for part in statements if isinstance(part, ast.Each)):
            test = " and ".join(self._test(test) for test in each.tests)
            amount = self._chain(each.amount)
            sign = "+" if each.op == "add" else "-"
            self._put(2, f"if {test or 'True'}:")
            self._put(3, f"running = running {sign} ({amount})")
            for keep in self._keeps(statements):
                self._put(3, keep)
            self._put(3, "continue")
        for keep in self._keeps(statements):
            self._put(2, keep)

    def _keeps(self, statements: list[ast.Statement]) -> Iterator[str]:
        for keep in statements:
            if isinstance(keep, ast.Keep):
                limit = repr(keep.limit.value)
                sign = "<" if keep.side == "at least" else ">"
                yield f"running = {limit} if running {sign} {limit} else running"

    def _finish(self, depth: int, outcome: ast.Outcome) -> None:
        match outcome:
            case ast.Raise(error):
                self._put(depth, f"raise {error}()")
            case ast.Return(value):
                self._put(depth, f"return {self._expression(depth, value)}")

    def _expression(self, depth: int, expression: ast.Expression) -> str:
        match expression:
            case ast.Chain():
                return self._chain(expression)
            case ast.Edited(name, edits):
                return self._edited(depth, self._atom(name), edits)
            case ast.Items():
                return self._collected(depth, expression)
            case ast.Aggregate():
                return self._aggregated(depth, expression)
            case ast.Whether(condition):
                return f"True if {self._condition(condition)} else False"
            case ast.Limited(value, low, high):
                var = self._new()
                self._put(depth, f"{var} = {self._chain(value)}")
                if high:
                    self._put(depth, f"if {var} > {high.value!r}: {var} = {high.value!r}")
                if low:
                    self._put(depth, f"if {var} < {low.value!r}: {var} = {low.value!r}")
                return var
            case ast.EndItem(end, source, taken):
                code, at = self._atom(source), -1 if end == "last" else 0
                if not taken:
                    return f"{code}[{at}]"
                var = self._new()
                self._put(depth, f"{var} = {code}[{at}]")
                self._put(depth, f"del {code}[{at}]")
                return var
            case ast.EmptyList():
                return "[]"

    def _new(self) -> str:
        self.count += 1
        return f"held_{self.count}"

    def _edited(self, depth: int, code: str, edits: tuple[ast.Edit, ...]) -> str:
        var = self._new()
        self._put(depth, f"{var} = {code}")
        for edit in edits:
            args = [repr(arg.value) for arg in edit.args]
            change = {
                "stripped": f"{var}.strip()",
                "in lower case": f"{var}.lower()",
                "in upper case": f"{var}.upper()",
                "capitalised": f"{var}.capitalize()",
                "replaced": f"{var}.replace({', '.join(args)})",
                "cut": f"{var}[0:{''.join(args)}]",
                "in front": f"{''.join(args)} + {var}",
                "at the end": f"{var} + {''.join(args)}",
                "sorted": f"sorted({var})",
                "reversed": f"{var}[::-1]",
                "without repeats": f"[one for at, one in enumerate({var}) if one not in {var}[:at]]",
            }[edit.kind]
            self._put(depth, f"{var} = {change}")
        return var

    def _collected(self, depth: int, items: ast.Items) -> str:
        var = self._new()
        self._put(depth, f"{var} = []")
        self._put(depth, f"for element in {self._atom(items.source)}:")
        tests = " and ".join(self._test(test) for test in items.tests)
        self._put(depth + 1, f"if {tests or 'True'}:")
        self._put(depth + 2, f"{var}.append({self._steps('element', items.steps)})")
        return self._edited(depth, var, items.edits) if items.edits else var

    def _aggregated(self, depth: int, aggregate: ast.Aggregate) -> str:
        var = self._collected(depth, aggregate.items)
        match aggregate.kind:
            case "count":
                return f"len({var})"
            case "sum":
                return f"sum({var})"
        pick = "max" if aggregate.kind == "largest" else "min"
        last = 0 if aggregate.default is None else aggregate.default.value
        return f"{pick}({var}) if len({var}) else {last!r}"

    def _condition(self, condition: ast.Condition) -> str:
        return f" {condition.joiner} ".join(f"({self._test(test)})" for test in condition.tests)

    def _test(self, test: ast.Test) -> str:
        left = self._chain(test.left)
        match test:
            case ast.Empty():
                return f"not len({left})"
            case ast.Between(_, low, high):
                return f"not ({left} < {self._atom(low)} or {left} > {self._atom(high)})"
            case ast.Compare(_, op, right):
                return _compared(left, op, self._atom(right))

    def _chain(self, chain: ast.Chain) -> str:
        return self._steps(self._atom(chain.base), chain.steps)

    def _steps(self, code: str, steps: tuple[ast.Step, ...]) -> str:
        signs = {"plus": "+", "minus": "-", "times": "*", "divided by": "//", "modulo": "%"}
        for step in steps:
            code = f"({code} {signs[step.op]} {self._atom(step.operand)})"
        return code

    def _atom(self, atom: ast.Atom) -> str:
        match atom:
            case ast.Name(name):
                return name if name in self.params else self._nearest(name)
            case ast.Item():
                return "element"
            case ast.Total():
                return "running"
            case ast.Own(name):
                near = [name] if name in self.own else get_close_matches(name, self.own, n=1, cutoff=0.0)
                return f"self.{(near or [name])[0]}"
            case ast.Size(of):
                return f"len({self._atom(of)})"
            case ast.Number(value) | ast.Text(value) | ast.Truth(value):
                return f"({value!r})"

    def _nearest(self, name: str) -> str:
        if not self.params:
            return "0"
        return (get_close_matches(name, self.params, n=1, cutoff=0.0) or [self.params[0]])[0]


def _compared(left: str, op: str, right: str) -> str:
    return {
        "is less than": f"{left} < {right}",
        "is at most": f"not {left} > {right}",
        "is more than": f"{left} > {right}",
        "is at least": f"not {left} < {right}",
        "is": f"{left} == {right}",
        "is not": f"not {left} == {right}",
        "is longer than": f"len({left}) > {right}",
        "is shorter than": f"len({left}) < {right}",
        "starts with": f"{left}[:len({right})] == {right}",
        "ends with": f"{left}.endswith({right})",
        "contains": f"{right} in {left}",
    }[op]
