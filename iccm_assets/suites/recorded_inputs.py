"""Inputs that a source accepts: from texts about it, by type hints, by trying types, by changing others.

``InputSearch`` proposes plans of the judge's runner and learns from what the source did with them. It knows
answers only; nothing of the source runs here. Deterministic: the same source, texts and answers give the
same plans. (D2)
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import marshal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from iccm_assets.suites.input_values import ValueFactory
from iccm_assets.suites.known_calls import MAX_KNOWN_CALLS, find_known_calls, find_known_sequences
from iccm_assets.suites.signatures import CallParameter, CallSignature, Target, find_node_type
from iccm_assets.suites.source_edits import SourceText
from iccm_assets.suites.source_variants import FIRST_COMPARISON
from iccm_assets.suites.suite_values import new_object
from iccm_assets.suites.type_guesses import (
    BY_METHOD,
    BY_PAIR,
    COMMON_TYPES,
    DRAWS_AGAIN,
    DRAWS_PER_TRIAL,
    LINKED_NAMES,
    MAX_LIKELY_TYPES,
    MAX_TRIALS,
    Types,
    choose_types,
    find_called,
    find_checked,
    find_compared,
    find_elements,
    find_used_methods,
    guess_by_name,
    guess_objects,
    guess_type,
    uses_pairs,
)
from iccm_assets.suites.value_types import INT, NONE, ValueType, is_open, list_functions

Plan = tuple[Any, ...]
Site = tuple[str, str]  # a function or class, and a method or ''

DRAWS_WITHOUT_ANY = 60  # while no input was accepted
MAX_COMBINATIONS = 60  # of types, for one site
ROUND_SIZE, ROUNDS = 225, 3
MAX_STEPS, MAX_PREPARATION = 7, 4
NODE_TYPE = "SimpleNamespace"
MAX_CHAIN, MAX_TREE_DEPTH = 5, 3  # of linked objects
COUNTS = ((0, 1, 2), (0, 0, 1))  # of further objects in a list, at first and deeper
EMPTY_SHARE = 0.08  # of lists and trees
MAX_CLASSES = 3  # whose objects are tried where no type is known


@dataclass(frozen=True)
class Proposal:
    """A plan, the site that it tries, the types it was drawn with; ``rank`` is 0 for what people wrote.

    ``size`` is the length of its text, once it is proposed.
    """

    plan: Plan
    site: Site
    types: Types | None = None
    rank: int = 1
    size: int = 0


@dataclass
class _Knowledge:
    """What is known of one site."""

    parameters: tuple[CallParameter, ...]
    rest: ValueType | None = None
    calls: list[tuple[list[Any], dict[str, Any]]] = field(default_factory=list)
    types: list[Types] = field(default_factory=list)
    trials: dict[Types, list[frozenset[int] | None]] = field(default_factory=dict)
    corpus: list[Proposal] = field(default_factory=list)


class InputSearch:
    """Searches inputs of the targets of one source."""

    def __init__(
        self, source: SourceText, targets: Sequence[Target], texts: Iterable[str], seed: str
    ) -> None:
        self.targets = {target.name: target for target in targets}
        self.rng = Random(hashlib.sha256(seed.encode() + source.data).hexdigest())
        self.values = ValueFactory(self.rng, [source.tree])
        self.used = find_used_methods(source.tree)
        self.called = find_called(source.tree)
        self.compared = find_compared(source.tree)
        self.checked, self.suggested = find_checked(source.tree)
        self.elements = find_elements(source.tree)
        self.uses_pairs = uses_pairs(source.tree)
        # Then also other types than the likely ones are meant.
        self.tells_types_apart = any(
            isinstance(node, ast.Name) and node.id in ("isinstance", "type") for node in ast.walk(source.tree)
        )
        self.sites: dict[Site, _Knowledge] = {}
        self.paths: set[frozenset[int]] = set()
        self.proposed: set[bytes] = set()
        texts = list(texts)
        known = find_known_calls(source, texts)
        classes = [target.name for target in targets if target.is_class]
        self.sequences = find_known_sequences(source, texts, classes)
        for target in targets:
            self._add_site((target.name, ""), target.signature, known)
            for method, signature in target.methods.items():
                self._add_site((target.name, method), signature, known)
            self.values.objects[target.name] = self._object_maker(target)
        self.node_type = find_node_type(source.tree)
        if self.node_type:
            self.values.objects[NODE_TYPE] = self._object_maker(self.node_type)

    def _add_site(self, site: Site, signature: CallSignature, known: dict[str, list[Any]]) -> None:
        calls = known.get(site[1] or site[0], [])
        self.sites[site] = _Knowledge(signature.parameters, signature.rest, list(calls))

    def _object_maker(self, target: Target) -> Callable[[int], Any]:
        """Return a function that makes an object, with a list or tree of further ones where it has links."""

        def make(depth: int) -> Any:
            if target.member_values:
                return new_object(target.name, [self.rng.choice(target.member_values)])
            if target.links and depth == 0 and self.rng.random() < EMPTY_SHARE:
                return None
            if len(target.links) == 2 and self.rng.random() < 0.5:
                return self._make_search_tree(target, sorted(self.rng.sample(range(-5, 30), 5)))
            chance, limit = (0.8, MAX_CHAIN) if len(target.links) == 1 else (0.6, MAX_TREE_DEPTH)
            links: dict[str, Any] = {
                link: make(depth + 1) if depth < limit and self.rng.random() < chance else None
                for link in target.links
            }
            if depth < MAX_TREE_DEPTH:
                counts = [(link, self.rng.choice(COUNTS[depth > 0])) for link in target.many_links]
                links |= {link: [make(depth + 1) for _ in range(count)] for link, count in counts if count}
            return self._make_object(target, depth, links)

        return make

    def _make_search_tree(self, target: Target, numbers: list[int]) -> Any:
        """Make a tree in whose order the numbers are sorted."""
        if not numbers or self.rng.random() < 0.1:
            return None
        middle = self.rng.randrange(len(numbers))
        parts = (numbers[:middle], numbers[middle + 1 :])
        links = {
            link: self._make_search_tree(target, part) for link, part in zip(target.links, parts, strict=True)
        }
        return self._make_object(target, MAX_TREE_DEPTH, links, numbers[middle])

    def _make_object(
        self, target: Target, depth: int, links: dict[str, Any], number: int | None = None
    ) -> Any:
        site = self.sites.get((target.name, ""), _Knowledge(target.signature.parameters))
        types = site.types[0] if site.types else tuple(item.type for item in site.parameters)
        args: list[Any] = []
        attributes: dict[str, Any] = {}
        for item, kind in zip(site.parameters, types, strict=True):
            if item.name in links or not (item.is_required or self.rng.random() < 0.6):
                break  # what follows is optional, too
            if is_open(kind):
                kind = next(iter(guess_objects(item.name, [target.name])), INT)
            value = number if kind == INT and number is not None else self.values.draw(kind, depth + 1)
            attributes |= {item.name: value} if item.is_keyword else {}
            args += [] if item.is_keyword else [value]
        if target.name != NODE_TYPE:
            links = {link: links[link] for link in links if links[link] is not None}
        return new_object(target.name, args, {}, attributes | links)

    # ---- proposals -------------------------------------------------------------------------------

    def propose_types(self, methods: bool) -> list[Proposal]:
        """Propose inputs that try types: of functions and constructors first, then of ``methods``."""
        sites = [site for site in self.sites if bool(site[1]) == methods and self._can_reach(site)]
        proposals: list[Proposal] = []
        share = max(14, MAX_TRIALS // max(1, len(sites)))
        for site in sites:
            own = list(self._propose_known(site))
            for types in self._list_types(site):
                self.sites[site].trials.setdefault(types, [])
                for number in range(DRAWS_PER_TRIAL):
                    own.append(Proposal(self._draw_plan(site, types, is_least=number == 0), site, types))
            proposals += own[:share]
        return self._keep_new(proposals)

    def propose_again(self, methods: bool) -> list[Proposal]:
        """Propose further inputs of the most likely types, so that each shows what it reaches."""
        proposals: list[Proposal] = []
        for site, knowledge in self.sites.items():
            if bool(site[1]) != methods or (len(knowledge.trials) < 2 and knowledge.types):
                continue
            count = DRAWS_AGAIN if knowledge.types else DRAWS_WITHOUT_ANY
            for types in knowledge.types or list(knowledge.trials)[:MAX_LIKELY_TYPES]:
                proposals += [Proposal(self._draw_plan(site, types), site, types) for _ in range(count)]
        return self._keep_new(proposals)

    def is_usable(self, proposal: Proposal) -> bool:
        """Whether an input has types that are kept."""
        return proposal.types is None or proposal.types in self.sites[proposal.site].types

    def propose_more(self) -> list[Proposal]:
        """Propose further inputs of what is known to accept some."""
        names = [name for name in self.targets if self._is_known((name, ""))]
        proposals: list[Proposal] = []
        share = max(10, ROUND_SIZE // max(1, len(names)))
        for name in names:
            target = self.targets[name]
            methods = [site for site in self.sites if site[0] == name and site[1] and self._is_known(site)]
            corpus = [item.plan for item in self.sites[name, ""].corpus if self.is_usable(item)]
            proposals += [self._propose(target, methods, corpus) for _ in range(share)]
        return self._keep_new(proposals)

    def learn(self, proposals: Sequence[Proposal], accepted: Sequence[frozenset[int] | None]) -> None:
        """Learn which inputs were accepted: the branches that each reached, None for those that were not."""
        for proposal, branches in zip(proposals, accepted, strict=True):
            if proposal.types is not None:
                # Which side of a comparison is larger says nothing about types.
                reached = None if branches is None else frozenset(n for n in branches if n < FIRST_COMPARISON)
                self.sites[proposal.site].trials.setdefault(proposal.types, []).append(reached)
        for site in dict.fromkeys(proposal.site for proposal in proposals if proposal.types is not None):
            self.sites[site].types = choose_types(self.sites[site].trials)
        for proposal, branches in zip(proposals, accepted, strict=True):
            if branches is None or not self.is_usable(proposal):
                continue
            if proposal.rank == 0 or branches not in self.paths:
                self.sites[proposal.site[0], ""].corpus.append(proposal)
                self.paths.add(branches)

    def repair(self, proposals: Iterable[tuple[Proposal, Sequence[bool]]]) -> list[Proposal]:
        """Propose sequences of calls without the steps that failed by accident; given is which were right."""
        repaired = []
        for proposal, is_right in proposals:
            steps = [step for step, right in zip(proposal.plan[4], is_right, strict=False) if right]
            if steps:
                repaired.append(Proposal((*proposal.plan[:4], steps), (proposal.site[0], "")))
        return self._keep_new(repaired)

    # ---- one site --------------------------------------------------------------------------------

    def _is_known(self, site: Site) -> bool:
        knowledge = self.sites[site]
        return bool(knowledge.types or knowledge.corpus)

    def _can_reach(self, site: Site) -> bool:
        return not site[1] or self._is_known((site[0], ""))

    def _propose_known(self, site: Site) -> Iterator[Proposal]:
        known = {*self.targets[site[0]].methods, *self.targets[site[0]].properties}
        for args, kwargs, steps in self.sequences.get(site[0], []) if not site[1] else []:
            steps = [step for step in steps if step[0] in known]
            if steps:
                yield Proposal(self._make_plan(site[0], args, kwargs, steps), site, rank=0)
        for args, kwargs in self.sites[site].calls[:MAX_KNOWN_CALLS]:
            if not site[1]:
                plan = self._make_plan(site[0], args, kwargs, [])
            else:
                plan = ("new", site[0], *self._draw_arguments((site[0], "")), [(site[1], args, kwargs)])
            yield Proposal(plan, site, rank=0)

    def _make_plan(self, name: str, args: list[Any], kwargs: dict[str, Any], steps: list[Any]) -> Plan:
        if self.targets[name].is_class:
            return ("new", name, args, kwargs, steps)
        return ("call", name, args, kwargs)

    def _draw_plan(self, site: Site, types: Types, is_least: bool = False) -> Plan:
        args, kwargs = self._draw_arguments(site, types, is_least)
        if not site[1]:
            return self._make_plan(site[0], args, kwargs, [])
        steps: list[Any] = []
        known = [other for other in self.sites if other[0] == site[0] and other[1] and self._is_known(other)]
        if known and self.rng.random() < 0.6:  # what fails on a new object may not on one that is filled
            steps = self._draw_steps(self.targets[site[0]], known)[:MAX_PREPARATION]
        return ("new", site[0], *self._draw_arguments((site[0], "")), [*steps, (site[1], args, kwargs)])

    def _draw_arguments(
        self, site: Site, types: Types | None = None, is_least: bool = False
    ) -> tuple[list[Any], dict[str, Any]]:
        knowledge = self.sites[site]
        if types is None and not knowledge.types and knowledge.calls:
            return self.values.mutate_arguments(*self.rng.choice(knowledge.calls))
        if types is None and self.tells_types_apart and self.rng.random() < 0.5:
            trials = self.sites[site].trials.items()
            types = self.rng.choice(
                [kinds for kinds, results in trials if results.count(None) < len(results)] or [None]
            )
        if types is None:
            types = (
                self.rng.choice(knowledge.types[:1] * 2 + knowledge.types)
                if knowledge.types
                else tuple(item.type for item in knowledge.parameters)
            )
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        self.values.choose_scale()
        is_complete, draw = True, self.values.draw_least if is_least else self.values.draw
        for parameter, kind in zip(knowledge.parameters, types, strict=True):
            is_given = parameter.is_required or self.rng.random() < 0.5
            if parameter.is_keyword:
                if is_given:
                    kwargs[parameter.name] = draw(kind)
            elif is_given and is_complete:
                args.append(draw(kind))
            else:
                is_complete = False  # what follows by position is left out, too
        if knowledge.rest is not None and is_complete:
            args += [self.values.draw(knowledge.rest) for _ in range(self.rng.randint(0, 3))]
        return args if is_least else self.values.relate(args), kwargs

    def _propose(self, target: Target, methods: list[Site], corpus: list[Plan]) -> Proposal:
        site = (target.name, "")
        if corpus and self.rng.random() < 0.5:
            return Proposal(self._change_plan(self.rng.choice(corpus), methods), site)
        args, kwargs = self._draw_arguments(site)
        return Proposal(self._make_plan(target.name, args, kwargs, self._draw_steps(target, methods)), site)

    def _draw_steps(self, target: Target, methods: list[Site]) -> list[Any]:
        """Draw calls of methods and, between them, reads of properties."""
        steps: list[Any] = []
        if not methods and not target.properties:
            return steps
        used: list[Any] = []
        repeated: list[Site] = []  # what a person does several times in a row, such as to add elements
        for _ in range(self.rng.randint(1, MAX_STEPS if self.rng.random() < 0.7 else 2 * MAX_STEPS)):
            if target.properties and (not methods or self.rng.random() < 0.3):
                steps.append((self.rng.choice(target.properties), None, None))
                continue
            if not repeated:
                repeated = [self.rng.choice(methods)] * self.rng.choice((1, 1, 1, 2, 4))
            method = repeated.pop()
            args, kwargs = self._draw_arguments(method)
            # What a call does often depends on what an earlier one was given.
            for index, value in enumerate(args):
                same = [other for other in used if type(other) is type(value)]
                if same and self.rng.random() < 0.5:
                    args[index] = self.rng.choice(same)
            used += args
            steps.append((method[1], args, kwargs))
        return steps

    def _change_plan(self, plan: Plan, methods: list[Site]) -> Plan:
        args, kwargs = self.values.mutate_arguments(plan[2], plan[3])
        if plan[0] == "call":
            return ("call", plan[1], args, kwargs)
        target = self.targets[plan[1]]
        steps = [
            (name, *(self.values.mutate_arguments(own, named) if own is not None else (None, None)))
            for name, own, named in plan[4]
        ]
        if self.rng.random() < 0.6:
            steps += self._draw_steps(target, methods)[:3]
        return ("new", plan[1], args, kwargs, steps[: 2 * MAX_STEPS])

    def _keep_new(self, proposals: list[Proposal]) -> list[Proposal]:
        kept: list[Proposal] = []
        for proposal in proposals:
            canonical = canonical_plan(proposal.plan)
            written = marshal.dumps(canonical, 2)
            if written not in self.proposed:
                self.proposed.add(written)
                kept.append(replace(proposal, size=len(repr(canonical))))
        return kept

    # ---- types -----------------------------------------------------------------------------------

    def _list_types(self, site: Site) -> list[Types]:
        """List combinations of types to try, the most likely first."""
        knowledge = self.sites[site]
        options = [self._list_options(site, index) for index in range(len(knowledge.parameters))]
        unknown = sum(len(kinds) > 1 for kinds in options)
        if unknown <= 1:
            return list(itertools.product(*options))[:MAX_COMBINATIONS]
        if unknown == 2:
            pairs = itertools.product(*(list(enumerate(kinds[:9])) for kinds in options))
            ordered = sorted(pairs, key=lambda pair: sum(index for index, _ in pair))
            return [tuple(kind for _, kind in pair) for pair in ordered][:MAX_COMBINATIONS]
        first = tuple(kinds[0] for kinds in options)
        same = [
            tuple(kind if len(kinds) > 1 else kinds[0] for kinds in options) for kind in COMMON_TYPES[:10]
        ]
        drawn = [
            tuple(kinds[min(int(self.rng.expovariate(0.6)), len(kinds) - 1)] for kinds in options)
            for _ in range(MAX_COMBINATIONS)
        ]
        return list(dict.fromkeys([first, *same, *drawn]))[:MAX_COMBINATIONS]

    def _list_options(self, site: Site, index: int) -> list[ValueType]:
        parameter = self.sites[site].parameters[index]
        if parameter.type.kind == "callable":
            known_count = parameter.type.values or (self.called.get(parameter.name),)
            return list_functions(known_count[0])
        if not is_open(parameter.type):
            return [parameter.type]
        written = [guess_type(args[index]) for args, _ in self.sites[site].calls if index < len(args)]
        name = parameter.name.lower().rstrip("0123456789_") or parameter.name
        named = guess_by_name(name)
        by_method = [
            kind for method in sorted(self.used.get(parameter.name, ())) for kind in BY_METHOD.get(method, ())
        ]
        classes = [item.name for item in self.targets.values() if item.is_class]
        objects = [ValueType("object", values=(name,)) for name in classes]
        linked = [kind for kind in objects if self.targets[kind.values[0]].links and name in LINKED_NAMES]
        if self.node_type and name in LINKED_NAMES:
            linked = [ValueType("object", values=(NODE_TYPE,))]
        return list(
            dict.fromkeys(
                [
                    *written,
                    *linked,
                    *guess_objects(parameter.name, classes),
                    *self.elements.get(parameter.name, ()),
                    *(list_functions(self.called[parameter.name]) if parameter.name in self.called else ()),
                    *self.compared.get(parameter.name, ()),
                    *self.checked.get(parameter.name, ()),
                    *by_method,
                    *named,
                    *self.suggested.get(parameter.name, ()),
                    *(kind for kind in COMMON_TYPES if not linked or kind != NONE),  # it is drawn, then
                    *([BY_PAIR] if self.uses_pairs else []),
                    *objects[:MAX_CLASSES],
                ]
            )
        )


def canonical_plan(value: Any) -> Any:
    """Return what is the same for the same plan: sets have no order."""
    kind = type(value)
    if kind is int or kind is str or value is None:
        return value
    if isinstance(value, set | frozenset):
        return ("set", sorted(map(repr, value)))
    if isinstance(value, dict):
        return [(canonical_plan(key), canonical_plan(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [kind.__name__, *map(canonical_plan, value)]
    return repr(value) if isinstance(value, float) else value
