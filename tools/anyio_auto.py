"""
A pytest plugin: `anyio_mode = "auto"` for an anyio older than 4.11, which does not know it.

For `make test-lowest` only: `pytest -p tools.anyio_auto`.
"""

from __future__ import annotations

from inspect import iscoroutinefunction
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from _pytest.python import PyCollector


def pytest_addoption(parser: pytest.Parser) -> None:
    """
    Make the setting known.
    """
    parser.addini("anyio_mode", "taken as auto", default="auto")


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: PyCollector, name: str, obj: object) -> None:
    """
    Mark every coroutine test, as the setting does.
    """
    if collector.istestfunction(obj, name) and iscoroutinefunction(obj):
        pytest.mark.usefixtures("anyio_backend")(obj)
