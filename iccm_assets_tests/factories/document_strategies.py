"""Hypothesis strategies for documents: wider than what the families draw."""

from __future__ import annotations

from hypothesis import strategies as st

from iccm_assets.simulation.language import ast

names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
ints = st.builds(ast.NumberLiteral, st.integers(-999, 99_999))
numbers = ints | st.builds(ast.NumberLiteral, st.integers(-99_999, 99_999).map(lambda number: number / 1000))
texts = st.builds(
    ast.TextLiteral,
    st.text(st.characters(codec="utf-8", exclude_characters="'", exclude_categories=("Z", "C"))),
)
constants = numbers | texts | st.builds(ast.BoolLiteral, st.booleans())
sources = st.builds(ast.Parameter, names) | st.builds(ast.Attribute, names)
atoms = (
    constants
    | sources
    | st.builds(ast.Length, sources)
    | st.just(ast.CurrentItem())
    | st.just(ast.RunningTotal())
)
ops = st.sampled_from(("plus", "minus", "times", "divided by", "modulo"))
steps = st.lists(st.builds(ast.Step, ops, atoms), max_size=3).map(tuple)
chains = st.builds(ast.Chain, atoms, steps)
relations = st.sampled_from((
    "is less than", "is at most", "is more than", "is at least", "is not", "is", "is longer than",
    "is shorter than",
    "starts with", "ends with", "contains",
))  # fmt: skip


def tests(left: st.SearchStrategy[ast.Chain]) -> st.SearchStrategy:
    """Tests whose left side is drawn from ``left``."""
    return (
        st.builds(ast.Compare, left, relations, atoms)
        | st.builds(ast.IsEmpty, left)
        | st.builds(ast.IsBetween, left, atoms, atoms)
    )


item_tests = st.lists(tests(st.just(ast.Chain(ast.CurrentItem()))), max_size=3).map(tuple)
conditions = st.builds(
    lambda parts, joiner: ast.Condition(tuple(parts), joiner if len(parts) > 1 else "and"),
    st.lists(tests(chains), min_size=1, max_size=3),
    st.sampled_from(("and", "or")),
)
plain_edits = st.builds(
    ast.Edit, st.sampled_from(("stripped", "in lower case", "in upper case", "capitalised"))
)
text_edits = st.lists(
    plain_edits
    | st.builds(lambda old, new: ast.Edit("replaced", (old, new)), texts, texts)
    | st.builds(lambda size: ast.Edit("cut", (size,)), ints)
    | st.builds(
        lambda kind, text: ast.Edit(kind, (text,)), st.sampled_from(("in front", "at the end")), texts
    ),
    min_size=1,
    max_size=4,
).map(tuple)
list_edits = st.lists(
    st.builds(ast.Edit, st.sampled_from(("sorted", "reversed", "without repeats")))
    | st.builds(lambda size: ast.Edit("cut", (size,)), ints),
    max_size=3,
).map(tuple)
expressions = (
    chains
    | st.builds(ast.EditedText, st.builds(ast.Parameter, names), text_edits)
    | st.builds(ast.EndItem, st.sampled_from(("first", "last")), sources, st.booleans())
    | st.just(ast.EmptyList())
    | st.builds(ast.ListComp, sources, item_tests, steps, list_edits)
    | st.builds(
        ast.Aggregate,
        st.sampled_from(("count", "sum", "largest", "smallest")),
        st.builds(ast.ListComp, sources, item_tests),
        st.none() | constants,
    )
    | st.builds(ast.ConditionValue, conditions)
    | st.builds(ast.Clamp, chains, ints, st.none())
    | st.builds(ast.Clamp, chains, st.none(), ints)
    | st.builds(ast.Clamp, chains, ints, ints)
)
outcomes = st.builds(ast.Return, expressions) | st.builds(
    ast.Raise, st.sampled_from(("ValueError", "KeyError"))
)
actions = st.builds(ast.SetAttribute, st.builds(ast.Attribute, names), expressions) | st.builds(
    ast.Append, chains, st.builds(ast.Attribute, names)
)
moves = st.sampled_from(("add", "subtract"))
statements = (
    st.builds(ast.When, conditions, outcomes)
    | st.builds(ast.Otherwise, outcomes)
    | st.builds(ast.Always, outcomes)
    | st.builds(ast.InitTotal, numbers)
    | st.builds(ast.ActionStatement, actions)
    | st.builds(ast.ConditionalAction, conditions, actions)
    | st.builds(ast.ForEach, st.builds(ast.Parameter, names), item_tests, moves, chains)
    | st.builds(lambda op, amount: ast.ForEach(None, (), op, amount), moves, chains)
    | st.builds(ast.ClampTotal, st.sampled_from(("at least", "at most")), numbers)
)
params = st.lists(names, max_size=4, unique=True).map(tuple)
purposes = st.none() | st.lists(st.from_regex(r"[a-z]{1,9}", fullmatch=True), min_size=1, max_size=4).map(
    " ".join
)
bodies = st.lists(statements, min_size=1, max_size=5).map(tuple)
documents = st.builds(ast.FunctionDocument, names, params, bodies, purposes)
class_documents = st.builds(
    ast.ClassDocument,
    names,
    params,
    st.lists(statements, max_size=4).map(tuple),
    st.lists(st.builds(ast.FunctionDocument, names, params, bodies), min_size=1, max_size=3).map(tuple),
    purposes,
)
