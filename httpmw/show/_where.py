# Where a class or a function was defined.

from __future__ import annotations

import functools
import inspect
import linecache
import os
import re
import sys
import sysconfig
from types import FunctionType
from typing import Any, Final

_SITE: Final = tuple(
    dict.fromkeys(
        os.path.realpath(sysconfig.get_path(name)) + os.sep
        for name in ("purelib", "platlib", "stdlib")
    )
)


def unwrapped(function: Any) -> Any:
    """
    Give what was written down: the function behind partials, methods and decorators.
    """
    for _ in range(20):
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        elif isinstance(function, FunctionType) and "__wrapped__" in vars(function):
            function = vars(function)["__wrapped__"]
        else:
            break
    return function


def where(subject: Any) -> str | None:
    """
    Say in which file and line *subject* was defined: `shop/main.py:12`.

    Args:
        subject: A class, a function, or an instance, of which it is the class.
    """
    subject = unwrapped(subject)
    if isinstance(subject, FunctionType):
        return f"{_short(subject.__code__.co_filename)}:{subject.__code__.co_firstlineno}"
    cls = subject if isinstance(subject, type) else type(subject)
    return _of_class(cls)


@functools.lru_cache(maxsize=4096)
def _of_class(cls: type) -> str | None:
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    if file is None or not file.endswith(".py"):
        return None
    line = vars(cls).get("__firstlineno__")  # from Python 3.13 on
    if line is None:
        line = _line_of(cls, file)
    return _short(file) if line is None else f"{_short(file)}:{line}"


def _line_of(cls: type, file: str) -> int | None:
    # Not `inspect.findsource`, which parses the file: the statement with that name, and with its
    # first method below it where there are several.
    pattern = re.compile(rf"^\s*class\s+{re.escape(cls.__name__)}\b")
    lines = [n for n, text in enumerate(linecache.getlines(file), 1) if pattern.match(text)]
    methods = [
        each.__code__.co_firstlineno
        for each in vars(cls).values()
        if inspect.isfunction(each) and each.__code__.co_filename == file
    ]
    before = [n for n in lines if not methods or n <= min(methods)]
    return before[-1] if before else next(iter(lines), None)


def _short(file: str) -> str:
    path = os.path.realpath(file)
    for site in _SITE:
        if path.startswith(site):
            return path.removeprefix(site).removeprefix("site-packages" + os.sep)
    here = os.path.realpath(os.getcwd()) + os.sep  # noqa: PTH109 - a prefix of text
    return path.removeprefix(here)
