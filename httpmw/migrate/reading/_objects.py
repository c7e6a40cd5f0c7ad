# Of which class an expression is an instance, and for which function it stands.
#
# Rule 1: names are looked up as Python does: in the functions around, then in the file, then
# where they are imported from.
# Rule 2: assignments, annotations, and what functions return are followed; what is bound in two
# ways has to mean the same in both.
# Rule 3: what is not found is not guessed.

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import libcst as cst

from ._lookup import Lookup, ancestors, inherited
from ._module import Class, Module, Place, targets
from ._names import dotted, find, is_none, last_name, own_scope

__all__ = ["Objects", "named_in"]

_DEPTH = 8
_KEPT = {"Annotated", "ClassVar", "Final", "Optional", "Union"}
_SELF = {"cls", "self"}
_NOTHING: Any = (None, None)
_T = TypeVar("_T")


class Objects:
    """
    The objects of a run.

    Args:
        lookup: Its files.
    """

    def __init__(self, lookup: Lookup) -> None:
        self.lookup = lookup
        self._bindings: dict[cst.FunctionDef, dict[str, list[Any]]] = {}

    # ------------------------------------------------------------------ functions

    def function(self, place: Place, node: cst.CSTNode | None, depth: int = 0) -> Any:
        """
        Find the function that a registration or a delegation names, and its module.
        """
        if depth > _DEPTH:
            return _NOTHING
        if isinstance(node, cst.Await):
            return self.function(place, node.expression, depth + 1)
        if isinstance(node, (cst.BooleanOperation, cst.IfExp)):
            return self._one_function(((place, each) for each in _sides(node)), depth)
        if isinstance(node, cst.Call):
            return self._made(place, node, depth + 1)
        if isinstance(node, cst.Name):
            local = self._local(place, node.value)
            if local is not None:
                return self._one_function(self._values(*local), depth)
        if isinstance(node, cst.Attribute):
            return self._attribute(place, node, depth + 1)
        return self._named(place.module, node, depth)

    def _named(self, module: Module, node: cst.CSTNode | None, depth: int) -> Any:
        found = None if node is None else self.lookup.find(module, node)
        if isinstance(found, tuple):
            what, where = found
            if isinstance(what, cst.FunctionDef):
                return what, where
            if isinstance(what, cst.Annotation):
                return _called(self._annotated(Place(where), what.annotation))
            given = self.function(Place(where), what, depth + 1)
            if given[0] is None and (annotation := where.types.get(id(what))) is not None:
                return _called(self._annotated(Place(where), annotation))
            return given
        return _NOTHING

    def _attribute(self, place: Place, node: cst.Attribute, depth: int) -> Any:
        name = node.attr.value
        if isinstance(node.value, cst.Call) and dotted(node.value.func) == "super":
            found = None if place.owner is None else inherited(place.owner, name)
            return found or _NOTHING
        owner = self.instance(place, node.value, depth) or self._class(place, node.value)
        if owner is None:
            if dotted(node).partition(".")[0] in _SELF:
                return _NOTHING
            return self._named(place.module, node, depth)
        if name in owner.methods:
            return owner.methods[name], owner.module
        method = inherited(owner, name)
        if method is not None:
            return method
        return self._one_function(_attributes(owner, name), depth)

    def _one_function(self, values: Iterable[tuple[Place, Any]], depth: int) -> Any:
        found = []
        for place, value in values:
            if isinstance(value, cst.FunctionDef):
                found.append((value, place.module))
            elif isinstance(value, cst.Annotation):
                found.append(_called(self._annotated(place, value.annotation)))
            elif not is_none(value):
                found.append(self.function(place, value, depth + 1))
        return _agreed(found) or _NOTHING

    def _made(self, place: Place, node: cst.Call, depth: int) -> Any:
        # An object with `__call__`, or what a function returns.
        owner = self._class(place, node.func)
        if owner is None and dotted(node.func) == "cls":
            owner = place.owner
        if owner is not None:
            return _called(owner)
        factory, where = self.function(place, node.func, depth)
        if factory is None:
            return _NOTHING
        inside = self.inside(factory, where)
        given = [each.value for each in own_scope(factory.body) if isinstance(each, cst.Return)]
        found = self._one_function(((inside, each) for each in given), depth)
        if found[0] is None and factory.returns is not None:
            return _called(self._annotated(inside, factory.returns.annotation))
        return found

    # ------------------------------------------------------------------ instances

    def instance(self, place: Place, node: cst.CSTNode | None, depth: int = 0) -> Class | None:
        """
        Find the class that an object is made of.
        """
        if depth > _DEPTH or node is None:
            return None
        if isinstance(node, cst.Await):
            return self.instance(place, node.expression, depth + 1)
        if isinstance(node, cst.NamedExpr):
            return self.instance(place, node.value, depth + 1)
        if isinstance(node, (cst.BooleanOperation, cst.IfExp)):
            return self._one_instance(((place, each) for each in _sides(node)), depth)
        if isinstance(node, cst.Call):
            return self._instance_made(place, node, depth + 1)
        if isinstance(node, cst.Name):
            if node.value in _SELF:
                return place.owner
            local = self._local(place, node.value)
            if local is not None:
                return self._one_instance(self._values(*local), depth)
        if isinstance(node, cst.Attribute):
            owner = self.instance(place, node.value, depth + 1) or self._class(place, node.value)
            if owner is not None:
                return self._one_instance(_attributes(owner, node.attr.value), depth)
        found = self.lookup.find(place.module, node)
        if not isinstance(found, tuple) or isinstance(found[0], cst.FunctionDef):
            return None
        what, where = found
        made = self._one_instance([(Place(where), what)], depth)
        if made is None and (annotation := where.types.get(id(what))) is not None:
            return self._annotated(Place(where), annotation)
        return made

    def _one_instance(self, values: Iterable[tuple[Place, Any]], depth: int) -> Class | None:
        found = []
        for place, value in values:
            if isinstance(value, cst.Annotation):
                found.append(self._annotated(place, value.annotation))
            elif not is_none(value):
                found.append(self.instance(place, value, depth + 1))
        return _agreed(found)

    def _instance_made(self, place: Place, node: cst.Call, depth: int) -> Class | None:
        owner = self._class(place, node.func)
        if owner is not None:
            return owner
        if dotted(node.func) == "cls":
            return place.owner
        factory, where = self.function(place, node.func, depth)
        if factory is None:
            return None
        inside = self.inside(factory, where)
        if factory.returns is not None:
            annotated = self._annotated(inside, factory.returns.annotation)
            if annotated is not None:
                return annotated
        given = [each.value for each in own_scope(factory.body) if isinstance(each, cst.Return)]
        return self._one_instance(((inside, each) for each in given), depth)

    def _annotated(self, place: Place, annotation: cst.BaseExpression) -> Class | None:
        found = [self._class(place, each) for each in named_in(annotation)]
        if any(last_name(each) == "Self" for each in named_in(annotation)):
            return place.owner
        return _agreed(found) if found else None

    def value_of(self, place: Place, node: cst.CSTNode) -> Any:
        """
        Find the value that a name of a file, or an attribute of an object, is set to.
        """
        if isinstance(node, cst.Attribute):
            owner = self.instance(place, node.value) or self._class(place, node.value)
            if owner is not None:
                values = [value for _, value in _attributes(owner, node.attr.value)]
                return values[0] if len(values) == 1 else None
        if isinstance(node, cst.Name) and self._local(place, node.value) is not None:
            return None
        found = self.lookup.find(place.module, node)
        return found[0] if isinstance(found, tuple) else None

    # ------------------------------------------------------------------ names

    def _class(self, place: Place, node: cst.CSTNode) -> Class | None:
        if isinstance(node, cst.Name):
            local = self._local(place, node.value)
            if local is not None:
                _, values = local
                found = [place.module.classes_by_node.get(id(each)) for each in values]
                return found[0] if len(found) == 1 else None
        return self.lookup.find_class(place.module, node)

    def inside(self, function: cst.FunctionDef, module: Module) -> Place:
        """
        Give the place of what stands in a function.
        """
        around = module.places[id(function)]
        return replace(around, scopes=(*around.scopes, function))

    def _local(self, place: Place, name: str) -> tuple[Place, list[Any]] | None:
        """
        Find what a name is bound to in the functions around; None where it is no local one.
        """
        for count in range(len(place.scopes), 0, -1):
            values = self._bound(place.scopes[count - 1]).get(name)
            if values:
                return replace(place, scopes=place.scopes[:count]), values
        return None

    def _bound(self, function: cst.FunctionDef) -> dict[str, list[Any]]:
        # Asked for the same functions again and again, of which some are whole applications.
        if function not in self._bindings:
            self._bindings[function] = _bindings(function)
        return self._bindings[function]

    def _values(self, place: Place, values: Iterable[Any]) -> Iterator[tuple[Place, Any]]:
        return ((place, each) for each in values)


def _bindings(function: cst.FunctionDef) -> dict[str, list[Any]]:
    """
    Give what each name is bound to in a function: functions, classes, values and annotations.

    What is bound in another way is an `Ellipsis`, of which nothing is known; a name that is
    imported in the function is looked up as one of the file.
    """
    every = own_scope(function.body)
    imported = {id(each.asname) for each in every if isinstance(each, cst.ImportAlias)}
    found: dict[str, list[Any]] = {}
    for each in find(function.params, cst.Param):
        known = cst.Ellipsis() if each.annotation is None else each.annotation
        found.setdefault(each.name.value, []).append(known)
    for node in every:
        for name, value in _binds(node):
            if id(node) not in imported:
                found.setdefault(name, []).append(value)
    for name in {name for node in every for name in _declared(node)}:
        found.pop(name, None)
    return found


def _binds(node: cst.CSTNode) -> Iterator[tuple[str, Any]]:
    if isinstance(node, (cst.FunctionDef, cst.ClassDef)):
        yield node.name.value, node
    elif isinstance(node, (cst.Assign, cst.AnnAssign)):
        annotated = isinstance(node, cst.AnnAssign) and node.annotation
        for target in targets(node):
            if isinstance(target, cst.Name):
                yield target.value, annotated or node.value
            else:
                yield from ((name, cst.Ellipsis()) for name in _names_in(target))
    elif isinstance(node, cst.NamedExpr):
        yield dotted(node.target), node.value
    elif isinstance(node, (cst.AugAssign, cst.For, cst.CompFor)):
        yield from ((name, cst.Ellipsis()) for name in _names_in(node.target))
    elif isinstance(node, cst.AsName):
        yield from ((name, cst.Ellipsis()) for name in _names_in(node.name))


def _declared(node: cst.CSTNode) -> set[str]:
    if isinstance(node, (cst.Global, cst.Nonlocal)):
        return {each.name.value for each in node.names}
    return set()


def _sides(node: cst.BooleanOperation | cst.IfExp) -> tuple[cst.BaseExpression, ...]:
    if isinstance(node, cst.IfExp):
        return node.body, node.orelse
    return node.left, node.right


def _names_in(target: cst.CSTNode) -> set[str]:
    if isinstance(target, cst.Name):
        return {target.value}
    if isinstance(target, (cst.List, cst.Tuple)):
        return {name for each in target.elements for name in _names_in(each.value)}
    return set()


def _called(owner: Class | None) -> Any:
    if owner is None:
        return _NOTHING
    if "__call__" in owner.methods:
        return owner.methods["__call__"], owner.module
    return inherited(owner, "__call__") or _NOTHING


def _attributes(owner: Class, name: str) -> Iterator[tuple[Place, Any]]:
    """
    Give what an attribute is set to: in the class, and by `self.name = value` in its methods.
    """
    for each in (owner, *ancestors(owner)):
        place = Place(each.module, each)
        for line in each.node.body.body:
            for node in getattr(line, "body", ()) if isinstance(line, _LINE) else ():
                if isinstance(node, (cst.Assign, cst.AnnAssign)) and any(
                    dotted(target) == name for target in targets(node)
                ):
                    annotated = isinstance(node, cst.AnnAssign) and node.annotation
                    yield place, annotated or node.value
        for method in each.methods.values():
            inside = replace(place, scopes=(method,))
            for node in own_scope(method.body):
                if isinstance(node, (cst.Assign, cst.AnnAssign)) and any(
                    dotted(target) == f"self.{name}" for target in targets(node)
                ):
                    annotated = isinstance(node, cst.AnnAssign) and node.annotation
                    yield inside, annotated or node.value


_LINE = cst.SimpleStatementLine


def named_in(node: cst.BaseExpression) -> Iterator[cst.BaseExpression]:
    """
    Give the classes that an annotation names, without None and without the arguments of generics.
    """
    if isinstance(node, cst.SimpleString):
        text = node.evaluated_value
        try:
            yield from named_in(cst.parse_expression(text if isinstance(text, str) else ""))
        except cst.ParserSyntaxError:
            return
    elif isinstance(node, cst.BinaryOperation):
        yield from named_in(node.left)
        yield from named_in(node.right)
    elif isinstance(node, cst.Subscript):
        if last_name(node.value) not in _KEPT:
            yield node.value
            return
        for position, each in enumerate(node.slice):
            if isinstance(each.slice, cst.Index) and not (
                position and last_name(node.value) == "Annotated"
            ):
                yield from named_in(each.slice.value)
    elif not is_none(node):
        yield node


def _agreed(found: Iterable[_T]) -> _T | None:
    """
    Give what all are, where they are the same.
    """
    every = list(found)
    first = every[0] if every else None
    if isinstance(first, tuple):
        same = all(isinstance(e, tuple) and e[0] is first[0] for e in every)
    else:
        same = all(each is first for each in every)
    return first if same else None
