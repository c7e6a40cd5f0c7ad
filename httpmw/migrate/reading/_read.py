# From the source of a file to what stands in it: its functions, classes and registrations.

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import libcst as cst

from ._module import Class, Module, Place, Registration, targets
from ._names import Names, children, dotted, is_http_decorator, is_none, last_name, own_scope

__all__ = ["dispatch_argument", "read"]


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


# All nodes of a module pass by, and `isinstance()` is slow where classes are abstract.
_COLLECTED: Final = frozenset(
    {cst.ClassDef, cst.FunctionDef, cst.Call, cst.Assign, cst.AnnAssign, cst.Global}
)


def _collect(module: Module) -> None:
    stack: list[tuple[cst.CSTNode, str, Place]] = [(module.tree, "", Place(module))]
    while stack:
        node, prefix, place = stack.pop()
        for each in children(node):
            if type(each) not in _COLLECTED:
                stack.append((each, prefix, place))
            elif isinstance(each, cst.ClassDef):
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
