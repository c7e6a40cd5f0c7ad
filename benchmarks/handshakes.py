"""
What layers cost a WebSocket: `python -m benchmarks.handshakes`.

* `handshake`: one layer that sets a header, with `websocket=True`, around an application that takes
  the `websocket.connect` and accepts. "N times a request" is what it adds to that, divided by what
  the same layer adds to an HTTP request whose application takes the `http.request` and gives an
  empty answer. Every one is a task under asyncio; `benchmarks.measure` says how time is taken.
* `messages`: five such layers on uvicorn with websockets-sansio, and 1,000 messages each way on an
  open socket, echoed one at a time. "N times the bare app" is the CPU time of the whole server
  process, for the same messages through the same process without the layers, on a connection right
  before or after.
"""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from benchmarks.document import ROOT, Row, document, options, write
from benchmarks.measure import ASYNCIO, Figure, interleaved, measure, ratio
from benchmarks.styles import App, one_yield
from httpmw import HTTPMiddleware

MESSAGES = 1_000
LAYERS = 5


def layered(app: App, layers: int) -> App:
    for _ in range(layers):
        app = HTTPMiddleware(app, dispatch=one_yield, websocket=True)
    return app


# ---------------------------------------------------------------------- the handshake


async def answers(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def accepts(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept", "subprotocol": None, "headers": []})  # as Starlette's


async def connect_comes() -> Message:
    return {"type": "websocket.connect"}


class Opening:
    """
    The server's side of a handshake.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        scope["type"] = "websocket"
        scope["scheme"] = "ws"
        scope["subprotocols"] = []
        del scope["method"]
        await self._app(scope, connect_comes, send)


def handshake(rounds: int, seconds: float) -> Row:
    arms = {
        "request, bare": answers,
        "request": layered(answers, 1),
        "handshake, bare": Opening(accepts),
        "handshake": Opening(layered(accepts, 1)),
    }
    samples = measure(arms, ASYNCIO, rounds=rounds, seconds=seconds)
    added = {
        name: [
            (one - none) * 1e6
            for one, none in zip(samples[name], samples[f"{name}, bare"], strict=True)
        ]
        for name in ("request", "handshake")
    }
    figures = {
        "request us": Figure.of(added["request"]),
        "handshake us": Figure.of(added["handshake"]),
        "times": ratio(added, "handshake", "request", None),
    }
    return {"what": "handshake", "layers": 1} | {
        key: each.rounded(4) for key, each in figures.items()
    }


# ---------------------------------------------------------------------- its messages


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        text = message.get("text")
        if text == "cpu":
            text = repr(time.process_time())
        await send({"type": "websocket.send", "text": text})


ARMS = {"bare": echo, "layers": layered(echo, LAYERS)}


async def served(scope: Scope, receive: Receive, send: Send) -> None:
    await ARMS[scope["path"].strip("/")](scope, receive, send)


def messages(rounds: int) -> Row:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "benchmarks.handshakes:served"]
    command += ["--port", str(port), "--lifespan", "off", "--log-level", "error"]
    command += ["--ws", "websockets-sansio", "--ws-per-message-deflate", "false"]
    server = subprocess.Popen(command, cwd=ROOT)  # noqa: S603
    try:
        wait(port)
        samples: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for order in interleaved(ARMS, rounds):
            for arm in order:
                samples[arm].append(exchanged(f"ws://127.0.0.1:{port}/{arm}"))
    finally:
        server.terminate()
        server.wait()
    figures = {
        "bare us": Figure.of(each * 1e6 / MESSAGES for each in samples["bare"]),
        "times": ratio(samples, "layers", "bare", None),
    }
    return {"what": "messages", "layers": LAYERS} | {
        key: each.rounded(4) for key, each in figures.items()
    }


def wait(port: int) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return


def exchanged(url: str) -> float:
    """
    Send messages and get them back; give the CPU time that the server took for them.
    """
    from websockets.sync.client import connect  # noqa: PLC0415 - not where the tests run

    with connect(url, compression=None) as client:

        def ask(text: str) -> Any:
            client.send(text)
            return client.recv()

        ask("warm")
        before = float(ask("cpu"))
        for _ in range(MESSAGES):
            ask("hello, world")
        return float(ask("cpu")) - before


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = options(__doc__, "handshakes").parse_args(arguments)
    found = [
        handshake(*((5, 0.001) if chosen.quick else (80, 0.01))),
        messages(5 if chosen.quick else 200),
    ]
    print(f"Python {platform.python_version()}")
    for row in found:
        figures = ", ".join(
            f"{key} {each['median']:.3f} [{each['low']:.3f} {each['high']:.3f}]"
            for key, each in row.items()
            if isinstance(each, dict)
        )
        print(f"{row['what']}, layers {row['layers']}: {figures}")
    if chosen.json:
        write(chosen.json, document(found, ["uvicorn", "websockets"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
