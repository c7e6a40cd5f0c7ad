"""
Load on a real server, in which every response is checked.

    python tools/load.py --minutes 30 --server uvicorn

Many clients ask over connections that are kept; two of a hundred leave at a random moment.
It is an error when a response differs by one byte from what its request asked for, when the
server logs what was not intended, when a flow is left inside, or when memory grows.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).parent.parent
FILE = ROOT / "tools" / "load_app.py"
TIMEOUT = 30
LEAVING = 0.02
CLIENTS = 20
MIB = 1 << 20
# What a process may gain after the first tenth of the time, in MiB.
GROWTH = 16

UVICORN = "--host 127.0.0.1 --port {port} --log-level warning --no-access-log"
HYPERCORN = "--bind 127.0.0.1:{port} --workers 0 --log-level warning"
# How to start it, and what it logs with each exception that was intended; and what asyncio logs
# of a stream that goes on for a while after its client has left.
SERVERS = {
    "uvicorn": (
        f"uvicorn {UVICORN} --http httptools --loop uvloop",
        r"ERROR: +Exception in ASGI.*",
    ),
    "uvicorn-h11": (
        f"uvicorn {UVICORN} --http h11 --loop asyncio",
        r"ERROR: +Exception in ASGI.*|socket\.send\(\) raised exception\.",
    ),
    "hypercorn": (
        f"hypercorn {HYPERCORN} --worker-class asyncio",
        r"\[.*\] \[ERROR\] Error in ASGI Framework|socket\.send\(\) raised exception\.",
    ),
    "hypercorn-trio": (
        f"hypercorn {HYPERCORN} --worker-class trio",
        r"\[.*\] \[ERROR\] Error in ASGI Framework",
    ),
    "granian": (
        "granian --interface asgi --host 127.0.0.1 --port {port} --log-level warning",
        r"\[ERROR\] Application callable raised an exception",
    ),
}
# Of a traceback the last line is not indented; granian leaves the module out.
INTENDED = re.compile(r"(?:tools\.load_app\.)?Intended: (\S+)")


class Load:
    """
    What was asked and what came of it.
    """

    def __init__(self, client: httpx2.AsyncClient, chance: random.Random) -> None:
        self.client = client
        self.chance = chance
        self.names = itertools.count(1)
        self.done: Counter[str] = Counter()
        self.ports: set[int] = set()
        self.intended: set[str] = set()
        self.wrong: list[str] = []

    async def ask_until(self, end: float) -> None:
        """
        Ask for one thing after the other until *end*.
        """
        while time.monotonic() < end:
            [ask] = self.chance.choices(list(KINDS), WEIGHTS)
            kind = ask.__name__
            name = f"{kind}-{next(self.names)}"
            leaving = self.chance.random() < LEAVING
            try:
                if leaving:
                    await self.leave(kind, name)
                else:
                    await ask(self, name)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is wrong
                self.wrong.append(f"{name}: {error!r}")
            self.done["left" if leaving else kind] += 1

    async def leave(self, kind: str, name: str) -> None:
        """
        Begin a request, and go at a random moment of it.
        """
        moment = self.chance.choice(["upload", "answer", "body"])
        if moment == "upload":
            await self.leave_upload(name)
        elif moment == "answer":
            headers = {"x-id": name}
            if kind == "upload":
                asked = self.client.post("/upload", content=b"x" * MIB, headers=headers)
            else:
                asked = self.client.get("/stream?chunks=50", headers=headers)
            try:
                response = await asyncio.wait_for(asked, self.chance.random() * 0.02)
            except TimeoutError:
                return
            self.check(name, response, 200)
        else:
            await self.read_some("/stream?chunks=200", name, self.chance.randrange(1, 50))

    async def leave_upload(self, name: str) -> None:
        """
        Go within an upload.
        """

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(self.chance.randrange(1, 10)):
                yield b"x" * 5000
            raise ConnectionAbortedError

        do = self.chance.choice(["", "read_request", "shout_at"])
        try:
            await self.client.post(f"/upload?do={do}", content=chunks(), headers={"x-id": name})
        except ConnectionAbortedError:
            return

    async def read_some(self, path: str, name: str, size: int) -> None:
        """
        Read the first *size* bytes of a stream, check them, and go.
        """
        async with self.client.stream("GET", path, headers={"x-id": name}) as response:
            self.check(name, response, 200)
            read = b""
            async for data in response.aiter_raw():
                read += data
                if len(read) >= size:
                    break
        self.equal(name, chunks(name, 1 + read.count(b"\n"))[: len(read)], read)

    async def request(
        self, name: str, path: str, *do: str, method: str = "GET", status: int = 200, **options: Any
    ) -> httpx2.Response:
        """
        Ask for one thing, and check all but the body.
        """
        options.setdefault("headers", {})["x-id"] = name
        path = f"{path}{'&' if '?' in path else '?'}{'&'.join(f'do={each}' for each in do)}"
        response = await self.client.request(method, path, **options)
        self.check(name, response, status)
        return response

    def check(self, name: str, response: httpx2.Response, status: int) -> None:
        """
        Check the status and the name.
        """
        self.equal(name, (status, name), (response.status_code, response.headers.get("x-id")))
        # A server may have closed the connection already.
        with suppress(OSError):
            stream = response.extensions["network_stream"]
            self.ports.add(stream.get_extra_info("client_addr")[1])

    def equal(self, name: str, expected: object, got: object) -> None:
        """
        Note a difference.
        """
        if expected != got:
            self.wrong.append(f"{name}: {got!r:.200}, not {expected!r:.200}")


def chunks(name: str, number: int) -> bytes:
    """
    Return what the stream of *name* begins with.
    """
    return "".join(f"chunk {each} of {name}\n" for each in range(number)).encode()


async def plain(load: Load, name: str) -> None:
    """
    A plain response, read or changed by layers or not.
    """
    do = load.chance.choice([(), ("shout",), ("read_response",), ("shout", "read_response")])
    response = await load.request(name, "/plain", *do)
    text = f"plain {name}"
    load.equal(name, text.upper() if "shout" in do else text, response.text)
    if "read_response" in do:
        load.equal(name, str(len(text)), response.headers["x-size"])


async def head(load: Load, name: str) -> None:
    """
    A HEAD request.
    """
    response = await load.request(name, "/file", method="HEAD")
    size = str(FILE.stat().st_size)
    load.equal(name, (b"", size), (response.content, response.headers["content-length"]))


async def stream(load: Load, name: str) -> None:
    """
    A stream, read or changed by layers or not.
    """
    number = load.chance.randrange(30)
    do = load.chance.choice([(), (), ("shout",), ("read_response",)])
    response = await load.request(name, f"/stream?chunks={number}", *do)
    whole = chunks(name, number)
    load.equal(name, whole.upper() if "shout" in do else whole, response.content)


async def endless(load: Load, name: str) -> None:
    """
    A stream that ends when the client leaves.
    """
    await load.read_some("/endless", name, load.chance.randrange(1, 2000))


async def file(load: Load, name: str) -> None:
    """
    A file, changed or not.
    """
    do = load.chance.choice([(), ("shout",)])
    response = await load.request(name, "/file", *do)
    whole = FILE.read_bytes()
    load.equal(name, whole.upper() if do else whole, response.content)


async def upload(load: Load, name: str) -> None:
    """
    An upload with a length or in chunks, read or changed by layers or not.
    """
    data = load.chance.randbytes(load.chance.randrange(MIB // 8))
    do = load.chance.choice([(), ("read_request",), ("shout_at",), ("read_request", "shout_at")])

    async def pieces() -> AsyncIterator[bytes]:
        for begin in range(0, len(data), 10_000):
            yield data[begin : begin + 10_000]

    content = load.chance.choice([data, pieces()])
    response = await load.request(name, "/upload", *do, method="POST", content=content)
    read = data.upper() if "shout_at" in do else data
    digest = hashlib.sha256(read).hexdigest()
    load.equal(name, {"size": len(data), "digest": digest}, response.json())
    if "read_request" in do:
        load.equal(name, str(len(data)), response.headers["x-request-size"])


async def unread(load: Load, name: str) -> None:
    """
    A small upload that the app does not read.
    """
    response = await load.request(
        name, "/unread", method="POST", status=413, content=b"x" * load.chance.randrange(5000)
    )
    load.equal(name, f"unread {name}", response.text)


async def replaced(load: Load, name: str) -> None:
    """
    A response in place of another.
    """
    path = load.chance.choice(["/plain", "/stream?chunks=20", "/file", "/endless"])
    response = await load.request(name, path, "replace", status=503)
    load.equal(name, f"replaced {name}", response.text)


async def answered(load: Load, name: str) -> None:
    """
    A response before the app.
    """
    response = await load.request(name, "/endless", "answer", status=403)
    load.equal(name, f"answered {name}", response.text)


async def rescued(load: Load, name: str) -> None:
    """
    An exception that a layer answers.
    """
    response = await load.request(name, "/fail", "rescue", status=500)
    load.equal(name, f"rescued {name}", response.text)


async def failing(load: Load, name: str) -> None:
    """
    An exception within the body, after which the response has to look truncated.
    """
    load.intended.add(name)
    try:
        await load.request(name, "/fail_within")
    except httpx2.RemoteProtocolError:
        return
    load.wrong.append(f"{name}: the body looks whole")


Ask = Callable[[Load, str], Awaitable[None]]
KINDS: dict[Ask, int] = {
    plain: 25,
    head: 3,
    stream: 20,
    endless: 3,
    file: 8,
    upload: 15,
    unread: 4,
    replaced: 8,
    answered: 5,
    rescued: 5,
    failing: 1,
}
WEIGHTS = list(KINDS.values())


class Server:
    """
    A server that runs, and its log.
    """

    def __init__(self, name: str, log: Path, app: str = "tools.load_app:app") -> None:
        self.log = log
        command, self.allowed = SERVERS[name]
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.address = ("127.0.0.1", port)
        self.url = f"http://127.0.0.1:{port}"
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command.format(port=port).split(), app],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> None:
        """
        Let the server end.
        """
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def memory(self) -> int:
        """
        Return the resident memory of the server and of its workers in MiB, where that can be read.
        """
        total = 0
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
            except (OSError, ValueError):
                continue
            if str(self.process.pid) in {fields["Pid"], fields["PPid"]}:
                total += int(fields.get("VmRSS", "0 kB").split()[0])
        return total // 1024

    def unexpected(self, intended: set[str]) -> list[str]:
        """
        Return what the log holds beside the exceptions that were intended, and lacks of them.
        """
        lines = [line for line in self.log.read_text().splitlines() if line]
        raised = Counter(match[1] for line in lines if (match := INTENDED.fullmatch(line)))
        known = re.compile(rf"Traceback .*|{INTENDED.pattern}|{self.allowed}")
        # What is indented belongs to a traceback, whose margin is that of a group or none.
        others = [line for line in lines if not re.match("  [^|+]", line)]
        return [
            *(line for line in others if not known.fullmatch(line)),
            *(
                f"{name} was raised {raised[name]} times"
                for name in sorted(intended | {*raised})
                if raised[name] != 1 or name not in intended
            ),
        ]


async def ready(client: httpx2.AsyncClient) -> None:
    """
    Wait until the server answers.
    """
    for _ in range(200):
        try:
            await client.get("/plain", headers={"x-id": "ready"})
        except httpx2.ConnectError:
            await asyncio.sleep(0.05)
        else:
            return
    message = "the server does not answer"
    raise SystemExit(message)


async def quiet(client: httpx2.AsyncClient) -> dict[str, int]:
    """
    Wait until nobody is inside any more, and return the counts.
    """
    counts: dict[str, int] = {}
    for _ in range(100):
        counts = (await client.get("/counts", headers={"x-id": "counts"})).json()
        if not counts["inside"]:
            break
        await asyncio.sleep(0.1)
    return counts


async def run(server: Server, minutes: float, seed: int) -> list[str]:
    """
    Ask for *minutes*, print what was done, and return what was wrong.
    """
    # Servers close a connection that was idle for five seconds; the client has to be quicker, or
    # it may send a request into the closing.
    limits = httpx2.Limits(
        max_connections=None, max_keepalive_connections=CLIENTS, keepalive_expiry=1
    )
    async with httpx2.AsyncClient(base_url=server.url, timeout=TIMEOUT, limits=limits) as client:
        await ready(client)
        load = Load(client, random.Random(seed))
        start = time.monotonic()
        memory = asyncio.create_task(memory_after(server, minutes * 6))
        await asyncio.gather(*(load.ask_until(start + minutes * 60) for _ in range(CLIENTS)))
        counts = await quiet(client)
        before, after = await memory, server.memory()
    total = sum(load.done.values())
    print(f"{total} requests in {minutes} minutes, {CLIENTS} clients, seed {seed}")
    print(f"{len(load.ports)} connections; {dict(load.done)}")
    print(f"counts of the server: {counts}")
    print(f"memory: {before} MiB after a tenth of the time, {after} MiB at the end")
    wrong = load.wrong
    if counts["inside"]:
        wrong.append(f"{counts['inside']} flows are left inside")
    if after - before > GROWTH:
        wrong.append(f"memory grew by {after - before} MiB")
    server.stop()
    print(f"{len(load.intended)} exceptions intended")
    return wrong + server.unexpected(load.intended)


async def memory_after(server: Server, seconds: float) -> int:
    """
    Look at the memory when the server is warm.
    """
    await asyncio.sleep(seconds)
    return server.memory()


def main() -> None:
    """
    Run what the command line asks for.
    """
    parser = argparse.ArgumentParser(description="Load on a real server, every response checked.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--server", choices=SERVERS, default="uvicorn")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(f"{options.server}, Python {sys.version.split()[0]}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(options.server, Path(folder) / "log")
        try:
            wrong = asyncio.run(run(server, options.minutes, options.seed))
        finally:
            server.stop()
    print(f"{len(wrong)} things wrong", *wrong[:100], sep="\n")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
