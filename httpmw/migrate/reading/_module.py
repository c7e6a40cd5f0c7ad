# One file of the run: its functions, classes and registrations.

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import libcst as cst

from httpmw.migrate.following._call_sites import Problem

from ._names import (
    IMPORT_FROM,
    Names,
    children,
    dotted,
    find,
    is_http_decorator,
    is_none,
    last_name,
    own_scope,
)
from ._positions import positions
from ._references import references

if TYPE_CHECKING:
    from httpmw.migrate.following._function import Unit

__all__ = [
    "BASE",
    "ORIGINS",
    "Class",
    "Module",
    "Place",
    "Registration",
    "dispatch_argument",
    "imports_base",
    "is_base_init",
    "read",
    "targets",
]

BASE = "BaseHTTPMiddleware"
ORIGINS = ("starlette", "fastapi", "httpmw")
IMPORT_ERRORS = {"ImportError", "ModuleNotFoundError"}
# Locks that remember the task that took them.
LOCKS = {
    f"{library}.{name}"
    for library in ("anyio", "trio")
    for name in ("CapacityLimiter", "Lock", "StrictFIFOLock")
}


@dataclass(eq=False)
class Class:
    module: Module
    qualname: str
    node: cst.ClassDef
    methods: dict[str, cst.FunctionDef] = field(default_factory=dict)
    # Whether one of its bases is Starlette's class, by itself.
    direct: bool = False
    parents: list[Class] = field(default_factory=list)
    units: list[Unit] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    # Whether it derives from Starlette's class, or is a base of a class that does.
    derives: bool = False
    # All classes that are related to it, with itself.
    family: list[Class] = field(default_factory=list)


@dataclass(eq=False)
class Registration:
    """
    `app.add_middleware(BaseHTTPMiddleware, dispatch=fn)` and the like.
    """

    call: cst.Call
    # `'app.middleware("http")(fn)'` or `"dispatch="`.
    how: str
    target: cst.BaseExpression | None
    place: Place
    unit: Unit | None = None


@dataclass(frozen=True)
class Place:
    """
    Where an expression stands: its file, its class, and the functions around it, from the outside.
    """

    module: Module
    owner: Class | None = None
    scopes: tuple[cst.FunctionDef, ...] = ()


@dataclass(eq=False)
class Module:
    """
    One file of the run that has something to do with `call_next`.
    """

    path: str
    source: str
    tree: cst.Module
    names: Names
    functions: dict[str, cst.FunctionDef] = field(default_factory=dict)
    qualnames: dict[int, str] = field(default_factory=dict)
    owners: dict[int, Class | None] = field(default_factory=dict)
    classes: dict[str, Class] = field(default_factory=dict)
    classes_by_node: dict[int, Class] = field(default_factory=dict)
    # The functions around each function, from the outside, and the class around it.
    places: dict[int, Place] = field(default_factory=dict)
    # Module level `name = value`, and `name: annotation`.
    values: dict[str, cst.BaseExpression] = field(default_factory=dict)
    annotated: dict[str, cst.BaseExpression] = field(default_factory=dict)
    # The annotations of values, by the ids of these.
    types: dict[int, cst.BaseExpression] = field(default_factory=dict)
    # The names that mean one thing on one way, and another one on another way.
    ambiguous: set[str] = field(default_factory=set)
    registrations: list[Registration] = field(default_factory=list)
    units: dict[int, Unit] = field(default_factory=dict)
    problems: list[tuple[Problem, str]] = field(default_factory=list)
    # The calls in a test that get `as_call_next`, with the unit that each calls.
    by_hand: list[tuple[cst.Call, Unit]] = field(default_factory=list)

    _positions: dict[cst.CSTNode, tuple[int, int]] = field(default_factory=dict)
    _locks: frozenset[str] | None = None
    _returned: set[int] | None = None
    _named: Counter[str] | None = None
    _references: dict[str, list[cst.Name]] | None = None

    def forget(self) -> None:
        """
        Forget what was found out, when other files have come in.
        """
        self.units.clear()
        self.problems.clear()
        self.by_hand.clear()
        for each in self.classes.values():
            each.direct = each.derives = False
            each.parents, each.units, each.problems, each.family = [], [], [], []
        for registration in self.registrations:
            registration.unit = None

    def returned(self) -> set[int]:
        """
        Give the ids of what is returned in the module.
        """
        if self._returned is None:
            self._returned = {
                id(each.value) for each in find(self.tree, cst.Return) if each.value is not None
            }
        return self._returned

    def named(self, name: str) -> int:
        """
        Count the functions of a name.
        """
        if self._named is None:
            self._named = Counter(each.name.value for each in self.functions.values())
        return self._named[name]

    def references(self, name: str) -> list[cst.Name]:
        """
        Give the uses of a name of the module.
        """
        if self._references is None:
            self._references = references(self.tree)
        return self._references.get(name, [])

    def is_base(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Name) and node.value == BASE and BASE not in self.names.imports:
            # From nowhere, as in an excerpt: it means Starlette's, if it is not the file's own.
            return BASE not in self.classes and BASE not in self.values
        return self.names.is_from(node, BASE, ORIGINS)

    def locate(self, nodes: Iterable[cst.CSTNode]) -> None:
        """
        Find the positions of some nodes, all at once.
        """
        new = [node for node in nodes if node not in self._positions]
        self._positions.update(positions(self.tree, new))

    def position(self, node: cst.CSTNode) -> tuple[int, int]:
        """
        Give line and column of a node, both from 1.
        """
        self.locate([node])
        return self._positions.get(node, (1, 1))

    def where(self, node: cst.CSTNode) -> str:
        return f"{self.path}:{self.position(node)[0]}"

    def guarded_import(self) -> cst.CSTNode | None:
        """
        Find an import of Starlette's class that has a fallback.
        """
        if not any(name in self.source for name in IMPORT_ERRORS):
            return None
        for node in find(self.tree, cst.Try):
            caught = {each.value for one in node.handlers for each in find(one, cst.Name)}
            for each in find(node.body, *IMPORT_FROM):
                if caught & IMPORT_ERRORS and imports_base(each):
                    found: cst.ImportFrom = each
                    return found
        return None

    def locks(self) -> frozenset[str]:
        """
        Find the names of locks that belong to a task.
        """
        if self._locks is None:
            self._locks = frozenset(
                last_name(target)
                for node in find(self.tree, cst.Assign, cst.AnnAssign)
                if isinstance(node.value, cst.Call)
                and self.names.qualified(node.value.func) in LOCKS
                for target in targets(node)
            )
        return self._locks


def imports_base(node: cst.ImportFrom) -> bool:
    """
    Tell whether it imports Starlette's class.
    """
    return not isinstance(node.names, cst.ImportStar) and any(
        dotted(each.name) == BASE for each in node.names
    )


def targets(node: cst.Assign | cst.AnnAssign) -> list[cst.BaseExpression]:
    """
    Give what an assignment assigns to.
    """
    if isinstance(node, cst.AnnAssign):
        return [node.target]
    return [each.target for each in node.targets]


def read(path: str, source: str) -> Module:
    """
    Parse a file.

    Raises:
        libcst.ParserSyntaxError: It is no Python.
    """
    tree = cst.parse_module(source)
    module = Module(path, source, tree, Names(tree, path))
    _collect(module)
    return module


def _collect(module: Module) -> None:
    stack: list[tuple[cst.CSTNode, str, Place]] = [(module.tree, "", Place(module))]
    while stack:
        node, prefix, place = stack.pop()
        for each in children(node):
            if isinstance(each, cst.ClassDef):
                qualname = prefix + each.name.value
                inner = Class(module, qualname, each)
                if qualname in module.classes and not prefix:
                    module.ambiguous.add(qualname)
                module.classes[qualname] = module.classes_by_node[id(each)] = inner
                stack.append((each.body, f"{qualname}.", Place(module, inner, place.scopes)))
                stack.extend((d, prefix, place) for d in (*each.decorators, *each.bases))
            elif isinstance(each, cst.FunctionDef):
                _collect_function(module, each, prefix, place)
                scopes = (*place.scopes, each)
                qualname = module.qualnames[id(each)]
                stack.append(
                    (each.body, f"{qualname}.<locals>.", Place(module, place.owner, scopes))
                )
                stack.extend((d, prefix, place) for d in each.decorators)
            else:
                if isinstance(each, cst.Call):
                    registration = _registration(module, each, place)
                    if registration is not None:
                        module.registrations.append(registration)
                elif isinstance(each, (cst.Assign, cst.AnnAssign)) and not prefix:
                    _collect_values(module, each)
                elif isinstance(each, cst.Global) and place.scopes:
                    declared = {one.name.value for one in each.names}
                    for node in own_scope(place.scopes[-1].body):
                        if isinstance(node, (cst.Assign, cst.AnnAssign)):
                            _collect_values(module, node, declared)
                stack.append((each, prefix, place))


def _collect_function(module: Module, node: cst.FunctionDef, prefix: str, place: Place) -> None:
    qualname = prefix + node.name.value
    while qualname in module.functions:
        if not prefix:
            module.ambiguous.add(qualname)
        qualname += "'"
    module.functions[qualname] = node
    module.qualnames[id(node)] = qualname
    module.places[id(node)] = place
    owner = place.owner
    method = owner if prefix and owner and prefix == f"{owner.qualname}." else None
    module.owners[id(node)] = method
    if method is not None:
        method.methods[node.name.value] = node


def _collect_values(
    module: Module, node: cst.Assign | cst.AnnAssign, declared: set[str] | None = None
) -> None:
    for target in targets(node):
        name = dotted(target)
        if not isinstance(target, cst.Name) or (declared is not None and name not in declared):
            continue
        if isinstance(node, cst.AnnAssign):
            module.annotated[name] = node.annotation.annotation
        if node.value is None:
            continue
        before = module.values.get(name)
        if before is None or is_none(before):
            module.values[name] = node.value
        elif not is_none(node.value) and not before.deep_equals(node.value):
            module.values[name] = node.value
            module.ambiguous.add(name)
        if name in module.annotated:
            module.types[id(node.value)] = module.annotated[name]


def _registration(module: Module, call: cst.Call, place: Place) -> Registration | None:
    func = call.func
    if isinstance(func, cst.Call) and is_http_decorator(func) and len(call.args) == 1:
        return Registration(call, 'app.middleware("http")(fn)', call.args[0].value, place)
    for position, arg in enumerate(call.args):
        if not module.is_base(arg.value):
            continue
        if last_name(func) in {"isinstance", "issubclass", "cast", "TypeVar"}:
            return None
        return Registration(call, "dispatch=", dispatch_argument(call.args[position + 1 :]), place)
    if module.is_base(func):
        return Registration(call, "dispatch=", dispatch_argument(call.args[1:]), place)
    return None


def dispatch_argument(args: Iterable[cst.Arg]) -> cst.BaseExpression | None:
    """
    Give the argument that is the dispatch function, of those behind the app or the class.
    """
    args = list(args)
    for arg in args:
        if arg.keyword is not None and arg.keyword.value == "dispatch":
            return arg.value
    if args and args[0].keyword is None and not args[0].star:
        return args[0].value
    return None


def is_base_init(module: Module, call: cst.Call) -> bool:
    """
    Tell whether it is `super().__init__(...)` or `BaseHTTPMiddleware.__init__(...)`.
    """
    func = call.func
    return (
        isinstance(func, cst.Attribute)
        and func.attr.value == "__init__"
        and (
            module.is_base(func.value)
            or (isinstance(func.value, cst.Call) and dotted(func.value.func) == "super")
        )
    )
