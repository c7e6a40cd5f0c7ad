"""
Annotations can be evaluated at run time, as frameworks do that inject by type.
"""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from httpmw import Connection

MODULES = ["httpmw", "httpmw.compat", "httpmw.testing", "httpmw.stack"]


def public() -> Iterator[Any]:
    for module in MODULES:
        for name in importlib.import_module(module).__all__:
            value = getattr(importlib.import_module(module), name)
            if not isinstance(value, type) and not inspect.isfunction(value):
                continue
            yield pytest.param(value, id=f"{module}.{name}")
            if not isinstance(value, type):
                continue
            for attribute, member in vars(value).items():
                if attribute.startswith("_") and attribute != "__init__":
                    continue
                function = getattr(member, "fget", member)
                function = getattr(function, "__func__", function)
                if inspect.isfunction(function):
                    yield pytest.param(function, id=f"{module}.{name}.{attribute}")


@pytest.mark.parametrize("value", list(public()))
def test_annotations_of_all_that_is_public_can_be_evaluated(value: Any) -> None:
    """No name in them is there for type checkers only."""
    typing.get_type_hints(value)


class MyState(typing.TypedDict):
    tenant: str


def test_type_of_the_state_can_be_named() -> None:
    """As with Starlette's requests; it is nothing at run time."""

    async def mw(conn: Connection[MyState]) -> Any:
        yield

    hint = typing.get_type_hints(mw, localns={"MyState": MyState})["conn"]

    assert typing.get_origin(hint) is Connection
    assert typing.get_args(hint) == (MyState,)
