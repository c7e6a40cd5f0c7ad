# What is known of one file of the run: its classes and functions, its registrations, and its units.
#
# These know one another, so they stand together. What is found out about them is written down by
# who finds it out; what a function does with its parameters is known by `following`.

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import libcst as cst

from ._names import (
    IMPORT_FROM,
    Names,
    dotted,
    find,
    last_name,
    own_scope,
)
from ._parameters import own_parameters
from ._positions import positions
from ._problem import Problem
from ._references import references

__all__ = [
    "BASE",
    "ORIGINS",
    "Class",
    "Module",
    "Place",
    "Registration",
    "Unit",
    "imports_base",
    "is_base_init",
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

    def converts(self) -> bool:
        """
        Tell whether it gets httpmw's base in place of Starlette's.
        """
        units = [unit for one in self.family for unit in one.units if unit.kind == "class"]
        return (
            bool(units)
            and all(unit.converts() for unit in units)
            and not any(one.problems for one in self.family)
        )


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
class Unit:
    """
    One function that takes `call_next`, and what is known of it.

    Attributes:
        kind: What it is: `"class"`, `"decorator"`, `"function"`, `"object"`, `"helper"`.
        registered: How, as a conversion says it; `"elsewhere"` where nothing is known of it.
        uses: The ids of the names by which it is registered or delegated to.
        aliases: Module level names of its instances.
        links: The units that are converted together with it or not at all.
        callers: The units that hand `call_next` to it.
        handed: The parameter that a caller hands `call_next` over in.
        request: The name of its request, and *call_next* that of its `call_next`; empty as long
            as they are not known.
    """

    module: Module
    node: cst.FunctionDef
    qualname: str
    owner: Class | None
    kind: str
    registered: str = "elsewhere"
    registrations: list[Registration] = field(default_factory=list)
    uses: set[int] = field(default_factory=set)
    aliases: set[str] = field(default_factory=set)
    links: list[Unit] = field(default_factory=list)
    callers: list[Unit] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    handed: str | None = None
    request: str = ""
    call_next: str = ""

    def say(self, code: str, node: cst.CSTNode, **details: str) -> None:
        self.problems.append(Problem(code, node, details))

    def errors(self) -> list[Problem]:
        return [each for each in self.problems if each.code.startswith("HM1")]

    def converts(self) -> bool:
        """
        Tell whether it is converted, as far as is known by now.
        """
        return not self.errors()

    def link(self, other: Unit) -> None:
        self.links.append(other)
        other.links.append(self)

    def inside(self) -> Place:
        """
        Give the place of what stands in it.
        """
        around = self.module.places[id(self.node)]
        return Place(self.module, around.owner, (*around.scopes, self.node))

    def raises_http(self) -> bool:
        return any(
            isinstance(each, cst.Raise)
            and each.exc is not None
            and last_name(each.exc.func if isinstance(each.exc, cst.Call) else each.exc)
            == "HTTPException"
            for each in own_scope(self.node.body)
        )

    def is_abstract(self) -> bool:
        """
        Whether there is nothing in it: a docstring, `...`, `pass`.
        """
        return all(
            isinstance(small, cst.Pass)
            or (
                isinstance(small, cst.Expr)
                and isinstance(small.value, (cst.Ellipsis, cst.SimpleString))
            )
            for each in self.node.body.body
            for small in (each.body if isinstance(each, cst.SimpleStatementLine) else [each])
        )

    def parameter_of(self, call: cst.Call, handed: cst.Arg) -> str | None:
        """
        Give the name of the parameter that an argument of a call of it is.
        """
        if handed.keyword is not None:
            return handed.keyword.value
        position = next(i for i, each in enumerate(call.args) if each is handed)
        if any(each.star or each.keyword for each in call.args[:position]):
            return None
        parameters = own_parameters(self.node)
        return parameters[position].name.value if position < len(parameters) else None

    def expects(self) -> str:
        """
        Give the name of its parameter for `call_next`.
        """
        if self.handed is not None or self.call_next:
            return self.handed or self.call_next
        parameters = own_parameters(self.node)
        return parameters[1].name.value if len(parameters) > 1 else ""


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
