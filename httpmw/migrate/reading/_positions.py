# Where nodes stand in their file.

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import libcst as cst

from ._names import find
from ._replaced import replaced

__all__ = ["positions"]

# A rune, which may stand in a name, and does not stand in anybody's.
_MARK = "\u16dd"
_MARKS = re.compile(rf"{_MARK}(\d+){_MARK}|\n|\r\n?")


def positions(tree: cst.Module, nodes: Iterable[cst.CSTNode]) -> dict[cst.CSTNode, tuple[int, int]]:
    """
    Give line and column of each node, both from 1.
    """
    # libcst's own provider takes seven times as long as to write the source out. Here the
    # first name in each node gets a mark, and the marks are looked up in what is written.
    leaves = {node: _leaf(node) for node in nodes}
    marked = {id(leaf): leaf for leaf in leaves.values()}
    marks = {key: f"{_MARK}{index}{_MARK}" for index, key in enumerate(marked)}
    mapping = {key: _marked(marked[key], mark) for key, mark in marks.items()}
    if not mapping:
        return {}
    lengths = [len(each.value) if isinstance(each, cst.Name) else 0 for each in marked.values()]
    places = _places(replaced(tree, mapping).code, lengths)
    return {node: places.get(marks[id(leaf)], (1, 1)) for node, leaf in leaves.items()}


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
