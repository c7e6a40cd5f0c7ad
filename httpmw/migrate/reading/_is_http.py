# Whether a function that nobody registers is HTTP middleware at all.
#
# The name `call_next` belongs to nobody: MCP servers, message queues and RPC libraries use it for
# chains of their own. So a function without a registration has to show what it is.
#
# Rule 1: its first parameter is a request by its annotation or, where it has none, by its name.
# Rule 2: nothing speaks against it: it is no method of a class whose base is not in the run, the
# other annotations are not those of another library, and it is a coroutine function.
# Rule 3: what is plainly something else is passed over without a word; where it may be HTTP all
# the same, it is said.

from __future__ import annotations

import builtins
import sys
from enum import Enum

import libcst as cst

from ._lookup import Lookup, ancestors
from ._module import ORIGINS, Class, Module
from ._names import dotted, find, last_name
from ._objects import named_in
from ._parameters import call_next_parameter, own_parameters
from ._problem import snippet

__all__ = ["doubt"]

_REQUESTS = {"Connection", "HTTPConnection", "Request", "_CachedRequest"}
_NAMES = {"conn", "connection", "http_request", "req", "request"}
_CHAINS = {"Awaitable", "Callable", "Coroutine"}
_ENDPOINTS = {"DispatchFunction", "RequestResponseEndpoint"}
_OURS = (*ORIGINS, "typing", "typing_extensions", "collections")
_KNOWN_BASES = {*sys.stdlib_module_names, *ORIGINS, "typing_extensions", "attr", "attrs"}


class _Is(Enum):
    HTTP = 1
    OTHER = 2
    UNSURE = 3
    UNSAID = 4


def doubt(lookup: Lookup, module: Module, node: cst.FunctionDef) -> str | None:
    """
    Say what speaks against taking an unregistered function for HTTP middleware.

    Returns:
        Words for HM122; empty where it is plainly something else; None where nothing does.
    """
    return _Doubt(lookup, module).about(node)


class _Doubt:
    def __init__(self, lookup: Lookup, module: Module) -> None:
        self.lookup = lookup
        self.module = module

    def about(self, node: cst.FunctionDef) -> str | None:
        first = own_parameters(node)[0]
        chain = call_next_parameter(node)
        request = self.annotated(first.annotation)
        following = _Is.UNSAID if chain is None else self.annotated(chain.annotation, chain=True)
        if request is _Is.OTHER or (following is _Is.OTHER and request is not _Is.HTTP):
            return ""
        owner = self.module.owners[id(node)]
        foreign = None if owner is None or owner.derives else self.foreign_base(owner)
        named = first.name.value.strip("_").lower() in _NAMES
        if foreign and request is not _Is.HTTP and following is not _Is.HTTP and not named:
            return ""
        if request is _Is.UNSURE and first.annotation is not None:
            what = snippet(first.annotation.annotation)
            return f"`{what}`, the type of its first parameter, is not in the files of this run"
        if foreign:
            return f"the base class `{foreign}` is not in the files of this run"
        if _Is.HTTP in {request, following}:
            return None
        if not named:
            return f"its first parameter `{first.name.value}` is no request by its name or its type"
        if node.asynchronous is None:
            return "it is no coroutine function"
        if node.returns is not None and self.is_foreign(node.returns.annotation):
            return f"it returns `{snippet(node.returns.annotation)}`"
        return None

    # ------------------------------------------------------------------ annotations

    def annotated(self, annotation: cst.Annotation | None, *, chain: bool = False) -> _Is:
        if annotation is None:
            return _Is.UNSAID
        found = [
            self.chain(self.module, each) if chain else self.request(self.module, each)
            for each in named_in(annotation.annotation)
        ]
        for kind in (_Is.HTTP, _Is.OTHER, _Is.UNSURE):
            if kind in found:
                return kind
        return _Is.UNSAID

    def request(self, module: Module, node: cst.BaseExpression, depth: int = 0) -> _Is:
        """
        Tell whether a class is that of a request.
        """
        qualified = module.names.qualified(node)
        origin, _, name = qualified.rpartition(".")
        if name in {"Any", "object"} or depth > 4:  # noqa: PLR2004 - a chain of aliases
            return _Is.UNSAID
        found = self.lookup.find(module, node)
        if isinstance(found, Class):
            return self.class_of_requests(found, depth)
        if isinstance(found, tuple):
            return self.alias(found, depth)
        if self.lookup.is_near(module, node):
            return _Is.UNSURE
        if origin.partition(".")[0] in ORIGINS:
            return _Is.HTTP if name in _REQUESTS or name.endswith("Request") else _Is.OTHER
        if not origin:
            # From nowhere, as in an excerpt: it means what the name says.
            return _Is.HTTP if name in _REQUESTS else _Is.OTHER
        return _Is.OTHER

    def alias(self, found: tuple[cst.CSTNode, Module], depth: int) -> _Is:
        value, where = found
        if isinstance(value, cst.Annotation):
            value = value.annotation
        if isinstance(value, cst.Call):
            return _Is.UNSAID  # a type variable
        if not isinstance(value, cst.BaseExpression):
            return _Is.OTHER
        kinds = [self.request(where, each, depth + 1) for each in named_in(value)]
        return kinds[0] if kinds else _Is.UNSAID

    def class_of_requests(self, found: Class, depth: int) -> _Is:
        for each in (found, *ancestors(found)):
            for base in each.node.bases:
                if base.keyword is None and not isinstance(
                    self.lookup.find(each.module, base.value), Class
                ):
                    for one in named_in(base.value):
                        if self.request(each.module, one, depth + 1) is _Is.HTTP:
                            return _Is.HTTP
        return _Is.OTHER

    def chain(self, module: Module, node: cst.BaseExpression) -> _Is:
        """
        Tell whether an annotation is that of `call_next`.
        """
        name = last_name(node)
        if name in _ENDPOINTS:
            top = module.names.qualified(node).partition(".")[0]
            near = top in {*ORIGINS, name} or self.lookup.is_near(module, node)
            return _Is.HTTP if near else _Is.OTHER
        if name in _CHAINS or name in {"Any", "object"}:
            return self.arguments(node)
        found = self.lookup.find(module, node)
        if isinstance(found, (tuple, Class)):
            return _Is.UNSAID
        return _Is.OTHER if self.is_far(module, node) else _Is.UNSAID

    def arguments(self, node: cst.BaseExpression) -> _Is:
        # `Callable[[Request], Awaitable[Response]]`: `annotations` gave the `Callable` alone.
        for each in find(self.module.tree, cst.Subscript):
            if each.value is node:
                given = [
                    self.request(self.module, one)
                    for element in find(each.slice[0], cst.Element)
                    for one in named_in(element.value)
                ]
                return given[0] if given and given[0] is not _Is.UNSURE else _Is.UNSAID
        return _Is.UNSAID

    def is_foreign(self, annotation: cst.BaseExpression) -> bool:
        """
        Tell whether something of another library is returned.
        """
        return any(
            self.is_far(self.module, each) and not last_name(each).endswith("Response")
            for each in named_in(annotation)
        )

    def is_far(self, module: Module, node: cst.BaseExpression) -> bool:
        """
        Tell whether a name comes from a library that is none of ours.
        """
        name = module.names.qualified(node)
        known = name.partition(".")[0] in _OURS or self.lookup.is_near(module, node)
        return "." in name and not known

    # ------------------------------------------------------------------ classes

    def foreign_base(self, owner: Class) -> str:
        """
        Give a base that is not in the run, of a class or of one that is related to it.
        """
        related = {id(each): each for each in (owner, *ancestors(owner))}
        for each in self.lookup.all_classes():
            if owner in ancestors(each):
                related[id(each)] = each
        for each in related.values():
            for base in each.node.bases:
                if base.keyword is None and not self.is_known(each.module, base.value):
                    return snippet(base.value)
        return ""

    def is_known(self, module: Module, base: cst.BaseExpression) -> bool:
        if isinstance(base, cst.Subscript):
            base = base.value
        if self.lookup.find_class(module, base) is not None:
            return True
        name = module.names.qualified(base)
        top = name.partition(".")[0]
        return top in _KNOWN_BASES or (name == dotted(base) and hasattr(builtins, name))
