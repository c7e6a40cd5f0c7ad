"""
What the ready-made layers cost beside what people use: `python -m benchmarks.ready`, with `wrk`.

uvicorn, with one worker, httptools and uvloop, runs FastAPI on one core, and wrk sends it requests
over 16 kept connections from the other. Three servers of a series are up at the same time: the
application alone, under our layers, and under those of others. They are asked in turns, for a
second each, in an order that is shuffled for each round. The series:

* `know`       request id, access log and Prometheus, against asgi-correlation-id, a hand-written
  access log with the same fields and prometheus-fastapi-instrumentator: a small JSON route, and one
  with 100 chunks;
* `answers`    security headers, compression and tags, against secure, starlette-compress and a
  hand-written layer that makes tags: a small JSON route, asked for with `Accept-Encoding`;
* `gzip`, `br`, `zstd`  compression alone against starlette-compress, at the same level: 1 KB,
  100 KB and 1000 chunks;
* a kind by name, such as `request id`: that alone on the JSON route; where it is asked for.

All have their defaults, but for the level. `benchmarks.ready_served` has the layers.

* "requests" are ours divided by theirs, in requests per second: more is better;
* "added CPU" is the CPU time that our layers add to a request, divided by what theirs add: less is
  better.

Both from samples of the same round; the median over the rounds, with the quartiles.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator, Sequence

from benchmarks.document import Row, document, options, write
from benchmarks.measure import Figure, interleaved
from benchmarks.servers import Sample, Server, load

WHOSE = ("bare", "ours", "theirs")
SERIES = {
    "know": ("json", "chunks"),
    "answers": ("json",),
    **dict.fromkeys(("gzip", "br", "zstd"), ("text/1k", "text/100k", "rows")),
}
KINDS = ("request id", "access log", "metrics", "security headers", "compression", "etag")
ASKED = {
    **dict.fromkeys(("answers", "compression"), "gzip, deflate, br, zstd"),
    **{coding: coding for coding in ("gzip", "br", "zstd")},
}
PACKAGES = (
    *("fastapi", "uvicorn", "httptools", "uvloop", "asgi-correlation-id", "secure"),
    *("prometheus-fastapi-instrumentator", "starlette-compress"),
)


@contextlib.contextmanager
def servers(series: str) -> Iterator[dict[str, Server]]:
    up: dict[str, Server] = {}
    try:
        for whose in WHOSE:
            arm = f"{series}/{whose}" if whose != "bare" else "know/bare"
            up[whose] = Server("benchmarks.ready_served:from_environment", arm)
        for server in up.values():
            server.wait()
        yield up
    finally:
        for server in up.values():
            server.stop()


def measure(series: str, route: str, up: dict[str, Server], rounds: int) -> Row:
    asked = ("--header", f"accept-encoding: {ASKED[series]}") if series in ASKED else ()
    for server in up.values():
        load(server.url(route), 1, *asked)  # is in no sample
    samples: dict[str, list[Sample]] = {whose: [] for whose in up}
    for order in interleaved(up, rounds):
        for whose in order:
            samples[whose].append(up[whose].sample(route, 1, *asked))
    together = [
        dict(zip(samples, of_round, strict=True))
        for of_round in zip(*samples.values(), strict=True)
    ]
    return {
        "series": series,
        "route": route,
        **{
            f"{whose} {what}": Figure.of(getattr(each, name) for each in samples[whose]).rounded(1)
            for what, name in (("per second", "per_second"), ("cpu us", "cpu"))
            for whose in WHOSE
        },
        "requests": Figure.of(
            each["ours"].per_second / each["theirs"].per_second for each in together
        ).rounded(3),
        "added cpu": Figure.of(
            (each["ours"].cpu - each["bare"].cpu) / (each["theirs"].cpu - each["bare"].cpu)
            for each in together
        ).rounded(3),
    }


def line(row: Row) -> str:
    cpu = [f"{row[f'{whose} cpu us']['median']:>9.1f}" for whose in WHOSE]
    requests, added = row["requests"], row["added cpu"]
    return (
        f"{row['series']:<18}{row['route']:<11}{''.join(cpu)}"
        f"{requests['median']:>8.2f}x [{requests['low']:.2f} {requests['high']:.2f}]"
        f"{added['median']:>8.2f}x [{added['low']:.2f} {added['high']:.2f}]"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options(__doc__, "ready")
    parser.add_argument("--rounds", type=int, default=None, help="samples of each arm")
    parser.add_argument("--series", nargs="*", default=[*SERIES], choices=[*SERIES, *KINDS])
    chosen = parser.parse_args(arguments)
    missing = [tool for tool in ("wrk", "taskset") if shutil.which(tool) is None]
    if missing:
        print(f"needs Linux, two cores, wrk and taskset; not here: {' '.join(missing)}")
        return 2
    rounds = chosen.rounds or (2 if chosen.quick else 15)
    print(f"{'':<29}{'µs of CPU: bare, ours, theirs':>30}{'requests':>12}{'added CPU':>22}")
    rows: list[Row] = []
    for series in chosen.series:
        with servers(series) as up:
            for route in SERIES.get(series, ("json",)):
                row = measure(series, route, up, rounds)
                print(line(row), flush=True)
                rows.append(row)
    if chosen.json:
        write(chosen.json, document(rows, PACKAGES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
