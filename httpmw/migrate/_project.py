# What belongs together in the files of one run: classes and their bases, functions and their
# registrations, callers and the helpers that they hand `call_next` to.
#
# Rule 1: a *unit* is one function that takes `call_next`. Units that need each other are
# converted together or not at all.
# Rule 2: a registration is rewritten with the unit that it registers, and only then.
# Rule 3: what is not known is left alone, with a word on it.

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import libcst as cst

from . import _scan, _unit
from ._edit import replaced
from ._names import (
    Names,
    children,
    dotted,
    find,
    is_http_decorator,
    is_none,
    last_name,
    module_name,
    own_scope,
)
from ._scan import Problem, snippet
from ._unit import Unit

__all__ = ["BASE", "ORIGINS", "Class", "Module", "Project", "imports_base", "is_base_init"]

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
    owner: Class | None
    unit: Unit | None = None


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
    # Module level `name = value`.
    values: dict[str, cst.BaseExpression] = field(default_factory=dict)
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
        # libcst's own provider takes seven times as long as to write the source out. Here the
        # first name in each node gets a mark, and the marks are looked up in what is written.
        leaves = {id(node): _leaf(node) for node in nodes if node not in self._positions}
        marked = {id(leaf): leaf for leaf in leaves.values()}
        marks = {key: f"{_MARK}{index}{_MARK}" for index, key in enumerate(marked)}
        mapping = {key: _marked(marked[key], mark) for key, mark in marks.items()}
        if not mapping:
            return
        lengths = [len(each.value) if isinstance(each, cst.Name) else 0 for each in marked.values()]
        places = _places(replaced(self.tree, mapping).code, lengths)
        for node in nodes:
            if id(node) in leaves:
                self._positions[node] = places.get(marks[id(leaves[id(node)])], (1, 1))

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
            for each in find(node.body, cst.ImportFrom):
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
                for target in _targets(node)
            )
        return self._locks


def imports_base(node: cst.ImportFrom) -> bool:
    """
    Tell whether it imports Starlette's class.
    """
    return not isinstance(node.names, cst.ImportStar) and any(
        dotted(each.name) == BASE for each in node.names
    )


def _targets(node: cst.Assign | cst.AnnAssign) -> list[cst.BaseExpression]:
    if isinstance(node, cst.AnnAssign):
        return [node.target]
    return [each.target for each in node.targets]


# A rune, which may stand in a name, and does not stand in anybody's.
_MARK = "\u16dd"
_MARKS = re.compile(rf"{_MARK}(\d+){_MARK}|\n|\r\n?")


def _leaf(node: cst.CSTNode) -> cst.CSTNode:
    if isinstance(node, (cst.FunctionDef, cst.ClassDef)):
        return node.name
    return next(find(node, cst.Name), node)


def _marked(node: Any, mark: str) -> cst.CSTNode:
    if isinstance(node, cst.Name):
        return node.with_changes(value=mark)
    name = cst.Name(mark)
    return cst.Expr(name) if isinstance(node, cst.BaseSmallStatement) else name


def _places(code: str, lengths: Sequence[int]) -> dict[str, tuple[int, int]]:
    places = {}
    line, start, shift = 1, 0, 0
    for found in _MARKS.finditer(code):
        if found[1] is None:
            line, start, shift = line + 1, found.end(), 0
        else:
            places[found[0]] = line, found.start() - start + 1 + shift
            shift += lengths[int(found[1])] - len(found[0])
    return places


class Project:
    """
    The files of one run.
    """

    def __init__(self) -> None:
        self.modules: dict[str, Module] = {}
        # The files that cannot be written, and why.
        self.frozen: dict[str, str] = {}
        # Modules by the last part of their names, and by the names that they define.
        self._by_name: dict[str, list[Module]] = {}
        self._defining: dict[str, list[Module]] = {}
        self._found: dict[tuple[str, str], Any] = {}
        self._resolved = False

    def add(self, path: str, source: str) -> Module:
        """
        Parse a file of the run.

        Raises:
            libcst.ParserSyntaxError: It is no Python.
        """
        tree = cst.parse_module(source)
        module = Module(path, source, tree, Names(tree, path))
        _collect(module)
        self.modules[path] = module
        self._by_name.setdefault(module_name(path).rpartition(".")[2], []).append(module)
        for name in (*module.classes, *module.functions, *module.values):
            self._defining.setdefault(name, []).append(module)
        self._found.clear()
        self._resolved = False
        return module

    def freeze(self, path: str, what: str) -> None:
        """
        Take note that a file cannot be written, so that what belongs together is left together.
        """
        self.frozen[path] = what

    def wanted(self) -> set[str]:
        """
        Give the names of functions that may be used in files without `call_next` as well.
        """
        self.resolve()
        names = set()
        for each in self.all_units():
            if self.converts(each):
                names |= each.aliases
                if each.owner is None and "<locals>" not in each.qualname:
                    names.add(each.node.name.value)
        return names

    def reject(self, module: Module, qualname: str, code: str, what: str) -> None:
        """
        Leave a function as it was, and all that belongs to it.
        """
        for unit in module.units.values():
            if qualname in {"", unit.qualname} and self.converts(unit):
                unit.say(code, unit.node, what=what)
        self._settle_groups()

    def resolve(self) -> None:
        """
        Find out what is converted.
        """
        if self._resolved:
            return
        self._resolved = True
        for module in self.modules.values():
            module.forget()
        self._families()
        for module in self.modules.values():
            self._decorated(module)
        for module in self.modules.values():
            self._registered(module)
        for module in self.modules.values():
            self._unregistered(module)
        self._analyse()
        self._uses()
        self._settle()

    def all_units(self) -> Iterator[Unit]:
        for module in self.modules.values():
            yield from module.units.values()

    def all_classes(self) -> Iterator[Class]:
        for module in self.modules.values():
            yield from module.classes.values()

    # ------------------------------------------------------------------ classes

    def _families(self) -> None:
        for each in self.all_classes():
            for base in each.node.bases:
                if each.module.is_base(base.value):
                    each.direct = True
                elif (parent := self.find_class(each.module, base.value)) is not None:
                    each.parents.append(parent)
        for each in self.all_classes():
            if _derives(each, set()):
                # With the mixins among its bases, whose methods are those of the middleware.
                for one in (each, *_ancestors(each)):
                    one.derives = True
        for each in list(self.all_classes()):
            if each.derives:
                self._class_units(each)
                self._given_to_init(each)
            elif "dispatch" in each.methods and _takes_call_next(each.methods["dispatch"]):
                self._outside(each)

    def _class_units(self, each: Class) -> None:
        dispatch = each.methods.get("dispatch")
        if dispatch is not None:
            unit = self.unit(each.module, dispatch, "class")
            unit.registered = "class"
        elif "__call__" in each.methods and each.direct:
            each.problems.append(Problem("HM111", each.methods["__call__"]))
        for node in find(each.node, cst.Attribute):
            what = dotted(node)
            if what in {"self.dispatch_func", "self._functions", "self._inner"}:
                each.problems.append(Problem("HM118", node, {"what": what}))
        if each.direct and (guarded := each.module.guarded_import()) is not None:
            each.problems.append(Problem("HM119", guarded))

    def _given_to_init(self, each: Class) -> None:
        # `super().__init__(app, dispatch=self.handle)`
        init = each.methods.get("__init__")
        for call in find(init, cst.Call) if init is not None else ():
            if not is_base_init(each.module, call):
                continue
            given = _dispatch(
                call.args[2:] if each.module.is_base(call.func.value) else call.args[1:]
            )
            if given is None or dotted(given) in {"self.dispatch", "None"}:
                continue
            name = dotted(given).partition("self.")[2]
            if name in each.methods:
                unit = self.unit(each.module, each.methods[name], "class")
                unit.registered = "dispatch="
                unit.uses.update(id(node) for node in find(given, cst.Name))
            elif "dispatch" in each.methods and not _is_none_by_default(init, given):
                each.problems.append(Problem("HM118", call, {"what": snippet(call)}))

    def _outside(self, each: Class) -> None:
        # A dispatch in a class whose base is not here: a middleware of somebody else's.
        bases = [base.value for base in each.node.bases]
        foreign = [base for base in bases if self.find_class(each.module, base) is None]
        if not foreign or dotted(foreign[0]) in {"object", "ABC", "Protocol", "Generic"}:
            return
        unit = self.unit(each.module, each.methods["dispatch"], "class")
        unit.registered = "class"
        unit.problems.append(Problem("HM112", each.node, {"what": snippet(foreign[0])}))

    def find_class(self, module: Module, node: cst.CSTNode) -> Class | None:
        if isinstance(node, cst.Subscript):
            node = node.value
        found = self.find(module, node)
        return found if isinstance(found, Class) else None

    # ------------------------------------------------------------------ finding things

    def find(self, module: Module, node: cst.CSTNode, depth: int = 0) -> Any:
        """
        Find the class, the function or the value that a name stands for.
        """
        name = dotted(node)
        if not name:
            return None
        key = (module.path, name)
        if key not in self._found:
            self._found[key] = self._find(module, node, name, depth)
        return self._found[key]

    def _find(self, module: Module, node: cst.CSTNode, name: str, depth: int) -> Any:
        first = name.partition(".")[0]
        if first not in module.names.imports or first == name:
            here = self._here(module, name)
            if here is not None:
                return here
        qualified = module.names.qualified(node)
        if "." not in qualified or depth > 4:  # noqa: PLR2004
            return None
        origin, _, last = qualified.rpartition(".")
        for other in self._modules(origin):
            found = self._here(other, last)
            if found is None and last in other.names.imports:
                found = self.find(other, cst.Name(last), depth + 1)
            if found is not None:
                return found
        return self._re_exported(origin, last)

    def _here(self, module: Module, name: str) -> Any:
        if name in module.classes:
            return module.classes[name]
        if name in module.functions:
            return module.functions[name], module
        if name in module.values:
            return module.values[name], module
        ends = f".{name}"
        inner = [each for key, each in module.functions.items() if key.endswith(f"<locals>{ends}")]
        if len(inner) == 1:
            return inner[0], module
        local = [each for key, each in module.classes.items() if key.endswith(ends)]
        return local[0] if len(local) == 1 else None

    def _modules(self, origin: str) -> list[Module]:
        ends = f".{origin}"
        named = self._by_name.get(origin.rpartition(".")[2], ())
        return [each for each in named if f".{module_name(each.path)}".endswith(ends)]

    def _re_exported(self, origin: str, name: str) -> Any:
        # Out of a package whose `__init__` is not among the parsed files.
        package = f".{origin.rpartition('.')[2]}."
        found = [
            here
            for each in self._defining.get(name, ())
            if package in f".{module_name(each.path)}."
            and (here := self._here(each, name)) is not None
        ]
        return found[0] if len(found) == 1 else None

    def target(self, module: Module, node: cst.BaseExpression, owner: Class | None) -> Unit | None:
        """
        Find the unit that a registration or a delegation names.
        """
        function, where = self._function(module, node, owner)
        return None if function is None else self.unit(where, function, "function")

    def _function(self, module: Module, node: cst.CSTNode, owner: Class | None) -> Any:
        nothing = None, None
        if isinstance(node, cst.Call):
            return self._made(module, node)
        if isinstance(node, cst.Attribute):
            method = self._method(module, node, owner)
            if method is not None:
                return method
        found = self.find(module, node)
        if isinstance(found, tuple):
            what, where = found
            if isinstance(what, cst.FunctionDef):
                return what, where
            if isinstance(what, cst.Call):
                return self._made(where, what)
        if isinstance(found, Class):
            return nothing
        return nothing

    def _method(self, module: Module, node: cst.Attribute, owner: Class | None) -> Any:
        name = node.attr.value
        if isinstance(node.value, cst.Call) and dotted(node.value.func) == "super":
            return None if owner is None else _inherited(owner, name)
        if dotted(node.value) in {"self", "cls"} and owner is not None:
            if name in owner.methods:
                return owner.methods[name], owner.module
            return _inherited(owner, name)
        if isinstance(node.value, cst.Call):
            made = self.find(module, node.value.func)
            if isinstance(made, Class):
                method = made.methods.get(name)
                return _inherited(made, name) if method is None else (method, made.module)
        if dotted(node) and dotted(node).partition(".")[0] in module.names.imports:
            return None
        # Some object: the one method of that name, where there is one.
        found = [
            (each.methods[name], each.module)
            for each in self.all_classes()
            if name in each.methods and _takes_call_next(each.methods[name])
        ]
        return found[0] if len(found) == 1 else None

    def _made(self, module: Module, node: cst.Call) -> Any:
        # An object with `__call__`, or what a function returns.
        found = self.find(module, node.func)
        if isinstance(found, Class):
            if "__call__" in found.methods:
                return found.methods["__call__"], found.module
            return _inherited(found, "__call__") or (None, None)
        if isinstance(found, tuple) and isinstance(found[0], cst.FunctionDef):
            factory, where = found
            inner = {
                each.name.value: each
                for each in find(factory.body, cst.FunctionDef)
                if _takes_call_next(each)
            }
            names = {dotted(each.value) for each in find(factory.body, cst.Return) if each.value}
            chosen = [each for name, each in inner.items() if name in names]
            if len(chosen) == 1:
                return chosen[0], where
        return None, None

    # ------------------------------------------------------------------ units

    def unit(self, module: Module, node: cst.FunctionDef, kind: str) -> Unit:
        unit = module.units.get(id(node))
        if unit is None:
            owner = module.owners[id(node)]
            unit = Unit(module, node, module.qualnames[id(node)], owner, kind)
            module.units[id(node)] = unit
            if owner is not None:
                owner.units.append(unit)
        return unit

    def _decorated(self, module: Module) -> None:
        for node in module.functions.values():
            if any(is_http_decorator(each.decorator) for each in node.decorators):
                self.unit(module, node, "decorator").registered = "decorator"

    def _registered(self, module: Module) -> None:
        for registration in module.registrations:
            target = registration.target
            unit = None
            if target is not None:
                unit = self.target(module, target, registration.owner)
            if unit is None:
                what = snippet(registration.call if target is None else target)
                problem = Problem("HM114", registration.call, {"what": what})
                module.problems.append((problem, ""))
                continue
            registration.unit = unit
            unit.registered = registration.how
            if unit.owner is not None:
                unit.kind = "object"
            unit.registrations.append(registration)
            if target is not None:
                unit.uses.update(id(each) for each in find(target, cst.Name))

    def _unregistered(self, module: Module) -> None:
        if is_test(module.path):
            return  # what looks like a middleware there is a stub
        for node in list(module.functions.values()):
            if id(node) in module.units or not _is_middleware(node):
                continue
            owner = module.owners[id(node)]
            if owner is not None and owner.derives and node.name.value == "dispatch":
                continue
            self.unit(module, node, "function" if owner is None else "object")

    def _analyse(self) -> None:
        waiting = list(self.all_units())
        while waiting:
            unit = waiting.pop()
            if unit.analysed:
                continue
            unit.analyse()
            for site in unit.delegations():
                callee = self._callee(unit, site)
                if callee is None:
                    what = f"it is handed on to `{snippet(site.call.func)}`"
                    if _is_super(site.call.func):
                        unit.say("HM112", site.call, what=_outside_bases(unit))
                    else:
                        unit.say("HM101", site.call, name=unit.call_next, what=what)
                    continue
                callee.callers.append(unit)
                unit.link(callee)
                callee.uses.update(id(each) for each in find(site.call.func, cst.Name))
                if not callee.analysed:
                    waiting.append(callee)
                if id(site.node) in unit.flow.guarded and callee.raises_http():
                    what = "an HTTPException of the callee would not be caught here any more"
                    unit.say("HM101", site.call, name=unit.call_next, what=what)

    def _callee(self, unit: Unit, site: _scan.Site) -> Unit | None:
        function, where = self._function(unit.module, site.call.func, unit.owner)
        if function is None:
            return None
        callee = where.units.get(id(function))
        if callee is None:
            callee = self.unit(where, function, "helper")
        handed = callee.parameter_of(site)
        if handed is None:
            return None
        if callee.handed is None and callee.kind in {"helper", "function", "object"}:
            if callee.registered == "elsewhere":
                callee.kind = "helper"
                callee.registered = "delegation"
            if not callee.analysed:
                callee.handed = handed
        return callee if handed == callee.expects() else None

    # ------------------------------------------------------------------ other uses

    def _uses(self) -> None:
        for unit in list(self.all_units()):
            name = unit.node.name.value
            if unit.owner is not None and name == "__call__":
                self._uses_of_instances(unit)
            if unit.registered == "class" or name in {"dispatch", "__call__"}:
                continue
            for module in self.modules.values():
                if unit.owner is None:
                    self._uses_of_name(unit, name, module)
                elif module is unit.module:
                    self._uses_of_attribute(unit, name, module)
        self._calls_by_hand()

    def _uses_of_name(self, unit: Unit, name: str, module: Module) -> None:
        if module is not unit.module:
            found = self.find(module, cst.Name(name)) if name in module.names.imports else None
            if not isinstance(found, tuple) or found[0] is not unit.node:
                return
        elif "<locals>" not in unit.qualname and module.named(name) != 1:
            return
        understood = set(unit.uses)
        if "<locals>" in unit.qualname:
            # A function that returns it: who calls that registers it.
            understood |= module.returned()
        self._each_use(unit, name, module, understood)

    def _uses_of_instances(self, unit: Unit) -> None:
        # `middleware = TokenScoping()` at module level, and who imports it.
        for home in self.modules.values():
            for name, value in home.values.items():
                if not isinstance(value, cst.Call):
                    continue
                if self.find_class(home, value.func) is not unit.owner:
                    continue
                unit.aliases.add(name)
                for module in self.modules.values():
                    if module is home or self.find(module, cst.Name(name)) == (value, home):
                        attributes = {id(each.value) for each in find(module.tree, cst.Attribute)}
                        targets = {id(each.target) for each in find(module.tree, cst.AssignTarget)}
                        understood = unit.uses | attributes | targets
                        self._each_use(unit, name, module, understood)

    def _each_use(self, unit: Unit, name: str, module: Module, understood: set[int]) -> None:
        calls: dict[int, cst.Call] = {}
        if is_test(module.path) and module.references(name):
            calls = {
                id(call.func): call
                for call in find(module.tree, cst.Call)
                if len(call.args) == 2  # noqa: PLR2004
            }
        for node in module.references(name):
            if id(node) in understood:
                continue
            if id(node) in calls:
                module.by_hand.append((calls[id(node)], unit))
                continue
            unit.say("HM113", unit.node, name=name, what=module.where(node))
            return

    def _uses_of_attribute(self, unit: Unit, name: str, module: Module) -> None:
        for node in find(module.tree, cst.Attribute):
            if node.attr.value != name or dotted(node.value) not in {"self", "cls"}:
                continue
            if id(node.attr) not in unit.uses:
                unit.say("HM113", unit.node, name=name, what=module.where(node))
                return

    def _calls_by_hand(self) -> None:
        """
        Find `middleware.dispatch(request, call_next)` where nothing else is known of it.
        """
        delegated = {id(site.call) for unit in self.all_units() for site in unit.delegations()}
        entries = [unit for unit in self.all_units() if unit.owner is not None]
        if not entries:
            return
        for module in self.modules.values():
            if "dispatch(" not in module.source and "call_next)" not in module.source:
                continue
            everywhere: dict[str, list[Class | None]] = {}
            scopes: list[tuple[list[cst.Call], dict[str, list[Class | None]]]] = []
            for scope in (module.tree, *find(module.tree, cst.FunctionDef)):
                calls, instances = self._called_in(module, scope)
                scopes.append((calls, instances))
                for name, made in instances.items():
                    everywhere.setdefault(name, []).extend(made)
            for calls, instances in scopes:
                for call in calls:
                    if id(call) not in delegated:
                        self._call_by_hand(module, call, {**everywhere, **instances})

    def _called_in(
        self, module: Module, scope: cst.CSTNode
    ) -> tuple[list[cst.Call], dict[str, list[Class | None]]]:
        """
        Find the calls in a scope that may be of a middleware, and what its variables are.
        """
        calls: list[cst.Call] = []
        instances: dict[str, list[Class | None]] = {}

        def note(name: str, value: Any) -> None:
            if isinstance(value, cst.Call):
                each = self.find_class(module, value.func)
                if each is not None or name in {"middleware", "mw"}:
                    instances.setdefault(name, []).append(each)

        for node in own_scope(scope):
            if isinstance(node, cst.Call):
                by_name = last_name(node.func) == "dispatch" and isinstance(
                    node.func, cst.Attribute
                )
                if len(node.args) == 2 and (  # noqa: PLR2004
                    by_name or last_name(node.args[1].value) == "call_next"
                ):
                    calls.append(node)
            elif isinstance(node, (cst.Assign, cst.AnnAssign)):
                for target in _targets(node):
                    note(last_name(target), node.value)
            elif isinstance(node, (cst.Return, cst.Yield)) and isinstance(scope, cst.FunctionDef):
                note(scope.name.value, node.value)
        return calls, instances

    def _call_by_hand(
        self, module: Module, call: cst.Call, instances: dict[str, list[Class | None]]
    ) -> None:
        by_name = last_name(call.func) == "dispatch" and isinstance(call.func, cst.Attribute)
        unit = self._unit_called(module, call, instances, by_name=by_name)
        if unit is not None and is_test(module.path):
            module.by_hand.append((call, unit))
        elif unit is not None:
            unit.say("HM113", unit.node, name=unit.node.name.value, what=module.where(call))
        elif by_name and not _is_super(call.func) and dotted(call.func) != "self.dispatch":
            module.problems.append((Problem("HM212", call, {"what": snippet(call)}), ""))

    def _unit_called(
        self,
        module: Module,
        call: cst.Call,
        instances: dict[str, list[Class | None]],
        *,
        by_name: bool,
    ) -> Unit | None:
        func: Any = call.func
        receiver = func.value if by_name else func
        if isinstance(receiver, cst.Call):
            made = [self.find_class(module, receiver.func)]
        else:
            made = instances.get(last_name(receiver), [])
        methods = {self._entry(each, "dispatch" if by_name else "__call__") for each in made}
        return methods.pop() if len(methods) == 1 else None

    def _entry(self, each: Class | None, name: str) -> Unit | None:
        if each is None:
            return None
        method = each.methods.get(name)
        found = (method, each.module) if method is not None else _inherited(each, name)
        return None if found is None else found[1].units.get(id(found[0]))

    # ------------------------------------------------------------------ all or nothing

    def _settle(self) -> None:
        for family in _families(each for each in self.all_classes() if each.derives):
            units = [unit for each in family for unit in each.units if unit.kind == "class"]
            for unit in units[1:]:
                unit.link(units[0])
            for each in family:
                each.family = family
                for problem in each.problems:
                    own = [unit for unit in each.units if unit.kind == "class"]
                    for unit in own:
                        unit.problems.append(problem)
                    if not own:
                        each.module.problems.append((problem, each.qualname))
                        for unit in units:
                            what = f"{problem.code} in {each.module.path}"
                            unit.say("HM115", unit.node, name=each.qualname, what=what)
        for path, what in self.frozen.items():
            if path in self.modules:
                for unit in self.modules[path].units.values():
                    unit.say("HM192", unit.node, what=what)
        self._settle_groups()

    def _settle_groups(self) -> None:
        groups: list[set[Unit]] = []
        seen: set[int] = set()
        for unit in self.all_units():
            if id(unit) not in seen:
                group = _group(unit)
                seen |= {id(each) for each in group}
                groups.append(group)
        for group in groups:
            blocked = sorted((u for u in group if u.errors()), key=lambda u: u.qualname)
            if not blocked:
                continue
            culprit = blocked[0]
            code = culprit.errors()[0].code
            for unit in group:
                if not unit.errors():
                    what = f"{code} in {culprit.module.path}"
                    unit.say("HM115", unit.node, name=culprit.qualname, what=what)

    def converts(self, unit: Unit) -> bool:
        return not unit.errors()

    def converts_class(self, each: Class) -> bool:
        """
        Tell whether a class gets httpmw's base in place of Starlette's.
        """
        family = each.family
        units = [unit for one in family for unit in one.units if unit.kind == "class"]
        return (
            bool(units)
            and all(self.converts(unit) for unit in units)
            and not any(one.problems for one in family)
        )


# ---------------------------------------------------------------------- reading a module


def _collect(module: Module) -> None:
    stack: list[tuple[cst.CSTNode, str, Class | None]] = [(module.tree, "", None)]
    while stack:
        node, prefix, owner = stack.pop()
        for each in children(node):
            if isinstance(each, cst.ClassDef):
                qualname = prefix + each.name.value
                inner = Class(module, qualname, each)
                module.classes[qualname] = inner
                stack.append((each.body, f"{qualname}.", inner))
                stack.extend((d, prefix, owner) for d in (*each.decorators, *each.bases))
            elif isinstance(each, cst.FunctionDef):
                qualname = prefix + each.name.value
                while qualname in module.functions:
                    qualname += "'"
                module.functions[qualname] = each
                module.qualnames[id(each)] = qualname
                method = owner if prefix and owner and prefix == f"{owner.qualname}." else None
                module.owners[id(each)] = method
                if method is not None:
                    method.methods[each.name.value] = each
                stack.append((each.body, f"{qualname}.<locals>.", owner))
                stack.extend((d, prefix, owner) for d in each.decorators)
            else:
                if isinstance(each, cst.Call):
                    registration = _registration(module, each, owner)
                    if registration is not None:
                        module.registrations.append(registration)
                elif isinstance(each, cst.Assign) and not prefix:
                    for target in each.targets:
                        if isinstance(target.target, cst.Name):
                            module.values[target.target.value] = each.value
                elif isinstance(each, cst.AnnAssign) and not prefix and each.value is not None:
                    module.values[dotted(each.target)] = each.value
                stack.append((each, prefix, owner))


def _registration(module: Module, call: cst.Call, owner: Class | None) -> Registration | None:
    func = call.func
    if isinstance(func, cst.Call) and is_http_decorator(func) and len(call.args) == 1:
        return Registration(call, 'app.middleware("http")(fn)', call.args[0].value, owner)
    for position, arg in enumerate(call.args):
        if not module.is_base(arg.value):
            continue
        if last_name(func) in {"isinstance", "issubclass", "cast", "TypeVar"}:
            return None
        return Registration(call, "dispatch=", _dispatch(call.args[position + 1 :]), owner)
    if module.is_base(func):
        return Registration(call, "dispatch=", _dispatch(call.args[1:]), owner)
    return None


def _dispatch(args: Iterable[cst.Arg]) -> cst.BaseExpression | None:
    args = list(args)
    for arg in args:
        if arg.keyword is not None and arg.keyword.value == "dispatch":
            return arg.value
    if args and args[0].keyword is None and not args[0].star:
        return args[0].value
    return None


def references(tree: cst.CSTNode) -> dict[str, list[cst.Name]]:
    """
    Find the uses of each name of a module.

    No definitions, attributes, keywords, parameters or imports are among them, and nothing in a
    scope that has a variable of that name.
    """
    found: dict[str, list[cst.Name]] = {}
    nothing: frozenset[str] = frozenset()
    stack: list[tuple[cst.CSTNode, frozenset[str]]] = [(tree, nothing)]
    while stack:
        node, local = stack.pop()
        if isinstance(node, cst.Name):
            if node.value not in local:
                found.setdefault(node.value, []).append(node)
            continue
        if isinstance(node, (cst.Import, cst.ImportFrom)):
            continue
        inside = children(node)
        if isinstance(node, (cst.Attribute, cst.Arg)):
            inside = [node.value]
        elif isinstance(node, (cst.FunctionDef, cst.ClassDef, cst.Param)):
            inside = [each for each in inside if each is not node.name]
        here = local | _locals(node)
        stack.extend((each, here) for each in reversed(inside))
    return found


def _locals(node: cst.CSTNode) -> frozenset[str]:
    if isinstance(node, (cst.ListComp, cst.SetComp, cst.DictComp, cst.GeneratorExp)):
        return frozenset(each.value for each in find(node.for_in.target, cst.Name))
    if not isinstance(node, (cst.FunctionDef, cst.Lambda)):
        return frozenset()
    names = {each.name.value for each in find(node.params, cst.Param)}
    shared: set[str] = set()
    for each in own_scope(node.body):
        if isinstance(
            each, (cst.AssignTarget, cst.AnnAssign, cst.AugAssign, cst.For, cst.NamedExpr)
        ):
            names |= _bound(each.target)
        elif isinstance(each, cst.AsName):
            names |= _bound(each.name)
        elif isinstance(each, (cst.Global, cst.Nonlocal)):
            shared |= {one.name.value for one in each.names}
    return frozenset(names - shared)


def _bound(target: cst.CSTNode) -> set[str]:
    if isinstance(target, cst.Name):
        return {target.value}
    if isinstance(target, (cst.Tuple, cst.List)):
        return {name for each in target.elements for name in _bound(each.value)}
    return _bound(target.value) if isinstance(target, cst.StarredElement) else set()


def _takes_call_next(node: cst.FunctionDef) -> bool:
    return _unit.call_next_parameter(node) is not None


def _is_middleware(node: cst.FunctionDef) -> bool:
    """
    Tell whether a function that nobody registers is a middleware all the same.
    """
    parameters = _unit.own_parameters(node)
    if len(parameters) != 2 or _unit.call_next_parameter(node) is not parameters[1]:  # noqa: PLR2004
        return False
    wanted = parameters[1].name.value
    return any(
        isinstance(each.func, cst.Name) and each.func.value == wanted
        for each in find(node.body, cst.Call)
    ) or any(
        isinstance(arg.value, cst.Name) and arg.value.value == wanted
        for each in find(node.body, cst.Call)
        for arg in each.args
    )


def _derives(each: Class, seen: set[int]) -> bool:
    if id(each) in seen:
        return False
    seen.add(id(each))
    return each.direct or any(_derives(parent, seen) for parent in each.parents)


def _ancestors(each: Class) -> list[Class]:
    queue = list(each.parents)
    for parent in queue:
        queue.extend(other for other in parent.parents if other not in queue)
    return queue


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


def _is_none_by_default(init: cst.FunctionDef | None, given: cst.BaseExpression) -> bool:
    # Whoever passes one as well is told by httpmw that there are two.
    return init is not None and any(
        each.name.value == dotted(given) and each.default is not None and is_none(each.default)
        for each in find(init.params, cst.Param)
    )


def _inherited(owner: Class, name: str) -> Any:
    for parent in _ancestors(owner):
        if name in parent.methods:
            return parent.methods[name], parent.module
    return None


def is_test(path: str) -> bool:
    """
    Tell by its name whether a file is one of tests.
    """
    parts = PurePath(path).parts
    return bool(
        {"test", "tests"} & set(parts)
        or parts[-1].startswith(("test_", "conftest"))
        or parts[-1].endswith("_test.py")
    )


def _is_super(func: cst.BaseExpression) -> bool:
    return (
        isinstance(func, cst.Attribute)
        and isinstance(func.value, cst.Call)
        and dotted(func.value.func) == "super"
    )


def _outside_bases(unit: Unit) -> str:
    owner = unit.owner
    return "" if owner is None else ", ".join(snippet(each.value) for each in owner.node.bases)


def _families(classes: Iterable[Class]) -> list[list[Class]]:
    families: dict[int, list[Class]] = {}
    for each in classes:
        merged = [each]
        for parent in each.parents:
            other = families.get(id(parent), [parent])
            merged += [one for one in other if one not in merged]
        merged += [one for one in families.get(id(each), []) if one not in merged]
        for one in merged:
            families[id(one)] = merged
    unique = {id(family): family for family in families.values()}
    return list(unique.values())


def _group(unit: Unit) -> set[Unit]:
    group = {unit}
    stack = [unit]
    while stack:
        for other in stack.pop().links:
            if other not in group:
                group.add(other)
                stack.append(other)
    return group
