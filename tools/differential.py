"""
Random requests through Starlette and FastAPI applications: with empty layers, and with none.

    python -m tools.differential                     100,000 scripts
    python -m tools.differential --scripts 2000 --first 0
    python -m tools.differential --show 1234         one script, in full

A script says what arrives of a request, what the endpoint reads of it, what it answers, and when
the client leaves. Compared are the messages that the server gets, to the last key, what the
endpoint has seen, and what is raised. The same scripts are run with Starlette's
`BaseHTTPMiddleware`, whose dispatch does nothing but `return await call_next(request)`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Annotated, Any

import anyio
import anyio.lowlevel
from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw.testing.exploring import _loops
from httpmw.testing.exploring._schedule import watching
from tests.harness import Chunks, passing, stack, waiting

PIECE = 1_000  # scripts
CHUNKS = (b"", b"a", b"bc", b"def", b"x" * 100)


class Handled(Exception):  # noqa: N818 - for the application's own handler
    """What the application answers with a handler of its own."""


@dataclass
class Script:
    """One request, its endpoint, and what the endpoint has seen."""

    seed: int
    # What arrives, how often a disconnect is told, and after which message sent the client is gone.
    chunks: list[bytes]
    leaves_in_request: int | None
    leaves_in_response: int | None
    once: bool
    spec: str | None
    method: str
    fastapi: bool
    reads: list[str]
    answer: str
    body: list[bytes]
    background: str
    layers: int
    seen: list[Any] = field(default_factory=list)

    @classmethod
    def draw(cls, seed: int) -> Script:
        """Draw the script of *seed*."""
        rng = random.Random(seed)
        chunks = [rng.choice(CHUNKS) for _ in range(rng.randrange(5))]
        leaves = rng.random() < 0.2
        return cls(
            seed=seed,
            chunks=chunks,
            leaves_in_request=rng.randrange(len(chunks) + 1) if leaves else None,
            leaves_in_response=rng.randrange(1, 5) if rng.random() < 0.2 else None,
            once=rng.random() < 0.5,
            spec=rng.choice((None, "2.1", "2.3", "2.4", "2.5")),
            method=rng.choice(("GET", "POST", "POST", "PUT", "HEAD")),
            fastapi=rng.random() < 0.4,
            reads=rng.choices(
                ("stream", "some", "body", "gone", "pause", "receive"), k=rng.randrange(4)
            ),
            answer=rng.choice(ANSWERS),
            body=[rng.choice(CHUNKS) for _ in range(rng.randrange(5))],
            background=rng.choice(("none", "none", "runs", "fails", "listens")),
            layers=rng.randrange(len(LAYERS)),
        )


ANSWERS = (
    *("plain", "json", "redirect", "empty", "cookies", "stream", "stream", "stream"),
    *("failing stream", "raw", "raw", "HTTPException", "Handled", "ValueError", "nothing"),
)
LAYERS: Sequence[Callable[[ASGIApp], ASGIApp]] = (
    lambda app: stack(app, passing, fused=True),
    lambda app: stack(app, waiting, fused=True),
    lambda app: stack(app, passing, waiting, fused=True),
    lambda app: stack(app, waiting, passing, fused=False),
)


# ---------------------------------------------------------------------- the applications


async def endpoint(request: Request) -> Response:
    """Do what the script says."""
    script: Script = request.scope["script"]
    for step in script.reads:
        await read(script, step, request)
    return await answer(script, request)


async def read(script: Script, step: str, request: Request) -> None:
    """Take a step of the way inward, and note what was seen."""
    try:
        if step == "stream":
            script.seen.append([chunk async for chunk in request.stream()])
        elif step == "some":
            stream = request.stream()
            script.seen.append(await anext(stream, None))
            await stream.aclose()  # type: ignore[attr-defined]
        elif step == "body":
            script.seen.append(await request.body())
        elif step == "gone":
            script.seen.append(await request.is_disconnected())
        elif step == "receive":
            with anyio.move_on_after(1):
                script.seen.append(await request.receive())
        else:
            await anyio.sleep(0.1)
    except (ClientDisconnect, RuntimeError) as error:
        script.seen.append(repr(error))


class Failing(Chunks):
    """Chunks, and an exception after them."""

    async def __anext__(self) -> bytes:
        try:
            return await super().__anext__()
        except StopAsyncIteration:
            raise ValueError("in mid-body") from None


async def answer(  # noqa: C901, PLR0911, PLR0912 - a table
    script: Script, request: Request
) -> Response:
    """Give the response."""
    task = background(script, request)
    match script.answer:
        case "plain":
            return PlainTextResponse(b"".join(script.body), background=task)
        case "json":
            return JSONResponse({"chunks": len(script.body)}, 201, background=task)
        case "redirect":
            return RedirectResponse("/elsewhere", background=task)
        case "empty":
            return Response(status_code=204, background=task)
        case "cookies":
            response = PlainTextResponse("cookies", background=task)
            for number in range(3):
                response.set_cookie(f"c{number}", "value")
            return response
        case "stream":
            return StreamingResponse(Chunks(*script.body), media_type="text/x", background=task)
        case "failing stream":
            return StreamingResponse(Failing(*script.body), background=task)
        case "raw":
            return Raw(script)
        case "HTTPException":
            raise HTTPException(418, "teapot", {"x-tea": "green"})
        case "Handled":
            raise Handled
        case "ValueError":
            raise ValueError("of the endpoint")
        case _:
            return Nothing()


class Raw(Response):
    """Messages as no response class makes them."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self.script = script

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = ((b"x-a", b"1"), (b"x-b", b"2"), (b"x-a", b"3"))
        extra = {"trailers": True} if len(self.script.body) % 2 else {"of my own": 1}
        await send({"type": "http.response.start", "status": 299, "headers": headers, **extra})
        for chunk in self.script.body:
            await send({"type": "http.response.body", "body": chunk, "more_body": True, "key": 1})
            await anyio.lowlevel.checkpoint()
        await send({"type": "http.response.body"})
        if extra.get("trailers"):
            await send({"type": "http.response.trailers", "headers": [(b"x-t", b"1")]})


class Nothing(Response):
    """No response at all."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        return


def background(script: Script, request: Request) -> BackgroundTask | None:
    """Give the background task of the script."""

    async def task() -> None:
        script.seen.append("background")
        if script.background == "fails":
            raise ValueError("in the background")
        if script.background == "listens":
            with anyio.move_on_after(1):
                script.seen.append((await request.receive())["type"])

    return None if script.background == "none" else BackgroundTask(task)


async def handle(request: Request, error: Exception) -> Response:
    """Answer what the application has a handler for."""
    return PlainTextResponse("handled", 409)


async def dependency(request: Request) -> Any:
    """Note how the request ended, as a FastAPI dependency."""
    script: Script = request.scope["script"]
    try:
        yield
    except BaseException as error:
        script.seen.append(f"dependency {type(error).__name__}")
        raise
    script.seen.append("dependency")


async def fastapi_endpoint(request: Request, _: Annotated[None, Depends(dependency)]) -> Response:
    """Do what the script says, below a dependency."""
    return await endpoint(request)


METHODS = ["GET", "POST", "PUT", "HEAD"]
starlette_app = Starlette(
    routes=[Route("/", endpoint, methods=METHODS)], exception_handlers={Handled: handle}
)
fastapi_app = FastAPI(exception_handlers={Handled: handle})
fastapi_app.add_api_route("/", fastapi_endpoint, methods=METHODS, response_model=None)


async def call_on(request: Request, call_next: Any) -> Response:
    """Do nothing, as a dispatch of Starlette's."""
    response: Response = await call_next(request)
    return response


def with_layers(script: Script, app: ASGIApp) -> ASGIApp:
    """Wrap *app* in the empty layers of the script."""
    return LAYERS[script.layers](app)


def with_base(script: Script, app: ASGIApp) -> ASGIApp:
    """Wrap *app* in Starlette's own."""
    return BaseHTTPMiddleware(app, dispatch=call_on)


def bare(script: Script, app: ASGIApp) -> ASGIApp:
    """Leave *app* alone."""
    return app


# ---------------------------------------------------------------------- one run


class Wire:
    """A server that takes everything and only writes it down."""

    def __init__(self, script: Script, *, repeats: bool) -> None:
        self.script = script
        self.sent: list[Message] = []
        self.gone = False
        self._once = script.once and not repeats
        self._told = False
        self._changed = anyio.Event()
        chunks = script.chunks[: script.leaves_in_request]
        whole = script.leaves_in_request is None
        self._left: list[Message] = [
            {"type": "http.request", "body": chunk, "more_body": not whole or index < len(chunks)}
            for index, chunk in enumerate(chunks, 1)
        ]
        if whole and not chunks:
            self._left.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive(self) -> Message:
        """Give what the script says; then wait for the end."""
        while True:
            if self._left:
                return self._left.pop(0)
            if self.script.leaves_in_request is not None:
                self.gone = True
            if (self.gone or self._is_over()) and not (self._once and self._told):
                self._told = True
                return {"type": "http.disconnect"}
            await self._changed.wait()
            self._changed = anyio.Event()

    async def send(self, message: Message) -> None:
        """Write *message* down, unless nobody is there."""
        await anyio.lowlevel.checkpoint()
        if self.gone:
            if self.script.spec is not None and self.script.spec >= "2.4":
                raise OSError("gone")
            return
        self.sent.append(message)
        if len(self.sent) == self.script.leaves_in_response:
            self.gone = True
        if self.gone or self._is_over():
            self._changed.set()

    def _is_over(self) -> bool:
        last = self.sent[-1] if self.sent else {"type": ""}
        if last["type"] == "http.response.trailers":
            return True
        trailers = bool(self.sent) and self.sent[0].get("trailers")
        return last["type"] == "http.response.body" and not (trailers or last.get("more_body"))


def outcome(
    seed: int, wrap: Callable[[Script, ASGIApp], ASGIApp], *, repeats: bool = False
) -> dict[str, Any]:
    """
    Run the script of *seed*; give all that can be told from outside and from inside.

    Where the server *repeats* it, a disconnect is told as often as somebody asks.
    """
    script = Script.draw(seed)
    wire = Wire(script, repeats=repeats)
    asgi = {"version": "3.0"}
    if script.spec is not None:
        asgi["spec_version"] = script.spec
    scope: Scope = {
        "type": "http",
        "asgi": asgi,
        "http_version": "1.1",
        "method": script.method,
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"testserver"), (b"transfer-encoding", b"chunked")],
        "client": ("testclient", 50000),
        "server": ("testserver", 80),
        "state": {},
        "extensions": {"http.response.trailers": {}},
        "script": script,
    }
    raised: list[str] = []

    async def main() -> None:
        app = wrap(script, fastapi_app if script.fastapi else starlette_app)
        try:
            await app(scope, wire.receive, wire.send)
        except Exception as error:  # noqa: BLE001 - it is compared
            raised.append(describe(error))

    hangs = False
    try:
        _loops.run(
            main,
            backend="asyncio",
            seed=None,
            on_step=lambda: None,
            on_left=lambda _: None,
            on_error=lambda error: script.seen.append(f"unheard of: {error!r}"),
        )
    except _loops.Stuck:
        hangs = True
    return {"sent": wire.sent, "seen": script.seen, "raised": raised, "hangs": hangs}


def describe(error: BaseException) -> str:
    """Give an exception with its group, cause and message, without what names a wrapper."""
    if isinstance(error, BaseExceptionGroup):
        return f"group of {sorted(map(describe, error.exceptions))}"
    cause = f" from {describe(error.__cause__)}" if error.__cause__ else ""
    return f"{type(error).__name__}: {error}{cause}"


def differs(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Name what differs."""
    return [key for key in theirs if mine[key] != theirs[key]]


def is_no_response(ours: dict[str, Any], none: dict[str, Any]) -> bool:
    """
    Tell whether an app returned without a response, to a client that waits.

    Without a layer that is the server's to find out; a layer raises a `NoResponseError`.
    """
    return (
        not none["sent"]
        and not none["raised"]
        and ours["sent"] == none["sent"]
        and ours["seen"] == none["seen"]
        and all(each.startswith("NoResponseError: ") for each in ours["raised"])
    )


def run_piece(first: int) -> tuple[Counter[str], list[tuple[int, list[str]]], Counter[str]]:
    """Compare the scripts of one piece."""
    counts: Counter[str] = Counter()
    base: Counter[str] = Counter()
    found = []
    with watching():
        for seed in range(first, first + PIECE):
            none = outcome(seed, bare)
            counts["hangs without a layer"] += none["hangs"]
            counts["raises without a layer"] += bool(none["raised"])
            counts["no response at all"] += not none["sent"]
            ours = outcome(seed, with_layers)
            difference = differs(ours, none)
            known = none
            if difference and Script.draw(seed).once:
                known = outcome(seed, bare, repeats=True)
            if not difference:
                counts["equal"] += 1
            elif ours == known:
                counts["equal to a server that repeats a disconnect"] += 1
            elif is_no_response(ours, none) or is_no_response(ours, known):
                counts["equal, and no response is a NoResponseError"] += 1
            else:
                found.append((seed, difference))
            theirs = outcome(seed, with_base)
            base.update(differs(theirs, none))
            base["what the client gets"] += as_client(theirs) != as_client(none)
    return counts, found, base


def as_client(outcome: dict[str, Any]) -> Any:
    """Give the response as a client gets it, however it was cut into messages."""
    if not outcome["sent"]:
        return None
    start, *rest = outcome["sent"]
    data = b"".join(message.get("body", b"") for message in rest)
    last = rest[-1] if rest else {"more_body": True}
    return start["status"], sorted(start["headers"]), data, bool(last.get("more_body"))


def show(seed: int) -> None:
    """Print one script and its three outcomes."""
    print(Script.draw(seed))
    for wrap in (bare, with_layers, with_base):
        print(f"\n{wrap.__name__}")
        for key, value in outcome(seed, wrap).items():
            print(f"  {key}: {value}")


def main() -> int:
    """Compare as many scripts as asked for; give 1 when our layers made a difference."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--scripts", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--show", type=int, metavar="SEED")
    options = parser.parse_args()
    if options.show is not None:
        show(options.show)
        return 0
    started = time.monotonic()
    counts: Counter[str] = Counter()
    base: Counter[str] = Counter()
    found: list[tuple[int, list[str]]] = []
    pieces = range(options.first, options.first + options.scripts, PIECE)
    with multiprocessing.get_context("spawn").Pool(options.workers, maxtasksperchild=10) as pool:
        for some, differences, some_base in pool.imap_unordered(run_piece, pieces):
            counts.update(some)
            base.update(some_base)
            found += differences
            for seed, difference in differences:
                print(f"DIFFERENT {seed}: {', '.join(difference)}", flush=True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("starlette", "fastapi", "anyio"))
    print(f"Python {platform.python_version()}, {packages}")
    print(f"{len(pieces) * PIECE:,} scripts in {time.monotonic() - started:,.0f} s")
    for name, count in sorted(counts.items()):
        print(f"  {name}: {count:,}")
    print(f"empty layers of httpmw: {len(found):,} differences")
    print("BaseHTTPMiddleware, by what differs:")
    for name, count in base.most_common():
        print(f"  {name}: {count:,}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
