"""
The sample application on uvicorn, asked over real connections: `python -m examples.demo`.

Every step of the demo says what it asks, what middleware does about it and what must come back.
The exit code is 0 when all of it came back, 1 when something did not, 2 when time ran out.

With SERVE=1 in the environment the server stays up until Ctrl-C (PORT=8000 sets its port).
"""

from __future__ import annotations

import json
import logging
import os
import queue
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import blake2b, sha256
from logging.handlers import QueueHandler
from textwrap import shorten

import httpx2
import uvicorn
from starlette.types import ASGIApp

from examples import ready
from examples.app import FILE, app

WIDTH = 100
TIMEOUT = 5  # seconds for one answer, one log line
DEADLINE = 60  # seconds for the whole demo

ORDER = json.dumps({"item": "tea", "quantity": 2}).encode()
FILE_SIZE = FILE.stat().st_size


@dataclass(frozen=True)
class Step:
    """
    One request, and everything that must come of it.

    Log lines are patterns, as in a shell.
    """

    request: str
    does: str
    status: int
    body: bytes | None  # None: it is not looked at
    log: list[str]
    headers: Mapping[str, str] = field(default_factory=dict)
    send_headers: Mapping[str, str] = field(default_factory=dict)
    send_body: bytes | None = None
    leaves: bool = False  # the client leaves when it has read this much


STEPS = [
    Step(
        "GET /hello",
        "`nosniff` sets a header, `envelope` changes the body whole",
        200,
        b'{"data":{"hello":"world"}}',
        ["GET /hello 200, 26 bytes, completed"],
        headers={"x-content-type-options": "nosniff", "content-length": "26"},
    ),
    Step(
        "GET /poem",
        "`shout` transforms a stream chunk by chunk",
        200,
        b"ROWS OF INK, THEN WHITE, THEN ROWS OF INK",
        ["GET /poem 200, 41 bytes, completed"],
        headers={"transfer-encoding": "chunked"},
    ),
    Step(
        "GET /file",
        "nothing to change: the file passes as it is",
        200,
        FILE.read_bytes(),
        [f"GET /file 200, {FILE_SIZE} bytes, completed"],
        headers={"content-length": str(FILE_SIZE)},
    ),
    Step(
        "GET /members",
        "`members_only` answers early, the application is not run",
        403,
        b"members only",
        ["GET /members 403, 12 bytes, completed"],
    ),
    Step(
        "GET /members",
        "the same with x-member: 1",
        200,
        b"welcome",
        ["GET /members 200, 7 bytes, completed"],
        send_headers={"x-member": "1"},
    ),
    Step(
        "GET /fail",
        "`errors_as_json` answers the application's exception",
        500,
        b'{"error":"internal server error"}',
        [
            "GET /fail failed\nTraceback *\nRuntimeError: the database is down",
            "GET /fail 500, 33 bytes, completed",
        ],
    ),
    Step(
        "POST /shop/orders",
        "`body_digest` reads the request body, FastAPI reads it again",
        201,
        b'{"ordered":"2 x tea"}',
        ["POST /shop/orders 201, 21 bytes, completed"],
        headers={"x-request-digest": sha256(ORDER).hexdigest()[:12]},
        send_headers={"content-type": "application/json"},
        send_body=ORDER,
    ),
    Step(
        "GET /events",
        "`acceptable` replaces the response, the application streams for ever",
        406,
        b"ask for it with accept: text/event-stream",
        ["GET /events 406, 41 bytes, completed"],
    ),
    Step(
        "GET /events",
        "the same with accept: text/event-stream, and the client leaves",
        200,
        b"data: 1\n\ndata: 2\n\ndata: 3\n\n",
        ["GET /events 200, * bytes, disconnected"],
        send_headers={"accept": "text/event-stream"},
        leaves=True,
    ),
    Step(
        "GET /running",
        "no event stream was left running",
        200,
        b'{"running":0}',
        ["GET /running 200, 13 bytes, completed"],
    ),
]

ITEM = b'{"item":7}'
TAG = f'W/"{blake2b(ITEM, digest_size=16).hexdigest()}"'

READY = [
    Step(
        "GET /items/7",
        "an id, a tag, security headers, and a line with route and id",
        200,
        ITEM,
        ["GET /items/7 200, 10 bytes *, completed, * route=/items/{item} * request_id=demo-1"],
        headers={
            "x-request-id": "demo-1",
            "etag": TAG,
        },
        send_headers={"x-request-id": "demo-1"},
    ),
    Step(
        "GET /items/7",
        "the same with that tag in if-none-match",
        304,
        b"",
        ["GET /items/7 304, 0 bytes in * ms, completed, *"],
        send_headers={"if-none-match": TAG},
    ),
    Step(
        "GET /items/tea",
        "FastAPI's own 422, as problem details",
        422,
        None,
        ["GET /items/tea 422, * route=/items/{item} *"],
        headers={"content-type": "application/problem+json"},
    ),
    Step(
        "POST /items",
        "what another site has a browser send is refused",
        403,
        None,
        ["POST /items refused by Sec-Fetch-Site*", "POST /items 403, *"],
        send_headers={"sec-fetch-site": "cross-site", "origin": "https://evil.example"},
    ),
    Step(
        "GET /rows",
        "13 kB of CSV, compressed for who takes it",
        200,
        None,
        ["GET /rows 200, * bytes in * ms, completed, *"],
        headers={"content-encoding": "gzip", "vary": "Accept-Encoding"},
        send_headers={"accept-encoding": "gzip"},
    ),
    Step(
        "GET /metrics",
        "what Prometheus scrapes, which is no request to be counted",
        200,
        None,
        ["GET /metrics 200, *"],
        send_headers={"accept-encoding": "identity"},
    ),
    Step(
        "GET /fails",
        "an exception becomes a problem, and still comes to the server",
        500,
        None,
        ["GET /fails 500, * route=/fails *", "Exception in ASGI application*"],
        headers={"content-type": "application/problem+json"},
    ),
]

CURL = [
    "{url}/hello",
    "{url}/poem",
    "{url}/members",
    "-H 'x-member: 1' {url}/members",
    "{url}/fail",
    "{url}/events",
    "-N -H 'accept: text/event-stream' {url}/events",
    '-H \'content-type: application/json\' -d \'{{"item":"tea","quantity":2}}\' {url}/shop/orders',
]


class Visitor:
    """
    Take the steps on a running server, print each, and remember what was not as it should be.
    """

    def __init__(self, client: httpx2.Client, log: queue.SimpleQueue[logging.LogRecord]) -> None:
        self.client = client
        self.log = log
        self.failures: list[str] = []

    def take(self, step: Step) -> None:
        show(f"{step.request:<18} {step.does}")
        try:
            self.ask(step)
        except httpx2.HTTPError as exc:
            self.fail(f"{step.request}: {exc!r}")
        for pattern in step.log:
            self.expect_log_line(step, pattern)

    def ask(self, step: Step) -> None:
        method, path = step.request.split()
        body = b""
        with self.client.stream(
            method, path, headers=step.send_headers, content=step.send_body
        ) as response:
            for chunk in response.iter_raw():
                body += chunk
                if step.leaves and step.body is not None and len(body) >= len(step.body):
                    body = body[: len(step.body)]
                    break
                if step.body is not None and len(body) > len(step.body):
                    break  # wrong already, and perhaps without an end
        text = " ".join(body.decode(errors="replace").split())
        if "content-encoding" in response.headers:
            text = f"{len(body)} bytes"
        headers = "".join(f"  {name}: {response.headers.get(name)}" for name in step.headers)
        show(f"    {response.status_code}  {shorten(text, 58, placeholder=' ...')}{headers}")
        self.expect(step, "status", response.status_code, step.status)
        if step.body is not None:
            self.expect(step, "body", body, step.body)
        for name, value in step.headers.items():
            self.expect(step, name, response.headers.get(name), value)

    def expect_log_line(self, step: Step, pattern: str) -> None:
        try:
            line = self.log.get(timeout=TIMEOUT).getMessage()
        except queue.Empty:
            self.fail(f"{step.request}: no log line, expected {pattern!r}")
        else:
            first, *traceback = line.splitlines()
            show(f"    log  {first}{f', {traceback[-1]}' if traceback else ''}")
            if not fnmatchcase(line, pattern):
                self.fail(f"{step.request}: expected a log line {pattern!r}, got\n{line}")

    def expect(self, step: Step, what: str, got: object, expected: object) -> None:
        if got != expected:
            self.fail(f"{step.request}: {what} is {got!r}, expected {expected!r}")

    def fail(self, message: str) -> None:
        print(f"    NOT AS IT SHOULD BE  {message}", flush=True)
        self.failures.append(message)


def show(line: str) -> None:
    print(line if len(line) <= WIDTH else f"{line[: WIDTH - 4]} ...", flush=True)


@contextmanager
def serving(application: ASGIApp) -> Iterator[str]:
    """
    Run uvicorn in a thread, on a free port.
    """
    # The socket listens before the server runs, so the first request only has to wait.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(configuration(application))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield address(listener)
        finally:
            server.should_exit = True
            thread.join()


def configuration(application: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        application,
        http="httptools",
        access_log=False,  # the application has its own
        log_config=None,
        timeout_graceful_shutdown=1,
    )


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()
    return f"http://{host}:{port}"


@contextmanager
def logged() -> Iterator[queue.SimpleQueue[logging.LogRecord]]:
    """
    Collect what the application logs, and every warning of anything else.
    """
    lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = QueueHandler(lines)
    for name in ("examples", "httpmw"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.root.addHandler(handler)
    try:
        yield lines
    finally:
        logging.root.removeHandler(handler)


def demo(application: ASGIApp, steps: list[Step] = STEPS) -> list[str]:
    """
    Run every step; return what was not as it should be.
    """
    with (
        logged() as log,
        serving(application) as url,
        httpx2.Client(base_url=url, timeout=TIMEOUT, trust_env=False) as client,
    ):
        print(f"httpmw around {type(application).__name__}, on uvicorn at {url}\n")
        visitor = Visitor(client, log)
        for step in steps:
            visitor.take(step)
    while not log.empty():
        visitor.fail(f"unexpected log line: {log.get().getMessage()}")
    return visitor.failures


def serve() -> None:
    """
    Stay up until Ctrl-C, with the access log on the terminal.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("examples").setLevel(logging.INFO)
    with socket.create_server(("127.0.0.1", int(os.environ.get("PORT", "0")))) as listener:
        url = address(listener)
        print(f"serving on {url}, Ctrl-C ends it\n")
        for arguments in CURL:
            print(f"    curl -i {arguments.format(url=url)}")
        print(flush=True)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(configuration(app)).run([listener])


def give_up() -> None:
    print(f"NOT AS IT SHOULD BE  the demo did not end within {DEADLINE} seconds", flush=True)
    os._exit(2)


def main() -> int:
    if os.environ.get("SERVE") == "1":
        serve()
        return 0
    watchdog = threading.Timer(DEADLINE, give_up)
    watchdog.daemon = True
    watchdog.start()
    failures = demo(app)
    print("\nThe layers that are ready to import,", end=" ")
    failures += demo(ready.app, READY)
    watchdog.cancel()
    if failures:
        print(f"\n{len(failures)} of these results are not as they should be")
        return 1
    print(f"\nall {len(STEPS) + len(READY)} answers and their log lines are as they should be")
    return 0


if __name__ == "__main__":
    sys.exit(main())
