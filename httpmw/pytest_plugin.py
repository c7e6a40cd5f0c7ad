"""
Fixtures for tests of middleware: `httpmw.testing` in plain test functions, on both event loops.

pytest finds them by itself where httpmw is installed. They need no plugin for async tests; an
async test calls `run` and `step` of `httpmw.testing` directly.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import pytest

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from .testing import ASGIViolation, Result

T = TypeVar("T")


@pytest.fixture(params=["asyncio", "trio"])
def middleware_loop(request: pytest.FixtureRequest) -> str:
    """
    The event loop that the other fixtures run on: the test is run once on each.

    On trio it is skipped where trio is not installed.
    """
    loop: str = request.param
    if find_spec(loop) is None:
        pytest.skip(f"{loop} is not installed")
    return loop


@pytest.fixture
def on_loop(middleware_loop: str) -> Callable[..., Any]:
    """
    Run an async function to its end: `on_loop(function, *args, **options)`.
    """

    def run_on_loop(function: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
        return anyio.run(functools.partial(function, *args, **options), backend=middleware_loop)

    return run_on_loop


@pytest.fixture
def run_middleware(on_loop: Callable[..., Any]) -> Callable[..., Result]:
    """
    Send one request through a middleware: `httpmw.testing.run` for plain test functions.
    """
    from .testing import run  # noqa: PLC0415 - only where it is used

    return functools.partial(on_loop, run)


@pytest.fixture
def checked_app() -> Iterator[Callable[[ASGIApp], ASGIApp]]:
    """
    Put an `ASGIChecker` around an app.

    Write `app = checked_app(app)`. What the checker has found fails the test at its end, whatever
    became of it before.
    """
    from .testing import ASGIChecker  # noqa: PLC0415 - only where it is used

    violations: list[ASGIViolation] = []
    yield functools.partial(ASGIChecker, violations=violations)
    if violations:
        pytest.fail("\n".join(map(str, violations)), pytrace=False)
