"""The strict reader: writes statement by statement, and nothing at all from a text it cannot read whole."""

from __future__ import annotations

from collections.abc import Iterator

from iccm_assets.reference import document as ast
from iccm_assets.reference.language import RequirementsError, parse
from iccm_assets.reference.readers.opening import checked, find_opening

_SIGNS = {
    "plus": "({} + {})", "minus": "({} - {})", "times": "({} * {})",
    "divided by": "({} // {})", "modulo": "({} % {})",
    "is less than": "{} < {}", "is at most": "{} <= {}", "is more than": "{} > {}", "is at least": "{} >= {}",
    "is": "{} == {}", "is not": "{} != {}", "is longer than": "len({}) > {}",
    "is shorter than": "len({}) < {}",
    "starts with": "{}.startswith({})", "ends with": "{}.endswith({})", "contains": "{1} in {0}",
}  # fmt: skip
_EDITS = {
    "stripped": "{0}.strip()", "in lower case": "{0}.lower()", "in upper case": "{0}.upper()",
    "capitalised": "{0}.capitalize()", "replaced": "{0}.replace({1}, {2})", "cut": "{0}[:{1}]",
    "in front": "({1} + {0})", "at the end": "({0} + {1})", "sorted": "sorted({0})", "reversed": "{0}[::-1]",
    "without repeats": "list(dict.fromkeys({0}))",
}  # fmt: skip


class _Refused(Exception):
    """Something the text uses has not been introduced."""


def read(text: str) -> str:
    """Python for the text; every call raises NotImplementedError when a sentence cannot be read."""
    opening = find_opening(text)
    try:
        document = parse(text)
        lines = _class(document) if isinstance(document, ast.ClassDocument) else _function(document)
        return checked("\n".join(lines) + "\n")
    except (RequirementsError, _Refused):
        refusal = ["(*args, **kwargs):", "    raise NotImplementedError"]
        if opening.is_class:
            return checked(
                f"class {opening.name}:\n    def __init__(self, {refusal[0][1:]}\n    {refusal[1]}\n"
            )
        return checked(f"def {opening.name}{refusal[0]}\n{refusal[1]}\n")


def _function(document: ast.Document) -> list[str]:
    body = [*_body(document, set(document.params)), "raise NotImplementedError"]
    return [f"def {document.name}({', '.join(document.params)}):", *(f"    {line}" for line in body)]


def _class(document: ast.ClassDocument) -> list[str]:
    """The class; an attribute that creating an object does not set is refused wherever it is used."""
    creation = ast.Document("__init__", document.params, document.statements)
    own: set[str] = set()
    for part in document.statements:
        if isinstance(part, ast.Do) and isinstance(part.action, ast.Set):
            own.add(f"<own {part.action.target.name}>")
    lines = [f"class {document.name}:"]
    for method in (creation, *document.methods):
        known = {*method.params, *(() if method is creation else own)}
        lines.append(f"    def {method.name}({', '.join(('self', *method.params))}):")
        lines += [f"        {line}" for line in (*_body(method, known), "return None")]
    return lines


def _body(document: ast.Document, known: set[str]) -> Iterator[str]:
    looped = False
    for statement in document.statements:
        match statement:
            case ast.When(condition, outcome):
                yield f"if {_condition(condition, known)}:"
                yield f"    {_outcome(outcome, known)}"
            case ast.Otherwise(outcome) | ast.Always(outcome):
                yield _outcome(outcome, known)
            case ast.Start(value):
                known.add("<total>")
                yield f"_total = {value.value!r}"
            case ast.Each() if not looped:
                looped = True
                yield from _loop(document, known)
            case ast.Do(action):
                yield _action(action, known)
            case ast.WhenDo(condition, action):
                yield f"if {_condition(condition, known)}:"
                yield f"    {_action(action, known)}"


def _action(action: ast.Action, known: set[str]) -> str:
    if isinstance(action, ast.Append):
        return f"{_atom(action.target, known)}.append({_chain(action.value, known)})"
    value = _expression(action.value, known)
    known.add(f"<own {action.target.name}>")
    return f"self.{action.target.name} = {value}"


def _loop(document: ast.Document, known: set[str]) -> Iterator[str]:
    eaches = [part for part in document.statements if isinstance(part, ast.Each)]
    source = eaches[0].source
    if source is None or any(each.source not in {None, source} for each in eaches):
        raise _Refused
    yield f"for _item in {_atom(source, known)}:"
    inner = known | {"<item>"}
    word = "if"
    for each in eaches:
        tests = " and ".join(_test(test, inner) for test in each.tests) or "True"
        yield f"    {word} {tests}:"
        sign = "+" if each.op == "add" else "-"
        yield f"        {_atom(ast.Total(), known)} {sign}= {_chain(each.amount, inner)}"
        word = "elif"
    for keep in document.statements:
        if isinstance(keep, ast.Keep):
            pick = "max" if keep.side == "at least" else "min"
            yield f"    _total = {pick}(_total, {keep.limit.value!r})"


def _outcome(outcome: ast.Outcome, known: set[str]) -> str:
    return (
        f"raise {outcome.error}"
        if isinstance(outcome, ast.Raise)
        else f"return {_expression(outcome.value, known)}"
    )


def _expression(expression: ast.Expression, known: set[str]) -> str:
    match expression:
        case ast.Chain():
            return _chain(expression, known)
        case ast.Edited(name, edits):
            return _edits(_atom(name, known), edits)
        case ast.Items(source, tests, steps, edits):
            inner = known | {"<item>"}
            value = _steps("_item", steps, inner)
            kept = "".join(f" if {_test(test, inner)}" for test in tests)
            return _edits(f"[{value} for _item in {_atom(source, known)}{kept}]", edits)
        case ast.Aggregate(kind, items, default):
            found = _expression(items, known)
            if kind in {"count", "sum"}:
                return f"{'len' if kind == 'count' else 'sum'}({found})"
            last = "None" if default is None else repr(default.value)
            return f"{'max' if kind == 'largest' else 'min'}({found}, default={last})"
        case ast.Whether(condition):
            return f"bool({_condition(condition, known)})"
        case ast.Limited(value, low, high):
            code = _chain(value, known)
            code = f"min({code}, {high.value!r})" if high else code
            return f"max({code}, {low.value!r})" if low else code
        case ast.EndItem(end, source, taken):
            at = -1 if end == "last" else 0
            return f"{_atom(source, known)}{f'.pop({at})' if taken else f'[{at}]'}"
        case ast.EmptyList():
            return "[]"


def _edits(code: str, edits: tuple[ast.Edit, ...]) -> str:
    for edit in edits:
        code = _EDITS[edit.kind].format(code, *(repr(arg.value) for arg in edit.args))
    return code


def _condition(condition: ast.Condition, known: set[str]) -> str:
    return f" {condition.joiner} ".join(_test(test, known) for test in condition.tests)


def _test(test: ast.Test, known: set[str]) -> str:
    left = _chain(test.left, known)
    match test:
        case ast.Empty():
            return f"len({left}) == 0"
        case ast.Between(_, low, high):
            return f"({_atom(low, known)} <= {left} <= {_atom(high, known)})"
        case ast.Compare(_, op, right):
            return _SIGNS[op].format(left, _atom(right, known))


def _chain(chain: ast.Chain, known: set[str]) -> str:
    return _steps(_atom(chain.base, known), chain.steps, known)


def _steps(code: str, steps: tuple[ast.Step, ...], known: set[str]) -> str:
    for step in steps:
        code = _SIGNS[step.op].format(code, _atom(step.operand, known))
    return code


def _atom(atom: ast.Atom, known: set[str]) -> str:
    match atom:
        case ast.Number(value) | ast.Text(value) | ast.Truth(value):
            return f"({value!r})" if isinstance(value, int | float) and value < 0 else repr(value)
        case ast.Name(name):
            wanted, code = name, name
        case ast.Item():
            wanted, code = "<item>", "_item"
        case ast.Total():
            wanted, code = "<total>", "_total"
        case ast.Own(name):
            wanted, code = f"<own {name}>", f"self.{name}"
        case ast.Size(of):
            return f"len({_atom(of, known)})"
    if wanted not in known:
        raise _Refused
    return code
