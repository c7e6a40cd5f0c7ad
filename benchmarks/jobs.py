"""
What people do with a response, against the same by hand: `python -m benchmarks.jobs`.

Each job is written twice: with httpmw, and as an ASGI class that a careful author would write. It
drops the length of a body that it changes, knows the last chunk, passes exceptions on, and lets
other scopes and messages through.

* `access log`: method, status, bytes, duration and outcome of a response, by `yield response`;
* `access log, on_sent`: the same by one yield and `response.on_sent`;
* `five access logs`: five of them, which are one layer in httpmw;
* `transform`: each chunk of the body goes through an async generator;
* `transform, child`: the same where the application sends from a task of its own, as Starlette's
  `StreamingResponse` does under every server that speaks ASGI below 2.4;
* `read`: the body is read whole, and a header is set;
* `request body`: the body of the request is read whole, and the application still gets it.

Each is measured with one message, 20 chunks and 200 chunks; of `request body` it is the request
that has so many. "N times the cost by hand" is `(httpmw - bare) / (by hand - bare)`: what the layer
adds to a request, divided by what the one written by hand adds. The goal is that of issue 18, on
CPython 3.11; later ones may take 10 % more, and 20 % more for a transform. It is printed beside
what was measured; what `--check` holds is what the engine of today reaches, in
`benchmarks.targets`.

Every request is a task under asyncio. `benchmarks.measure` says how time is taken.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from benchmarks.document import Row, document, options, write
from benchmarks.measure import ASYNCIO, Figure, added, measure, ratio
from benchmarks.styles import App, HandWritten, Style, response_headers, transforms
from httpmw import AppResponse, Connection, Flow, HTTPMiddleware

SIZES = {"one message": 1, "20 chunks": 20, "200 chunks": 200}
CHUNK = b"hello, world"

perf_counter = time.perf_counter

last: tuple[Any, ...] = ()  # of the access logs


def log(*line: Any) -> None:
    """
    Take a line of an access log; what a logger costs is not measured here.
    """
    global last  # noqa: PLW0603 - an access log is about its lines
    last = line


# ---------------------------------------------------------------------- by hand


class LogByHand(HandWritten):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = perf_counter()
        ended: float | None = None
        status: int | None = None
        size = 0
        outcome = "incomplete"

        async def send_counted(message: Message) -> None:
            nonlocal ended, outcome, size, status
            await send(message)
            kind = message["type"]
            if kind == "http.response.body":
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    ended = perf_counter()
                    outcome = "completed"
            elif kind == "http.response.start":
                status = message["status"]

        try:
            await self.app(scope, receive, send_counted)
        except BaseException:
            if ended is None:
                outcome = "failed"
            raise
        finally:
            log(scope["method"], status, size, (ended or perf_counter()) - began, outcome)


class TransformByHand(HandWritten):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_upper(message: Message) -> None:
            kind = message["type"]
            if kind == "http.response.start":
                headers = MutableHeaders(scope=message)
                del headers["content-length"]
            elif kind == "http.response.body":
                message = {**message, "body": message.get("body", b"").upper()}
            await send(message)

        await self.app(scope, receive, send_upper)


class ReadByHand(HandWritten):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        held: list[Message] = []
        is_over = False

        async def send_when_read(message: Message) -> None:
            nonlocal is_over
            kind = message["type"]
            if is_over or kind not in {"http.response.start", "http.response.body"}:
                await send(message)
                return
            held.append(message)
            if kind == "http.response.start" or message.get("more_body", False):
                return
            is_over = True
            body = b"".join([each.get("body", b"") for each in held[1:]])
            headers = MutableHeaders(scope=held[0])
            headers["x-size"] = str(len(body))
            for each in held:
                await send(each)

        await self.app(scope, receive, send_when_read)


class ReadRequestByHand(HandWritten):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        held: list[Message] = []
        more_body = True
        while more_body:
            message = await receive()
            held.append(message)
            more_body = message["type"] == "http.request" and message.get("more_body", False)
        log(len(b"".join([each.get("body", b"") for each in held])))
        held.reverse()

        async def receive_again() -> Message:
            return held.pop() if held else await receive()

        await self.app(scope, receive_again, send)


# ---------------------------------------------------------------------- httpmw


def line(conn: Connection, began: float, response: AppResponse) -> None:
    ended = response.ended_at or perf_counter()
    log(conn.method, response.status_code, response.bytes_sent, ended - began, response.outcome)


async def logs(conn: Connection) -> Flow:
    began = perf_counter()
    response = yield
    try:
        yield response
    finally:
        line(conn, began, response)


async def logs_when_sent(conn: Connection) -> Flow:
    began = perf_counter()
    response = yield
    response.on_sent(lambda response: line(conn, began, response))


async def reads(conn: Connection) -> Flow:
    response = yield
    response.headers["x-size"] = str(len(await response.read()))


async def reads_request(conn: Connection) -> Flow:
    log(len(await conn.body()))
    yield


# ---------------------------------------------------------------------- around what


async def answer(send: Send, chunks: int) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": response_headers()})
    await send_body(send, chunks)


async def send_body(send: Send, chunks: int) -> None:
    if chunks > 1:
        for _ in range(chunks):
            await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
    body = CHUNK if chunks == 1 else b""
    await send({"type": "http.response.body", "body": body, "more_body": False})


def answers(chunks: int) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, chunks)

    return app


def answers_from_a_child(chunks: int) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.create_task(answer(send, chunks))

    return app


def takes(chunks: int) -> App:
    """
    Give an application that takes a request body of so many messages, and a server that sends it.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        more_body = True
        while more_body:
            more_body = (await receive()).get("more_body", False)
        await answer(send, 1)

    return app


class Uploading:
    """
    The server's side of an upload: the messages of `takes`.
    """

    def __init__(self, app: App, chunks: int) -> None:
        self._app = app
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        left = self._chunks

        async def receive_chunk() -> Message:
            nonlocal left
            left -= 1
            return {"type": "http.request", "body": CHUNK, "more_body": left > 0}

        await self._app(scope, receive_chunk, send)


def httpmw(dispatch: Any) -> Style:
    return lambda app: HTTPMiddleware(app, dispatch=dispatch)


class Job(NamedTuple):
    """
    One job: by hand, with httpmw, how many layers of it, what is inside, and the goals by size.
    """

    by_hand: Style
    httpmw: Style
    goals: Sequence[float | None]
    layers: int = 1
    inside: Any = answers


JOBS: dict[str, Job] = {
    "access log": Job(LogByHand, httpmw(logs), (4.3, 1.85, 1.1)),
    "access log, on_sent": Job(LogByHand, httpmw(logs_when_sent), (4.3, 1.85, 1.1)),
    "five access logs": Job(LogByHand, httpmw(logs), (2.7, 0.8, 0.3), layers=5),
    "transform": Job(TransformByHand, httpmw(transforms), (7.2, 4.0, 3.2)),
    "transform, child": Job(
        TransformByHand, httpmw(transforms), (None, 6.9, 4.5), inside=answers_from_a_child
    ),
    "read": Job(ReadByHand, httpmw(reads), (2.9, 2.1, 1.8)),
    "request body": Job(ReadRequestByHand, httpmw(reads_request), (3.0, 3.0, 3.0), inside=takes),
}
KINDS = ("bare", "by hand", "httpmw")


class Arm(NamedTuple):
    job: str
    kind: str
    size: str


ARMS = [Arm(job, kind, size) for job in JOBS for size in SIZES for kind in KINDS]


def application(arm: Arm) -> App:
    job, chunks = JOBS[arm.job], SIZES[arm.size]
    app: App = job.inside(chunks)
    for _ in range(job.layers if arm.kind != "bare" else 0):
        app = (job.by_hand if arm.kind == "by hand" else job.httpmw)(app)
    return Uploading(app, chunks) if job.inside is takes else app


def rows(samples: dict[Arm, list[float]]) -> list[Row]:
    """
    Give a row for each job and size: what the layers add, in µs, and how they compare.
    """
    found: list[Row] = []
    for name, job in JOBS.items():
        for size, goal in zip(SIZES, job.goals, strict=True):
            bare, by_hand, ours = (Arm(name, kind, size) for kind in KINDS)
            figures: dict[str, Figure] = {
                "by hand us": added(samples, by_hand, bare),
                "httpmw us": added(samples, ours, bare),
                "times": ratio(samples, ours, by_hand, bare),
            }
            row: Row = {"job": name, "size": size, "layers": job.layers, "goal": goal}
            found.append(row | {key: each.rounded(4) for key, each in figures.items()})
    return found


def table(found: Sequence[Row]) -> str:
    lines = [f"{'':<22}" + "".join(f"{size:>34}" for size in SIZES)]
    for job in JOBS:
        cells = []
        for row in (each for each in found if each["job"] == job):
            times, goal = row["times"], row["goal"]
            spread = f"[{times['low']:.2f} {times['high']:.2f}]"
            aim = "" if goal is None else f"goal {goal:g}"
            cells.append(f"{times['median']:>9.2f}x {spread:>13} {aim:<9}")
        lines.append(f"{job:<22}" + "".join(cells))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = options(__doc__, "jobs").parse_args(arguments)
    rounds, seconds = (5, 0.001) if chosen.quick else (40, 0.01)
    apps = {arm: application(arm) for arm in ARMS}
    found = rows(measure(apps, ASYNCIO, rounds=rounds, seconds=seconds))
    print(f"Python {platform.python_version()}: the cost of a job, by hand = 1\n{table(found)}")
    if chosen.json:
        write(chosen.json, document(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
