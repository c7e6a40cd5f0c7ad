"""
What six configurations of real servers do with WebSockets, alone and inside of three layers.

    python -m tools.handshakes                  writes the table of docs/websocket-servers.md
    python -m tools.handshakes --only daphne    shows what one configuration does

It needs uvicorn, wsproto, hypercorn, granian, daphne and websockets. `tools/handshakes_app.py` is
what they serve.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import socket
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "websocket-servers.md"
TABLE: Final = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end of the table -->)", re.DOTALL)
PACKAGES: Final = (
    "uvicorn",
    "websockets",
    "wsproto",
    "hypercorn",
    "granian",
    "daphne",
    "starlette",
)
SECONDS: Final = 30
QUIET: Final = 0.3  # seconds until nothing more happens
MESSAGES: Final = 1000
SIZE: Final = 64 * 1024  # bytes

_UVICORN: Final = ["uvicorn", "--port", "{port}", "--log-level", "warning", "{app}", "--ws"]
SERVERS: Final = {
    "uvicorn websockets": [*_UVICORN, "websockets"],
    "uvicorn wsproto": [*_UVICORN, "wsproto"],
    "uvicorn websockets-sansio": [*_UVICORN, "websockets-sansio"],
    "hypercorn": ["hypercorn", "-b", "127.0.0.1:{port}", "{app}"],
    "granian": ["granian", "--interface", "asgi", "--port", "{port}", "{app}"],
    "daphne": ["daphne", "-p", "{port}", "{app}"],
}


class Asked:
    """
    One server, and what is found out about it.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.rows: dict[str, str] = {}

    def open(self, path: str, **options: Any) -> Any:
        url = f"ws://127.0.0.1:{self.port}{path}"
        return connect(url, proxy=None, max_size=None, open_timeout=5, **options)

    async def log(self) -> dict[str, str]:
        """
        Give what the app and the layer that waits have said since.
        """
        await asyncio.sleep(QUIET)

        def ask() -> Any:
            with urlopen(f"http://127.0.0.1:{self.port}/log", timeout=5) as response:
                return json.load(response)

        said = await asyncio.to_thread(ask)
        return {who: " ".join(map(str, what)) for who, *what in said}

    async def ended(self, name: str) -> None:
        said = await self.log()
        self.rows[f"{name}: the app is told"] = said.get("app", "nothing")
        self.rows[f"{name}: outcome and code of a layer"] = said.get("layer", "")

    async def answer(self, path: str) -> str:
        try:
            async with self.open(path):
                answer = "101"
        except InvalidStatus as error:
            response = error.response
            what = bytes(response.body or b"").decode() or "no body"
            edited = ", edited" if response.headers.get("x-layer") else ""
            answer = f"{response.status_code}, {what}{edited}"
        except (TimeoutError, OSError, EOFError):
            answer = "no answer"
        await self.log()
        return answer

    async def ask(self) -> None:
        rows = self.rows
        async with self.open("/echo", subprotocols=["a", "b"]) as client:
            headers = client.response.headers
            rows["subprotocol of the acceptance"] = str(client.subprotocol)
            there = [f"x-app {headers.get('x-app', 'lost')}"]
            there += [each.partition(";")[0] for each in headers.get_all("set-cookie")]
            rows["headers of the acceptance"] = ", ".join(there)
            rows["header that a layer sets"] = str(headers.get("x-layer", ""))
            await client.send("é")
            await client.send(b"b")
            rows["text and bytes"] = f"{await client.recv()!r}, {await client.recv()!r}"
        await self.ended("client closes with 1000")
        client = await self.open("/echo")
        await client.close(4005, "ta")
        await self.ended("client closes with 4005")
        client = await self.open("/echo")
        await client.send("close")
        rows["app closes with 4001: the client is told"] = await _closed(client)
        await self.ended("app closes with 4001")
        client = await self.open("/echo")
        client.transport.abort()
        await self.ended("client drops the connection")
        rows["app closes in place of accepting"] = await self.answer("/close")
        rows["app denies with 404"] = await self.answer("/deny")
        rows["a layer refuses with 403"] = await self.answer("/refused")
        rows["a layer refuses with 401 what the app has accepted"] = await self.answer("/replaced")
        rows[f"{MESSAGES} messages of 64 KiB each way"] = await self.many()

    async def many(self) -> str:
        data = bytes(SIZE)
        async with self.open("/echo", compression=None) as client:

            async def send() -> None:
                for _ in range(MESSAGES):
                    await client.send(data)

            sending = asyncio.create_task(send())
            whole = True
            for _ in range(MESSAGES):
                whole = whole and await client.recv() == data
            await sending
        await self.log()
        return "whole" if whole else "not whole"


async def _closed(client: ClientConnection) -> str:
    with contextlib.suppress(ConnectionClosed):
        await client.recv()
    return f"{client.close_code} {client.close_reason or 'without the reason'}"


async def ask(name: str, app: str) -> dict[str, str]:
    """
    Ask one configuration everything.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [each.format(port=port, app=f"tools.handshakes_app:{app}") for each in SERVERS[name]]
    with tempfile.TemporaryFile() as log:
        server = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            asked = Asked(port)
            async with asyncio.timeout(SECONDS):
                while True:
                    try:
                        await asked.log()
                    except OSError:
                        continue
                    break
            await asked.ask()
        finally:
            server.terminate()
            await server.wait()
    return asked.rows


async def column(name: str) -> dict[str, str]:
    """
    Ask one configuration alone and inside of layers; where that makes a difference, give both.
    """
    alone, layered = await ask(name, "alone"), await ask(name, "layered")
    cells = {}
    for row, inside in layered.items():
        if "a layer" in row:
            cells[row] = inside
        elif row == "headers of the acceptance":
            cells[row] = alone[row] if inside in (alone[row], f"{alone[row]}, c=3") else inside
        else:
            same = alone[row] == inside.removesuffix(", edited")
            cells[row] = alone[row] if same else f"{alone[row]} → **{inside}**"
    return cells


def table(columns: dict[str, dict[str, str]]) -> str:
    names = list(columns)
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    lines = [f"\nMade on Python {python} with {versions}.\n"]
    lines += ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in columns[names[0]]:
        cells = (columns[name][row] or " " for name in names)
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description="The table of docs/websocket-servers.md.")
    parser.add_argument("--only", choices=SERVERS)
    only = parser.parse_args().only
    columns = {name: asyncio.run(column(name)) for name in ([only] if only else SERVERS)}
    if only:
        print(table(columns))
    else:
        PAGE.write_text(TABLE.sub(lambda _: table(columns), PAGE.read_text()))


if __name__ == "__main__":
    main()
