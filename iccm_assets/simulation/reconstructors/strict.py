"""The strict reconstructor: translates statement by statement, or refuses the whole text.

``known`` holds the names a statement may use: parameters, ``<item>``, ``<total>`` and ``<its name>``.
"""

from __future__ import annotations

from collections.abc import Iterator

from iccm_assets.simulation.language import ast
from iccm_assets.simulation.language.grammar import RequirementsError, parse
from iccm_assets.simulation.reconstructors.signature import check_syntax, find_signature

_OPERATORS = {
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
_SIGNS = {"add": "+", "subtract": "-"}
_CLAMPS = {"at least": "max", "at most": "min"}
_INDEX = {"first": 0, "last": -1}
_AGGREGATES = {
    "count": "len({})",
    "sum": "sum({})",
    "largest": "max({}, default={})",
    "smallest": "min({}, default={})",
}


class _UnknownNameError(Exception):
    """The text uses something it has not introduced."""


def reconstruct(text: str) -> str:
    """Write Python for the text; if a sentence cannot be read, every call raises NotImplementedError."""
    signature = find_signature(text)
    try:
        document = parse(text)
        lines = _class(document) if isinstance(document, ast.ClassDocument) else _function(document)
    except (RequirementsError, _UnknownNameError):
        lines = [f"def {signature.name}(*args, **kwargs):", "    raise NotImplementedError"]
        if signature.is_class:
            lines = [
                f"class {signature.name}:",
                "    def __init__(self, *args, **kwargs):",
                f"    {lines[1]}",
            ]
    return check_syntax("\n".join(lines) + "\n")


def _function(document: ast.FunctionDocument) -> list[str]:
    body = [*_body(document, set(document.params)), "raise NotImplementedError"]
    return [f"def {document.name}({', '.join(document.params)}):", *(f"    {line}" for line in body)]


def _class(document: ast.ClassDocument) -> list[str]:
    """Write the class; using an attribute that the constructor does not set is refused."""
    constructor = ast.FunctionDocument("__init__", document.params, document.statements)
    actions = [part.action for part in document.statements if isinstance(part, ast.ActionStatement)]
    attributes = {f"<its {action.target.name}>" for action in actions if isinstance(action, ast.SetAttribute)}
    lines = [f"class {document.name}:"]
    for method in (constructor, *document.methods):
        known = {*method.params, *(() if method is constructor else attributes)}
        lines.append(f"    def {method.name}({', '.join(('self', *method.params))}):")
        lines += [f"        {line}" for line in (*_body(method, known), "return None")]
    return lines


def _body(document: ast.FunctionDocument, known: set[str]) -> Iterator[str]:
    loop_is_written = False
    for statement in document.statements:
        if isinstance(statement, ast.When | ast.ConditionalAction):
            yield f"if {_condition(statement.condition, known)}:"
        match statement:
            case ast.When(_, outcome):
                yield f"    {_outcome(outcome, known)}"
            case ast.Otherwise(outcome) | ast.Always(outcome):
                yield _outcome(outcome, known)
            case ast.InitTotal(value):
                known.add("<total>")
                yield f"_total = {value.value!r}"
            case ast.ForEach() if not loop_is_written:
                loop_is_written = True
                yield from _loop(document, known)
            case ast.ActionStatement(action):
                yield _action(action, known)
            case ast.ConditionalAction(_, action):
                yield f"    {_action(action, known)}"


def _action(action: ast.Action, known: set[str]) -> str:
    value = _value(action.value, known)
    if isinstance(action, ast.Append):
        return f"{_atom(action.target, known)}.append({value})"
    known.add(f"<its {action.target.name}>")
    return f"self.{action.target.name} = {value}"


def _loop(document: ast.FunctionDocument, known: set[str]) -> Iterator[str]:
    loops = [part for part in document.statements if isinstance(part, ast.ForEach)]
    source = loops[0].source
    if source is None or {loop.source for loop in loops} - {None, source}:
        raise _UnknownNameError
    yield f"for _item in {_atom(source, known)}:"
    inner = known | {"<item>"}
    for keyword, loop in zip(("if", *["elif"] * len(loops)), loops, strict=False):
        yield f"    {keyword} {' and '.join(_test(test, inner) for test in loop.tests) or 'True'}:"
        yield f"        {_atom(ast.RunningTotal(), known)} {_SIGNS[loop.op]}= {_value(loop.amount, inner)}"
    for limit in (part for part in document.statements if isinstance(part, ast.ClampTotal)):
        yield f"    _total = {_CLAMPS[limit.side]}(_total, {limit.limit.value!r})"


def _outcome(outcome: ast.Outcome, known: set[str]) -> str:
    if isinstance(outcome, ast.Raise):
        return f"raise {outcome.error}"
    return f"return {_value(outcome.value, known)}"


def _value(expression: ast.Expression, known: set[str]) -> str:
    match expression:
        case ast.Chain(base, steps):
            return _steps(_atom(base, known), steps, known)
        case ast.EditedText(name, edits):
            return _edited(_atom(name, known), edits)
        case ast.ListComp(source, tests, steps, edits):
            inner = known | {"<item>"}
            value = _steps("_item", steps, inner)
            filters = "".join(f" if {_test(test, inner)}" for test in tests)
            return _edited(f"[{value} for _item in {_atom(source, known)}{filters}]", edits)
        case ast.Aggregate(kind, items, default):
            values, default_code = _value(items, known), default and repr(default.value)
            return _AGGREGATES[kind].format(values, default_code)
        case ast.ConditionValue(condition):
            return f"bool({_condition(condition, known)})"
        case ast.Clamp(chain, low, high):
            return _clamp(_value(chain, known), low, high)
        case ast.EndItem(end, source, removed):
            form = "{}.pop({})" if removed else "{}[{}]"
            return form.format(_atom(source, known), _INDEX[end])
        case ast.EmptyList():
            return "[]"


def _clamp(code: str, low: ast.NumberLiteral | None, high: ast.NumberLiteral | None) -> str:
    code = f"min({code}, {high.value!r})" if high else code
    return f"max({code}, {low.value!r})" if low else code


def _edited(code: str, edits: tuple[ast.Edit, ...]) -> str:
    for edit in edits:
        code = _EDITS[edit.kind].format(code, *(repr(arg.value) for arg in edit.args))
    return code


def _condition(condition: ast.Condition, known: set[str]) -> str:
    return f" {condition.joiner} ".join(_test(test, known) for test in condition.tests)


def _test(test: ast.Test, known: set[str]) -> str:
    left = _value(test.left, known)
    match test:
        case ast.IsEmpty():
            return f"len({left}) == 0"
        case ast.IsBetween(_, low, high):
            return f"({_atom(low, known)} <= {left} <= {_atom(high, known)})"
        case ast.Compare(_, op, right):
            return _OPERATORS[op].format(left, _atom(right, known))


def _steps(code: str, steps: tuple[ast.Step, ...], known: set[str]) -> str:
    for step in steps:
        code = _OPERATORS[step.op].format(code, _atom(step.operand, known))
    return code


def _atom(atom: ast.Atom, known: set[str]) -> str:
    match atom:
        case ast.NumberLiteral(value) | ast.TextLiteral(value) | ast.BoolLiteral(value):
            return f"({value!r})" if isinstance(value, int | float) and value < 0 else repr(value)
        case ast.Length(source):
            return f"len({_atom(source, known)})"
        case ast.Parameter(name):
            needed, code = name, name
        case ast.CurrentItem():
            needed, code = "<item>", "_item"
        case ast.RunningTotal():
            needed, code = "<total>", "_total"
        case ast.Attribute(name):
            needed, code = f"<its {name}>", f"self.{name}"
    if needed not in known:
        raise _UnknownNameError
    return code
