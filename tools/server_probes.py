"""
The application that `tools/servers.py` asks: `tools.server_probes:app`.

1. `/alone/PROBE/ID` runs a probe as it is, `/inside/PROBE/ID` inside of two empty layers.
2. `/notes/ID` tells what the probe noted, as soon as it is over or after `PATIENCE`.
3. `/release/ID` lets a probe go on that waits, `/released/ID` waits for one that does so itself.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
from starlette.types import Message, Receive, Scope, Send

from tests.harness import body, passing, stack, waiting

PATIENCE = 8
# How long something has to stay away to be called missing.
MISSING = 0.7
FILE = Path(__file__)
SIZE = FILE.stat().st_size


class Probe:
    """
    One run of a probe.
    """

    scope: Scope
    receive: Receive
    send: Send

    def __init__(self) -> None:
        self.id = ""
        self.notes: dict[str, Any] = {}
        self.released = anyio.Event()
        self.over = anyio.Event()

    async def attempt(self, *messages: Message) -> str:
        """
        Send messages, and say what `send` made of them.
        """
        try:
            for message in messages:
                await self.send(message)
        except Exception as error:  # noqa: BLE001 - the kind of it is the answer
            return type(error).__name__
        return "taken"

    async def next(self) -> str:
        """
        Receive a message, and say which; there may be none.
        """
        with anyio.move_on_after(MISSING):
            kind: str = (await self.receive())["type"]
            return kind.removeprefix("http.")
        return "blocks"


Run = Callable[[Probe], Awaitable[None]]
PROBES: dict[str, Run] = {}
runs: defaultdict[str, Probe] = defaultdict(Probe)


def probe(run: Run) -> Run:
    """
    Make *run* known under its name.
    """
    PROBES[run.__name__] = run
    return run


def start(status: int = 200, *headers: tuple[bytes, bytes], **keys: Any) -> Message:
    """
    Return a response start.
    """
    return {"type": "http.response.start", "status": status, "headers": list(headers), **keys}


async def to_the_end(run: Probe) -> bytes:
    """
    Receive the whole body of the request.
    """
    data, more = b"", True
    while more:
        message = await run.receive()
        data, more = data + message.get("body", b""), message.get("more_body", False)
    return data


def offers(run: Probe, extension: str) -> bool:
    """
    Say whether the server has an extension; where not, it is not used.
    """
    return f"http.response.{extension}" in (run.scope.get("extensions") or {})


LENGTH = (b"content-length", b"5")
VARIABLE = ContextVar("VARIABLE", default="its own")


@probe
async def plain(run: Probe) -> None:
    await to_the_end(run)
    await run.attempt(start(200, LENGTH), body(b"plain"))


@probe
async def variables(run: Probe) -> None:
    run.notes["seen"] = VARIABLE.get()
    VARIABLE.set("those of the one before")
    await plain(run)


@probe
async def scope(run: Probe) -> None:
    asgi = run.scope["asgi"]
    run.notes["spec"] = asgi.get("spec_version", "absent")
    prefix = "http.response."
    names = (run.scope.get("extensions") or {}).keys()
    known = sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))
    run.notes["extensions"] = ", ".join(known) or "none"
    run.notes["state"] = "yes" if "state" in run.scope else "no"
    ports = [run.scope[name][1] for name in ("client", "server")]
    run.notes["ports"] = ", ".join(type(port).__name__ for port in ports)
    await plain(run)


@probe
async def leaves(run: Probe) -> None:
    await to_the_end(run)
    await run.attempt(start(), body(b"first", more=True))
    message = await run.receive()
    run.notes["first"] = message["type"].removeprefix("http.")
    run.notes["again"] = await run.next()
    run.notes["send"] = await run.attempt(body(b"second", more=True), body())


@probe
async def left_alone(run: Probe) -> None:
    await to_the_end(run)
    await run.attempt(start(), body(b"first", more=True))
    run.notes["cancelled"] = "yes"
    with anyio.move_on_after(MISSING):
        await run.released.wait()
    run.notes["cancelled"] = "no"


@probe
async def half_closed(run: Probe) -> None:
    await to_the_end(run)
    run.notes["told"] = await run.next()
    await run.attempt(start(200, LENGTH), body(b"plain"))


@probe
async def complete(run: Probe) -> None:
    await to_the_end(run)
    async with anyio.create_task_group() as group:

        async def listen() -> None:
            run.notes["woken"] = await run.next()

        group.start_soon(listen)
        await anyio.lowlevel.checkpoint()
        await run.attempt(start(200, LENGTH), body(b"plain"))
    run.notes["later"] = await run.next()


@probe
async def listeners(run: Probe) -> None:
    await to_the_end(run)
    woken: list[str] = []
    async with anyio.create_task_group() as group:

        async def listen() -> None:
            woken.append(await run.next())

        group.start_soon(listen)
        group.start_soon(listen)
        await anyio.lowlevel.checkpoint()
        await run.attempt(start(200, LENGTH), body(b"plain"))
    run.notes["woken"] = f"{len(woken) - woken.count('blocks')} of 2"


@probe
async def after_the_end(run: Probe) -> None:
    await to_the_end(run)
    await run.attempt(start(200, LENGTH), body(b"plain"))
    run.notes["send"] = await run.attempt(body(b"more", more=True))


@probe
async def second_start(run: Probe) -> None:
    await to_the_end(run)
    await run.attempt(start(200, LENGTH), body(b"pl", more=True))
    run.notes["send"] = await run.attempt(start(201))
    await run.attempt(body(b"ain"))


@probe
async def unknown_message(run: Probe) -> None:
    await to_the_end(run)
    await run.attempt(start(200, LENGTH))
    run.notes["send"] = await run.attempt({"type": "http.response.unheard_of"})
    await run.attempt(body(b"plain"))


@probe
async def no_headers(run: Probe) -> None:
    await to_the_end(run)
    await run.attempt({"type": "http.response.start", "status": 200}, body(b"plain"))


@probe
async def iterated_headers(run: Probe) -> None:
    await to_the_end(run)
    headers = iter([LENGTH, (b"x-a", b"b")])
    await run.attempt({**start(), "headers": headers}, body(b"plain"))


@probe
async def length_on_304(run: Probe) -> None:
    await to_the_end(run)
    run.notes["send"] = await run.attempt(start(304, LENGTH), body())


@probe
async def no_response(run: Probe) -> None:
    await to_the_end(run)


@probe
async def fails_before(run: Probe) -> None:
    await to_the_end(run)
    raise ValueError(run.id)


@probe
async def fails_after_the_start(run: Probe) -> None:
    await to_the_end(run)
    await run.attempt(start())
    raise ValueError(run.id)


@probe
async def fails_within(run: Probe) -> None:
    await to_the_end(run)
    await run.attempt(start(), body(b"first", more=True))
    raise ValueError(run.id)


@probe
async def ends_within(run: Probe) -> None:
    await to_the_end(run)
    await run.attempt(start(), body(b"first", more=True))


@probe
async def os_error(run: Probe) -> None:
    await to_the_end(run)
    raise OSError(run.id)


@probe
async def too_long(run: Probe) -> None:
    await to_the_end(run)
    run.notes["send"] = await run.attempt(start(200, LENGTH), body(b"far too long"))


@probe
async def too_short(run: Probe) -> None:
    await to_the_end(run)
    run.notes["send"] = await run.attempt(start(200, LENGTH), body(b"one"))


@probe
async def body_on_204(run: Probe) -> None:
    await to_the_end(run)
    run.notes["send"] = await run.attempt(start(204), body(b"a body"))


@probe
async def body_on_head(run: Probe) -> None:
    await to_the_end(run)
    run.notes["send"] = await run.attempt(start(200, LENGTH), body(b"plain"))


@probe
async def slow_reader(run: Probe) -> None:
    await run.released.wait()
    run.notes["size"] = len(await to_the_end(run))
    await run.attempt(start(200, LENGTH), body(b"plain"))


@probe
async def unread(run: Probe) -> None:
    run.notes["send"] = await run.attempt(start(200, LENGTH), body(b"plain"))


@probe
async def cancelled_receive(run: Probe) -> None:
    message = await run.receive()
    data = message.get("body", b"")
    # Where the server waits for all of the body, there is nothing to wait for here.
    if message.get("more_body"):
        with anyio.move_on_after(0.1):
            await run.receive()
        run.released.set()
        data += await to_the_end(run)
    run.notes["body"] = data.decode()
    await run.attempt(start(200, LENGTH), body(b"plain"))


@probe
async def idle_start(run: Probe) -> None:
    await to_the_end(run)
    await run.attempt(start())
    with anyio.move_on_after(PATIENCE):
        await run.released.wait()
    await run.attempt(body(b"plain"))


@probe
async def idle_stream(run: Probe) -> None:
    await to_the_end(run)
    await run.attempt(start(), body(b"first", more=True))
    with anyio.move_on_after(PATIENCE):
        await run.released.wait()
    await run.attempt(body(b"second"))


@probe
async def endless_stream(run: Probe) -> None:
    # Of a client that does not read, to see when it is held back.
    await to_the_end(run)
    await run.attempt(start())
    run.notes["sent"] = 0
    with anyio.move_on_after(MISSING):
        while run.notes["sent"] < 64 and not run.notes.get("failed"):
            sent = await run.attempt(body(b"x" * (1 << 20), more=True))
            run.notes["failed"] = sent != "taken"
            run.notes["sent"] += 1


@probe
async def background(run: Probe) -> None:
    await to_the_end(run)
    await run.attempt(start(200, LENGTH), body(b"plain"))
    with anyio.move_on_after(PATIENCE):
        await run.released.wait()
        run.notes["released"] = "yes"


@probe
async def streamed(run: Probe) -> None:
    await to_the_end(run)
    await run.attempt(start(200, (b"set-cookie", b"a=1"), (b"x-a", b"b"), (b"set-cookie", b"b=2")))
    for _ in range(1000):
        await run.attempt(body(b"a chunk", more=True))
    await run.attempt(body())


@probe
async def trailers(run: Probe) -> None:
    if not offers(run, "trailers"):
        await plain(run)
        return
    await to_the_end(run)
    message = {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]}
    first = start(200, (b"trailer", b"x-sum"), trailers=True)
    run.notes["send"] = await run.attempt(first, body(b"plain"), message)


@probe
async def early_hints(run: Probe) -> None:
    if not offers(run, "early_hint"):
        await plain(run)
        return
    await to_the_end(run)
    hint = {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload; as=style"]}
    run.notes["send"] = await run.attempt(hint, start(200, LENGTH), body(b"plain"))


@probe
async def pathsend(run: Probe) -> None:
    if not offers(run, "pathsend"):
        await plain(run)
        return
    await to_the_end(run)
    length = (b"content-length", b"%d" % SIZE)
    message = {"type": "http.response.pathsend", "path": str(FILE)}
    run.notes["send"] = await run.attempt(start(200, length), message)


@probe
async def shutdown(run: Probe) -> None:
    await to_the_end(run)
    await run.attempt(start(), body(b"first", more=True))
    try:
        await anyio.sleep_forever()
    except anyio.get_cancelled_exc_class():
        print(f"cancelled {run.id}", file=sys.stderr, flush=True)
        raise


async def run_probe(scope: Scope, receive: Receive, send: Send) -> None:
    """
    Run the probe that the path names.
    """
    _, _, name, id_ = scope["path"].split("/")
    run = runs[id_]
    run.id, run.scope, run.receive, run.send = id_, scope, receive, send
    try:
        await PROBES[name](run)
    finally:
        run.over.set()


INSIDE = stack(run_probe, passing, waiting, fused=True)


async def answer(send: Send, value: Any) -> None:
    """
    Answer with *value* as JSON.
    """
    data = json.dumps(value).encode()
    await send(start(200, (b"content-length", b"%d" % len(data))))
    await send(body(data))


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """
    See the head of this file.
    """
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    kind, *rest = scope["path"].strip("/").split("/")
    run = runs[rest[-1]] if rest else Probe()
    if kind == "alone":
        await run_probe(scope, receive, send)
    elif kind == "inside":
        await INSIDE(scope, receive, send)
    elif kind == "notes":
        with anyio.move_on_after(PATIENCE):
            await run.over.wait()
        await answer(send, run.notes)
    elif kind == "release":
        run.released.set()
        await answer(send, None)
    elif kind == "released":
        with anyio.move_on_after(PATIENCE):
            await run.released.wait()
        await answer(send, None)
    else:
        await answer(send, "ready")
