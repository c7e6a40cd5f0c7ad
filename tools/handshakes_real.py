"""
Real applications and a real browser over WebSockets, alone and inside of three layers.

    python -m tools.handshakes_real WORK               writes the table of docs/websocket-servers.md
    python -m tools.handshakes_real WORK --only NiceGUI

WORK is a folder outside of the project, for an environment with the packages below. It needs
Chromium and openssl (Debian's packages `chromium` and `openssl`).
"""

# ruff: noqa: PLC0415 - the packages are there in that environment only

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import venv
from collections.abc import AsyncIterator, Callable, Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

from tests.browser import CHROMIUM, FLAGS, certificate

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "websocket-servers.md"
TABLE: Final = re.compile(
    r"(?<=<!-- applications -->\n).*?(?=<!-- end of the applications -->)", re.DOTALL
)
PINS: Final = (
    *("python-socketio==5.18.1", "python-engineio==4.15.1", "aiohttp==3.14.5"),
    *("strawberry-graphql==0.341.2", "fastapi==0.165.0", "nicegui==3.18.0"),
    *("uvicorn==0.54.0", "hypercorn==0.18.0", "h2==4.4.1", "websockets==17.4", "wsproto==1.3.2"),
)
# It stays as long as it is let.
BROWSER: Final = (*FLAGS, "--ignore-certificate-errors", "--remote-debugging-port=0")
MESSAGES: Final = 1000
SIZE: Final = 64 * 1024  # bytes
SECONDS: Final = 120

Rows = dict[str, Any]


# ---------------------------------------------------------------------- what is served


def layered(app: Any) -> Any:
    if os.environ.get("LAYERS") == "3":
        from httpmw import HTTPMiddleware
        from tools.handshakes_app import ending, gate, mark

        for each in (gate, mark, ending):
            app = HTTPMiddleware(app, dispatch=each, websocket=True)
    return app


def socket_io() -> Any:
    import socketio

    server = socketio.AsyncServer(async_mode="asgi")

    @server.event
    async def echo(sid: str, data: Any) -> Any:
        await server.emit("back", data, to=sid)
        return data

    return layered(socketio.ASGIApp(server))


def graphql() -> Any:
    import strawberry
    from fastapi import FastAPI
    from strawberry.fastapi import GraphQLRouter

    @strawberry.type
    class Query:
        hello: str = "world"

    @strawberry.type
    class Subscription:
        @strawberry.subscription
        async def count(self, to: int) -> AsyncIterator[int]:
            for number in range(to):
                await asyncio.sleep(0)
                yield number

    app = FastAPI()
    schema = strawberry.Schema(Query, subscription=Subscription)
    app.include_router(GraphQLRouter(schema), prefix="/g")
    return layered(app)


def nice_gui() -> Any:
    from fastapi import FastAPI
    from nicegui import ui

    app = FastAPI()
    said: Rows = {}

    @app.get("/said")
    def tell() -> Rows:
        return said

    @ui.page("/")
    async def page() -> None:
        label = ui.label("drawn")
        await ui.context.client.connected()
        label.set_text("told")
        text = "document.querySelector('.nicegui-content').innerText"
        said["what the page shows when it was told"] = await ui.run_javascript(text, timeout=20)

    ui.run_with(app)
    return layered(app)


SCRIPT: Final = """<!doctype html><title>sockets</title><pre id=out></pre><script>
const rows = {}, wait = ms => new Promise(r => setTimeout(r, ms));
const open = (path, protocols) => new Promise(done => {
  const s = new WebSocket(location.origin.replace('http', 'ws') + path, protocols);
  s.binaryType = 'arraybuffer'; s.onopen = () => done(s);
  s.onclose = e => done(`refused, ${e.code}`);
});
const next = s => new Promise(r => { s.onmessage = e => r(e.data); });
const closed = s => new Promise(r => { s.onclose = e => r(`${e.code} ${e.reason}`); });
(async () => {
  let s = await open('/echo', ['a', 'b']);
  rows['subprotocol of the acceptance'] = s.protocol;
  rows['cookies of the acceptance'] = document.cookie.split('; ').sort().join(', ');
  let got = next(s); s.send('é'); rows['text'] = await got;
  let end = closed(s); s.send('close'); rows['app closes with 4001'] = await end;
  s = await open('/echo'); end = closed(s); s.close(4005, 'ta');
  rows['browser closes with 4005'] = await end;
  const tried = async path => typeof (s = await open(path)) === 'string' ? s : 'accepted';
  rows['app closes in place of accepting'] = await tried('/close');
  rows['app denies with 404'] = await tried('/deny');
  rows['a layer refuses with 403'] = await tried('/refused');
  s = await open('/echo'); let count = 0, whole = true;
  const all = new Promise(r => { s.onmessage = e => {
    whole = whole && e.data.byteLength === SIZE; if (++count === MESSAGES) r(); }; });
  const data = new Uint8Array(SIZE);
  for (let i = 0; i < MESSAGES; i++) { s.send(data); if (i % 50 === 0) await wait(0); }
  await all;
  rows[`${MESSAGES} messages of ${SIZE / 1024} KiB each way`] = whole ? 'whole' : 'not whole';
  s.close(); await fetch('/said', {method: 'POST', body: JSON.stringify(rows)});
})().catch(e => fetch('/said', {method: 'POST', body: JSON.stringify({...rows, error: `${e}`})}));
</script>""".replace("SIZE", str(SIZE)).replace("MESSAGES", str(MESSAGES))


def browser() -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Mount, Route, WebSocketRoute
    from starlette.websockets import WebSocket

    from tools.handshakes_app import alone, echo

    said: Rows = {}
    versions: set[str] = set()

    async def page(_: Request) -> Response:
        return HTMLResponse(SCRIPT)

    async def note(request: Request) -> Response:
        said.update(await request.json())
        said["HTTP of the handshake"] = ", ".join(sorted(versions))
        return Response()

    async def tell(_: Request) -> Response:
        return JSONResponse(said)

    async def noted(socket: WebSocket) -> None:
        versions.add(socket.scope["http_version"])
        await echo(socket)

    routes = [
        Route("/", page),
        Route("/said", note, methods=["POST"]),
        Route("/said", tell),
        WebSocketRoute("/echo", noted),
        Mount("/", alone),
    ]
    return layered(Starlette(routes=routes))


# ---------------------------------------------------------------------- who asks


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def served(app: str, layers: int, port: int, *words: str) -> AsyncIterator[None]:
    """Serve one of the applications above."""
    log = open(f"served-{app}-{layers}.log", "wb")  # noqa: ASYNC230, PTH123, SIM115 - closed below
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *words),
        cwd=ROOT,
        env={**os.environ, "LAYERS": str(layers), "PYTHONPATH": str(ROOT)},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(SECONDS):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.1)
        yield
    finally:
        server.terminate()
        await server.wait()
        log.close()


def uvicorn(app: str, port: int) -> list[str]:
    factory = f"tools.handshakes_real:{app}"
    return ["uvicorn", "--factory", factory, "--port", str(port), "--log-level", "warning"]


async def ask_socket_io(layers: int) -> Rows:
    import socketio

    port, rows = free_port(), {}
    async with served("socket_io", layers, port, *uvicorn("socket_io", port)):
        for transports in (["websocket"], ["polling", "websocket"]):
            name = " to ".join(transports)
            client = socketio.AsyncClient(reconnection=False)
            back: list[Any] = []
            client.on("back", back.append)
            await client.connect(f"http://127.0.0.1:{port}", transports=transports)
            data = {"text": "é", "bytes": bytes(SIZE)}
            answers = [await client.call("echo", data) == data for _ in range(100)]
            while client.transport() != "websocket":  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.05)
            rows[f"{name}: transport, answers, events"] = (
                f"{client.transport()}, {sum(answers)}, {sum(each == data for each in back)}"
            )
            await client.disconnect()
    return rows


async def ask_graphql(layers: int) -> Rows:
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed

    port, rows = free_port(), {}
    url = f"ws://127.0.0.1:{port}/g"
    async with served("graphql", layers, port, *uvicorn("graphql", port)):
        for protocol in ("graphql-transport-ws", "graphql-ws"):
            modern = protocol == "graphql-transport-ws"
            async with connect(url, subprotocols=[protocol], proxy=None) as client:
                await client.send(json.dumps({"type": "connection_init"}))
                said = [json.loads(await client.recv())["type"]]
                query = {"query": "subscription { count(to: 200) }"}
                start = "subscribe" if modern else "start"
                await client.send(json.dumps({"id": "1", "type": start, "payload": query}))
                values = 0
                while (message := json.loads(await client.recv()))["type"] != "complete":
                    values += "count" in str(message)
                rows[f"{protocol}: subprotocol, answer, values"] = (
                    f"{client.subprotocol}, {said[0]}, {values}"
                )
        for name, protocols, text in (
            ("a message that is none", ["graphql-transport-ws"], "nonsense"),
            ("a subprotocol that it does not know", ["other"], "{}"),
        ):
            try:
                async with connect(url, subprotocols=protocols, proxy=None) as client:
                    await client.send(text)
                    while True:
                        await client.recv()
            except ConnectionClosed as error:
                rows[name] = str(error.rcvd and error.rcvd.code)
            except Exception as error:  # noqa: BLE001 - it is what is told
                rows[name] = type(error).__name__
    return rows


async def ask_nice_gui(layers: int) -> Rows:
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    return await _browse("nice_gui", layers, port, url, *uvicorn("nice_gui", port))


async def _browse(app: str, layers: int, port: int, url: str, *words: str) -> Rows:
    """Open a page; what it finds out it tells the server, under `/said`."""
    async with served(app, layers, port, *words):
        process = await asyncio.create_subprocess_exec(
            CHROMIUM,
            *BROWSER,
            url,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(SECONDS):
                while True:
                    await asyncio.sleep(0.5)

                    def tell() -> Any:
                        context = ssl._create_unverified_context()  # noqa: S323, SLF001
                        secure = {"context": context} if url.startswith("https") else {}
                        with urlopen(f"{url}said", timeout=10, **secure) as response:  # noqa: S310
                            return json.load(response)

                    if rows := await asyncio.to_thread(tell):
                        return dict(rows)
        finally:
            process.terminate()
            await process.wait()


async def ask_browser(layers: int) -> Rows:
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    return await _browse("browser", layers, port, url, *uvicorn("browser", port))


async def ask_browser_2(layers: int) -> Rows:
    made, key = await asyncio.to_thread(certificate, Path.cwd(), "127.0.0.1")
    port = free_port()
    files = ["--certfile", str(made), "--keyfile", str(key)]
    app = "tools.handshakes_real:browser()"
    words = ["hypercorn", "-b", f"127.0.0.1:{port}", *files, app]
    return await _browse("browser", layers, port, f"https://127.0.0.1:{port}/", *words)


KINDS: Final[dict[str, Callable[[int], Coroutine[Any, Any, Rows]]]] = {
    "Socket.IO": ask_socket_io,
    "Strawberry": ask_graphql,
    "NiceGUI in Chromium": ask_nice_gui,
    "Chromium, uvicorn": ask_browser,
    "Chromium, hypercorn, HTTP/2": ask_browser_2,
}


def table(found: dict[str, tuple[Rows, Rows]]) -> str:
    packages = [each.partition("==")[0] for each in PINS]
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    chromium = subprocess.check_output([CHROMIUM, "--version"], text=True)
    browser = " ".join(chromium.split()[:2])
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    lines = [f"\nMade on Python {python} with {browser}, {versions}.\n"]
    lines += ["| | | alone | inside of three layers |", "|---|---|---|---|"]
    for name, (alone, inside) in found.items():
        for row in alone | inside:
            cells = [str(each.get(row, "")) for each in (alone, inside)]
            lines.append(f"| {name} | {row} | {cells[0]} | {cells[1]} |")
    return "\n".join([*lines, "\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--only")
    options = parser.parse_args()
    work = options.work.resolve()
    python = work / "bin" / "python"
    if Path(sys.prefix).resolve() != work:
        if not python.exists():
            venv.create(work, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--editable", str(ROOT), *PINS]
        subprocess.run(pip, check=True)
        words = [str(python), "-m", "tools.handshakes_real", *sys.argv[1:]]
        os.execv(python, words)  # noqa: S606
    os.chdir(work)
    found = {}
    for name, ask in KINDS.items():
        if options.only is None or name.startswith(options.only):
            found[name] = asyncio.run(ask(0)), asyncio.run(ask(3))
    if options.only:
        print(table(found))
    else:
        PAGE.write_text(TABLE.sub(lambda _: table(found), PAGE.read_text()))


if __name__ == "__main__":
    main()
