"""WebSocket handshakes in random schedules: random layers around random apps, and random faults."""

from __future__ import annotations

import anyio.lowlevel
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware
from httpmw.testing import World, every_fault, explore
from tests.handshake_scenario import handshake

pytestmark = pytest.mark.unchecked("the scenario puts its own checker around the inner app")


@pytest.mark.parametrize(("backend", "seeds"), [("asyncio", 1500), ("trio", 500)])
def test_random_handshakes(backend: str, seeds: int) -> None:
    """Flows end, nothing is left, and no rule is broken, in every schedule and with every fault."""
    assert explore(handshake, seeds=seeds, backend=backend)["nothing"] > seeds / 10


def test_a_discarded_app_that_is_cancelled_is_not_woken() -> None:
    """A request is cancelled while its app, which a layer replaces, listens in a child task."""
    seeds = [24444, 1_000_882, 1_001_205, 1_057_324]
    assert explore(handshake, seeds=seeds)["cancellation"] == len(seeds)


def test_a_cancelled_scope_is_not_hidden_from_who_is_woken() -> None:
    """A request whose scope is cancelled does not go on because its app was woken."""
    assert explore(handshake, seeds=[1_158_084])["cancellation"] == 1


def test_a_discarded_app_is_woken_behind_a_cancellation() -> None:
    """A cancellation that a layer swallows does not end those who listen."""
    seeds = [1_108_024, 1_233_273]
    assert explore(handshake, seeds=seeds)["cancellation"] == len(seeds)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("refuses", [False, True])
def test_every_fault_of_a_handshake(backend: str, refuses: bool) -> None:
    """A fault at each moment of a handshake that is accepted, and of one that is replaced."""

    async def mark(conn: Connection) -> Flow:
        response = yield
        await anyio.lowlevel.checkpoint()
        if refuses:
            yield PlainTextResponse("no", 403)
        else:
            yield response

    async def scenario(world: World) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            await send({"type": "websocket.accept"})
            while (message := await receive())["type"] == "websocket.receive":
                await send({**message, "type": "websocket.send"})

        inner = world.app(app)
        for _ in range(2):
            inner = HTTPMiddleware(inner, dispatch=mark, websocket=True)
        server = await world.run(inner, websocket=True, messages=["a"])
        if not world.struck:
            assert server.status == (403 if refuses else 101)

    assert every_fault(scenario, backend=backend)["error"] > 10
