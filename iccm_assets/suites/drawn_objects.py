"""Objects of a source's own classes as arguments: alone, as lists and trees, or as nodes that share others.

Where a source follows links, nodes are also drawn as shared values of a plan: then two arguments may be the
same node, one node may be reached in two ways, and a graph may have circles. (D2)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from iccm_assets.suites.input_values import ValueFactory
from iccm_assets.suites.shared_values import attach_shared
from iccm_assets.suites.signatures import NODE_TYPE, CallParameter, Target, is_opposite
from iccm_assets.suites.suite_values import new_object, refer_to
from iccm_assets.suites.type_guesses import guess_objects
from iccm_assets.suites.value_types import INT, ValueType, is_open

MAX_CHAIN, MAX_TREE_DEPTH = 5, 3  # of linked objects
COUNTS = ((0, 1, 2), (0, 0, 1))  # of further objects in a list, at first and deeper
EMPTY_SHARE = 0.08  # of lists and trees
NODE_NAMES = "abcdef"
NODE_COUNTS = (1, 2, 3, 3, 4, 4, 5, 6)
MAX_SUCCESSORS = 3  # of one node
GRAPH_SHARE = 0.6  # of the plans of a source that may share nodes
PATH_SHARE = 0.6  # of the nodes that lead to the next one, so that there are long paths
FAR_SHARE = 0.5  # of the others, which are far from the first one
HEAD_SHARE = 0.7  # of the first nodes, which are those that all others can be reached from
TREE_LINKS = frozenset({"children", "childs"})

ParameterTypes = Callable[[Target], Iterable[tuple[CallParameter, ValueType]]]
PreparingCalls = Callable[
    [Target, list[Any]], list[Any]
]  # that fill an object that was given these arguments


class ObjectFactory:
    """Makes objects of the targets of one source.

    ``find_types`` says what a constructor is given, ``draw_calls`` which calls of its methods fill an object.
    """

    def __init__(
        self, rng: Random, values: ValueFactory, find_types: ParameterTypes, draw_calls: PreparingCalls
    ) -> None:
        self.rng, self.values, self.find_types = rng, values, find_types
        self.draw_calls = draw_calls
        self.linked: dict[str, Target] = {}
        self.has_circles = self.is_sharing = self.is_drawing = False
        self.shared: dict[str, Any] = {}  # of the plan that is drawn
        self.shared_class = ""
        self.edges: list[tuple[str, str]] = []
        self.is_first = True
        values.draw_nodes, values.draw_weights = self.draw_nodes, self.draw_weights

    def add(self, target: Target) -> None:
        """Make objects of a class from now on where values of its type are drawn."""
        self.values.objects[target.name] = self._object_maker(target)
        if target.links or target.many_links:
            self.linked[target.name] = target

    # ---- shared nodes ----------------------------------------------------------------------------

    def begin_plan(self, is_sharing: bool) -> None:
        """Begin the arguments of a plan, some of them with shared nodes."""
        self.shared, self.shared_class, self.edges, self.is_first = {}, "", [], True
        self.values.references = []
        self.is_sharing = bool(self.linked) and is_sharing and self.rng.random() < GRAPH_SHARE

    def resume_plan(self, shared: dict[str, Any]) -> None:
        """Go on with the shared nodes of a known plan."""
        self.begin_plan(is_sharing=False)
        self.values.references = list(map(refer_to, shared))
        self.shared = {name: self.values.mutate(value) for name, value in shared.items()}
        self.shared_class = next((value[...][0] for value in shared.values() if ... in value), "")
        self.is_sharing = bool(shared)

    def finish_plan(self, plan: tuple[Any, ...]) -> tuple[Any, ...]:
        """Add the shared nodes to a plan that refers to some."""
        return attach_shared(plan, self.shared) if self.shared else plan

    def _draw_shared(self, target: Target) -> None:
        """Draw nodes that refer to each other."""
        self.is_drawing = True
        names = NODE_NAMES[: self.rng.choice(NODE_COUNTS)]
        links = {name: self._draw_links(target, names, place) for place, name in enumerate(names)}
        for field in target.many_links:
            self._link_many(field, names, links)
        if len(target.links) > 1:
            self._link_tree(target, names, links)
        numbers: list[int | None] = [None] * len(names)
        if len(target.links) > 1 and self.rng.random() < 0.5:
            ordered = sorted(self.rng.sample(range(-5, 30), len(names)))
            for number, name in zip(ordered, _list_in_order(target, names[0], links), strict=False):
                numbers[names.index(name)] = number
        elif target.many_links and self.rng.random() < 0.7:
            numbers = list(range(1, len(names) + 1))
        self.shared = {
            name: self.make_object(target, 0, links[name], number)
            for name, number in zip(names, numbers, strict=True)
        }
        self.shared_class, self.is_drawing = target.name, False
        self.values.references = list(map(refer_to, names))

    def _draw_links(self, target: Target, names: str, place: int) -> dict[str, Any]:
        """Draw the link of a list's node: mostly to the next one, or to a later one, or in a circle."""
        if len(target.links) != 1:
            # A class sets the others itself; nodes that the source has no class for have what they are given.
            return dict.fromkeys(target.links) if target.name == NODE_TYPE else {}
        later = names[place + 1 :]
        other = later[0] if later and self.rng.random() < 0.8 else self.rng.choice([*later, None])
        if not later and self.has_circles and self.rng.random() < 0.5:
            other = self.rng.choice(names)
        return {target.links[0]: refer_to(other) if other else None}

    def _link_many(self, field: str, names: str, links: dict[str, dict[str, Any]]) -> None:
        known = links[names[0]]
        if any(is_opposite(field, other) for other in known):
            edges = [(node, other) for other, node in self.edges]  # the same ones, seen from the other end
        else:
            edges = self._draw_edges(names, is_tree=field.rpartition("_")[2] in TREE_LINKS)
            self.edges = self.edges or edges
        for name in names:
            links[name][field] = [refer_to(other) for node, other in edges if node == name]

    def _draw_edges(self, names: str, is_tree: bool) -> list[tuple[str, str]]:
        if is_tree:
            return [(self.rng.choice(names[:place]), names[place]) for place in range(1, len(names))]
        has_circles = self.rng.random() < 0.5
        edges: list[tuple[str, str]] = []
        for place, name in enumerate(names):
            others = names if has_circles else names[place + 1 :]
            count = self.rng.randint(0, min(MAX_SUCCESSORS, len(others)))
            is_path = place + 1 < len(names) and self.rng.random() < PATH_SHARE
            ends = [*([names[place + 1]] if is_path else []), *self.rng.sample(others, count)]
            edges += [(name, other) for other in dict.fromkeys(ends)][:MAX_SUCCESSORS]
        return edges

    def _link_tree(self, target: Target, names: str, links: dict[str, dict[str, Any]]) -> None:
        free = [(names[0], link) for link in target.links]
        for name in names[1:]:
            parent, link = free.pop(self.rng.randrange(len(free)))
            links[parent][link] = refer_to(name)
            free += [(name, link) for link in target.links]

    def draw_nodes(self, name: str) -> list[Any] | None:
        """Draw a list of shared nodes of a class, each once; None where its objects are not shared."""
        if not self._is_shared(name):
            return None
        names = list(self.shared)
        count = len(names) if self.rng.random() < 0.6 else self.rng.randint(0, len(names))
        return list(map(refer_to, self.rng.sample(names, count)))

    def draw_weights(self, name: str) -> dict[Any, Any] | None:
        """Draw a number for each edge of the shared nodes; None where there are none."""
        if not self._is_shared(name):
            return None
        count = len(self.edges)
        numbers = (
            self.rng.sample(range(1, 30), count)
            if self.rng.random() < 0.7
            else [self.values.draw(INT, 1) for _ in range(count)]
        )
        edges = zip(self.edges, numbers, strict=True)
        return {(refer_to(node), refer_to(other)): number for (node, other), number in edges}

    def _is_shared(self, name: str) -> bool:
        """Whether a class has shared nodes in this plan; they are drawn when they are needed first."""
        if self.is_sharing and not self.shared and not self.is_drawing and name in self.linked:
            self._draw_shared(self.linked[name])
        return bool(self.shared) and self.shared_class == name

    # ---- objects that nothing shares -------------------------------------------------------------

    def _object_maker(self, target: Target) -> Callable[[int], Any]:
        """Return a function that makes an object, with a list or tree of further ones where it has links."""

        def make(depth: int) -> Any:
            if target.member_values:
                return new_object(target.name, [self.rng.choice(target.member_values)])
            if target.links and depth == 0 and self.rng.random() < EMPTY_SHARE:
                return None
            if self.is_drawing:
                return None  # the constructors of shared nodes are given no further ones
            if self._is_shared(target.name):
                return self._choose_node()
            if len(target.links) == 2 and self.rng.random() < 0.5:
                return self._make_search_tree(target, sorted(self.rng.sample(range(-5, 30), 5)))
            return self.make_object(target, depth, self._draw_parts(target, depth, make))

        return make

    def _choose_node(self) -> Any:
        names = list(self.shared)
        is_head, self.is_first = self.is_first and self.rng.random() < HEAD_SHARE, False
        if not is_head and self.rng.random() < FAR_SHARE:
            names = names[len(names) // 2 :]
        return refer_to(names[0] if is_head else self.rng.choice(names))

    def _draw_parts(self, target: Target, depth: int, make: Callable[[int], Any]) -> dict[str, Any]:
        chance, limit = (0.8, MAX_CHAIN) if len(target.links) == 1 else (0.6, MAX_TREE_DEPTH)
        links: dict[str, Any] = {
            link: make(depth + 1) if depth < limit and self.rng.random() < chance else None
            for link in target.links
        }
        if depth < MAX_TREE_DEPTH:
            counts = [(link, self.rng.choice(COUNTS[depth > 0])) for link in target.many_links]
            links |= {link: [make(depth + 1) for _ in range(count)] for link, count in counts if count}
        return links

    def _make_search_tree(self, target: Target, numbers: list[int]) -> Any:
        """Make a tree in whose order the numbers are sorted."""
        if not numbers or self.rng.random() < 0.1:
            return None
        middle = self.rng.randrange(len(numbers))
        parts = (numbers[:middle], numbers[middle + 1 :])
        links = {
            link: self._make_search_tree(target, part) for link, part in zip(target.links, parts, strict=True)
        }
        return self.make_object(target, MAX_TREE_DEPTH, links, numbers[middle])

    def make_object(
        self, target: Target, depth: int, links: dict[str, Any], number: int | None = None
    ) -> Any:
        """Make an object; of what it is given first, an integer is ``number``."""
        args: list[Any] = []
        attributes: dict[str, Any] = {}
        for item, kind in self.find_types(target):
            if item.name in links or not (item.is_required or self.rng.random() < 0.6):
                break  # what follows is optional, too
            if is_open(kind):
                kind = next(iter(guess_objects(item.name, [target.name])), INT)
            value = number if kind == INT and number is not None else self.values.draw(kind, depth + 1)
            attributes |= {item.name: value} if item.is_keyword else {}
            args += [] if item.is_keyword else [value]
        if target.name != NODE_TYPE:
            links = {link: links[link] for link in links if links[link] is not None}
        calls = [] if links or depth > 1 else self.draw_calls(target, args)
        return new_object(target.name, args, {}, attributes | links, calls)


def _list_in_order(target: Target, name: str, links: dict[str, dict[str, Any]]) -> list[str]:
    """List the names of a tree's nodes in its order: what is left of a node, itself, the rest."""
    parts = [
        _list_in_order(target, links[name][link][1], links) if links[name].get(link) else []
        for link in target.links
    ]
    return [*parts[0], name, *(item for part in parts[1:] for item in part)]
