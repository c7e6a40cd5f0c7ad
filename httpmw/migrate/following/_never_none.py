# Which calls certainly do not give None, by what is written in the same file.
#
# Rule 1: an annotation alone is no proof. A function counts where nothing in it can give None: it
# does not fall off its end, each of its returns has a value, and each of these values is certain
# or the annotation says that it is a response.
# Rule 2: of a name that is defined twice nothing is known.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import libcst as cst

from httpmw.migrate.reading._module import Class, Module
from httpmw.migrate.reading._names import Names, dotted, is_none, last_name, own_scope
from httpmw.migrate.reading._parameters import own_parameters

from ._endings import can_end

__all__ = ["Certain", "is_response_class"]

# Coroutine functions that give a response.
_HANDLERS = {
    f"fastapi.exception_handlers.{name}_exception_handler"
    for name in ("http", "request_validation")
}
_METHODS = {"classmethod", "staticmethod"}


class Certain:
    """
    What is known of the calls in one function.

    Args:
        module: Its file.
        owner: Its class.
        elsewhere: Finds a function of another file, or nothing.
    """

    def __init__(
        self, module: Module, owner: Class | None, elsewhere: Callable[[Any], Any] | None = None
    ) -> None:
        self.module = module
        self.owner = owner
        self.elsewhere = elsewhere
        self._asked: set[int] = set()

    def patches(self, call: cst.Call, request: str) -> bool:
        """
        Tell whether a function of the run gives the request that it is handed another `receive`.
        """
        found = [(i, each) for i, each in enumerate(call.args) if dotted(each.value) == request]
        if not found:
            return False
        position, arg = found[0]
        function = self.function(call.func)
        if function is None and self.elsewhere is not None:
            function = self.elsewhere(call.func)
        if function is None:
            return False
        names = [each.name.value for each in own_parameters(function)]
        name = names[position] if position < len(names) else ""
        if arg.keyword is not None:
            name = arg.keyword.value
        return any(
            isinstance(each, cst.AssignTarget) and dotted(each.target) == f"{name}._receive"
            for each in own_scope(function.body)
        )

    def gives_a_value(self, call: cst.Call, *, awaited: bool) -> bool:
        """
        Tell whether a call, or what is awaited of it, is certainly not None.
        """
        if awaited and self.module.names.qualified(call.func) in _HANDLERS:
            return True
        function = self.function(call.func)
        if function is not None:
            is_async = function.asynchronous is not None
            return is_async is awaited and self._returns_values(function)
        return not awaited and self._is_class(call.func)

    def function(self, func: cst.BaseExpression) -> cst.FunctionDef | None:
        """
        Find a function of the file, or a method of the class.
        """
        first, dot, last = dotted(func).rpartition(".")
        if first in {"self", "cls"} and self.owner is not None:
            found = self.owner.methods.get(last)
        else:
            found = self.module.functions.get(last) if not dot else None
        return found if self.module.named(last) == 1 else None

    def _is_class(self, func: cst.BaseExpression) -> bool:
        name = last_name(func)
        if self.module.named(name) or name in self.module.ambiguous:
            return False
        if name in self.module.values:
            # Another name of one.
            value = self.module.values[name]
            return isinstance(func, cst.Name) and dotted(value) != name and self._is_class(value)
        if isinstance(func, cst.Name) and name in self.module.classes:
            return True
        return is_response_class(self.module.names.qualified(func) or name)

    def _returns_values(self, function: cst.FunctionDef) -> bool:
        if id(function) in self._asked or any(
            last_name(each.decorator) not in _METHODS for each in function.decorators
        ):
            return False
        self._asked.add(id(function))
        try:
            inside = list(own_scope(function.body))
            if can_end(function.body) or any(isinstance(each, cst.Yield) for each in inside):
                return False
            annotated = function.returns is not None and _is_response(
                function.returns.annotation, self.module.names
            )
            return all(
                not is_none(each.value) and (annotated or self._is_value(each.value))
                for each in inside
                if isinstance(each, cst.Return)
            )
        finally:
            self._asked.discard(id(function))

    def _is_value(self, node: cst.CSTNode | None) -> bool:
        if isinstance(node, cst.Await) and isinstance(node.expression, cst.Call):
            return self.gives_a_value(node.expression, awaited=True)
        return isinstance(node, cst.Call) and self.gives_a_value(node, awaited=False)


def is_response_class(name: str) -> bool:
    """
    Tell by its name whether it is a class of responses.
    """
    # Which are written in capitals; the name of a template's is `TemplateResponse`.
    last = name.rpartition(".")[2].lstrip("_")
    return last.endswith("Response") and last[:1].isupper()


def _is_response(annotation: cst.BaseExpression, names: Names) -> bool:
    if isinstance(annotation, cst.SimpleString):
        text = annotation.evaluated_value
        try:
            annotation = cst.parse_expression(text if isinstance(text, str) else "")
        except cst.ParserSyntaxError:
            return False
    if isinstance(annotation, cst.BinaryOperation):
        return _is_response(annotation.left, names) and _is_response(annotation.right, names)
    return is_response_class(names.qualified(annotation) or last_name(annotation))
