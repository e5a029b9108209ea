"""Families of small classes with state: gauges and stacks (base), queues (new)."""

from __future__ import annotations

from random import Random

from iccm_assets.reference import document as ast
from iccm_assets.reference.families.writing import (
    INDENT,
    Draft,
    Family,
    give,
    negative_guard,
    number,
    py_atom,
    py_chain,
    py_condition,
    py_outcome,
    py_test,
)  # fmt: skip
from iccm_assets.reference.words import DRAINS, FILLS, LOOKS, RESETS, Lexicon

_SYMBOLS = {"plus": "+", "minus": "-", "times": "*"}


def _returns(value: ast.Expression | ast.Atom) -> ast.Always:
    is_atom = isinstance(value, ast.Own | ast.Name | ast.Size | ast.Number)
    return ast.Always(ast.Return(ast.Chain(value) if is_atom else value))  # type: ignore[arg-type]


def _error(rng: Random, *others: str) -> ast.Raise:
    return ast.Raise(rng.choice(("ValueError", "ValueError", *others)))


def _gauges(rng: Random, words: Lexicon) -> Draft:
    """A number that methods raise and lower, inside limits."""
    level = ast.Own(words.number_name())
    params, creation, cap = _gauge_creation(rng, words, level)
    methods = [_fill_gauge(rng, words, level, cap)]
    choices = rng.sample(("drain", "look", "reset"), rng.choice((1, 1, 2)))
    if "drain" in choices:
        methods.append(_drain_gauge(rng, words, level))
    if "look" in choices:
        steps = (ast.Step(rng.choice(("times", "plus", "minus")), ast.Number(rng.randint(2, 40))),)
        methods.append(ast.Document(words.method_name(LOOKS), (), (_returns(ast.Chain(level, steps)),)))
    if "reset" in choices:
        set_back = ast.Do(ast.Set(level, ast.Chain(ast.Number(rng.choice((0, 0, number(rng)))))))
        methods.append(ast.Document(words.method_name(RESETS), (), (set_back,)))
    document = ast.ClassDocument(words.class_name(), params, creation, tuple(methods), words.purpose())
    return _draft(document)


def _draft(document: ast.ClassDocument, kinds: tuple[str, ...] = ()) -> Draft:
    kinds = kinds or tuple("int" for _ in document.params)
    return Draft(document, kinds, "", tuple(tuple("int" for _ in one.params) for one in document.methods))


def _gauge_creation(
    rng: Random, words: Lexicon, level: ast.Own
) -> tuple[tuple[str, ...], tuple[ast.Statement, ...], ast.Own | None]:
    statements: list[ast.Statement] = []
    params: list[str] = []
    if rng.random() < 0.5:
        params.append(words.number_name())
        statements += [
            *negative_guard(rng, params[0], 0.4),
            ast.Do(ast.Set(level, ast.Chain(ast.Name(params[0])))),
        ]
    else:
        statements.append(ast.Do(ast.Set(level, ast.Chain(ast.Number(number(rng))))))
    if rng.random() < 0.7:
        return tuple(params), tuple(statements), None
    cap = ast.Own(words.number_name())
    params.append(cap.name)
    return tuple(params), (*statements, ast.Do(ast.Set(cap, ast.Chain(ast.Name(cap.name))))), cap


def _fill_gauge(rng: Random, words: Lexicon, level: ast.Own, cap: ast.Own | None) -> ast.Document:
    amount = words.number_name()
    gain = (ast.Step("plus", ast.Name(amount)),)
    statements: list[ast.Statement] = [*negative_guard(rng, amount, 0.4)]
    if cap or rng.random() < 0.3:
        most = cap or ast.Number(20 + number(rng))
        test = ast.Compare(ast.Chain(level, gain), "is more than", most)
        statements.append(ast.When(ast.Condition((test,)), _error(rng, "OverflowError")))
        statements.append(ast.Do(ast.Set(level, ast.Chain(level, gain))))
    elif rng.random() < 0.5:
        statements.append(
            ast.Do(ast.Set(level, ast.Limited(ast.Chain(level, gain), None, ast.Number(20 + number(rng)))))
        )
    else:
        times = (ast.Step("times", ast.Number(rng.randint(2, 9))),) if rng.random() < 0.3 else ()
        statements.append(ast.Do(ast.Set(level, ast.Chain(level, (*gain, *times)))))
    if rng.random() < 0.7:
        statements.append(_returns(level))
    return ast.Document(words.method_name(FILLS), (amount,), tuple(statements))


def _drain_gauge(rng: Random, words: Lexicon, level: ast.Own) -> ast.Document:
    amount = words.number_name()
    loss = ast.Chain(level, (ast.Step("minus", ast.Name(amount)),))
    if rng.random() < 0.6:
        test = ast.Compare(ast.Chain(ast.Name(amount)), "is more than", level)
        change = (ast.When(ast.Condition((test,)), _error(rng, "RuntimeError")), ast.Do(ast.Set(level, loss)))
        return ast.Document(words.method_name(DRAINS), (amount,), (*change, _returns(level)))
    low = ast.Number(rng.choice((0, 0, number(rng))))
    return ast.Document(
        words.method_name(DRAINS),
        (amount,),
        (ast.Do(ast.Set(level, ast.Limited(loss, low, None))), _returns(level)),
    )


def _stacks(rng: Random, words: Lexicon) -> Draft:
    """A list that is filled at its end and emptied from its end."""
    return _container(rng, words, "last")


def _queues(rng: Random, words: Lexicon) -> Draft:
    """A list that is filled at its end and emptied from its beginning."""
    return _container(rng, words, "first")


def _container(rng: Random, words: Lexicon, end: str) -> Draft:
    items = ast.Own(words.list_name())
    creation: list[ast.Statement] = [ast.Do(ast.Set(items, ast.EmptyList()))]
    params: tuple[str, ...] = ()
    most: ast.Own | ast.Number = ast.Number(rng.randint(1, 4))
    if rng.random() < 0.5:
        most = ast.Own(words.number_name())
        params = (most.name,)
        creation += [ast.Do(ast.Set(most, ast.Chain(ast.Name(most.name))))]
        creation[:0] = negative_guard(rng, most.name, 0.3)
    value = words.number_name()
    push: list[ast.Statement] = [*negative_guard(rng, value, 0.25)]
    if isinstance(most, ast.Own) or rng.random() < 0.5:
        full = ast.Compare(ast.Chain(ast.Size(items)), "is at least", most)
        push.append(ast.When(ast.Condition((full,)), _error(rng, "OverflowError", "IndexError")))
    steps = (
        (ast.Step(rng.choice(("times", "plus")), ast.Number(rng.randint(2, 20))),)
        if rng.random() < 0.3
        else ()
    )
    push.append(ast.Do(ast.Append(ast.Chain(ast.Name(value), steps), items)))
    if rng.random() < 0.5:
        push.append(_returns(ast.Size(items)))
    fault = _error(rng, "IndexError") if rng.random() < 0.8 else give(number(rng))
    empty = ast.When(ast.Condition((ast.Empty(ast.Chain(items)),)), fault)
    pop = (empty, _returns(ast.EndItem(end, items, taken=True)))  # type: ignore[arg-type]
    methods = [
        ast.Document(words.method_name(FILLS), (value,), tuple(push)),
        ast.Document(words.method_name(DRAINS), (), pop),
    ]
    if rng.random() < 0.5:
        methods.append(ast.Document(words.method_name(LOOKS), (), _look(rng, items, end, empty)))
    document = ast.ClassDocument(words.class_name(), params, tuple(creation), tuple(methods), words.purpose())
    return _draft(document)


def _look(rng: Random, items: ast.Own, end: str, empty: ast.When) -> tuple[ast.Statement, ...]:
    roll = rng.random()
    if roll < 0.35:
        return (_returns(ast.Size(items)),)
    if roll < 0.7:
        return (empty, _returns(ast.EndItem(end, items)))  # type: ignore[arg-type]
    test = ast.Compare(
        ast.Chain(ast.Item()), rng.choice(("is more than", "is less than")), ast.Number(number(rng))
    )
    kind = rng.choice(("count", "sum"))
    return (_returns(ast.Aggregate(kind, ast.Items(items, (test,)))),)  # type: ignore[arg-type]


# ---- Python


def _write(document: ast.ClassDocument, style: str, rng: Random) -> list[str]:
    lines = [f"class {document.name}:"]
    if document.purpose:
        lines += [f'{INDENT}"""{rng.choice(("The {}.", "Keeps the {}."))}"""'.format(document.purpose), ""]
    creation = ast.Document("__init__", document.params, document.statements)
    for number_, method in enumerate((creation, *document.methods)):
        lines += [""] if number_ else []
        lines.append(f"{INDENT}def {method.name}({', '.join(('self', *method.params))}):")
        for statement in method.statements:
            lines += [INDENT * 2 + line for line in _statement(statement, style, rng)]
    return lines


def _statement(statement: ast.Statement, style: str, rng: Random) -> list[str]:
    match statement:
        case ast.When(condition, outcome):
            return [f"if {py_condition(condition, rng)}:", INDENT + py_outcome(outcome, rng)]
        case ast.Always(outcome):
            return _ending(outcome, style, rng)
        case ast.Do(ast.Append(value, target)):
            into, code = py_atom(target), py_chain(value)
            return [f"{into} += [{code}]" if style == "short" else f"{into}.append({code})"]
        case ast.Do(ast.Set(target, value)):
            return _assignment(py_atom(target), target, value, style)
    raise AssertionError(statement)


def _assignment(name: str, target: ast.Own, value: ast.Expression, style: str) -> list[str]:
    match value:
        case ast.EmptyList():
            return [f"{name} = []"]
        case ast.Chain(base, (ast.Step(op, operand),)) if base == target and style == "short":
            return [f"{name} {_SYMBOLS[op]}= {py_atom(operand)}"]
        case ast.Chain():
            return [f"{name} = {py_chain(value)}"]
        case ast.Limited(chain, low, high):
            limit = low or high
            assert limit is not None
            if style == "checked":
                sign = "<" if low else ">"
                return [*_assignment(name, target, chain, "short"), f"if {name} {sign} {limit.value}:",
                        f"{INDENT}{name} = {limit.value}"]  # fmt: skip
            return [f"{name} = {'max' if low else 'min'}({py_chain(chain)}, {limit.value})"]
    raise AssertionError(value)


def _ending(outcome: ast.Outcome, style: str, rng: Random) -> list[str]:
    assert isinstance(outcome, ast.Return)
    match outcome.value:
        case ast.EndItem(end, source, taken):
            name, at = py_atom(source), "-1" if end == "last" else "0"
            if not taken:
                return [f"return {name}[{at}]"]
            if style == "checked":
                var = rng.choice(("found", "one", "value"))
                return [f"{var} = {name}[{at}]", f"del {name}[{at}]", f"return {var}"]
            return [f"return {name}.pop({'' if end == 'last' else at})"]
        case ast.Aggregate(kind, items):
            test = py_test(items.tests[0], rng, "x")
            value = "1" if kind == "count" else "x"
            return [f"return sum({value} for x in {py_atom(items.source)} if {test})"]
    return [py_outcome(outcome, rng)]


STYLES = ("plain", "short", "checked")
GAUGES = Family("gauges", _gauges, _write, STYLES)
STACKS = Family("stacks", _stacks, _write, STYLES)
QUEUES = Family("queues", _queues, _write, STYLES)
