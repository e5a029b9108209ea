"""A pool of further inputs, on which a mutant that a suite does not refuse may differ from the source.

Inputs are seeded mutations of the suite's own, which keep their types, with constants of the source and of
the tests; functions and methods that the suite never calls get typical values. Deterministic: the same
source and suite give the same pool. (D5)
"""

from __future__ import annotations

import ast
import hashlib
import marshal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from iccm_assets.suites.input_values import QuickRandom, ValueFactory
from iccm_assets.suites.known_calls import Arguments, find_literal_calls
from iccm_assets.suites.shared_values import attach_shared
from iccm_assets.suites.signatures import CallSignature, Target, find_targets
from iccm_assets.suites.source_edits import SourceText
from iccm_assets.suites.suite_values import list_references, refer_to
from iccm_assets.suites.test_suites import Suite

POOL_SIZE = 240
INPUTS_PER_UNTESTED = 60  # of a function or class that the suite never calls
MAX_POOL_SIZE = 480
MAX_STEPS = 10
MAX_POOL_BYTES = 2 << 20

Plan = tuple[Any, ...]


@dataclass
class _Calls:
    """The arguments that the suite calls something with; for a class also what it does with its objects."""

    arguments: list[Arguments] = field(default_factory=list)
    methods: dict[str, list[Arguments]] = field(default_factory=dict)
    attributes: dict[str, None] = field(default_factory=dict)
    shared: list[Mapping[str, Any]] = field(default_factory=list)  # values that arguments refer to


def build_pool(source: SourceText, suite: Suite, seed: str) -> list[Plan]:
    """Build a pool of distinct inputs, as plans of the judge's runner."""
    rng = QuickRandom(hashlib.sha256(seed.encode() + source.data).hexdigest())
    targets = {target.name: target for target in find_targets(source.tree)}
    texts = [SourceText.parse(text) for name, text in sorted(suite.files.items()) if name.endswith(".py")]
    tests = [text.tree for text in texts if text]
    values = ValueFactory(rng, [source.tree, *tests])
    calls = _collect_calls(suite, tests, targets)
    for name in calls:
        first = name.partition(".")[0]
        targets.setdefault(first, Target(first, CallSignature()))
    plans: dict[bytes, Plan] = {}
    drawn = 0
    for name, size in _choose_sizes(calls, targets).items():
        end = min(MAX_POOL_SIZE, len(plans) + size)
        for _ in range(3 * size):
            if len(plans) >= end or drawn > MAX_POOL_BYTES:
                break
            plan = _draw_plan(name, calls.get(name, _Calls()), targets.get(name), values)
            written = marshal.dumps(plan, 2)  # no repr: an integer may be too long for it
            drawn += len(written)
            plans.setdefault(written, plan)
    return list(plans.values())


def _choose_sizes(calls: Mapping[str, _Calls], targets: Mapping[str, Target]) -> dict[str, int]:
    """Return the number of inputs by name: what the suite calls shares the pool, the rest gets a few."""
    tested = [name for name in calls if calls[name].arguments or calls[name].methods]
    untested = [name for name in targets if name not in calls and not name.startswith("_")]
    share = max(1, POOL_SIZE // max(1, len(tested)))
    return {**dict.fromkeys(tested, share), **dict.fromkeys(untested, INPUTS_PER_UNTESTED)}


def _draw_plan(name: str, calls: _Calls, target: Target | None, values: ValueFactory) -> Plan:
    values.references = [refer_to(item) for item in sorted({item for own in calls.shared for item in own})]
    return _share_values(_draw_calls(name, calls, target, values), calls.shared, values)


def _share_values(plan: Plan, tables: Sequence[Mapping[str, Any]], values: ValueFactory) -> Plan:
    """Add to a plan that refers to shared values those of a case that has all of these names."""
    names = set(list_references(list(plan[2:]))) if tables else set()
    fitting = [table for table in tables if names <= table.keys()] if names else []
    if not fitting:
        return plan
    table = values.rng.choice(fitting)
    values.references = [refer_to(name) for name in table]
    return attach_shared(plan, {name: values.mutate(table[name]) for name in table})


def _draw_calls(name: str, calls: _Calls, target: Target | None, values: ValueFactory) -> Plan:
    args, kwargs = _draw_arguments(values, calls.arguments, target.signature if target else CallSignature())
    declared = target.methods if target else {}
    parts = sorted({*calls.methods, *declared, *calls.attributes})
    if not parts:
        return ("call", name, args, kwargs)
    steps: list[tuple[Any, ...]] = []
    for part in values.rng.choices(parts, k=values.rng.randint(1, MAX_STEPS)):
        if part in calls.attributes:
            steps.append((part, None, None))
        else:
            signature = declared.get(part, CallSignature())
            steps.append((part, *_draw_arguments(values, calls.methods.get(part, []), signature)))
    return ("new", name, args, kwargs, steps)


def _draw_arguments(values: ValueFactory, known: Sequence[Arguments], signature: CallSignature) -> Arguments:
    """Draw arguments: changed ones of the suite, or typical ones where it has none."""
    if not known:
        positional = [item.type for item in signature.parameters if not item.is_keyword]
        return [values.draw(kind) for kind in positional], {}
    args, kwargs = values.rng.choice(known)
    if values.rng.random() < 0.3:  # parts of two known inputs together
        other = values.rng.choice(known)[0]
        if len(other) == len(args):
            args = [values.rng.choice(pair) for pair in zip(args, other, strict=True)]
    return values.mutate_arguments(args, kwargs)


def _collect_calls(
    suite: Suite, tests: Sequence[ast.Module], targets: Mapping[str, Target]
) -> dict[str, _Calls]:
    calls: dict[str, _Calls] = {}
    for case in suite.cases if suite.kind == "cases" else ():
        own = calls.setdefault(case.call.name, _Calls())
        own.arguments.append((case.call.args, case.call.kwargs))
        own.shared += [case.shared] if case.shared else []
        for call, _ in case.steps or ():
            if call.is_attribute:
                own.attributes[call.name] = None
            else:
                own.methods.setdefault(call.name, []).append((call.args, call.kwargs))
    literal: dict[str, list[Arguments]] = {}
    for tree in tests:
        for name, arguments in find_literal_calls(tree):
            literal.setdefault(name, []).append(arguments)
    for name, target in targets.items():
        methods = {method: literal[method] for method in target.methods if method in literal}
        if methods or name in literal:
            calls[name] = _Calls(literal.get(name, []), methods)
    return calls
