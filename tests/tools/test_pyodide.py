"""What `make pyodide` asks of httpmw on Pyodide holds on CPython too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from tools.pyodide_checks import CHECKS


@pytest.fixture
def anyio_backend() -> str:
    """Pyodide has asyncio alone."""
    return "asyncio"


@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
async def test_check_for_pyodide_holds_here(check: Callable[[], Awaitable[None]]) -> None:
    """A check that fails on Pyodide fails because of Pyodide."""
    await check()
