# What names stand for, over all files of the run.
#
# Rule: where two things are meant equally well, nothing is found.

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Any

import libcst as cst

from ._module import Class, Module
from ._names import dotted, module_name

__all__ = ["Lookup", "ancestors", "inherited", "is_super"]


class Lookup:
    """
    The files of a run, by what they define.
    """

    def __init__(self) -> None:
        self.modules: dict[str, Module] = {}
        # Modules by the last part of their names, and by the names that they define.
        self._by_name: dict[str, list[Module]] = {}
        self._defining: dict[str, list[Module]] = {}
        self._found: dict[tuple[str, str], Any] = {}
        # The paths of the files that were not parsed, and the names of all.
        self.paths: Iterable[str] = ()
        self._names: set[str] | None = None

    def add(self, module: Module) -> None:
        """
        Add a file.
        """
        self.modules[module.path] = module
        self._by_name.setdefault(module_name(module.path).rpartition(".")[2], []).append(module)
        for name in {*module.classes, *module.functions, *module.values, *module.annotated}:
            self._defining.setdefault(name, []).append(module)
        self._found.clear()
        self._names = None

    def is_near(self, module: Module, node: cst.CSTNode) -> bool:
        """
        Tell whether a name is imported from a file that is, or may be, one of the run.
        """
        if dotted(node).partition(".")[0] in module.names.relative:
            return True
        origin = module.names.qualified(node).rpartition(".")[0]
        if not origin:
            return False
        top = origin.partition(".")[0]
        if top in PurePath(module.path).parent.parts:
            return True
        return top not in sys.stdlib_module_names and origin in self._all_names()

    def _all_names(self) -> set[str]:
        # Of all files, from wherever they may be imported.
        if self._names is None:
            self._names = set()
            for path in (*self.modules, *self.paths):
                parts = module_name(path).split(".")
                self._names |= {".".join(parts[start:]) for start in range(len(parts))}
        return self._names

    def all_classes(self) -> Iterator[Class]:
        """
        Give the classes of all files.
        """
        for module in self.modules.values():
            yield from module.classes.values()

    def find_class(self, module: Module, node: cst.CSTNode) -> Class | None:
        """
        Find the class that a base or a constructor names.
        """
        if isinstance(node, cst.Subscript):
            node = node.value
        found = self.find(module, node)
        return found if isinstance(found, Class) else None

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
            if here is not None or name in module.ambiguous:
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
        if name in module.ambiguous:
            return None
        if name in module.classes:
            return module.classes[name]
        if name in module.functions:
            return module.functions[name], module
        if name in module.values:
            return module.values[name], module
        if name in module.annotated:
            return cst.Annotation(module.annotated[name]), module
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


def ancestors(each: Class) -> list[Class]:
    """
    Give the bases of a class, and theirs.
    """
    queue = list(each.parents)
    for parent in queue:
        queue.extend(other for other in parent.parents if other not in queue)
    return queue


def inherited(owner: Class, name: str) -> Any:
    """
    Find a method among the bases of a class, and its module.
    """
    for parent in ancestors(owner):
        if name in parent.methods:
            return parent.methods[name], parent.module
    return None


def is_super(func: cst.BaseExpression) -> bool:
    """
    Tell whether it is a method of `super()`.
    """
    return (
        isinstance(func, cst.Attribute)
        and isinstance(func.value, cst.Call)
        and dotted(func.value.func) == "super"
    )
