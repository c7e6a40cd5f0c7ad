# What can be told of a function or a generator by its code, before it runs.
#
# Rule 1: where something cannot be told, the answer is the one that lets it run.
# Rule 2: nothing here is on the way of a request whose middleware function is an async generator
# function and does not delegate.

from __future__ import annotations

import dis
import inspect
import sys
from sys import getrefcount
from types import AsyncGeneratorType, CodeType, FunctionType, MethodType
from typing import Any, Final

if sys.version_info >= (3, 12):

    def has_begun(flow: Any) -> bool:
        """
        Say whether a generator has taken its first step, and can take more.
        """
        if type(flow) is not AsyncGeneratorType:
            return bool(getattr(flow, "ag_suspended", False) or getattr(flow, "ag_running", False))
        return flow.ag_suspended or flow.ag_running

else:
    # What a generator has done that has been made and nothing else.
    _MADE: Final = dis.opmap["RETURN_GENERATOR"]

    def has_begun(flow: Any) -> bool:
        """
        Say whether a generator has taken its first step, and can take more.
        """
        # A frame costs as much as the generator: it is made only where somebody else has this one,
        # as the request has in which it waits. Ours are our caller's, our own and the question's.
        if getrefcount(flow) <= 3:  # noqa: PLR2004
            return False
        frame = getattr(flow, "ag_frame", None)
        if type(flow) is not AsyncGeneratorType or frame is None:
            return False
        return flow.ag_running or frame.f_code.co_code[frame.f_lasti] != _MADE


def can_only_give_none(function: Any) -> bool:
    """
    Say whether a plain function calls something and can return nothing but None.

    One that calls nothing, as a lambda, has its None on purpose.
    """
    if isinstance(function, MethodType):
        function = function.__func__
    if type(function) is not FunctionType or function.__name__ == "<lambda>":
        return False
    code = function.__code__
    if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        return False
    calls, returns = False, []
    before = None
    for each in dis.get_instructions(code):
        calls = calls or each.opname.startswith("CALL")
        if each.opname == "RETURN_CONST":
            returns.append(each.argrepr)
        elif each.opname == "RETURN_VALUE":
            # Where it is jumped to, the value comes from more than one place.
            if before is None or each.is_jump_target or "_CONST" not in before.opname:
                return False
            returns.append(before.argrepr)
        before = each
    return calls and set(returns) == {"None"}


def lines_of_yields(code: CodeType, before: int) -> list[int]:
    """
    Give the lines of an async generator function's yields that stand before a line.
    """
    lines = set()
    line, wraps = code.co_firstlineno, False
    for each in dis.get_instructions(code):
        line = (each.positions and each.positions.lineno) or line
        if each.opname == "YIELD_VALUE" and wraps and line < before:
            lines.add(line)
        # What it awaits is yielded as it is, what it yields is wrapped.
        wraps = "ASYNC_GEN_WRAP" in each.opname + each.argrepr
    return sorted(lines)
