"""Families of small classes with state: gauges and stacks (base), queues (new)."""

from __future__ import annotations

from random import Random

from iccm_assets.reference.document import (
    Aggregate,
    Always,
    Append,
    Atom,
    Chain,
    ClassDocument,
    Compare,
    Condition,
    Do,
    Document,
    Empty,
    EmptyList,
    EndItem,
    Expression,
    Item,
    Items,
    Limited,
    Name,
    Number,
    Outcome,
    Own,
    Raise,
    Return,
    Set,
    Size,
    Statement,
    Step,
    When,
)  # fmt: skip
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


def _returns(value: Expression | Atom) -> Always:
    is_atom = isinstance(value, Own | Name | Size | Number)
    return Always(Return(Chain(value) if is_atom else value))  # type: ignore[arg-type]


def _error(rng: Random, *others: str) -> Raise:
    return Raise(rng.choice(("ValueError", "ValueError", *others)))


def _gauges(rng: Random, words: Lexicon) -> Draft:
    """A number that methods raise and lower, inside limits."""
    level = Own(words.number_name())
    params, creation, cap = _gauge_creation(rng, words, level)
    methods = [_fill_gauge(rng, words, level, cap)]
    choices = rng.sample(("drain", "look", "reset"), rng.choice((1, 1, 2)))
    if "drain" in choices:
        methods.append(_drain_gauge(rng, words, level))
    if "look" in choices:
        steps = (Step(rng.choice(("times", "plus", "minus")), Number(rng.randint(2, 40))),)
        methods.append(Document(words.method_name(LOOKS), (), (_returns(Chain(level, steps)),)))
    if "reset" in choices:
        set_back = Do(Set(level, Chain(Number(rng.choice((0, 0, number(rng)))))))
        methods.append(Document(words.method_name(RESETS), (), (set_back,)))
    document = ClassDocument(words.class_name(), params, creation, tuple(methods), words.purpose())
    return _draft(document)


def _draft(document: ClassDocument, kinds: tuple[str, ...] = ()) -> Draft:
    kinds = kinds or tuple("int" for _ in document.params)
    return Draft(document, kinds, "", tuple(tuple("int" for _ in one.params) for one in document.methods))


def _gauge_creation(
    rng: Random, words: Lexicon, level: Own
) -> tuple[tuple[str, ...], tuple[Statement, ...], Own | None]:
    statements: list[Statement] = []
    params: list[str] = []
    if rng.random() < 0.5:
        params.append(words.number_name())
        statements += [*negative_guard(rng, params[0], 0.4), Do(Set(level, Chain(Name(params[0]))))]
    else:
        statements.append(Do(Set(level, Chain(Number(number(rng))))))
    if rng.random() < 0.7:
        return tuple(params), tuple(statements), None
    cap = Own(words.number_name())
    params.append(cap.name)
    return tuple(params), (*statements, Do(Set(cap, Chain(Name(cap.name))))), cap


def _fill_gauge(rng: Random, words: Lexicon, level: Own, cap: Own | None) -> Document:
    amount = words.number_name()
    gain = (Step("plus", Name(amount)),)
    statements: list[Statement] = [*negative_guard(rng, amount, 0.4)]
    if cap or rng.random() < 0.3:
        most = cap or Number(20 + number(rng))
        test = Compare(Chain(level, gain), "is more than", most)
        statements.append(When(Condition((test,)), _error(rng, "OverflowError")))
        statements.append(Do(Set(level, Chain(level, gain))))
    elif rng.random() < 0.5:
        statements.append(Do(Set(level, Limited(Chain(level, gain), None, Number(20 + number(rng))))))
    else:
        times = (Step("times", Number(rng.randint(2, 9))),) if rng.random() < 0.3 else ()
        statements.append(Do(Set(level, Chain(level, (*gain, *times)))))
    if rng.random() < 0.7:
        statements.append(_returns(level))
    return Document(words.method_name(FILLS), (amount,), tuple(statements))


def _drain_gauge(rng: Random, words: Lexicon, level: Own) -> Document:
    amount = words.number_name()
    loss = Chain(level, (Step("minus", Name(amount)),))
    if rng.random() < 0.6:
        test = Compare(Chain(Name(amount)), "is more than", level)
        change = (When(Condition((test,)), _error(rng, "RuntimeError")), Do(Set(level, loss)))
        return Document(words.method_name(DRAINS), (amount,), (*change, _returns(level)))
    low = Number(rng.choice((0, 0, number(rng))))
    return Document(
        words.method_name(DRAINS), (amount,), (Do(Set(level, Limited(loss, low, None))), _returns(level))
    )


def _stacks(rng: Random, words: Lexicon) -> Draft:
    """A list that is filled at its end and emptied from its end."""
    return _container(rng, words, "last")


def _queues(rng: Random, words: Lexicon) -> Draft:
    """A list that is filled at its end and emptied from its beginning."""
    return _container(rng, words, "first")


def _container(rng: Random, words: Lexicon, end: str) -> Draft:
    items = Own(words.list_name())
    creation: list[Statement] = [Do(Set(items, EmptyList()))]
    params: tuple[str, ...] = ()
    most: Own | Number = Number(rng.randint(1, 4))
    if rng.random() < 0.5:
        most = Own(words.number_name())
        params = (most.name,)
        creation += [Do(Set(most, Chain(Name(most.name))))]
        creation[:0] = negative_guard(rng, most.name, 0.3)
    value = words.number_name()
    push: list[Statement] = [*negative_guard(rng, value, 0.25)]
    if isinstance(most, Own) or rng.random() < 0.5:
        full = Compare(Chain(Size(items)), "is at least", most)
        push.append(When(Condition((full,)), _error(rng, "OverflowError", "IndexError")))
    steps = (Step(rng.choice(("times", "plus")), Number(rng.randint(2, 20))),) if rng.random() < 0.3 else ()
    push.append(Do(Append(Chain(Name(value), steps), items)))
    if rng.random() < 0.5:
        push.append(_returns(Size(items)))
    fault = _error(rng, "IndexError") if rng.random() < 0.8 else give(number(rng))
    empty = When(Condition((Empty(Chain(items)),)), fault)
    pop = (empty, _returns(EndItem(end, items, taken=True)))  # type: ignore[arg-type]
    methods = [
        Document(words.method_name(FILLS), (value,), tuple(push)),
        Document(words.method_name(DRAINS), (), pop),
    ]
    if rng.random() < 0.5:
        methods.append(Document(words.method_name(LOOKS), (), _look(rng, items, end, empty)))
    document = ClassDocument(words.class_name(), params, tuple(creation), tuple(methods), words.purpose())
    return _draft(document)


def _look(rng: Random, items: Own, end: str, empty: When) -> tuple[Statement, ...]:
    roll = rng.random()
    if roll < 0.35:
        return (_returns(Size(items)),)
    if roll < 0.7:
        return (empty, _returns(EndItem(end, items)))  # type: ignore[arg-type]
    test = Compare(Chain(Item()), rng.choice(("is more than", "is less than")), Number(number(rng)))
    kind = rng.choice(("count", "sum"))
    return (_returns(Aggregate(kind, Items(items, (test,)))),)  # type: ignore[arg-type]


# ---- Python


def _write(document: ClassDocument, style: str, rng: Random) -> list[str]:
    lines = [f"class {document.name}:"]
    if document.purpose:
        lines += [f'{INDENT}"""{rng.choice(("The {}.", "Keeps the {}."))}"""'.format(document.purpose), ""]
    creation = Document("__init__", document.params, document.statements)
    for number_, method in enumerate((creation, *document.methods)):
        lines += [""] if number_ else []
        lines.append(f"{INDENT}def {method.name}({', '.join(('self', *method.params))}):")
        for statement in method.statements:
            lines += [INDENT * 2 + line for line in _statement(statement, style, rng)]
    return lines


def _statement(statement: Statement, style: str, rng: Random) -> list[str]:
    match statement:
        case When(condition, outcome):
            return [f"if {py_condition(condition, rng)}:", INDENT + py_outcome(outcome, rng)]
        case Always(outcome):
            return _ending(outcome, style, rng)
        case Do(Append(value, target)):
            into, code = py_atom(target), py_chain(value)
            return [f"{into} += [{code}]" if style == "short" else f"{into}.append({code})"]
        case Do(Set(target, value)):
            return _assignment(py_atom(target), target, value, style)
    raise AssertionError(statement)


def _assignment(name: str, target: Own, value: Expression, style: str) -> list[str]:
    match value:
        case EmptyList():
            return [f"{name} = []"]
        case Chain(base, (Step(op, operand),)) if base == target and style == "short":
            return [f"{name} {_SYMBOLS[op]}= {py_atom(operand)}"]
        case Chain():
            return [f"{name} = {py_chain(value)}"]
        case Limited(chain, low, high):
            limit = low or high
            assert limit is not None
            if style == "checked":
                sign = "<" if low else ">"
                return [*_assignment(name, target, chain, "short"), f"if {name} {sign} {limit.value}:",
                        f"{INDENT}{name} = {limit.value}"]  # fmt: skip
            return [f"{name} = {'max' if low else 'min'}({py_chain(chain)}, {limit.value})"]
    raise AssertionError(value)


def _ending(outcome: Outcome, style: str, rng: Random) -> list[str]:
    assert isinstance(outcome, Return)
    match outcome.value:
        case EndItem(end, source, taken):
            name, at = py_atom(source), "-1" if end == "last" else "0"
            if not taken:
                return [f"return {name}[{at}]"]
            if style == "checked":
                var = rng.choice(("found", "one", "value"))
                return [f"{var} = {name}[{at}]", f"del {name}[{at}]", f"return {var}"]
            return [f"return {name}.pop({'' if end == 'last' else at})"]
        case Aggregate(kind, items):
            test = py_test(items.tests[0], rng, "x")
            value = "1" if kind == "count" else "x"
            return [f"return sum({value} for x in {py_atom(items.source)} if {test})"]
    return [py_outcome(outcome, rng)]


STYLES = ("plain", "short", "checked")
GAUGES = Family("gauges", _gauges, _write, STYLES)
STACKS = Family("stacks", _stacks, _write, STYLES)
QUEUES = Family("queues", _queues, _write, STYLES)
