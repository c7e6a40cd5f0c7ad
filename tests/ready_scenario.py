"""
The layers of `httpmw.middleware`, all of them, around random inner apps, for `explore`.

The layers are made once, as in an application, and get one request after the other, and others
while one is on its way. Whatever goes wrong: each request has one line and one observation, nothing
stays in flight, and no id is seen in another request than its own.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw.middleware import (
    AccessLogMiddleware,
    CompressionMiddleware,
    CrossOriginProtectionMiddleware,
    ETagMiddleware,
    ProblemDetailsMiddleware,
    PrometheusMiddleware,
    RequestIDMiddleware,
    SecurityHeadersMiddleware,
    ServerTimingMiddleware,
    TimeoutMiddleware,
    request_id,
)
from httpmw.testing import World
from tests.harness import PassThrough, body, start
from tests.scenarios import Plan, app

APP = "tests.app"

_numbers = itertools.count()


class Lines:
    """A logger of fields."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append(fields)

    debug = warning = error = info

    def take(self) -> list[dict[str, Any]]:
        taken, self.lines = self.lines, []
        return taken


async def inside(scope: Scope, receive: Receive, send: Send) -> None:
    """Run the inner app of this request."""
    await scope[APP](scope, receive, send)


class Counting(PrometheusMiddleware):
    """What the registry is told; to ask that takes longer than all else here."""

    count = 0
    in_flight = 0

    def request(self, seen: Any) -> None:
        type(self).count += 1
        super().request(seen)

    def active(self, method: str, scheme: str, change: int) -> None:
        type(self).in_flight += change
        super().active(method, scheme, change)


class TheSet:
    """All layers around `inside`, in the order in which they belong."""

    def __init__(self, *, fused: bool, impatient: bool) -> None:
        self.log = Lines()
        layers: list[Callable[[ASGIApp], ASGIApp]] = [
            RequestIDMiddleware,
            functools.partial(AccessLogMiddleware, logger=self.log),
            functools.partial(Counting, registry=CollectorRegistry()),
            functools.partial(ServerTimingMiddleware, enabled=True),
            functools.partial(SecurityHeadersMiddleware, csp_nonce=True),
            ProblemDetailsMiddleware,
            CrossOriginProtectionMiddleware,
            functools.partial(TimeoutMiddleware, start=0.02 if impatient else 30.0),
            functools.partial(CompressionMiddleware, min_size=0),
            ETagMiddleware,
        ]
        self.app: ASGIApp = inside
        for layer in reversed(layers):
            self.app = layer(self.app if fused else PassThrough(self.app))


@functools.cache
def the_set(*, fused: bool, impatient: bool) -> TheSet:
    return TheSet(fused=fused, impatient=impatient)


class Asked:
    """One request, others that are answered in the middle of it, and what was seen of their ids."""

    def __init__(self, plan: Plan, inner: ASGIApp) -> None:
        self.plan = plan
        self.layers = the_set(fused=plan.chance(0.5), impatient=plan.chance(0.3))
        self.id = f"own-{next(_numbers)}"
        self.begun: list[str] = []
        self.mixed: list[str] = []
        self._inner = self._named(self.id, inner)
        self._is_asked_beside = plan.chance(0.4)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun.append(self.id)
        scope[APP] = self._with_another if self._is_asked_beside else self._inner
        await self.layers.app(scope, receive, send)

    async def _with_another(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._other, scope, f"{self.id}-other")
            await anyio.sleep(self.plan.random.choice((0.0, 0.01, 0.03)))
        await self._inner(scope, receive, send)

    async def _other(self, scope: Scope, name: str) -> None:
        async def answering(scope: Scope, receive: Receive, send: Send) -> None:
            await anyio.sleep(0.02)
            await send(start(headers=[(b"content-length", b"5")]))
            await send(body(b"other"))

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            await anyio.lowlevel.checkpoint()
            self.check(name, message)

        headers = [(b"host", b"a.example"), (b"x-request-id", name.encode())]
        app = self._named(name, answering)
        self.begun.append(name)
        await self.layers.app({**scope, "headers": headers, "state": {}, APP: app}, receive, send)

    def _named(self, name: str, inner: ASGIApp) -> ASGIApp:
        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            if request_id.get() != name:
                self.mixed.append(f"{request_id.get()} in {name}")
            await inner(scope, receive, send)

        return run

    def check(self, name: str, message: Message) -> None:
        """Look for the id on a response."""
        if message["type"] == "http.response.start":
            ids = [value.decode() for key, value in message["headers"] if key == b"x-request-id"]
            if ids != [name]:
                self.mixed.append(f"{ids} on {name}")


async def ready(world: World) -> None:
    """Run a random app inside of all layers."""
    plan = Plan(world)
    plan.chunks = [b"some", b"thing"] * plan.chance(0.3)
    plan.request = b"".join(plan.chunks)
    inner = app.draw(plan)(plan)
    # Faults strike further in than all layers.
    asked = Asked(plan, world.app(inner) if plan.wrapped else inner)
    asked.layers.log.take()
    Counting.count = 0
    server = await world.run(
        asked,
        expect=tuple(plan.expect),
        complete=plan.complete,
        leaves_at=plan.leaves_at,
        method="POST" if plan.chunks else "GET",
        body=plan.chunks or b"",
        headers={
            "host": "a.example",
            "x-request-id": asked.id,
            "accept-encoding": plan.random.choice(("", "gzip", "br")),
        },
        extensions=plan.extensions,
    )
    lines = asked.layers.log.take()
    for message in server.sent:
        asked.check(asked.id, message)
    assert asked.mixed == []
    assert sorted(line["request_id"] for line in lines) == sorted(asked.begun), lines
    assert (Counting.count, Counting.in_flight) == (len(asked.begun), 0), asked.begun
    if world.struck or world.disconnected or plan.cuts:
        return  # what has come of the last message the server of this world alone knows
    (line,) = (line for line in lines if line["request_id"] == asked.id)
    assert line["status"] == server.status, line
    assert (line["outcome"] == "completed") == server.complete, line
    assert line["bytes"] == len(server.body), line


# What the layers log beside their lines, of failures that are meant.
BESIDE = ("httpmw", "httpmw.access_log", "httpmw.cross_origin", "httpmw.timeout")


def quiet() -> None:
    """Leave out what the layers log beside their lines, in a process that does nothing else."""
    for name in BESIDE:
        logging.getLogger(name).disabled = True
