"""
What layers cost on a real server: `python -m benchmarks.servers`, on Linux, with `wrk`.

uvicorn, with one worker, httptools and uvloop, runs on one core, and wrk sends it requests over
16 kept connections from the other. For Starlette and FastAPI, a trivial JSON route and a route
that works for 2 ms, under 0, 1 and 5 layers of each style, which set one header each. No layer
is the control arm of every series; five bare generators, which keep no rule of httpmw, are a floor.

All servers of a series are up at the same time; one at a time is asked, for a second, in an order
that is shuffled for each round. For each arm:

* requests per second: the median over the rounds, with the quartiles;
* p50 and p99 of the time to the answer, in ms: the median over the rounds. All connections are
  busy all the time, so this is the time in the queue, too;
* CPU time of the server process for one request, in µs, user and system. The system counts it in
  ticks of 10 ms as a rule, so one sample is a few per cent off on the route that works.

"N times" are the requests per second, divided by those of another style with as many layers,
from samples of the same round.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.document import ROOT, Row, document, options, write
from benchmarks.measure import Figure, interleaved

SERVER_CORE, LOAD_CORE = "0", "1"
CONNECTIONS = 16
FRAMEWORKS = ("starlette", "fastapi")
ROUTES = ("json", "heavy")
STYLES = ("asgi", "one yield", "two yields", "drop-in", "BaseHTTP")
AGAINST = ("asgi", "BaseHTTP")
LAYERS = (1, 5)


class Arm(NamedTuple):
    style: str
    layers: int


BARE = Arm("bare", 0)
FLOOR = Arm("bare generator", 5)
ARMS = [BARE, *(Arm(style, layers) for layers in LAYERS for style in STYLES), FLOOR]


@dataclass(frozen=True)
class Sample:
    """
    What one run of wrk found.
    """

    per_second: float
    p50: float
    p99: float
    cpu: float


class Server:
    """
    One uvicorn, on a core of its own.

    Args:
        factory: What makes the application, as uvicorn names it.
        name: The arm, for the factory.
    """

    def __init__(self, factory: str, name: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [
            *("taskset", "--cpu-list", SERVER_CORE, sys.executable, "-m", "uvicorn"),
            *("--factory", factory, "--port", str(self.port)),
            *("--http", "httptools", "--loop", "uvloop", "--log-level", "error"),
            *("--no-access-log", "--lifespan", "off"),
        ]
        environment = {**os.environ, "BENCHMARK_ARM": name, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment)  # noqa: S603

    def wait(self) -> Any:
        """
        Wait until it answers, and give the headers of what it answers.
        """
        end = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(self.url("json"), timeout=5) as answer:  # noqa: S310
                    return answer.headers
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def check(self, layers: int) -> None:
        """
        Look at the header that its layers set.
        """
        found = self.wait().get_all("x-layer", [])
        if found != ["1"] * min(layers, 1):
            msg = f"{layers} layers set x-layer to {found}"
            raise AssertionError(msg)

    def url(self, route: str) -> str:
        return f"http://127.0.0.1:{self.port}/{route}"

    def cpu(self) -> float:
        """
        Give the seconds of CPU time so far, user and system: proc(5), `stat`.
        """
        stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def sample(self, route: str, seconds: int, *options: str) -> Sample:
        """
        Ask it for that long, with *options* of wrk.
        """
        before = self.cpu()
        found = load(self.url(route), seconds, *options)
        cpu = self.cpu() - before
        requests = found["requests"]
        return Sample(
            per_second=requests / found["us"] * 1e6,
            p50=found["p50"] / 1e3,
            p99=found["p99"] / 1e3,
            cpu=cpu / requests * 1e6,
        )

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)


def load(url: str, seconds: int, *options: str) -> dict[str, Any]:
    command = [
        *("taskset", "--cpu-list", LOAD_CORE, "wrk", "--threads", "1"),
        *("--connections", str(CONNECTIONS), "--duration", f"{seconds}s"),
        *("--script", str(ROOT / "benchmarks" / "load.lua"), url),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    found = json.loads(done.stdout.splitlines()[-1])
    if found["errors"] or not found["requests"]:
        msg = f"{url}: {found}"
        raise AssertionError(msg)
    return found


@contextlib.contextmanager
def servers(framework: str, arms: Sequence[Arm]) -> Iterator[dict[Arm, Server]]:
    up: dict[Arm, Server] = {}
    try:
        for arm in arms:
            name = f"{framework}/{'asgi' if arm is BARE else arm.style}/{arm.layers}"
            up[arm] = Server("benchmarks.served:from_environment", name)
        for arm, server in up.items():
            server.check(arm.layers)
        yield up
    finally:
        for server in up.values():
            server.stop()


def measure(
    up: dict[Arm, Server], route: str, rounds: int, seconds: int
) -> dict[Arm, list[Sample]]:
    for server in up.values():
        load(server.url(route), 1)  # is in no sample
    samples: dict[Arm, list[Sample]] = {arm: [] for arm in up}
    for order in interleaved(up, rounds):
        for arm in order:
            samples[arm].append(up[arm].sample(route, seconds))
    return samples


def rows(framework: str, route: str, samples: dict[Arm, list[Sample]]) -> list[Row]:
    result: list[Row] = []
    for arm, of_arm in samples.items():
        row: Row = {"framework": framework, "route": route, **arm._asdict()}
        row["per second"] = Figure.of(each.per_second for each in of_arm).rounded(0)
        row["p50 ms"] = round(median(each.p50 for each in of_arm), 3)
        row["p99 ms"] = round(median(each.p99 for each in of_arm), 3)
        row["cpu us"] = Figure.of(each.cpu for each in of_arm).rounded(1)
        others = [BARE, *(arm._replace(style=style) for style in AGAINST)]
        row["times"] = {
            other.style: Figure.of(
                one.per_second / two.per_second
                for one, two in zip(of_arm, samples[other], strict=True)
            ).rounded(4)
            for other in others
            if other in samples and other != arm
        }
        result.append(row)
    return result


def table(result: Sequence[Row]) -> str:
    head = f"{'':<12}{'layers':>8}{'requests/s':>12}{'of bare':>10}{'of asgi':>10}"
    lines = [f"{head}{'p50':>12}{'p99':>12}{'server CPU':>14}"]
    for row in result:
        of = {key: f"{value['median']:.3f}" for key, value in row["times"].items()}
        lines.append(
            f"{row['style']:<12}{row['layers']:>8}{row['per second']['median']:>12.0f}"
            f"{of.get('bare', ''):>10}{of.get('asgi', ''):>10}{row['p50 ms']:>9.2f} ms"
            f"{row['p99 ms']:>9.2f} ms{row['cpu us']['median']:>11.1f} µs"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options(__doc__, "servers")
    parser.add_argument("--rounds", type=int, default=None, help="samples of each arm")
    chosen = parser.parse_args(arguments)
    missing = [tool for tool in ("wrk", "taskset") if shutil.which(tool) is None]
    if missing or os.cpu_count() == 1:
        print(f"needs Linux, two cores, wrk and taskset; not here: {' '.join(missing) or 'cores'}")
        return 2
    rounds = chosen.rounds or (2 if chosen.quick else 7)
    result: list[Row] = []
    for framework in FRAMEWORKS:
        with servers(framework, ARMS) as up:
            for route in ROUTES:
                samples = measure(up, route, rounds, 1)
                of_series = rows(framework, route, samples)
                print(f"{framework}, {route}\n{table(of_series)}\n", flush=True)
                result += of_series
    if chosen.json:
        write(chosen.json, document(result, ["fastapi", "uvicorn", "httptools", "uvloop"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
