# Which parameter of a function is `call_next`.

from __future__ import annotations

import libcst as cst

from ._names import find, last_name

__all__ = ["call_next_parameter", "is_middleware", "own_parameters", "takes_call_next"]

_ENDPOINTS = {"RequestResponseEndpoint", "DispatchFunction"}


def own_parameters(node: cst.FunctionDef) -> list[cst.Param]:
    """
    Give the positional parameters without `self`.
    """
    every = [*node.params.posonly_params, *node.params.params]
    if every and every[0].name.value in {"self", "cls"}:
        every = every[1:]
    return every


def call_next_parameter(node: cst.FunctionDef) -> cst.Param | None:
    """
    Find the parameter that is `call_next` by its name or by its annotation.
    """
    for each in (*own_parameters(node), *node.params.kwonly_params):
        if each.name.value == "call_next":
            return each
        annotation = each.annotation.annotation if each.annotation is not None else None
        if annotation is not None and last_name(annotation) in _ENDPOINTS:
            return each
    return None


def takes_call_next(node: cst.FunctionDef) -> bool:
    """
    Tell whether a function has one.
    """
    return call_next_parameter(node) is not None


def is_middleware(node: cst.FunctionDef) -> bool:
    """
    Tell whether a function that nobody registers is a middleware all the same.
    """
    parameters = own_parameters(node)
    if len(parameters) != 2 or call_next_parameter(node) is not parameters[1]:  # noqa: PLR2004
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
