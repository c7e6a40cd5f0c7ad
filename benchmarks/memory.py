"""
What an open event stream costs in memory: `python -m benchmarks.memory`.

10,000 requests are answered by an endless event stream under 5 layers that set one header each,
and are all left open after their first event. For each style, in a process of its own:

* bytes and memory blocks that Python holds for one stream and layer: what it holds for a stream
  under 5 layers, less what it holds for one without a layer, divided by 5. As `tracemalloc`
  counts them, so they are exact, and in 1,000 streams, as they are the same for each;
* tasks that are created for one request, the request's own not counted;
* the largest resident set of the process with all streams open, in MiB, without `tracemalloc`;
* the CPU time to open and to close one stream.

`bare two yields` is the floor under two yields: it keeps no rule of httpmw.

"N times" is the bytes of one stream and layer divided by those of a layer written by hand.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Sequence
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from benchmarks.document import ROOT, Row, document, options, write
from benchmarks.styles import layered, request_scope

STYLES = (
    "bare",
    "asgi",
    "raw bytes",
    "bare two yields",
    "one yield",
    "two yields",
    "drop-in",
    "BaseHTTP",
)
LAYERS = 5
STREAMS = 10_000
TRACED = 1_000


class Streams:
    """
    Open event streams, and the tasks that came with them.
    """

    def __init__(self, style: str) -> None:
        self._app = layered(self._events, style, LAYERS if style != "bare" else 0)
        self._closing = asyncio.Event()
        self._all_open = asyncio.Event()
        self._expected = 0
        self._requests: list[asyncio.Task[None]] = []

    async def _events(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await self._closing.wait()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def open(self, number: int) -> None:
        """
        Open that many streams; return when each has sent its first event.
        """
        self._expected = number
        for _ in range(number):
            request = self._app(request_scope(), self._receive, self._send)
            self._requests.append(asyncio.create_task(request))
        await self._all_open.wait()

    async def close(self) -> None:
        self._closing.set()
        await asyncio.gather(*self._requests)

    async def _receive(self) -> Message:
        await self._closing.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.body" and message["body"]:
            self._expected -= 1
            if self._expected == 0:
                self._all_open.set()


async def one_after_another(style: str, number: int) -> None:
    # What is imported or cached by the first ones counts for nobody.
    for _ in range(number):
        streams = Streams(style)
        await streams.open(1)
        await streams.close()


async def traced(style: str, number: int) -> dict[str, float]:
    """
    Count what Python holds for one open stream.
    """
    await one_after_another(style, 3)
    gc.collect()
    tracemalloc.start()
    streams = Streams(style)
    blocks = sys.getallocatedblocks()
    held, _ = tracemalloc.get_traced_memory()
    await streams.open(number)
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - held
    blocks = sys.getallocatedblocks() - blocks
    await streams.close()
    tracemalloc.stop()
    return {"bytes": held / number, "blocks": blocks / number}


async def counted(style: str) -> dict[str, float]:
    """
    Count the tasks that one request creates from its beginning to its end.
    """
    created: list[asyncio.Task[Any]] = []

    def factory(loop: Any, coro: Any, **options: Any) -> asyncio.Task[Any]:
        created.append(asyncio.Task(coro, loop=loop, **options))
        return created[-1]

    asyncio.get_running_loop().set_task_factory(factory)
    await one_after_another(style, 1)
    return {"tasks": len(created) - 1}


async def resident(style: str, number: int) -> dict[str, float]:
    """
    Open all streams, and see how large the process becomes.
    """
    await one_after_another(style, 3)
    streams = Streams(style)
    started = time.process_time()
    await streams.open(number)
    opened = time.process_time()
    await streams.close()
    closed = time.process_time()
    kibibytes = 1024 if sys.platform == "darwin" else 1
    return {
        "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / kibibytes,
        "us to open": (opened - started) / number * 1e6,
        "us to close": (closed - opened) / number * 1e6,
    }


def in_a_process_of_its_own(style: str, streams: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", "--one", style, "--streams", str(streams)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)  # noqa: S603
    return json.loads(done.stdout)


def measure_one(style: str, streams: int) -> dict[str, float]:
    # What is resident comes first: the largest size is that of the whole life of the process.
    found = asyncio.run(resident(style, streams))
    found |= asyncio.run(traced(style, min(streams, TRACED)))
    return found | asyncio.run(counted(style))


def rows(found: dict[str, dict[str, float]]) -> list[Row]:
    """
    Work out what one stream and layer costs.
    """
    bare = found["bare"]
    result: list[Row] = []
    per_layer = {
        style: {key: (each[key] - bare[key]) / LAYERS for key in ("bytes", "blocks", "tasks")}
        for style, each in found.items()
    }
    for style, each in found.items():
        row = {"style": style, "layers": LAYERS if style != "bare" else 0}
        row |= {"stream": {key: round(value, 2) for key, value in each.items()}}
        row |= {"layer": {key: round(value, 2) for key, value in per_layer[style].items()}}
        if style != "bare":
            times = per_layer[style]["bytes"] / per_layer["asgi"]["bytes"]
            row |= {"times": {"asgi": round(times, 3)}}
        result.append(row)
    return result


def table(result: Sequence[Row]) -> str:
    lines = [
        f"{'':<12}{'a stream and layer:':>26}{'':>22}{'all streams':>14}{'to open':>12}",
        f"{'':<12}{'bytes':>10}{'times':>8}{'blocks':>10}{'tasks':>10}",
    ]
    for row in result:
        layer, stream = row["layer"], row["stream"]
        times = f"{row['times']['asgi']:.2f}x" if "times" in row else ""
        lines.append(
            f"{row['style']:<12}{layer['bytes']:>10.0f}{times:>8}{layer['blocks']:>10.1f}"
            f"{layer['tasks']:>10.1f}{stream['MiB']:>20.0f} MiB{stream['us to open']:>9.0f} µs"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options(__doc__, "memory")
    parser.add_argument("--streams", type=int, default=None, help="how many to open")
    parser.add_argument("--one", choices=STYLES, help="measure one style, print JSON")
    chosen = parser.parse_args(arguments)
    streams = chosen.streams or (200 if chosen.quick else STREAMS)
    if chosen.one:
        print(json.dumps(measure_one(chosen.one, streams)))
        return 0
    found = {style: in_a_process_of_its_own(style, streams) for style in STYLES}
    result = rows(found)
    print(f"{streams} open event streams under {LAYERS} layers\n{table(result)}")
    if chosen.json:
        write(chosen.json, document(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
