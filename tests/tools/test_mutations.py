"""The faults of `make mutate` can all be planted; and what they have shown to be untested."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import pytest
from starlette.types import Receive, Scope, Send

from httpmw import Connection, Flow
from tests.harness import Server, body, passing, stack, start
from tools.mutate import check
from tools.mutations import MUTATIONS, Mutation


def test_every_mutation_applies() -> None:
    """Each text is in the engine exactly once, and each test is there; the message says which."""
    assert check() == []


def test_mutation_that_is_out_of_date_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that is gone is a complaint, too: that pytest does not find it is no kill."""
    test = "tests/engine/test_events.py::test_that_is_gone"
    stale = Mutation("stale", MUTATIONS[0].file, "text that is gone", "", tests=test)
    monkeypatch.setattr("tools.mutate.MUTATIONS", [stale])

    complaints = check()

    assert complaints[0].startswith("'stale': its text is 0 times in ")
    assert complaints[1:] == [f"'stale': there is no {test}"]


def test_there_are_enough_mutations() -> None:
    """At least thirty, in all parts of the engine that decide something."""
    assert len(MUTATIONS) >= 30
    assert len({mutation.file for mutation in MUTATIONS}) >= 12


async def test_failure_of_a_transform_that_the_app_swallows(fused: bool) -> None:
    """What a transform raises comes out, even where the app takes it from its `send`."""

    async def failing(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for _ in chunks:
            raise ValueError("transform")
        yield b""

    async def transforming(conn: Connection) -> Flow:
        response = yield
        response.body_iterator = failing(response.body_iterator)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        with pytest.raises(ValueError, match="transform"):
            await send(body(b"some", more=True))

    with pytest.raises(ValueError, match="transform"):
        await Server().run(stack(app, passing, transforming, fused=fused))


async def test_two_tasks_read_the_request_body() -> None:
    """The second waits for the first, and asks the server for nothing that will not come."""
    read: list[bytes] = []

    async def reading(conn: Connection) -> Flow:
        async def read_body() -> None:
            read.append(await conn.body())

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(read_body)
                group.start_soon(read_body)
        yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body((await receive())["body"]))

    server = Server(method="POST", body=b"abc")
    receive = server.receive

    async def slow() -> dict[str, object]:
        await anyio.lowlevel.checkpoint()
        return await receive()  # type: ignore[return-value]

    await stack(app, reading, fused=True)(server.scope, slow, server.send)
    assert server.body == b"abc"
    assert read == [b"abc", b"abc"]
