"""
The application that `tools/attack.py` asks: `tools.attack_app:app`.

The first part of a path names the layers, each of which stands around the same inner app:

* `/GATE/...`, see `GATES`: who has no key gets 403, and the inner app is not reached.
* `/live/...`: the same in a `MiddlewareStack` that is edited meanwhile, by `/edit?COUNT`.
* `/HOW/...`, see `CHANGES`: the response is changed or replaced.
* `/held/...`: a resource is held as long as the request lasts.

`/counts` tells who reached the inner app, and what is still held. A request names itself with
`x-id`, and has the key with `x-key: key`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware, Layer, MiddlewareStack
from httpmw.compat import BaseHTTPMiddleware
from tests.harness import PassThrough, passing, waiting

reached: dict[str, bool] = {}  # who, and whether with the key
held: set[str] = set()
counts = Counter[str]()


async def inner(scope: Scope, receive: Receive, send: Send) -> None:
    """
    Tell the secret, and the digest of what was uploaded.
    """
    headers = Headers(scope=scope)
    name = headers["x-id"]
    reached[name] = headers.get("x-key") == "key"
    digest = hashlib.sha256()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        digest.update(message.get("body", b""))
        if not message.get("more_body"):
            break
    parts = [b"secret ", name.encode(), b" ", digest.hexdigest()[:8].encode()]
    start: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": []}
    if scope["path"].endswith("/whole"):
        parts = [b"".join(parts)]
        start["headers"].append((b"content-length", b"%d" % len(parts[0])))
    await send(start)
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
        if scope["path"].endswith("/slow"):
            await anyio.sleep(0.005)
    await send({"type": "http.response.body"})


# ---------------------------------------------------------------------- gates


def denial(conn: Request) -> Response | None:
    if conn.headers.get("x-key") == "key":
        return None
    return PlainTextResponse(f"denied {conn.headers['x-id']}", 403)


async def answers(conn: Connection) -> Flow:
    if denied := denial(conn):
        yield denied
        return
    yield


async def answers_and_waits(conn: Connection) -> Flow:
    if denied := denial(conn):
        yield denied
        return
    response = yield
    yield response


async def raises(conn: Connection) -> Flow:
    if denial(conn):
        raise HTTPException(403, f"denied {conn.headers['x-id']}")
    yield


async def reads(conn: Connection) -> Flow:
    try:
        await conn.body()
    except ClientDisconnect:
        yield Response(status_code=400)
        return
    if denied := denial(conn):
        yield denied
        return
    yield


async def delegates(conn: Connection) -> Flow:
    response = yield answers(conn)
    yield response


async def as_call_next(request: Request, call_next: Callable[[Request], Any]) -> Response:
    if denied := denial(request):
        return denied
    response: Response = await call_next(request)
    return response


def layer(function: Callable[..., Any], app: ASGIApp = inner) -> ASGIApp:
    return HTTPMiddleware(app, dispatch=function)


GATES: dict[str, ASGIApp] = {
    "answers": layer(answers),
    "answers-and-waits": layer(answers_and_waits),
    "raises": layer(raises),
    "reads": layer(reads),
    "delegates": layer(delegates),
    "call-next": BaseHTTPMiddleware(inner, dispatch=as_call_next),
    "fused": layer(waiting, layer(answers, layer(passing))),
    "nested": layer(waiting, PassThrough(layer(answers, PassThrough(layer(passing))))),
}

live = MiddlewareStack(inner, [answers])
around: list[Layer] = []


def edit(count: int, chance: random.Random) -> None:
    """
    Add, replace, move and remove layers around the gate and inside of it.
    """
    makes: Sequence[Any] = (passing, waiting, Middleware(PassThrough))
    for _ in range(count):
        if len(around) < 2 or (len(around) < 6 and chance.random() < 0.3):
            around.append(live.add(chance.choice(makes), innermost=chance.random() < 0.5))
            continue
        index = chance.randrange(len(around))
        what = chance.randrange(3)
        if what == 0:
            live.remove(around.pop(index))
        elif what == 1:
            around[index] = live.replace(around[index], chance.choice(makes))
        else:
            live.move(around[index], innermost=chance.random() < 0.5)


# ---------------------------------------------------------------------- changed responses


async def upper(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk.upper()


async def body(conn: Connection) -> Flow:
    response = yield
    response.body = f"replaced {conn.headers['x-id']}"


async def read(conn: Connection) -> Flow:
    response = yield
    response.body = (await response.read()).upper()


async def transform(conn: Connection) -> Flow:
    response = yield
    response.body_iterator = upper(response.body_iterator)


async def other(conn: Connection) -> Flow:
    yield
    yield PlainTextResponse(f"replaced {conn.headers['x-id']}", 503)


async def other_stream(conn: Connection) -> Flow:
    response = yield
    yield StreamingResponse(upper(response.body_iterator), 203)


async def status(code: int, conn: Connection) -> Flow:
    response = yield
    response.status_code = code


CHANGES: dict[str, ASGIApp] = {
    "body": layer(body),
    "read": layer(read),
    "transform": layer(transform),
    "other": layer(other),
    "other-stream": layer(other_stream),
    **{str(code): layer(partial(status, code)) for code in (204, 205, 304)},
}


async def hold(conn: Connection) -> Flow:
    name = conn.headers["x-id"]
    held.add(name)
    counts["taken"] += 1
    try:
        response = yield
        yield response
    finally:
        # A clean-up that awaits has to be let do so.
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
        held.discard(name)


APPS = {**GATES, **CHANGES, "live": live, "held": layer(waiting, layer(hold))}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """
    Find the layers by the first part of the path.
    """
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    first = scope["path"].split("/")[1]
    if first in APPS:
        await APPS[first](scope, receive, send)
        return
    if first == "edit":
        count, seed = map(int, scope["query_string"].split(b"&"))
        edit(count, random.Random(seed))
    notes = {"reached": reached, "held": sorted(held), "taken": counts["taken"]}
    text = json.dumps(notes) if first == "counts" else "ready"
    await PlainTextResponse(text)(scope, receive, send)
