# Which uses of a name mean what the module calls so.

from __future__ import annotations

import libcst as cst

from ._names import IMPORTS, children, find, own_scope

__all__ = ["references"]


def references(tree: cst.CSTNode) -> dict[str, list[cst.Name]]:
    """
    Find the uses of each name of a module, or of a function by its body.

    No definitions, attributes, keywords, parameters or imports are among them, and nothing in a
    scope that has a variable of that name. Of the body of a function its own names are found.
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
        if isinstance(node, IMPORTS):
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
        elif isinstance(each, (cst.FunctionDef, cst.ClassDef)):
            names.add(each.name.value)
        elif isinstance(each, (cst.Global, cst.Nonlocal)):
            shared |= {one.name.value for one in each.names}
    return frozenset(names - shared)


def _bound(target: cst.CSTNode) -> set[str]:
    if isinstance(target, cst.Name):
        return {target.value}
    if isinstance(target, (cst.Tuple, cst.List)):
        return {name for each in target.elements for name in _bound(each.value)}
    return _bound(target.value) if isinstance(target, cst.StarredElement) else set()
