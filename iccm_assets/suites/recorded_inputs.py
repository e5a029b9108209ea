"""Inputs that a source accepts: from texts about it, by type hints, by trying types, by changing others.

``InputSearch`` proposes plans of the judge's runner and learns from what the source did with them. It knows
answers only; nothing of the source runs here. Deterministic: the same source, texts and answers give the
same plans. (D2)
"""

from __future__ import annotations

import ast
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from iccm_assets.suites.drawn_objects import ObjectFactory
from iccm_assets.suites.input_values import QuickRandom, ValueFactory
from iccm_assets.suites.known_calls import MAX_KNOWN_CALLS, find_known_calls, find_known_sequences
from iccm_assets.suites.shared_values import attach_shared, get_shared
from iccm_assets.suites.signatures import (
    NODE_TYPE,
    CallParameter,
    CallSignature,
    Target,
    find_filling_methods,
    find_node_type,
)
from iccm_assets.suites.source_edits import SourceText, list_nodes
from iccm_assets.suites.source_variants import FIRST_COMPARISON
from iccm_assets.suites.type_guesses import (
    BY_METHOD,
    BY_PAIR,
    COMMON_TYPES,
    DRAWS_AGAIN,
    DRAWS_OF_LIKELIEST,
    DRAWS_PER_TRIAL,
    END_NAMES,
    LINKED_NAMES,
    MAX_LIKELY_TYPES,
    MAX_TRIALS,
    MIN_ACCEPTED,
    OF_SETS,
    Types,
    add_texts,
    choose_types,
    compares_identity,
    find_called,
    find_called_attributes,
    find_checked,
    find_compared,
    find_compared_texts,
    find_elements,
    find_fields,
    find_keyed,
    find_of_sets,
    find_pair_keyed,
    find_used_methods,
    find_used_of_elements,
    guess_by_name,
    guess_objects,
    guess_record,
    guess_type,
    uses_pairs,
)
from iccm_assets.suites.value_types import INT, NONE, TEXT, ValueType, is_open, list_functions

Plan = tuple[Any, ...]
Site = tuple[str, str]  # a function or class, and a method or ''

DRAWS_WITHOUT_ANY = 60  # while no input was accepted
MAX_COMBINATIONS = 60  # of types, for one site
ROUND_SIZE, ROUNDS = 225, 3
MAX_STEPS, MAX_PREPARATION = 7, 4
_SHOWN = frozenset({"record", "fields", "object", "dict", "list", "callable"})
ALL_GIVEN_SHARE = 0.3  # of calls, which give all that is optional
FILLED_SHARE, MAX_FILLING = 0.75, 6  # of the objects that can be, and calls of one
KEY_SHARE = 0.6  # of the arguments that the source looks up in others
MAX_MADE = 9  # combinations of types that a constructor accepts, which methods are tried with
MAX_CLASSES = 3  # whose objects are tried where no type is known


@dataclass(frozen=True)
class Proposal:
    """A plan, the site that it tries, the types it was drawn with; ``rank`` is 0 for what people wrote.

    ``size`` is the length of its text, once it is proposed. Of a method, ``made`` are the types that the
    constructor was given, where several are tried.
    """

    plan: Plan
    site: Site
    types: Types | None = None
    rank: int = 1
    size: int = 0
    made: Types | None = None


@dataclass
class _Knowledge:
    """What is known of one site."""

    parameters: tuple[CallParameter, ...]
    rest: ValueType | None = None
    calls: list[tuple[list[Any], dict[str, Any]]] = field(default_factory=list)
    types: list[Types] = field(default_factory=list)
    trials: dict[Types, list[frozenset[int] | None]] = field(default_factory=dict)
    tried_again: set[Types] = field(default_factory=set)
    corpus: list[Proposal] = field(default_factory=list)


class InputSearch:
    """Searches inputs of the targets of one source."""

    def __init__(
        self, source: SourceText, targets: Sequence[Target], texts: Iterable[str], seed: str
    ) -> None:
        self.targets = {target.name: target for target in targets}
        self.rng = QuickRandom(hashlib.sha256(seed.encode() + source.data).hexdigest())
        self.values = ValueFactory(self.rng, [source.tree])
        self.objects = ObjectFactory(self.rng, self.values, self._find_types, self._draw_filling)
        self.filling = {name: find_filling_methods(target) for name, target in self.targets.items()}
        self.is_filling = False  # objects in the arguments of calls that fill one are not filled themselves
        self.tells_objects_apart = self.objects.has_circles = compares_identity(source.tree)
        self.used = find_used_methods(source.tree)
        self.used_of_elements = find_used_of_elements(source.tree)
        self.called = find_called(source.tree)
        self.compared = find_compared(source.tree)
        self.checked, self.suggested = find_checked(source.tree)
        self.elements = find_elements(source.tree)
        self.compared_texts = find_compared_texts(source.tree)
        self.keyed, self.of_sets = find_keyed(source.tree), find_of_sets(source.tree)
        self.fields = find_fields(source.tree)
        self.called_attributes = find_called_attributes(source.tree)
        self.uses_pairs = uses_pairs(source.tree)
        self.pair_keyed = find_pair_keyed(source.tree)
        # Then also other types than the likely ones are meant.
        names = [node.id for node in list_nodes(source.tree) if isinstance(node, ast.Name)]
        self.tells_types_apart = "isinstance" in names or "type" in names
        self.sites: dict[Site, _Knowledge] = {}
        self.paths: set[frozenset[int]] = set()
        self.proposed: set[str] = set()
        texts = list(texts)
        known = find_known_calls(source, texts)
        classes = [target.name for target in targets if target.is_class]
        self.sequences = find_known_sequences(source, texts, classes)
        for target in targets:
            self._add_site((target.name, ""), target.signature, known)
            for method, signature in target.methods.items():
                self._add_site((target.name, method), signature, known)
            self.objects.add(target)
        self.node_type = find_node_type(source.tree)
        if self.node_type:
            self.objects.add(self.node_type)

    def _add_site(self, site: Site, signature: CallSignature, known: dict[str, list[Any]]) -> None:
        calls = known.get(site[1] or site[0], [])
        self.sites[site] = _Knowledge(signature.parameters, signature.rest, list(calls))

    def _find_types(self, target: Target) -> Iterator[tuple[CallParameter, ValueType]]:
        """Find what a constructor is given: the types that are known to be accepted, or those of hints."""
        site = self.sites.get((target.name, ""), _Knowledge(target.signature.parameters))
        types = site.types[0] if site.types else tuple(item.type for item in site.parameters)
        return zip(site.parameters, types, strict=True)

    def _draw_filling(self, target: Target, given: list[Any]) -> list[Any]:
        """Draw calls of methods that change an object and return nothing, as far as these are known."""
        if target.name not in self.targets or self.is_filling or self.rng.random() > FILLED_SHARE:
            return []
        filling = self.filling[target.name]
        methods = [
            site
            for site in self.sites
            if site[0] == target.name and site[1] in filling and self._is_known(site)
        ]
        if not methods:
            return []
        self.is_filling = True
        calls: list[Any] = []
        chosen = [self.rng.choice(methods) for _ in range(self.rng.randint(1, 2))]
        for _ in range(self.rng.randint(1, MAX_FILLING)):
            site = self.rng.choice(chosen)
            args, kwargs = self._draw_arguments(site)
            calls.append((site[1], self.values.choose_parts(args, given), kwargs))
        self.is_filling = False
        return calls

    def _may_share(self, site: Site) -> bool:
        """Whether two arguments, or nodes of one, may be the same object: where the source can tell."""
        if not self.objects.linked:
            return False
        if self.tells_objects_apart or any(item.many_links for item in self.objects.linked.values()):
            return True
        names = [item.name for item in self.sites[site].parameters]
        kinds = [item.type.kind == "object" for item in self.sites[site].parameters]
        linked = list(self.objects.linked)
        likely = [bool(guess_objects(name, linked)) or name in LINKED_NAMES for name in names]
        return sum(map(max, kinds, likely)) > 1

    def share_nodes(self) -> bool:
        """Give nodes names, by which alone what refers to itself is written; False if they had some."""
        was_sharing = self.tells_objects_apart or not self.objects.linked
        self.tells_objects_apart = True
        return not was_sharing

    # ---- proposals -------------------------------------------------------------------------------

    def propose_types(self, methods: bool) -> list[Proposal]:
        """Propose inputs that try types: of functions and constructors first, then of ``methods``."""
        sites = [site for site in self.sites if bool(site[1]) == methods and self._can_reach(site)]
        proposals: list[Proposal] = []
        share = max(14, MAX_TRIALS // max(1, len(sites)))
        for site in sites:
            own = list(self._propose_known(site))
            for place, types in enumerate(self._list_types(site)):
                self.sites[site].trials.setdefault(types, [])
                for number in range(DRAWS_PER_TRIAL if place else DRAWS_OF_LIKELIEST):
                    own.append(self._draw_proposal(site, types, is_least=number == 0))
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
                knowledge.tried_again.add(types)
                proposals += [self._draw_proposal(site, types) for _ in range(count)]
        return self._keep_new(proposals)

    def is_usable(self, proposal: Proposal) -> bool:
        """Whether an input has types that are kept."""
        if proposal.made is not None and proposal.made not in self.sites[proposal.site[0], ""].types:
            return False
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
            if proposal.made is not None and branches is not None:
                # A constructor may take anything: what its objects can do then says what is meant.
                self.sites[proposal.site[0], ""].tried_again.add(proposal.made)
                self.sites[proposal.site[0], ""].trials[proposal.made].append(reached)
        sites = [proposal.site for proposal in proposals if proposal.types is not None]
        sites += [(proposal.site[0], "") for proposal in proposals if proposal.made is not None]
        for site in dict.fromkeys(sites):
            knowledge = self.sites[site]
            knowledge.types = choose_types(knowledge.trials, knowledge.tried_again)
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
                plan = attach_shared((*proposal.plan[:4], steps), get_shared(proposal.plan))
                repaired.append(Proposal(plan, (proposal.site[0], "")))
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

    def _draw_proposal(self, site: Site, types: Types, is_least: bool = False) -> Proposal:
        made = self._choose_made(site[0]) if site[1] else None
        return Proposal(self._draw_plan(site, types, made, is_least), site, types, made=made)

    def _choose_made(self, name: str) -> Types | None:
        """Choose the types that a constructor is given, of those it accepts; None where it has no choice."""
        trials = self.sites[name, ""].trials
        accepted = [
            types
            for types, results in trials.items()
            if results and results.count(None) <= MIN_ACCEPTED * len(results)
        ]
        if len(accepted) < 2:
            return None
        likely = self.sites[name, ""].types[:1] or accepted
        chosen: Types = self.rng.choice(likely if self.rng.random() < 0.4 else accepted[:MAX_MADE])
        return chosen

    def _draw_plan(self, site: Site, types: Types, made: Types | None = None, is_least: bool = False) -> Plan:
        self.objects.begin_plan(self._may_share(site))
        args, kwargs = self._draw_arguments(site, types, is_least)
        if not site[1]:
            return self.objects.finish_plan(self._make_plan(site[0], args, kwargs, []))
        made_args, made_kwargs = self._draw_arguments((site[0], ""), made)
        steps: list[Any] = []
        known = [other for other in self.sites if other[0] == site[0] and other[1] and self._is_known(other)]
        if known and self.rng.random() < 0.6:  # what fails on a new object may not on one that is filled
            steps = self._draw_steps(self.targets[site[0]], known, made_args)[:MAX_PREPARATION]
        args = args if is_least else self.values.choose_parts(args, made_args)
        plan = ("new", site[0], made_args, made_kwargs, [*steps, (site[1], args, kwargs)])
        return self.objects.finish_plan(plan)

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
        is_complete, gives_all = True, self.rng.random() < ALL_GIVEN_SHARE
        draw = self.values.draw_least if is_least else self.values.draw
        for parameter, kind in zip(knowledge.parameters, types, strict=True):
            is_given = parameter.is_required or gives_all or self.rng.random() < 0.5
            if parameter.is_keyword:
                if is_given:
                    kwargs[parameter.name] = draw(kind)
            elif is_given and is_complete:
                args.append(draw(kind))
            else:
                is_complete = False  # what follows by position is left out, too
        if knowledge.rest is not None and is_complete:
            args += [self.values.draw(knowledge.rest) for _ in range(self.rng.randint(0, 3))]
        if is_least:
            return args, kwargs
        return self._look_up(knowledge.parameters, self.values.relate(args)), kwargs

    def _look_up(self, parameters: Sequence[CallParameter], args: list[Any]) -> list[Any]:
        """Let what the source looks up in another argument mostly be one of its keys."""
        places = {item.name: place for place, item in enumerate(parameters[: len(args)])}
        for name, place in places.items():
            owner = args[places[self.keyed[name]]] if self.keyed.get(name) in places else None
            if isinstance(owner, dict) and ... not in owner and self.rng.random() < KEY_SHARE:
                keys = [key for key in owner if type(key) is type(args[place])]
                args[place] = self.rng.choice(keys) if keys else args[place]
        return args

    def _propose(self, target: Target, methods: list[Site], corpus: list[Plan]) -> Proposal:
        site = (target.name, "")
        if corpus and self.rng.random() < 0.5:
            changed = self._change_plan(self.rng.choice(corpus), methods)
            return Proposal(self.objects.finish_plan(changed), site)
        self.objects.begin_plan(self._may_share(site))
        args, kwargs = self._draw_arguments(site)
        plan = self._make_plan(target.name, args, kwargs, self._draw_steps(target, methods, args))
        return Proposal(self.objects.finish_plan(plan), site)

    def _draw_steps(self, target: Target, methods: list[Site], given: Sequence[Any]) -> list[Any]:
        """Draw calls of methods and, between them, reads of properties, of an object ``given`` this."""
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
            args = self.values.choose_parts(args, given)
            # What a call does often depends on what an earlier one was given.
            for index, value in enumerate(args):
                same = [other for other in used if type(other) is type(value)]
                if same and self.rng.random() < 0.5:
                    args[index] = self.rng.choice(same)
            used += args
            steps.append((method[1], args, kwargs))
        return steps

    def _change_plan(self, plan: Plan, methods: list[Site]) -> Plan:
        self.objects.resume_plan(get_shared(plan))
        args, kwargs = self.values.mutate_arguments(plan[2], plan[3])
        if plan[0] == "call":
            return ("call", plan[1], args, kwargs)
        target = self.targets[plan[1]]
        steps = [
            (name, *(self.values.mutate_arguments(own, named) if own is not None else (None, None)))
            for name, own, named in plan[4]
        ]
        if self.rng.random() < 0.6:
            steps += self._draw_steps(target, methods, args)[:3]
        return ("new", plan[1], args, kwargs, steps[: 2 * MAX_STEPS])

    def _keep_new(self, proposals: list[Proposal]) -> list[Proposal]:
        kept: list[Proposal] = []
        for proposal in proposals:
            written = repr(proposal.plan)
            canonical = written
            if "{" in written[:-4]:  # for all but sets, the text is the same for the same plan
                canonical = repr(canonical_plan(proposal.plan))
            if canonical not in self.proposed:
                self.proposed.add(canonical)
                kept.append(replace(proposal, size=len(written)))
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
        # What the use of a parameter says goes with the others being numbers, or texts.
        shown = [
            tuple(kinds[0] if len(kinds) == 1 or kinds[0].kind in _SHOWN else kind for kinds in options)
            for kind in (INT, TEXT)
        ]
        return list(dict.fromkeys([first, *shown, *same, *drawn]))[:MAX_COMBINATIONS]

    def _list_options(self, site: Site, index: int) -> list[ValueType]:
        parameters = self.sites[site].parameters
        parameter = parameters[index]
        if parameter.type.kind == "callable":
            known_count = parameter.type.values or (self.called.get(parameter.name),)
            return list_functions(known_count[0])
        if not is_open(parameter.type):
            return self._specialize(parameter)
        written = [guess_type(args[index]) for args, _ in self.sites[site].calls if index < len(args)]
        name = parameter.name.lower().rstrip("0123456789_") or parameter.name
        named = guess_by_name(name)
        if parameter.name in END_NAMES and any(item.name in self.pair_keyed for item in parameters):
            named = [INT, *named]  # one of the values that pairs are made of
        by_method = [
            kind for method in sorted(self.used.get(parameter.name, ())) for kind in BY_METHOD.get(method, ())
        ]
        classes = [item.name for item in self.targets.values() if item.is_class]
        objects = [ValueType("object", values=(name,)) for name in classes]
        linked = [kind for kind in objects if self.targets[kind.values[0]].links and name in LINKED_NAMES]
        if self.node_type:
            is_node = name in LINKED_NAMES or self._has_all(self.node_type, self.used, parameter.name)
            linked = [ValueType("object", values=(NODE_TYPE,))] if is_node else []
        return list(
            dict.fromkeys(
                [
                    *written,
                    *linked,
                    *guess_objects(parameter.name, classes),
                    *self._list_used_objects(parameter.name),
                    *self._list_records(parameter.name),
                    *([*self._list_edge_types(), BY_PAIR] if parameter.name in self.pair_keyed else ()),
                    *self.elements.get(parameter.name, ()),
                    *(list_functions(self.called[parameter.name]) if parameter.name in self.called else ()),
                    *self.compared.get(parameter.name, ()),
                    *self.checked.get(parameter.name, ()),
                    *self._list_by_elements(parameter.name),
                    *(OF_SETS if parameter.name in self.of_sets else ()),
                    *by_method,
                    *named,
                    *self.suggested.get(parameter.name, ()),
                    *(kind for kind in COMMON_TYPES if not linked or kind != NONE),  # it is drawn, then
                    *([BY_PAIR, *self._list_edge_types()] if self.uses_pairs else []),
                    *objects[:MAX_CLASSES],
                    *([ValueType("object", values=(NODE_TYPE,))] if self.node_type else []),
                ]
            )
        )

    def _specialize(self, parameter: CallParameter) -> list[ValueType]:
        """List what a hint may stand for: `list` says nothing of the elements, `dict` nothing of the keys."""
        kind = add_texts(parameter.type, self.compared_texts.get(parameter.name, ()))
        fields, of_elements = (known.get(parameter.name) for known in self.fields)
        record = guess_record(self.used_of_elements.get(parameter.name, ()), self.called_attributes)
        if kind.kind == "dict" and kind.parts[0] == TEXT and fields:
            return [fields, kind]
        if kind.kind == "list" and kind.parts[0].kind in ("int", "any", "dict") and (of_elements or record):
            return [ValueType("list", (item,)) for item in (of_elements, record) if item] + [kind]
        return [kind]

    def _list_used_objects(self, name: str) -> list[ValueType]:
        """List the classes, and lists of their objects, that have all that the source uses of a name."""
        kinds: list[ValueType] = []
        for target in [*self.targets.values(), *([self.node_type] if self.node_type else [])]:
            kind = ValueType("object", values=(target.name,))
            kinds += [kind] if self._has_all(target, self.used, name) else []
            kinds += (
                [ValueType("list", (kind,))] if self._has_all(target, self.used_of_elements, name) else []
            )
        return kinds[:MAX_CLASSES]

    def _list_records(self, name: str) -> list[ValueType]:
        """List the types of objects without a class that have what is read of a name, or of its elements."""
        record = guess_record(self.used.get(name, ()), self.called_attributes)
        element = guess_record(self.used_of_elements.get(name, ()), self.called_attributes)
        fields, of_elements = (known.get(name) for known in self.fields)
        kinds = [kind for kind in (record, fields) if kind]
        return kinds + [ValueType("list", (kind,)) for kind in (element, of_elements) if kind]

    def _list_by_elements(self, name: str) -> list[ValueType]:
        """List the types of lists of whose elements the source calls such methods."""
        methods = sorted(self.used_of_elements.get(name, ()))
        return [ValueType("list", (kind,)) for method in methods for kind in BY_METHOD.get(method, ())]

    def _has_all(self, target: Target, uses: dict[str, set[str]], name: str) -> bool:
        """Whether objects of a class have all that is used of a name, which is something."""
        return name in uses and bool(uses[name]) and uses[name] <= target.attributes

    def _list_edge_types(self) -> list[ValueType]:
        """List the types of what is known of two nodes, such as the length of their edge."""
        kinds = (
            [ValueType("object", values=(name,)) for name in self.objects.linked] if self.uses_pairs else []
        )
        return [ValueType("dict", (ValueType("tuple", (kind, kind)), INT)) for kind in kinds]


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
