"""
What a real browser makes of the layers that answer: `make browser`.

    python -m tools.browser                         with the `chromium` that is found
    python -m tools.browser --chromium /path/to/it

Chromium opens pages of an application on uvicorn and says itself what it saw; the application
notes what it was asked. Names are mapped to this machine, so that nothing of the network is
needed: `shop.test` and `evil.test` over plain HTTP, where a browser says less of itself, and
localhost, where it says all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from httpmw import Connection, Flow, HTTPMiddleware
from httpmw.middleware import (
    CompressionMiddleware,
    CrossOriginProtectionMiddleware,
    ETagMiddleware,
    ProblemDetailsMiddleware,
    SecurityHeadersMiddleware,
    ServerTimingMiddleware,
    timing,
)
from tests.browser import CHROMIUM, FLAGS, certificate

PATIENCE = 60  # seconds for one page
CODINGS = ("gzip", "br", "zstd")
PRESETS = ("web", "api", "strict")
TEXT = "some text that is said again and again, äöü " * 2000
EVENTS = 5

# What was asked, and what the pages say.
asked: list[tuple[str, int, dict[str, str]]] = []
reports: asyncio.Queue[Any] = asyncio.Queue()
acknowledged: dict[str, asyncio.Queue[str]] = {}


async def notes(conn: Connection) -> Flow:
    response = yield
    asked.append((conn.url.path, response.status_code, dict(conn.headers)))


def page(script: str) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        report = "const report = (x) => fetch('/report', {method: 'POST', body: JSON.stringify(x)})"
        return HTMLResponse(f"<!doctype html><script>{report}; {script}</script>")

    return endpoint


async def report(request: Request) -> Response:
    await reports.put(json.loads(await request.body()))
    return Response(status_code=204)


# -- nonces ----------------------------------------------------------------------------------


async def nonced(request: Request) -> Response:
    """Give a page whose own script runs, and with a script that somebody put into it."""
    nonce = request.state.csp_nonce
    own = f'<script nonce="{nonce}">document.documentElement.dataset.own = 1</script>'
    injected = "<script>document.documentElement.dataset.injected = 1</script>"
    headers = {"cache-control": "no-cache", "etag": '"page"'}
    return HTMLResponse(f"<!doctype html>{own}{injected}", headers=headers)


FRAME = """
const frame = document.createElement('iframe'); const seen = [];
frame.onload = () => {
  seen.push({...frame.contentDocument.documentElement.dataset});
  if (seen.length < 2) frame.contentWindow.location.reload(); else report(seen);
};
frame.src = '/nonced/'; document.documentElement.append(frame);
"""

# -- codings ---------------------------------------------------------------------------------


async def text(request: Request) -> Response:
    return PlainTextResponse(TEXT, headers={"cache-control": "no-cache"})


async def events(request: Request) -> Response:
    """Send each event when the one before has arrived."""
    arrived = acknowledged.setdefault(request.scope["root_path"], asyncio.Queue())

    async def stream() -> AsyncIterator[str]:
        for number in range(EVENTS):
            yield f"data: {number}\n\n"
            await asyncio.wait_for(arrived.get(), 20)
        yield "event: end\ndata: end\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream")


async def acknowledge(request: Request) -> Response:
    await acknowledged[request.scope["root_path"]].put("arrived")
    return Response(status_code=204)


def coded(coding: str) -> Starlette:
    return Starlette(
        routes=[
            Route("/text", text),
            Route("/events", events),
            Route("/arrived", acknowledge, methods=["POST"]),
        ],
        middleware=[
            Middleware(CompressionMiddleware, codings=[coding]),
            Middleware(ETagMiddleware),
        ],
    )


CODED = """
(async () => {
  const seen = {};
  for (const coding of %s) {
    const first = await (await fetch(`/${coding}/text`)).text();
    const second = await (await fetch(`/${coding}/text`)).text();
    seen[coding] = {same: first === second, length: first.length, events: 0};
    await new Promise((done) => {
      const source = new EventSource(`/${coding}/events`);
      source.onmessage = () => {
        seen[coding].events++; fetch(`/${coding}/arrived`, {method: 'POST'});
      };
      source.addEventListener('end', () => { source.close(); done(); });
      source.onerror = () => { source.close(); done(); };
    });
  }
  report(seen);
})()
""" % json.dumps(CODINGS)  # noqa: UP031 - braces of another language

# -- times -----------------------------------------------------------------------------------

TIMED = """
addEventListener('load', () => setTimeout(async () => {
  await (await fetch('/timed/fails')).text();
  await new Promise((done) => setTimeout(done, 100));
  const read = (entry) => entry.serverTiming.map((each) => [each.name, each.description]);
  const page = performance.getEntriesByType('navigation')[0];
  const failed = performance.getEntriesByType('resource').find((x) => x.name.endsWith('fails'));
  const times = page.serverTiming.every((each) => each.duration >= 0);
  report({page: read(page), failed: read(failed), times});
}, 0))
"""


async def timed(request: Request) -> Response:
    with timing(request).measure("db", 'the "big" one; of two, \\'):
        pass
    shown: Response = await page(TIMED)(request)
    return shown


async def fails(request: Request) -> Response:
    raise HTTPException(500)


# -- origins ---------------------------------------------------------------------------------


async def changed(request: Request) -> Response:
    return PlainTextResponse("changed")


async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


ASKS = """
(async () => {
  const [target, mark] = [new URLSearchParams(location.search).get('target'), location.search];
  const options = {method: 'POST', mode: 'no-cors', credentials: 'include', body: 'x'};
  await fetch(`${target}/guarded/change`, options);
  const opened = await new Promise((done) => {
    const socket = new WebSocket(target.replace('http', 'ws') + '/guarded/socket');
    socket.onopen = () => done(true); socket.onerror = () => done(false);
  });
  const frame = document.createElement('iframe'); frame.name = 'frame';
  const form = document.createElement('form');
  Object.assign(form, {method: 'POST', action: `${target}/guarded/form`, target: 'frame'});
  document.documentElement.append(frame, form);
  frame.onload = () => { if (form.sent) report(opened); };
  setTimeout(() => { form.sent = true; form.submit(); }, 50);
})()
"""

# -- FastAPI's documentation -----------------------------------------------------------------

# In place of what the pages load from a CDN.
STUBS = {
    "swagger-ui-bundle.js": (
        "window.SwaggerUIBundle = () => fetch('/ran/docs', {method: 'POST'});"
        "SwaggerUIBundle.presets = {}; SwaggerUIBundle.SwaggerUIStandalonePreset = 1;"
    ),
    "redoc.standalone.js": "fetch('/ran/redoc', {method: 'POST'});",
}


async def stub(request: Request) -> Response:
    name = request.url.path.rpartition("/")[2]
    kind = "text/css" if name.endswith(".css") or "css" in request.url.path else "text/javascript"
    return Response(STUBS.get(name, ""), media_type=kind)


def documented(preset: Any) -> FastAPI:
    app = FastAPI(
        middleware=[
            Middleware(SecurityHeadersMiddleware, preset=preset),
            Middleware(CompressionMiddleware, min_size=0),
            Middleware(ETagMiddleware),
        ]
    )

    @app.post("/ran/{name}", include_in_schema=False)
    async def ran(name: str) -> None:
        await reports.put(name)

    return app


# -- the servers -----------------------------------------------------------------------------

app = Starlette(
    routes=[
        Route("/report", report, methods=["POST"]),
        Route("/frame", page(FRAME)),
        Route("/codings", page(CODED)),
        Route("/asks", page(ASKS)),
        Mount(
            "/nonced",
            Starlette(
                routes=[Route("/", nonced)],
                middleware=[
                    Middleware(SecurityHeadersMiddleware, csp_nonce=True),
                    Middleware(ETagMiddleware),
                ],
            ),
        ),
        Mount(
            "/timed",
            Starlette(
                routes=[Route("/", timed), Route("/fails", fails)],
                middleware=[
                    Middleware(ServerTimingMiddleware, enabled=True, layers=True),
                    Middleware(ProblemDetailsMiddleware),
                    Middleware(SecurityHeadersMiddleware, csp=False),
                ],
            ),
        ),
        *(Mount(f"/{coding}", coded(coding)) for coding in CODINGS),
        Mount(
            "/guarded",
            Starlette(
                routes=[
                    Route("/change", changed, methods=["POST"]),
                    Route("/form", changed, methods=["POST"]),
                    WebSocketRoute("/socket", socket),
                ],
                middleware=[Middleware(CrossOriginProtectionMiddleware)],
            ),
        ),
    ],
    middleware=[Middleware(HTTPMiddleware, dispatch=notes)],
)


async def served(application: Any, **options: Any) -> tuple[uvicorn.Server, asyncio.Task[None]]:
    config = uvicorn.Config(
        application, host="127.0.0.1", port=0, log_level="error", lifespan="off", **options
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn tells nobody
        await asyncio.sleep(0.01)
    return server, task


def port_of(server: uvicorn.Server) -> int:
    return int(server.servers[0].sockets[0].getsockname()[1])


class Browser:
    """Chromium, one page after another, each with a profile of its own."""

    def __init__(self, path: str, folder: Path, cdn: int) -> None:
        self.path = path
        self.folder = folder
        self.cdn = cdn
        self.opened = 0

    async def ask(self, url: str) -> Any:
        """Open a page, and wait for what it reports."""
        self.opened += 1
        names = ", ".join(f"MAP {name} 127.0.0.1" for name in ("shop.test", "evil.test"))
        hosts = ("cdn.jsdelivr.net", "fonts.googleapis.com", "fastapi.tiangolo.com")
        names += "".join(f", MAP {host}:443 127.0.0.1:{self.cdn}" for host in hosts)
        arguments = (
            *(*FLAGS, "--ignore-certificate-errors"),
            f"--host-resolver-rules={names}",
            f"--user-data-dir={self.folder / str(self.opened)}",
        )
        process = await asyncio.create_subprocess_exec(
            self.path,
            *arguments,
            url,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return await asyncio.wait_for(reports.get(), PATIENCE)
        finally:
            process.terminate()
            await process.wait()


def check(what: str, found: Any, expected: Any) -> bool:
    is_right = bool(found == expected)
    print(f"{'ok   ' if is_right else 'WRONG'}  {what}" + ("" if is_right else f": {found!r}"))
    return is_right


def statuses(path: str) -> list[int]:
    return [status for asked_path, status, _ in asked if asked_path == path]


async def run(chromium: str, folder: Path) -> bool:
    pages, _ = await served(app)
    made, key = certificate(folder, "cdn.jsdelivr.net")
    cdn, _ = await served(
        Starlette(routes=[Route("/{path:path}", stub)]),
        ssl_certfile=str(made),
        ssl_keyfile=str(key),
    )
    browser = Browser(chromium, folder, port_of(cdn))
    port = port_of(pages)
    local = f"http://localhost:{port}"
    right = []

    seen = await browser.ask(f"{local}/frame")
    right.append(check("a page's own script runs, an injected one does not", seen[0], {"own": "1"}))
    right.append(
        check("so after a 304", (seen[1], statuses("/nonced/")), ({"own": "1"}, [200, 304]))
    )

    layers = [["ProblemDetailsMiddleware", ""], ["SecurityHeadersMiddleware", ""]]
    seen = await browser.ask(f"{local}/timed/")
    page_times = [["total", ""], *layers, ["db", 'the "big" one; of two, \\']]
    right.append(check("times of a page, and of its layers", seen["page"], page_times))
    right.append(check("times of a 500", seen["failed"], [["total", ""], *layers]))
    right.append(check("each has a duration", str(seen["times"]), "True"))

    seen = await browser.ask(f"{local}/codings")
    for coding in CODINGS:
        expected = {"same": True, "length": len(TEXT), "events": EVENTS}
        right.append(check(f"{coding}: text and events arrive", seen[coding], expected))
        found = statuses(f"/{coding}/text")
        right.append(check(f"{coding}: a second visit is a 304", found, [200, 304]))

    for source, target, passes in (
        ("localhost", "localhost", True),
        ("127.0.0.1", "localhost", False),
        ("shop.test", "shop.test", True),
        ("evil.test", "shop.test", False),
    ):
        asked.clear()
        query = f"?target=http://{target}:{port}"
        opened = await browser.ask(f"http://{source}:{port}/asks{query}")
        found = (statuses("/guarded/change"), statuses("/guarded/form"), opened)
        status = 200 if passes else 403
        words = f"from {source} to {target}: fetch, form and WebSocket"
        right.append(check(words, found, ([status], [status], passes)))

    for preset in PRESETS:
        docs, _ = await served(documented(preset))
        for name in ("docs", "redoc"):
            found = await browser.ask(f"http://localhost:{port_of(docs)}/{name}")
            right.append(check(f"/{name} runs under the preset {preset}", found, name))
        docs.should_exit = True
    pages.should_exit = cdn.should_exit = True
    return all(right)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--chromium", default=CHROMIUM)
    options = parser.parse_args()
    if options.chromium is None or shutil.which("openssl") is None:
        print("skipped: needs chromium and openssl; on a Debian, apt-get install chromium openssl")
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if not asyncio.run(run(options.chromium, Path(folder))):
            sys.exit(1)


if __name__ == "__main__":
    main()
