"""Hypothesis strategies for documents: wider than what the families draw."""

from __future__ import annotations

from hypothesis import strategies as st

from iccm_assets.reference.document import (
    Aggregate,
    Always,
    Append,
    Between,
    Chain,
    ClassDocument,
    Compare,
    Condition,
    Do,
    Document,
    Each,
    Edit,
    Edited,
    Empty,
    EmptyList,
    EndItem,
    Item,
    Items,
    Keep,
    Limited,
    Name,
    Number,
    Otherwise,
    Own,
    Raise,
    Return,
    Set,
    Size,
    Start,
    Step,
    Text,
    Total,
    Truth,
    When,
    WhenDo,
    Whether,
)  # fmt: skip

names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
ints = st.builds(Number, st.integers(-999, 99_999))
numbers = ints | st.builds(Number, st.integers(-99_999, 99_999).map(lambda number: number / 1000))
texts = st.builds(
    Text, st.text(st.characters(codec="utf-8", exclude_characters="'", exclude_categories=("Z", "C")))
)
constants = numbers | texts | st.builds(Truth, st.booleans())
sources = st.builds(Name, names) | st.builds(Own, names)
atoms = constants | sources | st.builds(Size, sources) | st.just(Item()) | st.just(Total())
ops = st.sampled_from(("plus", "minus", "times", "divided by", "modulo"))
steps = st.lists(st.builds(Step, ops, atoms), max_size=3).map(tuple)
chains = st.builds(Chain, atoms, steps)
relations = st.sampled_from((
    "is less than", "is at most", "is more than", "is at least", "is not", "is", "is longer than",
    "is shorter than",
    "starts with", "ends with", "contains",
))  # fmt: skip


def tests(left: st.SearchStrategy[Chain]) -> st.SearchStrategy:
    """Tests whose left side is drawn from ``left``."""
    return (
        st.builds(Compare, left, relations, atoms)
        | st.builds(Empty, left)
        | st.builds(Between, left, atoms, atoms)
    )


item_tests = st.lists(tests(st.just(Chain(Item()))), max_size=3).map(tuple)
conditions = st.builds(
    lambda parts, joiner: Condition(tuple(parts), joiner if len(parts) > 1 else "and"),
    st.lists(tests(chains), min_size=1, max_size=3),
    st.sampled_from(("and", "or")),
)
plain_edits = st.builds(Edit, st.sampled_from(("stripped", "in lower case", "in upper case", "capitalised")))
text_edits = st.lists(
    plain_edits
    | st.builds(lambda old, new: Edit("replaced", (old, new)), texts, texts)
    | st.builds(lambda size: Edit("cut", (size,)), ints)
    | st.builds(lambda kind, text: Edit(kind, (text,)), st.sampled_from(("in front", "at the end")), texts),
    min_size=1,
    max_size=4,
).map(tuple)
list_edits = st.lists(
    st.builds(Edit, st.sampled_from(("sorted", "reversed", "without repeats")))
    | st.builds(lambda size: Edit("cut", (size,)), ints),
    max_size=3,
).map(tuple)
expressions = (
    chains
    | st.builds(Edited, st.builds(Name, names), text_edits)
    | st.builds(EndItem, st.sampled_from(("first", "last")), sources, st.booleans())
    | st.just(EmptyList())
    | st.builds(Items, sources, item_tests, steps, list_edits)
    | st.builds(
        Aggregate,
        st.sampled_from(("count", "sum", "largest", "smallest")),
        st.builds(Items, sources, item_tests),
        st.none() | constants,
    )
    | st.builds(Whether, conditions)
    | st.builds(Limited, chains, ints, st.none())
    | st.builds(Limited, chains, st.none(), ints)
    | st.builds(Limited, chains, ints, ints)
)
outcomes = st.builds(Return, expressions) | st.builds(Raise, st.sampled_from(("ValueError", "KeyError")))
actions = st.builds(Set, st.builds(Own, names), expressions) | st.builds(
    Append, chains, st.builds(Own, names)
)
moves = st.sampled_from(("add", "subtract"))
statements = (
    st.builds(When, conditions, outcomes)
    | st.builds(Otherwise, outcomes)
    | st.builds(Always, outcomes)
    | st.builds(Start, numbers)
    | st.builds(Do, actions)
    | st.builds(WhenDo, conditions, actions)
    | st.builds(Each, st.builds(Name, names), item_tests, moves, chains)
    | st.builds(lambda op, amount: Each(None, (), op, amount), moves, chains)
    | st.builds(Keep, st.sampled_from(("at least", "at most")), numbers)
)
params = st.lists(names, max_size=4, unique=True).map(tuple)
purposes = st.none() | st.lists(st.from_regex(r"[a-z]{1,9}", fullmatch=True), min_size=1, max_size=4).map(
    " ".join
)
bodies = st.lists(statements, min_size=1, max_size=5).map(tuple)
documents = st.builds(Document, names, params, bodies, purposes)
class_documents = st.builds(
    ClassDocument,
    names,
    params,
    st.lists(statements, max_size=4).map(tuple),
    st.lists(st.builds(Document, names, params, bodies), min_size=1, max_size=3).map(tuple),
    purposes,
)
