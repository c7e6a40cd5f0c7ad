"""
A pytest plugin for `make test-lowest`: what the suite needs with the oldest dependencies.

1. anyio knows `anyio_mode = "auto"` from 4.11 on.
2. Before anyio 4.16 and Starlette 1.10 a `FileResponse` that is cancelled while it opens its
   file leaves the file open, with or without httpmw.
3. `Request.send_early_hints()` came after Starlette 1.6.
"""

from __future__ import annotations

from inspect import iscoroutinefunction
from typing import TYPE_CHECKING

import pytest
from starlette.requests import Request

if TYPE_CHECKING:
    from _pytest.python import PyCollector


def pytest_addoption(parser: pytest.Parser) -> None:
    """
    Make the setting known.
    """
    parser.addini("anyio_mode", "taken as auto", default="auto")


def pytest_configure(config: pytest.Config) -> None:
    """
    Let the open files pass.
    """
    config.addinivalue_line("filterwarnings", "ignore:unclosed file:ResourceWarning")


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: PyCollector, name: str, obj: object) -> None:
    """
    Mark every coroutine test, as the setting does.
    """
    if collector.istestfunction(obj, name) and iscoroutinefunction(obj):
        pytest.mark.usefixtures("anyio_backend")(obj)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Skip what the oldest Starlette does not have.
    """
    if not hasattr(Request, "send_early_hints"):
        skip = pytest.mark.skip(reason="newer than the oldest Starlette")
        for item in items:
            if item.name.startswith("test_early_hints_go_out_at_once"):
                item.add_marker(skip)
