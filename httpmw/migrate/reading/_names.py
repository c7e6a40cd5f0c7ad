# What names mean in one module, as far as it can be told without running it.

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

import libcst as cst

__all__ = [
    "IMPORT",
    "IMPORTS",
    "IMPORT_FROM",
    "Names",
    "children",
    "dotted",
    "fields",
    "find",
    "is_http_decorator",
    "is_lazy",
    "is_none",
    "last_name",
    "module_name",
    "own_scope",
]

# `lazy import` (PEP 810, Python 3.15) is a node of its own kind, which libcst has from 1.9 on.
_LAZY_IMPORT = getattr(cst, "LazyImport", cst.Import)
_LAZY_IMPORT_FROM = getattr(cst, "LazyImportFrom", cst.ImportFrom)
IMPORT = (cst.Import, _LAZY_IMPORT)
IMPORT_FROM = (cst.ImportFrom, _LAZY_IMPORT_FROM)
IMPORTS = (*IMPORT, *IMPORT_FROM)

_SCOPES = {cst.FunctionDef, cst.Lambda, cst.ClassDef}


class _Kinds(dict[type, bool]):
    # Which types are of some classes. Those of libcst are abstract, and `isinstance` with them
    # was half of the time of a run.
    def __init__(self, *kinds: type[Any]) -> None:
        super().__init__()
        self.kinds = kinds

    def __missing__(self, kind: type) -> bool:
        self[kind] = found = issubclass(kind, self.kinds)
        return found


_NODES = _Kinds(cst.CSTNode)


@functools.cache
def _kinds(kinds: tuple[type[Any], ...]) -> _Kinds:
    return _Kinds(*kinds)


def dotted(node: cst.CSTNode | None) -> str:
    """
    Give `a.b.c` for a name or a chain of attributes, and nothing for anything else.
    """
    if isinstance(node, cst.Name):
        return node.value
    if isinstance(node, cst.Attribute):
        value = dotted(node.value)
        return f"{value}.{node.attr.value}" if value else ""
    return ""


def last_name(node: cst.CSTNode) -> str:
    """
    Give the last name of a chain of attributes, whatever it begins with.
    """
    if isinstance(node, cst.Attribute):
        return node.attr.value
    return node.value if isinstance(node, cst.Name) else ""


@functools.cache
def fields(kind: type[cst.CSTNode]) -> tuple[str, ...]:
    # Not the whitespace. `CSTNode.children` would build every node anew.
    return tuple(
        each.name
        for each in dataclasses.fields(kind)
        if "whitespace" not in each.name
        and each.name
        not in {
            "lpar",
            "rpar",
            "leading_lines",
            "lines_after_decorators",
            "footer",
            "header",
            "semicolon",
            "comma",
            "operator",
            "asynchronous",
        }
    )


def children(node: cst.CSTNode) -> list[cst.CSTNode]:
    """
    Give the nodes right inside of a node, without whitespace and comments.
    """
    found: list[cst.CSTNode] = []
    for name in fields(type(node)):
        value = getattr(node, name)
        kind = type(value)
        if kind is tuple or kind is list:
            found.extend(value)
        elif _NODES[kind]:
            found.append(value)
    return found


def find(node: cst.CSTNode, *kinds: type[Any]) -> Iterator[Any]:
    """
    Walk over a node and all inside of it.
    """
    wanted = _kinds(kinds)
    stack = [node]
    while stack:
        each = stack.pop()
        if wanted[type(each)]:
            yield each
        stack.extend(reversed(children(each)))


@functools.lru_cache(maxsize=128)
def own_scope(node: cst.CSTNode) -> tuple[cst.CSTNode, ...]:
    """
    Give the nodes inside of a node in their order, but not into functions, lambdas and classes.
    """
    # Kept for a while: of one function a dozen questions are asked.
    found = []
    stack = children(node)[::-1]
    while stack:
        each = stack.pop()
        found.append(each)
        if type(each) not in _SCOPES:
            stack.extend(reversed(children(each)))
    return tuple(found)


def module_name(path: str) -> str:
    """
    Give a path as a dotted name, such as `src.app.main`; of a package it is that of the folder.
    """
    parts = list(PurePath(path).with_suffix("").parts)
    if parts and parts[-1] == "__init__":
        parts.pop()
    return ".".join(part for part in parts if part not in {"/", ".", ".."})


def is_lazy(node: cst.CSTNode) -> bool:
    """
    Tell whether it is an import that waits until its name is used.
    """
    return not isinstance(node, (cst.Import, cst.ImportFrom)) and isinstance(node, IMPORTS)


def is_http_decorator(node: cst.CSTNode) -> bool:
    """
    Tell whether it is `app.middleware("http")`, for whatever `app` is.
    """
    return (
        isinstance(node, cst.Call)
        and isinstance(node.func, cst.Attribute)
        and node.func.attr.value == "middleware"
        and len(node.args) == 1
        and isinstance(node.args[0].value, cst.SimpleString)
        and node.args[0].value.evaluated_value == "http"
    )


class Names:
    """
    The imports of a module, at whatever level they stand.
    """

    def __init__(self, module: cst.Module, path: str) -> None:
        self._package = module_name(path).split(".")
        if PurePath(path).stem != "__init__":
            self._package = self._package[:-1]
        self.imports: dict[str, str] = {}
        self.stars: list[str] = []
        # What is imported from the own package.
        self.relative: set[str] = set()
        for node in find(module, *IMPORTS):
            if isinstance(node, IMPORT):
                self._import(node)
            else:
                self._import_from(node)

    def _import(self, node: cst.Import) -> None:
        for alias in node.names:
            name = dotted(alias.name)
            if alias.asname is not None:
                self.imports[dotted(alias.asname.name)] = name
            else:
                first = name.partition(".")[0]
                self.imports.setdefault(first, first)

    def _import_from(self, node: cst.ImportFrom) -> None:
        base = self.origin(node)
        if isinstance(node.names, cst.ImportStar):
            self.stars.append(base)
            return
        for alias in node.names:
            name = dotted(alias.name)
            here = name if alias.asname is None else dotted(alias.asname.name)
            self.imports[here] = f"{base}.{name}" if base else name
            if node.relative:
                self.relative.add(here)

    def origin(self, node: cst.ImportFrom) -> str:
        """
        Give the module that an import statement names, with the dots of a relative one resolved.
        """
        name = dotted(node.module)
        if not node.relative:
            return name
        package = self._package[: len(self._package) - len(node.relative) + 1]
        return ".".join([*package, name] if name else package)

    def qualified(self, node: cst.CSTNode | None) -> str:
        """
        Give the dotted name of an expression, with its first part followed through the imports.
        """
        name = dotted(node)
        first, dot, rest = name.partition(".")
        return self.imports.get(first, first) + dot + rest

    def is_from(self, node: cst.CSTNode, name: str, modules: Sequence[str]) -> bool:
        """
        Tell whether an expression is *name* of one of *modules*, or of a part of one.
        """
        origin, _, last = self.qualified(node).rpartition(".")
        if last != name:
            return False
        if origin:
            return origin.partition(".")[0] in modules
        return any(star.partition(".")[0] in modules for star in self.stars)


def is_none(node: cst.CSTNode | None) -> bool:
    """
    Tell whether it is None, written out or left out.
    """
    return node is None or (isinstance(node, cst.Name) and node.value == "None")
