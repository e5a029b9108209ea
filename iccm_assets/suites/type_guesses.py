"""Which types a parameter without a hint may have, and which of those that were tried to keep. (D2)"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from iccm_assets.suites.signatures import LINKS
from iccm_assets.suites.source_edits import list_nodes, walk
from iccm_assets.suites.suite_values import FUNCTION
from iccm_assets.suites.value_types import ANY, BOOL, COMPLEX, FLOAT, FUNCTIONS, INT, NONE, TEXT, ValueType

Types = tuple[ValueType, ...]

MAX_TRIALS, DRAWS_PER_TRIAL = 1200, 3  # of types, for all sites together
DRAWS_OF_LIKELIEST = 8  # the first combination: few of its values may fit together
DRAWS_AGAIN, MAX_TYPES_AGAIN = 14, 4  # of those that reached most, before what adds something is kept
MAX_LIKELY_TYPES = 3  # which are tried again in any case
MIN_ACCEPTED = 0.5  # of the inputs of one combination of types; below, acceptance may be chance
MIN_PLURAL = 3  # characters of a name
NEARLY = 0.8  # of the branches that the best types reach
MAX_KEPT_TYPES = 3  # combinations of types that a site is called with

_LIST, _TEXTS, _FLOATS = (ValueType("list", (part,)) for part in (INT, TEXT, FLOAT))
_MATRIX, _PAIRS = ValueType("list", (_LIST,)), ValueType("list", (ValueType("tuple", (INT, INT)),))
_DICT, _SET = ValueType("dict", (TEXT, INT)), ValueType("set", (INT,))
_GRAPH = ValueType("dict", (TEXT, _TEXTS))
_GRAPHS = (_GRAPH, ValueType("dict", (INT, _LIST)), ValueType("dict", (TEXT, ValueType("set", (TEXT,)))))
_WEIGHTS = ValueType("dict", (TEXT, _DICT))
_WEIGHTED = tuple(
    ValueType("dict", (kind, ValueType("list", (ValueType("tuple", (kind, INT)),)))) for kind in (TEXT, INT)
)
OF_SETS = tuple(ValueType("dict", (kind, ValueType("set", (kind,)))) for kind in (INT, TEXT))
BY_PAIR = ValueType("dict", (ValueType("tuple", (INT, INT)), INT))
COMMON_TYPES: Types = (
    *(INT, TEXT, _LIST, FLOAT, _TEXTS, _MATRIX, _DICT, BOOL, _FLOATS, _PAIRS),
    *(ValueType("tuple", (INT, INT)), ValueType("set", (INT,)), _GRAPH, NONE),
    *(ValueType("list", (_TEXTS,)), ValueType("list", (_DICT,)), ValueType("bytes")),
)
BY_NAME: tuple[tuple[frozenset[str], Types], ...] = tuple(
    (frozenset(names.split()), kinds)
    for names, kinds in (
        (
            "s t text string str word line sentence name key char ch letter pattern prefix suffix message",
            (TEXT,),
        ),
        ("source target first_string second_string str1 str2 s1 s2 path sep separator expression", (TEXT,)),
        (
            "arr array nums numbers lst list items values data sequence seq collection xs l a elements",
            (_LIST,),
        ),
        ("words strings names strs lines tokens", (_TEXTS, TEXT)),
        ("matrix grid board mat m image rows table", (_MATRIX,)),
        ("d dictionary dict mapping counts freq", (_DICT,)),
        ("graph adj adjacency tree network neighbors", (*_GRAPHS, _WEIGHTS, *_WEIGHTED, _MATRIX, _DICT)),
        ("points intervals pairs edges tuples", (_PAIRS, _MATRIX)),
        ("edge pair", (BY_PAIR,)),
        ("n k i j x y num number count size length limit index base start end step low high", (INT,)),
        ("rate ratio price amount weight temperature radius height width tolerance epsilon", (FLOAT, INT)),
        ("flag reverse strict inclusive", (BOOL,)),
    )
)
LINKED_NAMES = frozenset(
    {"head", "root", "node", "tree", "l", "list", "t", "p", "q", "head_a", "head_b", "h"}
)
END_NAMES = frozenset(
    ("source", "target", "sink", "s", "t", "u", "v", "start", "end", "goal", "origin", "node", "vertex")
)
MAX_PARTS = 4  # of an element that is taken apart
MAX_COMPARED, MAX_FIELDS = 12, 6  # texts of one name, and attributes of an object without a class
_NUMBER_ATTRIBUTES = frozenset({"real", "imag", "numerator", "denominator"})
MAX_ATTRIBUTES = 40  # of one object that has several names
_CHECKED = {"list": _LIST, "str": TEXT, "int": INT, "float": FLOAT, "dict": _DICT, "set": _SET, "bool": BOOL}
_CALLERS = {"map": 0, "filter": 1, "reduce": 2, "takewhile": 1, "dropwhile": 1, "starmap": 2, "cmp_to_key": 2}
BY_METHOD = {
    **dict.fromkeys(("lower", "upper", "split", "strip", "startswith", "isdigit", "isalpha"), (TEXT,)),
    **dict.fromkeys(("replace", "join", "encode", "isupper", "endswith", "title", "isalnum"), (TEXT,)),
    **dict.fromkeys(("append", "sort", "extend", "reverse", "insert"), (_LIST, _MATRIX)),
    **dict.fromkeys(("items", "keys", "values", "get", "setdefault"), (_DICT, _GRAPH)),
    **dict.fromkeys(("real", "imag", "conjugate"), (COMPLEX,)),
    **dict.fromkeys(("union", "intersection", "issubset", "add"), (ValueType("set", (INT,)),)),
}  # fmt: skip


def choose_types(
    trials: dict[Types, list[frozenset[int] | None]], tried_again: Collection[Types]
) -> list[Types]:
    """Choose the combinations that reach most, then what others add; ``trials`` has the likeliest first.

    What is accepted rarely counts half. As long as none was tried again, more are kept, since what one adds
    may be chance; then only of those that were.
    """
    scores: list[tuple[float, int, bool, Types, frozenset[int]]] = []
    for index, (types, results) in enumerate(trials.items()):
        accepted = [branches for branches in results if branches is not None]
        if accepted:
            reached = frozenset[int]().union(*accepted)
            is_rare = len(accepted) < MIN_ACCEPTED * len(results)
            weight = 0.5 if is_rare else 1.0
            scores.append((-weight * len(reached), index, is_rare, types, reached))
    ranked = sorted(scores, key=lambda score: score[:2])
    if not tried_again:
        likely = [score[3] for score in scores if not score[2]][:MAX_LIKELY_TYPES]
        return list(dict.fromkeys([*likely, *(score[3] for score in ranked[:MAX_TYPES_AGAIN])]))
    chosen: list[Types] = []
    covered: set[int] = set()
    # Of those that reach nearly as much as the best, the likeliest comes first.
    best = max((len(score[4]) for score in scores), default=0)
    close = [item for item in ranked if not item[2] and len(item[4]) >= NEARLY * best]
    ranked = sorted(close, key=lambda score: score[1])[:1] + ranked
    for _, _, is_rare, types, reached in ranked:
        if types not in tried_again or (chosen and is_rare):
            continue
        if not chosen or (reached - covered and len(chosen) < MAX_KEPT_TYPES):
            chosen.append(types)
            covered |= reached
    return chosen or [score[3] for score in ranked[:1]]


def guess_by_name(name: str) -> list[ValueType]:
    """Guess what a parameter of this name is: by the whole name, its words, or since it is a plural."""
    known = [kind for names, kinds in BY_NAME if name in names for kind in kinds]
    if known:
        return known
    words = name.split("_")
    known = [kind for names, kinds in BY_NAME for word in words if word in names for kind in kinds]
    if name.endswith("s") and not name.endswith(("ss", "us", "is")) and len(name) > MIN_PLURAL:
        known = [_LIST, _TEXTS, *known]
    return known


def guess_objects(name: str, classes: Iterable[str]) -> list[ValueType]:
    """Guess whose objects a parameter is given: `start_node` is a `Node`, and `nodes` is a list of some."""
    words = name.lower().replace("_", "")
    kinds = [ValueType("object", values=(own,)) for own in classes if own.lower() in words]
    if name.endswith("s"):
        return [ValueType("list", (kind,)) for kind in kinds]
    return kinds


def find_elements(tree: ast.AST) -> dict[str, list[ValueType]]:
    """Find lists of which the source tells elements of some type from others, such as numbers from signs."""
    checked, _ = find_checked(tree)
    keys = [
        key.value
        for node in list_nodes(tree)
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    ]
    other = ValueType("literal", values=tuple(dict.fromkeys(keys))) if keys else TEXT
    return {
        owner: [ValueType("list", (ValueType("union", (kind, other)),)) for kind in checked[element]]
        for element, owner in _list_loops(tree)
        if element in checked
    }


def find_compared_texts(tree: ast.AST) -> dict[str, tuple[str, ...]]:
    """Find the texts that a source compares names with, also those of which a name may be one."""
    texts: dict[str, dict[str, None]] = {}
    for node in list_nodes(tree):
        if not isinstance(node, ast.Compare) or not isinstance(node.left, ast.Name):
            continue
        if isinstance(node.ops[0], ast.Eq | ast.NotEq | ast.In | ast.NotIn):
            other = node.comparators[0]
            parts = other.elts if isinstance(other, ast.Tuple | ast.List | ast.Set) else [other]
            is_part = isinstance(node.ops[0], ast.In | ast.NotIn) and parts == [other]
            own = texts.setdefault(node.left.id, {})
            own |= {
                part.value: None
                for part in parts
                if isinstance(part, ast.Constant) and isinstance(part.value, str) and not is_part
            }
    return {name: tuple(own)[:MAX_COMPARED] for name, own in texts.items() if own}


def add_texts(kind: ValueType, texts: tuple[str, ...]) -> ValueType:
    """Return a type whose texts are often one of these; any other type as it is."""
    parts = kind.parts if kind.kind == "union" else (kind,)
    return ValueType("union", (*parts, ValueType("literal", values=texts))) if TEXT in parts else kind


def find_keyed(tree: ast.AST) -> dict[str, str]:
    """Find the names that the source looks up in others, as in ``graph[start]`` or ``start in graph``."""
    keyed: dict[str, str] = {}
    for node in list_nodes(tree):
        key: ast.AST | None = None
        owner: ast.AST | None = None
        if isinstance(node, ast.Subscript):
            key, owner = node.slice, node.value
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            key, owner = node.left, node.comparators[0]
        if isinstance(key, ast.Name) and isinstance(owner, ast.Name):
            keyed.setdefault(key.id, owner.id)
    return keyed


def find_of_sets(tree: ast.AST) -> set[str]:
    """Find the names whose items are sets, as ``graph[node] - visited`` says where ``visited`` is one."""
    sets = {
        target.id
        for node in list_nodes(tree)
        if isinstance(node, ast.Assign)
        for target, value in _list_assignments(node)
        if isinstance(target, ast.Name) and _is_set(value)
    }
    owners = set[str]()
    for node in list_nodes(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub | ast.BitAnd | ast.BitOr):
            sides = (node.left, node.right)
            if any(getattr(side, "id", "") in sets for side in sides):
                items = [side.value for side in sides if isinstance(side, ast.Subscript)]
                owners.update(item.id for item in items if isinstance(item, ast.Name))
    return owners


def _list_assignments(node: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts, strict=False)
        else:
            yield target, node.value


def _is_set(node: ast.expr) -> bool:
    is_made = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "set"
    return is_made or isinstance(node, ast.Set | ast.SetComp)


def find_fields(tree: ast.AST) -> tuple[dict[str, ValueType], dict[str, ValueType]]:
    """Find the dicts that names hold, and their elements, by the keys in ``order["price"]``."""
    own: dict[str, dict[str, None]] = {}
    of_elements: dict[str, dict[str, None]] = {}
    for node in list_nodes(tree):
        owner: ast.AST | None = None
        key: ast.AST | None = None
        if isinstance(node, ast.Subscript):
            owner, key = node.value, node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            owner, key = (node.func.value, node.args[0]) if node.func.attr == "get" else (None, None)
        name = getattr(key, "value", None)
        if isinstance(name, str) and isinstance(owner, ast.Name):
            own.setdefault(owner.id, {})[name] = None
        elif isinstance(name, str) and isinstance(owner, ast.Subscript):
            of_elements.setdefault(getattr(owner.value, "id", ""), {})[name] = None
    for element, owner_name in _list_loops(tree):
        if element in own:
            of_elements.setdefault(owner_name, {}).update(own[element])
    return (
        {name: _guess_fields(keys) for name, keys in own.items() if len(keys) <= MAX_FIELDS},
        {name: _guess_fields(keys) for name, keys in of_elements.items() if len(keys) <= MAX_FIELDS},
    )


def _guess_fields(keys: Iterable[str]) -> ValueType:
    names = tuple(keys)
    return ValueType("fields", tuple((*guess_by_name(name), INT)[0] for name in names), names)


def guess_record(used: Collection[str], called: Collection[str]) -> ValueType | None:
    """Guess a type of objects without a class that have all attributes that are used; None if there are none.

    What has methods, or links to others, is no such object.
    """
    if not used or len(used) > MAX_FIELDS or any(name in called or name.startswith("_") for name in used):
        return None
    if set(used) & (LINKS | _NUMBER_ATTRIBUTES):
        return None
    names = tuple(sorted(used))
    return ValueType("record", tuple((*guess_by_name(name), INT)[0] for name in names), names)


def find_called_attributes(tree: ast.AST) -> frozenset[str]:
    """Find the names of the methods that the source calls."""
    calls = (node.func for node in list_nodes(tree) if isinstance(node, ast.Call))
    return frozenset(node.attr for node in calls if isinstance(node, ast.Attribute))


def find_pair_keyed(tree: ast.AST) -> set[str]:
    """Find the names of dicts whose keys are pairs: ``w[u, v]``, ``for (u, v), x in w.items()``."""
    names = set()
    for node in list_nodes(tree):
        if isinstance(node, ast.Subscript) and _is_pair(node.slice) and isinstance(node.value, ast.Name):
            names.add(node.value.id)
        elif isinstance(node, ast.For | ast.comprehension) and _is_pair(node.target):
            method = getattr(node.iter, "func", None)
            is_items = isinstance(method, ast.Attribute) and method.attr == "items"
            if is_items and _is_pair(getattr(node.target, "elts", [None])[0]):
                names.add(getattr(getattr(method, "value", None), "id", ""))
    return names


def _is_pair(node: ast.AST | None) -> bool:
    is_pair = isinstance(node, ast.Tuple) and len(node.elts) == 2
    return is_pair and not any(isinstance(part, ast.Slice) for part in getattr(node, "elts", ()))


def compares_identity(tree: ast.AST) -> bool:
    """Whether the source asks if two objects are the same one, or if two nodes are equal."""
    used = find_used_methods(tree)
    for node in list_nodes(tree):
        if not isinstance(node, ast.Compare) or len(node.ops) > 1:
            continue
        sides = (node.left, node.comparators[0])
        is_identity = isinstance(node.ops[0], ast.Is | ast.IsNot)
        is_equality = isinstance(node.ops[0], ast.Eq | ast.NotEq)
        if is_identity and not any(isinstance(side, ast.Constant) for side in sides):
            return True
        if is_equality and all(_is_node(side, used) for side in sides):
            return True
    return False


def _is_node(side: ast.expr, used: dict[str, set[str]]) -> bool:
    """Whether one side of a comparison is a node of a list or tree: the source follows links of it."""
    if isinstance(side, ast.Attribute):
        return side.attr in LINKS
    return isinstance(side, ast.Name) and bool(used.get(side.id, set()) & LINKS)


def uses_pairs(tree: ast.AST) -> bool:
    """Whether the source looks something up by two values at once, as in ``weights[u, v]``."""
    return any(isinstance(node, ast.Subscript) and _is_pair(node.slice) for node in list_nodes(tree))


def _list_loops(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """List the names that loops give to elements, each with what they loop over."""
    for node in list_nodes(tree):
        if not isinstance(node, ast.For | ast.comprehension):
            continue
        if isinstance(node.target, ast.Name) and isinstance(node.iter, ast.Name):
            yield node.target.id, node.iter.id


def find_checked(tree: ast.AST) -> tuple[dict[str, list[ValueType]], dict[str, list[ValueType]]]:
    """Find the types that a source demands of names, and those that its use of them suggests.

    It demands one by ``isinstance(x, list)`` or ``type(x) is list``; ``x[i][j]`` suggests a matrix,
    ``len(x)`` or ``x[i]`` a list, ``a, b = x[i]`` a list of pairs.
    """
    checked: dict[str, list[ValueType]] = {}
    used: dict[str, list[ValueType]] = {}
    for node in list_nodes(tree):
        if isinstance(node, ast.Call) and len(node.args) in (1, 2) and isinstance(node.args[0], ast.Name):
            function, name = getattr(node.func, "id", ""), node.args[0].id
            if function == "isinstance" and len(node.args) == 2:
                names = [part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)]
                checked.setdefault(name, []).extend(_CHECKED[kind] for kind in names if kind in _CHECKED)
            elif function in ("len", "sum", "max", "min", "sorted", "enumerate"):
                used.setdefault(name, []).append(_LIST)
        elif isinstance(node, ast.Compare) and isinstance(node.left, ast.Call):
            call, other = node.left, node.comparators[0]
            is_type = getattr(call.func, "id", "") == "type" and len(call.args) == 1
            if is_type and isinstance(call.args[0], ast.Name) and isinstance(other, ast.Name):
                kinds = [_CHECKED[other.id]] if other.id in _CHECKED else []
                checked.setdefault(call.args[0].id, []).extend(kinds)
        elif isinstance(node, ast.Subscript):
            inner = node.value
            if isinstance(inner, ast.Subscript) and isinstance(inner.value, ast.Name):
                used.setdefault(inner.value.id, []).insert(0, _MATRIX)
            elif isinstance(inner, ast.Name):
                used.setdefault(inner.id, []).append(_LIST)
    for name, count in _list_unpacked(tree):
        used.setdefault(name, []).insert(0, ValueType("list", (ValueType("tuple", (INT,) * count),)))
    return checked, used


def _list_unpacked(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """List the names of whose elements the source takes parts, as in ``weight, value = items[i]``.

    Each with how many parts these are; also those that have another name where they are sorted.
    """
    names: dict[str, str] = {}
    for node in list_nodes(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and node.value.args:
            function, argument = getattr(node.value.func, "id", ""), node.value.args[0]
            if function in ("sorted", "list", "reversed") and isinstance(argument, ast.Name):
                names |= {part.id: argument.id for part in node.targets if isinstance(part, ast.Name)}
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
            target, owner = node.targets[0], node.value.value
        elif isinstance(node, ast.For | ast.comprehension):
            target, owner = node.target, node.iter
        else:
            continue
        if isinstance(owner, ast.Call) and getattr(owner.func, "id", "") == "sorted" and owner.args:
            owner = owner.args[0]
        if (
            isinstance(target, ast.Tuple)
            and 2 <= len(target.elts) <= MAX_PARTS
            and isinstance(owner, ast.Name)
        ):
            yield names.get(owner.id, owner.id), len(target.elts)


def find_called(tree: ast.AST) -> dict[str, int]:
    """Find how many arguments names are called with, also by ``map``, ``filter``, ``reduce`` or as a key."""
    called: dict[str, int] = {}
    for node in list_nodes(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        is_plain = not isinstance(node.func, ast.Attribute) or getattr(node.func.value, "id", "") == "self"
        if is_plain and not any(isinstance(part, ast.Starred) for part in node.args):
            called[name] = len(node.args) + len(node.keywords)
        if name in _CALLERS and node.args and isinstance(node.args[0], ast.Name):
            called.setdefault(node.args[0].id, _CALLERS[name] or len(node.args) - 1)
        for keyword in node.keywords:
            if keyword.arg == "key" and isinstance(keyword.value, ast.Name):
                called.setdefault(keyword.value.id, 1)
    return called


def guess_type(value: Any) -> ValueType:
    """Return the type that a written value has."""
    if isinstance(value, list | set | frozenset) and value:
        kinds = list(dict.fromkeys(map(guess_type, sorted(value, key=repr))))
        part = kinds[0] if len(kinds) == 1 else ValueType("union", tuple(kinds[:4]))
        return ValueType(type(value).__name__, (part,))
    if isinstance(value, tuple) and value:
        return ValueType("tuple", tuple(map(guess_type, value[:6])))
    if isinstance(value, dict) and value and ... not in value:
        key, item = next(iter(value.items()))
        return ValueType("dict", (guess_type(key), guess_type(item)))
    if isinstance(value, dict) and ... in value:
        name, args = value[...][:2]
        functions = [key for key, names in FUNCTIONS.items() if name == FUNCTION and args[0] in names]
        return (
            ValueType("callable", values=functions[0]) if functions else ValueType("object", values=(name,))
        )
    known: dict[type, ValueType] = {int: INT, float: FLOAT, str: TEXT, bool: BOOL, type(None): NONE}
    known[complex] = COMPLEX
    known |= {list: _LIST, dict: _DICT, set: _SET, tuple: ValueType("sequence", (INT,))}
    return known.get(type(value), ANY)


def find_used_methods(tree: ast.AST) -> dict[str, set[str]]:
    """Find which methods the source calls on a name, and which attributes it reads of it."""
    used: dict[str, set[str]] = {}
    names: list[tuple[str, str]] = []  # what is also called by another name
    for node in walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used.setdefault(node.value.id, set()).add(node.attr)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
            names += [(node.value.id, part.id) for part in node.targets if isinstance(part, ast.Name)]
    for name, other in names:
        if len(used.get(other, ())) <= MAX_ATTRIBUTES:
            used.setdefault(name, set()).update(used.get(other, ()))
    return used


def find_used_of_elements(tree: ast.AST) -> dict[str, set[str]]:
    """Find which attributes the source reads of the elements of a name."""
    used = find_used_methods(tree)
    elements = {owner: set(used.get(element, ())) for element, owner in _list_loops(tree)}
    for node in walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Subscript):
            owner = getattr(node.value.value, "id", "")
            elements.setdefault(owner, set()).add(node.attr)
    return elements


def find_compared(tree: ast.AST) -> dict[str, list[ValueType]]:
    """Find the types that names have, or their elements, since they are compared with constants."""
    literals: dict[str, ast.expr] = {}
    elements = dict(_list_loops(tree))
    for node in list_nodes(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            literals[node.targets[0].id] = node.value
    compared: dict[str, list[ValueType]] = {}
    for node in list_nodes(tree):
        if not isinstance(node, ast.Compare) or not isinstance(node.left, ast.Name):
            continue
        name, other = node.left.id, node.comparators[0]
        other = literals.get(other.id, other) if isinstance(other, ast.Name) else other
        constant = next((part for part in ast.walk(other) if isinstance(part, ast.Constant)), None)
        if constant is None:
            continue
        kind = guess_type(constant.value)
        if name in elements:
            name, kind = elements[name], TEXT if kind == TEXT else ValueType("list", (kind,))
        compared.setdefault(name, []).append(kind)
    return compared
