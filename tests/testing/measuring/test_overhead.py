"""
`httpmw.testing.overhead`: where its figures come from; no time is asserted.
"""

from __future__ import annotations

import math
import re
import tracemalloc

import anyio
import pytest
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse

from httpmw import HTTPMiddleware
from httpmw.testing import Overhead, Phase, overhead
from tests.test_project import loaded_by

PHASES = ("before", "start", "chunk", "after", "whole")


class NoOp:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        await self.app(scope, receive, send)


class Remembers(NoOp):
    """Keeps a kilobyte from the moment *when* to the end of the request."""

    when = "before"

    async def __call__(self, scope, receive, send):
        kept = []

        async def send_on(message):
            if message["type"] == self.when:
                kept.append(bytearray(1024))
            await send(message)

        if self.when == "before":
            kept.append(bytearray(1024))
        await self.app(scope, receive, send_on)


class RemembersFromStart(Remembers):
    when = "http.response.start"


class RemembersChunks(Remembers):
    when = "http.response.body"


async def header(conn):
    response = yield
    response.headers["x-layer"] = "1"


async def answer(conn):
    yield PlainTextResponse("early")


async def bystander(request, call_next):
    return await call_next(request)


MIDDLEWARE = {
    "one yield": lambda app: HTTPMiddleware(app, dispatch=header),
    "early answer": lambda app: HTTPMiddleware(app, dispatch=answer),
    "BaseHTTPMiddleware": lambda app: BaseHTTPMiddleware(app, dispatch=bystander),
    "nothing": lambda app: app,
}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("name", MIDDLEWARE)
def test_every_middleware_can_be_measured(name, backend, capsys):
    """
    Any ASGI middleware gives a finite figure for each phase, and a table to print.
    """
    result = overhead(MIDDLEWARE[name], requests=10, backend=backend)

    print(result)  # noqa: T201 - a benchmark of the suite: for those who run it with -s
    assert isinstance(result, Overhead)
    assert all(math.isfinite(getattr(result, phase).seconds) for phase in PHASES)
    assert all(math.isfinite(getattr(result, phase).noop_seconds) for phase in PHASES)
    rows = capsys.readouterr().out.splitlines()
    assert ["before", "at the start", "per chunk", "after", "whole, 20 chunks"] == [
        re.split(r"  +", row)[0] for row in rows[1:]
    ]


@pytest.mark.parametrize(
    ("middleware", "phase"),
    [(Remembers, "before"), (RemembersFromStart, "start"), (RemembersChunks, "chunk")],
)
def test_memory_is_counted_in_its_phase(middleware, phase):
    """
    What a middleware allocates in one phase is in the figures of that phase and of no other.
    """
    result = overhead(middleware, requests=5)

    peaks = {name: getattr(result, name).peak_bytes for name in PHASES[:3]}
    kept = {name: getattr(result, name).blocks for name in PHASES[:3]}
    assert {phase} == {name for name, peak in peaks.items() if peak >= 1024}
    assert kept[phase] >= 1
    assert result.whole.peak_bytes >= 1024


def test_what_was_kept_is_freed_afterwards():
    """
    The blocks that are given back when the request ends stand in the last phase, as a minus.
    """
    result = overhead(Remembers, requests=5)

    assert result.after.blocks < 0


def test_a_layer_that_allocates_nothing_has_no_blocks():
    """
    What the app and the marks themselves allocate is taken off.
    """
    result = overhead(lambda app: app, requests=5)

    assert [0, 0, 0, 0] == [getattr(result, phase).blocks for phase in PHASES[:4]]


def test_the_noop_layer_is_measured_beside():
    """
    A wrapper around `send` holds memory, and the layer that does nothing is one.
    """
    result = overhead(NoOp, requests=5)

    assert result.before.noop_blocks >= 1
    assert result.chunk.noop_peak_bytes > 0


@pytest.mark.parametrize("name", ["start", "chunk", "after"])
def test_an_early_answer_is_all_before(name):
    """
    Where the app is not run there is one phase, and it is the whole request.
    """
    result = overhead(MIDDLEWARE["early answer"], requests=5)

    assert (0.0, 0, 0) == (
        getattr(result, name).seconds,
        getattr(result, name).blocks,
        getattr(result, name).peak_bytes,
    )
    assert result.before.seconds == result.whole.seconds > 0


def test_extra_and_times_compare_with_the_noop_layer():
    """
    `extra_seconds` is the difference to the layer that does nothing, `times` the multiple.
    """
    phase = Phase(3.0, 2.0, 0, 0, 0, 0)

    assert (1.0, 1.5) == (phase.extra_seconds, phase.times)


def test_times_nothing_is_not_a_number():
    """
    A layer that does nothing can take no time at all, and nothing is a multiple of that.
    """
    assert math.isnan(Phase(3.0, 0.0, 0, 0, 0, 0).times)


def test_the_request_is_the_one_that_was_asked_for():
    """
    *scope* and *body* reach the middleware, *chunks* is the number of its messages of body.
    """
    seen = set()

    class Looks(NoOp):
        async def __call__(self, scope, receive, send):
            body = (await receive())["body"]
            bodies = 0

            async def count(message):
                nonlocal bodies
                bodies += message["type"] == "http.response.body"
                await send(message)

            await self.app(scope, receive, count)
            seen.add((scope["method"], scope["path"], body, bodies))

    result = overhead(Looks, scope={"method": "POST"}, body=b"{}", chunks=3, requests=2)

    assert {("POST", "/", b"{}", 3)} == seen
    assert result.chunks == 3


def test_a_scope_that_a_middleware_edits_is_new_in_the_next_request():
    """
    Every request has a scope and a list of headers of its own.
    """
    lengths = set()

    class Adds(NoOp):
        async def __call__(self, scope, receive, send):
            scope["headers"].append((b"x-added", b"1"))
            lengths.add(len(scope["headers"]))
            await self.app(scope, receive, send)

    overhead(Adds, requests=3)

    assert len(lengths) == 1


async def test_it_can_be_called_while_a_loop_is_running():
    """
    It runs in a loop of its own, wherever it is called.
    """
    await anyio.lowlevel.checkpoint()

    assert overhead(NoOp, requests=2).chunks == 20


def test_what_the_middleware_raises_comes_out():
    """
    A middleware that fails is not measured: its exception is raised.
    """

    class Broken(NoOp):
        async def __call__(self, scope, receive, send):
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        overhead(Broken)


@pytest.mark.parametrize("argument", ["chunks", "requests"])
def test_less_than_one_is_refused(argument):
    """
    A request has a chunk at least, and a measurement a request; the message says which is missing.
    """
    with pytest.raises(ValueError, match=rf"overhead\({argument}=0\): expected 1 or more"):
        overhead(NoOp, **{argument: 0})


@pytest.mark.parametrize("tracing", [False, True])
def test_tracing_is_left_as_it_was(tracing):
    """
    Who traces memory goes on to do so, and who does not is not left with it.
    """
    if tracing:
        tracemalloc.start()
    try:
        overhead(NoOp, requests=2)

        assert tracemalloc.is_tracing() == tracing
    finally:
        tracemalloc.stop()


def test_it_needs_no_pytest():
    """
    It can be used in any test framework, and loads trio only where it is asked for.
    """
    modules = loaded_by(
        "from httpmw.testing import overhead\noverhead(lambda app: app, requests=1)"
    )

    assert modules.isdisjoint({"pytest", "trio"})
