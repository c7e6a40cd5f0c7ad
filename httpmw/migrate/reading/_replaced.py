# Nodes put in the place of others.
#
# Rule: only what lies on the way to a changed node is built anew; everything else is the very
# node that was parsed, so that it comes out as it went in.

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import libcst as cst

from ._names import children, fields

__all__ = ["replaced"]


def replaced(tree: Any, mapping: dict[int, Any]) -> Any:
    """
    Put another node, or a list of nodes, in the place of some.
    """
    on_the_way = _ways_to(tree, mapping)

    def walk(node: Any) -> Any:
        if id(node) in mapping:
            return mapping[id(node)]
        if id(node) not in on_the_way:
            return node
        changes: dict[str, Any] = {}
        kind: type[cst.CSTNode] = type(node)
        for name in fields(kind):
            value = getattr(node, name)
            if isinstance(value, cst.CSTNode):
                changes[name] = walk(value)
            elif type(value) in (list, tuple):
                changes[name] = list(_spliced(walk(each) for each in value))
        return node.with_changes(**changes)

    return walk(tree)


def _spliced(nodes: Iterable[Any]) -> Iterator[Any]:
    for each in nodes:
        if isinstance(each, list):
            yield from each
        else:
            yield each


def _ways_to(tree: cst.CSTNode, mapping: dict[int, Any]) -> set[int]:
    found: set[int] = set()

    def walk(node: cst.CSTNode) -> bool:
        if id(node) in mapping:
            return True
        ways = [walk(each) for each in children(node)]
        if any(ways):
            found.add(id(node))
            return True
        return False

    walk(tree)
    return found
