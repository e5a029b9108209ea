"""What of a source can be called, and with how many values of which types.

Read from the text alone: functions, classes with their constructors, methods and properties, those of base
classes in the same source included. (D2, D5)
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from iccm_assets.suites.source_edits import FunctionNode, list_nodes
from iccm_assets.suites.value_types import ANY, ValueType, parse_annotation

MAX_ANCESTORS, MAX_METHODS = 20, 60  # of one class
MAX_KEYS = 12  # of further keyword arguments
_DATA_BASES = frozenset({"NamedTuple"})
_ENUM_BASES = frozenset({"Enum", "IntEnum", "StrEnum", "Flag", "IntFlag"})
_EXCEPTION_SUFFIXES = ("Error", "Exception", "Warning")
LINKS = frozenset({"next", "next_node", "left", "right", "nxt", "left_child", "right_child", "successor"})
_MANY_LINKS = frozenset(
    ("children", "successors", "predecessors", "neighbors", "neighbours", "adjacent", "nodes", "parents")
)
_OPPOSITES = (("incoming", "outgoing"), ("predecessors", "successors"), ("parents", "children"))
_NODE_VALUES = frozenset({"val", "value", "data", "key", "item", "info", "x"})
NODE_TYPE = "SimpleNamespace"  # of nodes that the source has no class for
_LITERAL_TYPES = {int: "int", float: "float", str: "str", bool: "bool", bytes: "bytes"}


@dataclass(frozen=True)
class CallParameter:
    """One parameter; its hint or its default say the type, ``ANY`` where neither does."""

    name: str
    type: ValueType
    is_keyword: bool = False
    is_required: bool = True


@dataclass(frozen=True)
class CallSignature:
    """The parameters of a function, and the type of further positional ones where it takes any."""

    parameters: tuple[CallParameter, ...] = ()
    rest: ValueType | None = None


@dataclass(frozen=True)
class Target:
    """A function, or a class with what its objects offer."""

    name: str
    signature: CallSignature
    methods: dict[str, CallSignature] = field(default_factory=dict)
    properties: tuple[str, ...] = ()
    is_class: bool = False
    member_values: tuple[object, ...] = ()  # of an enumeration
    links: tuple[str, ...] = ()  # attributes that refer to further objects of the class, or to None
    many_links: tuple[str, ...] = ()  # those that are lists of such objects
    attributes: frozenset[str] = frozenset()  # all that its objects offer
    nodes: tuple[ast.AST, ...] = ()


def find_targets(tree: ast.Module) -> list[Target]:
    """Find the functions and classes of a module, in the order of its text; exceptions are no targets."""
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    names = frozenset(classes)
    uses = _AttributeUses(tree)
    targets: dict[str, Target] = {}
    for node in _module_statements(tree.body):
        if isinstance(node, FunctionNode):
            targets[node.name] = Target(node.name, _read_signature(node, names), nodes=(node,))
        elif isinstance(node, ast.ClassDef) and not _is_exception(node, classes):
            targets[node.name] = _read_class(node, classes, uses)
    return list(targets.values())


def _module_statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            yield from _module_statements(statement.body)


def _read_signature(node: FunctionNode, classes: frozenset[str], skipped: int = 0) -> CallSignature:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [(item, default, False) for item, default in zip(positional, defaults, strict=True)][skipped:]
    pairs += [
        (item, default, True)
        for item, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    rest = arguments.vararg
    parameters = [
        CallParameter(item.arg, _choose_type(item.annotation, default, classes), is_keyword, default is None)
        for item, default, is_keyword in pairs
    ]
    known = {item.name for item in parameters}
    keys = [name for name in _list_keys(node) if name not in known]
    parameters += [CallParameter(name, ANY, is_keyword=True, is_required=False) for name in keys]
    return CallSignature(tuple(parameters), parse_annotation(rest.annotation, classes) if rest else None)


def _list_keys(node: FunctionNode) -> list[str]:
    """List the names that a function looks up in its further keyword arguments."""
    if node.args.kwarg is None:
        return []
    owner, keys = node.args.kwarg.arg, dict[str, None]()
    for part in ast.walk(node):
        key: ast.AST | None = None
        if isinstance(part, ast.Subscript) and getattr(part.value, "id", "") == owner:
            key = part.slice
        elif isinstance(part, ast.Compare) and getattr(part.comparators[0], "id", "") == owner:
            key = part.left
        elif isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and part.args:
            is_look_up = part.func.attr in ("get", "pop", "setdefault")
            key = part.args[0] if is_look_up and getattr(part.func.value, "id", "") == owner else None
        name = getattr(key, "value", None)
        if isinstance(name, str) and name.isidentifier() and not name.startswith("__"):
            keys[name] = None
    return list(keys)[:MAX_KEYS]


def _choose_type(annotation: ast.expr | None, default: ast.expr | None, classes: frozenset[str]) -> ValueType:
    hinted = parse_annotation(annotation, classes)
    if hinted.kind == "any" and isinstance(default, ast.Constant):
        return ValueType(_LITERAL_TYPES.get(type(default.value), "any"))
    return hinted


# ---- classes -------------------------------------------------------------------------------------


def _read_class(node: ast.ClassDef, classes: dict[str, ast.ClassDef], uses: _AttributeUses) -> Target:
    line = list(_list_ancestors(node, classes))
    names = frozenset(classes)
    functions: dict[str, FunctionNode] = {}
    fields: dict[str, CallParameter] = {}
    for owner in reversed(line):
        functions |= {part.name: part for part in owner.body if isinstance(part, FunctionNode)}
        fields |= {item.name: item for item in _list_fields(owner, names)}
    constructor = functions.get("__init__")
    if constructor is not None:
        signature = _read_signature(constructor, names, skipped=1)
    else:
        signature = CallSignature(tuple(sorted(fields.values(), key=lambda item: not item.is_required)))
    public = {name: part for name, part in functions.items() if not name.startswith("_")}
    public = dict(itertools.islice(public.items(), MAX_METHODS))
    kinds = {name: {_decorator_name(item) for item in part.decorator_list} for name, part in public.items()}
    properties = [name for name in public if kinds[name] & {"property", "cached_property"}]
    methods = {
        name: _read_signature(part, names, skipped=0 if "staticmethod" in kinds[name] else 1)
        for name, part in public.items()
        if name not in properties and not any(kind.endswith("setter") for kind in kinds[name])
    }
    readable = [*properties, *(name for name in fields if not name.startswith("_"))]
    if not methods and not readable:
        readable = [name for name in _list_assigned(constructor) if not name.startswith("_")]
    return Target(
        node.name,
        signature,
        methods,
        tuple(readable),
        is_class=True,
        member_values=tuple(_list_members(node)) if _is_enum(line) else (),
        links=tuple(sorted({*fields, *_list_assigned(constructor)} & LINKS & uses.read)),
        many_links=tuple(
            name
            for name in dict.fromkeys([*fields, *_list_assigned(constructor)])
            if name in uses.followed and name.rpartition("_")[2] in _MANY_LINKS
        ),
        attributes=frozenset((*functions, *fields, *_list_assigned(constructor))),
        nodes=tuple(line),
    )


def _list_ancestors(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> Iterator[ast.ClassDef]:
    pending, known = [node], set[str]()
    while pending and len(known) < MAX_ANCESTORS:
        current = pending.pop(0)
        if current.name not in known:
            known.add(current.name)
            yield current
            pending += [classes[name] for name in map(_base_name, current.bases) if name in classes]


def declares_fields(node: ast.ClassDef) -> bool:
    """Whether a class is a dataclass or named tuple."""
    decorators = set(map(_decorator_name, node.decorator_list))
    return "dataclass" in decorators or bool(_DATA_BASES & set(map(_base_name, node.bases)))


def _list_fields(node: ast.ClassDef, classes: frozenset[str]) -> Iterator[CallParameter]:
    """List the fields of a dataclass or named tuple."""
    if not declares_fields(node):
        return
    for part in node.body:
        if not isinstance(part, ast.AnnAssign) or not isinstance(part.target, ast.Name):
            continue
        if "ClassVar" not in ast.unparse(part.annotation):
            kind = _choose_type(part.annotation, part.value, classes)
            yield CallParameter(part.target.id, kind, is_required=part.value is None)


def is_opposite(field: str, other: str) -> bool:
    """Whether two attributes lead along the same edges in opposite directions."""
    pair = {field.partition("_")[0], other.partition("_")[0]}
    return any(pair == set(words) for words in _OPPOSITES)


def find_filling_methods(target: Target) -> frozenset[str]:
    """Find the methods of a class that return nothing, and so are called for what they change."""
    functions: dict[str, FunctionNode] = {}
    for owner in reversed(target.nodes):
        functions |= {
            part.name: part for part in getattr(owner, "body", []) if isinstance(part, FunctionNode)
        }
    return frozenset(
        name
        for name, node in functions.items()
        if name in target.methods
        and not any(
            isinstance(part, ast.Yield | ast.YieldFrom) or (isinstance(part, ast.Return) and part.value)
            for part in ast.walk(node)
        )
    )


class _AttributeUses:
    """Which attributes the source reads, and which it loops over: by those, objects form lists and trees."""

    def __init__(self, tree: ast.AST) -> None:
        nodes = list(list_nodes(tree))
        attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
        self.read = frozenset(node.attr for node in attributes if isinstance(node.ctx, ast.Load))
        loops = [node.iter for node in nodes if isinstance(node, ast.For | ast.comprehension)]
        looped = {part.attr for part in loops if isinstance(part, ast.Attribute)}
        # Where it follows edges in one direction, it may only look at those of the other one.
        opposite = {name for name in self.read if any(is_opposite(name, other) for other in looped)}
        self.followed = frozenset(looped | opposite)


def _list_assigned(constructor: ast.AST | None) -> list[str]:
    """List the attributes that a constructor, or a class, sets."""
    nodes = ast.walk(constructor) if constructor else ()
    stored = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    return list(dict.fromkeys(node.attr for node in stored))


def find_node_type(tree: ast.Module) -> Target | None:
    """Find what the nodes of lists or trees have, if the source follows links that no class of it has."""
    used = {node.attr for node in list_nodes(tree) if isinstance(node, ast.Attribute)}
    links = tuple(sorted(used & LINKS))
    classes = [part for part in tree.body if isinstance(part, ast.ClassDef)]
    names = {node.id for part in classes for node in ast.walk(part) if isinstance(node, ast.Name)}
    stored = {name for part in classes for name in _list_assigned(part)} | names
    if not links or stored & LINKS:
        return None
    values = tuple(
        CallParameter(name, ValueType("int"), is_keyword=True) for name in sorted(used & _NODE_VALUES)
    )
    attributes = frozenset((*links, *(item.name for item in values)))
    return Target(NODE_TYPE, CallSignature(values), is_class=True, links=links, attributes=attributes)


def _list_members(node: ast.ClassDef) -> Iterator[object]:
    for part in node.body:
        if isinstance(part, ast.Assign) and isinstance(part.value, ast.Constant):
            yield part.value.value


def _is_enum(line: list[ast.ClassDef]) -> bool:
    return any(_base_name(base) in _ENUM_BASES for node in line for base in node.bases)


def _is_exception(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> bool:
    bases = [_base_name(base) for owner in _list_ancestors(node, classes) for base in owner.bases]
    return any(name.endswith(_EXCEPTION_SUFFIXES) for name in bases)


def _base_name(node: ast.expr) -> str:
    if isinstance(node, ast.Subscript):
        node = node.value
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _decorator_name(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Attribute):
        return node.attr
    return getattr(node, "id", "")
