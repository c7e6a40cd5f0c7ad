"""Fixtures that every scenario runs over: event loop, ASGI version, fusing, inner app."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from starlette.types import ASGIApp

from httpmw._exchange import Adapter
from httpmw.testing import ASGIChecker, ASGIViolation
from tests.harness import (
    SPECS,
    Inner,
    file_inner,
    passing,
    plain_inner,
    stack,
    stream_inner,
    waiting,
)
from tests.pairs import meeting

HANG_SECONDS = 60

VIOLATIONS: list[ASGIViolation] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """Have a way to run all that there is."""
    parser.addoption(
        "--every-combination",
        action="store_true",
        help="run tests with the whole product of their settings, not with every pair of them",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what no two settings need; what was chosen by name or by `-k` counts alone."""
    if config.getoption("every_combination"):
        return
    tests: dict[tuple[pytest.Item | pytest.Collector | None, str], list[pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            tests.setdefault((item.parent, item.originalname), []).append(item)
    left_out: set[pytest.Item] = set()
    for same in tests.values():
        left_out.update(same)
        left_out.difference_update(same[n] for n in meeting([i.callspec._idlist for i in same]))
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    """Keep the collected tests out of each collection of garbage that a test asks for."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Do so again behind each file: `explore` lets go of them."""
    if nextitem is not None and nextitem.path != item.path:
        pytest_collection_finish()


def pytest_configure(config: pytest.Config) -> None:
    """Say what the suite's own marker means."""
    config.addinivalue_line("markers", "unchecked(reason): no checker around the inner apps")


@pytest.fixture(autouse=True)
def inner_apps_are_checked(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Put the checker around the inner app of every layer, and see that no rule was broken."""
    if request.node.get_closest_marker("unchecked") is not None:
        yield
        return
    original = Adapter.take

    def checked(self: Adapter, *args: Any) -> None:
        original(self, *args)
        functions, inner, handshakes = self._httpmw
        if not isinstance(inner, ASGIChecker):
            inner = ASGIChecker(inner, side="server", violations=VIOLATIONS)
            self._httpmw = functions, inner, handshakes

    monkeypatch.setattr(Adapter, "take", checked)
    VIOLATIONS.clear()
    yield
    assert VIOLATIONS == []


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The event loop an async test runs on."""
    return request.param


@pytest.fixture(params=[True, False], ids=["fused", "nested"])
def fused(request: pytest.FixtureRequest) -> bool:
    """Whether neighbouring layers are fused into one adapter."""
    return request.param


@pytest.fixture(params=SPECS, ids=lambda spec: f"spec-{spec or 'absent'}")
def spec(request: pytest.FixtureRequest) -> str | None:
    """The `spec_version` in the scope; `None`: there is none."""
    return request.param


@pytest.fixture(params=["alone", "fused", "nested"])
def layers(request: pytest.FixtureRequest) -> Callable[[ASGIApp, Callable[..., Any]], ASGIApp]:
    """Wrap an app in one function: alone, or between two that do nothing, fused or nested."""

    def wrap(app: ASGIApp, function: Callable[..., Any]) -> ASGIApp:
        if request.param == "alone":
            return stack(app, function, fused=True)
        return stack(app, waiting, function, passing, fused=request.param == "fused")

    return wrap


@pytest.fixture(params=["plain", "stream", "file"])
def inner(request: pytest.FixtureRequest, body_file: Path) -> Inner:
    """An inner app: a plain response, a stream, a file."""
    if request.param == "plain":
        return plain_inner()
    if request.param == "stream":
        return stream_inner()
    return file_inner(str(body_file))


@pytest.fixture(scope="session")
def body_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that holds `Inner.BODY`."""
    path = tmp_path_factory.mktemp("inner") / "body.txt"
    path.write_bytes(Inner.BODY)
    return path


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Turn a test that hangs into one that fails, where the platform has an alarm clock."""

    def fail(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"the test did not end within {HANG_SECONDS} seconds")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(HANG_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
