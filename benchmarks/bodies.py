"""
What layers cost a large body: `python -m benchmarks.bodies`.

64 MiB in 1,024 chunks go down, from the application to the server, or up, from the server to the
application, through 0, 1 and 5 layers of one kind: `asgi` is written by hand, `httpmw` and
`BaseHTTP` (Starlette's `BaseHTTPMiddleware`) are what they are called. What every layer does:

* `pass`       it sets a header on the response;
* `observe`    it counts the bytes of the body as they pass;
* `transform`  it makes capital letters of each chunk;
* `read`       it reads the whole body, and the body goes on to whoever is next.

`BaseHTTPMiddleware` cannot observe or transform a request body.

For each: the CPU time and the MiB per second of CPU time, as the median of interleaved rounds with
the quartiles, and the most memory in use at a time, in MiB, as `tracemalloc` counts it. Every
chunk is a new object, and the other end drops it. Requests are tasks under asyncio.
"""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from typing import NamedTuple

from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from benchmarks.document import Row, document, options, write
from benchmarks.measure import Figure, clock, interleaved
from benchmarks.styles import JOBS, STYLES, App, HandWritten, Style, request_scope, upper
from httpmw import Connection, Flow, HTTPMiddleware

CHUNK = 64 * 1024
MIB = 1024 * 1024
LAYERS = (1, 5)
KINDS = ("asgi", "httpmw", "BaseHTTP")

seen = 0  # what was observed; a layer that does nothing with a body cannot be told from none


def observe(size: int) -> None:
    global seen  # noqa: PLW0603 - a total
    seen += size


async def counted(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        observe(len(chunk))
        yield chunk


# ---------------------------------------------------------------------- down, by hand


class ObserveDown(HandWritten):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_observed(message: Message) -> None:
            if message["type"] == "http.response.body":
                observe(len(message["body"]))
            await send(message)

        await self.app(scope, receive, send_observed)


class ReadDown(HandWritten):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held: list[Message] = []

        async def send_when_read(message: Message) -> None:
            held.append(message)
            if message["type"] == "http.response.start" or message["more_body"]:
                return
            observe(len(b"".join([each["body"] for each in held[1:]])))
            for each in held:
                await send(each)

        await self.app(scope, receive, send_when_read)


# ---------------------------------------------------------------------- up, by hand


class ObserveUp(HandWritten):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_observed() -> Message:
            message = await receive()
            observe(len(message.get("body", b"")))
            return message

        await self.app(scope, receive_observed, send)


class TransformUp(HandWritten):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_upper() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                message["body"] = message["body"].upper()
            return message

        await self.app(scope, receive_upper, send)


class ReadUp(HandWritten):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        chunks = []
        more_body = True
        while more_body:
            message = await receive()
            chunks.append(message["body"])
            more_body = message["more_body"]
        body = b"".join(chunks)
        observe(len(body))
        read: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        chunks.clear()
        del body

        async def receive_again() -> Message:
            return read.pop() if read else await receive()

        await self.app(scope, receive_again, send)


# ---------------------------------------------------------------------- httpmw


async def observes_down(conn: Connection) -> Flow:
    response = yield
    yield response
    observe(response.bytes_sent)


async def reads_down(conn: Connection) -> Flow:
    response = yield
    observe(len(await response.read()))


async def observes_up(conn: Connection) -> Flow:
    conn.body_iterator = counted(conn.body_iterator)
    yield


async def transforms_up(conn: Connection) -> Flow:
    conn.body_iterator = upper(conn.body_iterator)
    yield


async def reads_up(conn: Connection) -> Flow:
    observe(len(await conn.body()))
    yield


# ---------------------------------------------------------------------- BaseHTTPMiddleware


async def observe_next(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    response.body_iterator = counted(response.body_iterator)
    return response


async def transform_next(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    return StreamingResponse(upper(response.body_iterator), response.status_code)


async def read_next(request: Request, call_next: RequestResponseEndpoint) -> Response:
    response = await call_next(request)
    body = b"".join([chunk async for chunk in response.body_iterator])
    observe(len(body))
    return Response(body, response.status_code)


async def read_first(request: Request, call_next: RequestResponseEndpoint) -> Response:
    observe(len(await request.body()))
    return await call_next(request)


def httpmw(dispatch: Callable[[Connection], Flow]) -> Style:
    return lambda app: HTTPMiddleware(app, dispatch=dispatch)


def base_http(dispatch: Callable[[Request, RequestResponseEndpoint], object]) -> Style:
    return lambda app: BaseHTTPMiddleware(app, dispatch=dispatch)


class Body(NamedTuple):
    direction: str
    way: str
    kind: str


BODIES: dict[Body, Style] = {
    **{
        Body(direction, "pass", kind): STYLES[{"httpmw": "one yield"}.get(kind, kind)]
        for direction in ("down", "up")
        for kind in KINDS
    },
    Body("down", "observe", "asgi"): ObserveDown,
    Body("down", "observe", "httpmw"): httpmw(observes_down),
    Body("down", "observe", "BaseHTTP"): base_http(observe_next),
    Body("down", "transform", "asgi"): JOBS["body transformed"].asgi,
    Body("down", "transform", "httpmw"): JOBS["body transformed"].httpmw,
    Body("down", "transform", "BaseHTTP"): base_http(transform_next),
    Body("down", "read", "asgi"): ReadDown,
    Body("down", "read", "httpmw"): httpmw(reads_down),
    Body("down", "read", "BaseHTTP"): base_http(read_next),
    Body("up", "observe", "asgi"): ObserveUp,
    Body("up", "observe", "httpmw"): httpmw(observes_up),
    Body("up", "transform", "asgi"): TransformUp,
    Body("up", "transform", "httpmw"): httpmw(transforms_up),
    Body("up", "read", "asgi"): ReadUp,
    Body("up", "read", "httpmw"): httpmw(reads_up),
    Body("up", "read", "BaseHTTP"): base_http(read_first),
}


class Arm(NamedTuple):
    body: Body
    layers: int


ARMS = [
    *(Arm(Body(direction, "pass", "bare"), 0) for direction in ("down", "up")),
    *(Arm(body, layers) for body in BODIES for layers in LAYERS),
]


class Transfer:
    """
    The application and the server, with a body that goes one way between them.
    """

    def __init__(self, arm: Arm, size: int) -> None:
        self._size = size
        self._left = size if arm.body.direction == "up" else 0
        self._given = False
        self._over = asyncio.Event()
        self.arrived = 0
        self._app: App = self._download if arm.body.direction == "down" else self._upload
        for _ in range(arm.layers):
            self._app = BODIES[arm.body](self._app)

    async def run(self) -> None:
        await asyncio.create_task(self._app(request_scope(), self._receive, self._send))

    async def _download(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(self._size // CHUNK):
            await send({"type": "http.response.body", "body": bytes(CHUNK), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        more_body = True
        while more_body:
            message = await receive()
            self.arrived += len(message["body"])
            more_body = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _receive(self) -> Message:
        if self._given:
            await self._over.wait()
            return {"type": "http.disconnect"}
        chunk = bytes(min(CHUNK, self._left))
        self._left -= len(chunk)
        self._given = self._left == 0
        return {"type": "http.request", "body": chunk, "more_body": self._left > 0}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            self.arrived += len(message["body"])
            if not message.get("more_body", False):
                self._over.set()


async def taken(arm: Arm, size: int) -> float:
    """
    Take the CPU time of one transfer.
    """
    transfer = Transfer(arm, size)
    started = clock()
    await transfer.run()
    seconds = clock() - started
    check(arm, transfer, size)
    return seconds


async def most_memory(arm: Arm, size: int) -> float:
    """
    Take the most memory that one transfer has in use, in MiB.
    """
    tracemalloc.start()
    try:
        transfer = Transfer(arm, size)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        await transfer.run()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    check(arm, transfer, size)
    return (peak - before) / MIB


def check(arm: Arm, transfer: Transfer, size: int) -> None:
    if transfer.arrived != size:
        msg = f"{arm}: {transfer.arrived} bytes arrived of {size}"
        raise AssertionError(msg)


async def measure(rounds: int, size: int) -> list[Row]:
    memory = {arm: await most_memory(arm, size) for arm in ARMS}
    samples: dict[Arm, list[float]] = {arm: [] for arm in ARMS}
    for order in interleaved(ARMS, rounds):
        for arm in order:
            samples[arm].append(await taken(arm, size))
    return [
        {
            **arm.body._asdict(),
            "layers": arm.layers,
            "ms": asdict(Figure.of(round(seconds * 1e3, 3) for seconds in samples[arm])),
            "MiB per second": round(size / MIB / sorted(samples[arm])[rounds // 2]),
            "peak MiB": round(memory[arm], 2),
        }
        for arm in ARMS
    ]


def table(rows: Sequence[Row]) -> str:
    lines = [f"{'':<32}{'layers':>8}{'CPU':>12}{'throughput':>18}{'most memory':>16}"]
    for row in rows:
        name = f"{row['direction']:<6}{row['way']:<12}{row['kind']:<14}"
        lines.append(
            f"{name}{row['layers']:>8}{row['ms']['median']:>9.1f} ms"
            f"{row['MiB per second']:>12} MiB/s{row['peak MiB']:>12.2f} MiB"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = options(__doc__, "bodies").parse_args(arguments)
    rounds, size = (3, MIB) if chosen.quick else (7, 64 * MIB)
    rows = asyncio.run(measure(rounds, size))
    print(f"{size // MIB} MiB in chunks of {CHUNK // 1024} KiB\n{table(rows)}")
    if chosen.json:
        write(chosen.json, document(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
