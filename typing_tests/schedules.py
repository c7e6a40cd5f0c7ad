"""
What type-checks of `explore` and `every_fault`. Checked by mypy and pyrefly, never run.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import assert_type

from starlette.types import Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware
from httpmw.testing import (
    InjectedError,
    ScenarioFailure,
    Server,
    World,
    every_fault,
    explore,
)


async def inner(scope: Scope, receive: Receive, send: Send) -> None:
    pass


async def scenario(world: World) -> None:
    async def mw(conn: Connection) -> Flow:
        response = yield
        yield response
        with world.whole("the log"):
            await world.pause()

    server = await world.run(
        HTTPMiddleware(world.app(inner), dispatch=mw),
        expect=(ValueError, InjectedError),
        complete=False,
        leaves_at=2,
        method="POST",
    )
    assert_type(server, Server)
    assert_type(world.random, Random)
    assert_type(world.error, InjectedError | None)
    assert_type(world.raised, BaseException | None)
    assert_type(world.disconnected, bool)


def calls() -> None:
    assert_type(explore(scenario), Counter[str])
    explore(scenario, seeds=10, backend="trio")
    explore(scenario, seeds=[12345])
    explore(scenario, seeds=range(10))
    assert_type(every_fault(scenario, only="asyncio, spec 2.3"), Counter[str])
    explore(scenario, seeds="1")  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
    explore(inner)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
    explore(calls)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]


def failures(failure: ScenarioFailure) -> None:
    assert_type(failure.seed, int | None)
    raise failure
