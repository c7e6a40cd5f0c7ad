"""
What `docs/performance.md` says of the results, each part of it.

Every sentence with a figure in it is made here, out of the result that it is about; the last line
of a part names the benchmark and what it ran on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.document import Document, Row, find
from benchmarks.grid import ANSWER, FLOOR, LAYERS
from benchmarks.servers import STYLES
from benchmarks.styles import BODIES as APPS
from benchmarks.styles import JOBS
from benchmarks.targets import TARGETS

Results = Mapping[str, Document]
Part = Callable[[Results], str]

BODIES = tuple(APPS)
DIRECTIONS = {"down": "download", "up": "upload"}
WAYS = ("pass", "observe", "transform", "read")
NAMED = {
    "bare": "no middleware",
    "raw bytes": "ASGI, raw bytes",
    "asgi": "hand-written ASGI",
    FLOOR: "bare generators",
    "bare two yields": "a bare generator, two yields",
    "one yield": "httpmw, one yield",
    "two yields": "httpmw, two yields",
    "subclass": "httpmw, subclass",
    "when true": "httpmw, `when=` true",
    "when false": "httpmw, `when=` false",
    "returns None": "httpmw, None",
    "httpmw": "httpmw",
    "drop-in": "httpmw, drop-in",
    "BaseHTTP": "BaseHTTPMiddleware",
    "no-op": "layers that do nothing",
}


# ---------------------------------------------------------------------- looking up


def row_of(results: Results, benchmark: str, **where: Any) -> Row:
    row = find(results[benchmark]["rows"], **where)
    if row is None:
        msg = f"benchmarks/results/{benchmark}.json has no row {where}"
        raise LookupError(msg)
    return row


def by_hand(results: Results, style: str, layers: int, body: str = "one message") -> Row:
    return row_of(results, "grid", series="by hand", style=style, layers=layers, body=body)


def in_loop(results: Results, style: str, layers: int, body: str, loop: str = "asyncio") -> Row:
    return row_of(results, "grid", series=loop, style=style, layers=layers, body=body)


def times(row: Row, other: str = "asgi") -> float:
    """
    Give a row's cost as a multiple of another style's; 1 for that style itself.
    """
    return float(row["times"][other]["median"]) if other in row["times"] else 1.0


# ---------------------------------------------------------------------- writing down


def part(results: Results, benchmark: str, *paragraphs: str) -> str:
    about = results[benchmark]["about"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    source = (
        f"Measured by `benchmarks/{benchmark}.py`: {about['date']}, {about['python']}, {versions}, "
        f"{about['machine']}."
    )
    return "\n\n".join([*paragraphs, source])


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(each)} |" for each in (head, rule, *rows))


def with_quartiles(figure: Mapping[str, float]) -> str:
    return f"{figure['median']:.1f} ({figure['low']:.1f} to {figure['high']:.1f})"


def counted(number: int) -> str:
    return f"{number} layer{'' if number == 1 else 's'}"


# ---------------------------------------------------------------------- layers, by hand


def layers(results: Results) -> str:
    styles = ("raw bytes", "asgi", FLOOR, "one yield", "two yields", "subclass", "when true")
    one, two, asgi = (
        by_hand(results, style, 1)["added"]["median"]
        for style in ("one yield", "two yields", "asgi")
    )
    alone = {style: by_hand(results, style, 1) for style in ("when false", "returns None")}
    many = {style: by_hand(results, style, 20) for style in alone}
    return part(
        results,
        "grid",
        (
            f"One layer with one yield adds {one:.1f} µs to a request, one with two yields "
            f"{two:.1f} µs, a hand-written one {asgi:.1f} µs.\n"
            "A layer that steps aside adds, where it is the only one, "
            f"{alone['when false']['added']['median']:.1f} µs with `when=` and "
            f"{alone['returns None']['added']['median']:.1f} µs by returning None; where there are "
            f"twenty, each adds {many['when false']['added per layer']:.2f} µs and "
            f"{many['returns None']['added per layer']:.2f} µs."
        ),
        markdown(
            ["µs added, times hand-written", *map(counted, LAYERS)],
            [
                [
                    NAMED[style],
                    *(
                        f"{row['added']['median']:.1f}, {times(row):.2f}x"
                        for row in (by_hand(results, style, number) for number in LAYERS)
                    ),
                ]
                for style in styles
            ],
        ),
    )


def chunks(results: Results) -> str:
    styles = ("raw bytes", "one yield", "two yields", "subclass", "when true")
    arms = [(number, body) for number in (1, 5) for body in BODIES]
    return part(
        results,
        "grid",
        markdown(
            ["times hand-written", *(f"{counted(number)}, {body}" for number, body in arms)],
            [
                [NAMED[style], *(f"{times(by_hand(results, style, *arm)):.2f}x" for arm in arms)]
                for style in styles
            ],
        ),
    )


# ---------------------------------------------------------------------- layers, under a loop


def loops(results: Results) -> str:
    arms = [(number, body) for body in BODIES[:2] for number in (1, 5)]
    one, five = (in_loop(results, "BaseHTTP", number, BODIES[0]) for number in (1, 5))
    return part(
        results,
        "grid",
        (
            "Under asyncio, one layer of Starlette's `BaseHTTPMiddleware` adds "
            f"{times(one, 'one yield'):.0f} times what one of httpmw adds, and five layers add "
            f"{times(five, 'one yield'):.0f} times what five add.\n"
            "Against the drop-in, which runs the same `dispatch` functions, it is "
            f"{times(one, 'drop-in'):.0f} times and {times(five, 'drop-in'):.0f} times."
        ),
        markdown(
            ["µs added, times hand-written", *(f"{counted(n)}, {body}" for n, body in arms)],
            [
                [
                    f"{loop}, {NAMED[style]}",
                    *(
                        f"{row['added']['median']:.1f}, {times(row):.1f}x"
                        for row in (in_loop(results, style, *arm, loop) for arm in arms)
                    ),
                ]
                for loop in ("asyncio", "anyio", "uvloop", "trio")
                for style in STYLES[1:]
            ],
        ),
    )


def work(results: Results) -> str:
    rows = results["jobs"]["rows"]
    sizes = list(dict.fromkeys(row["size"] for row in rows))

    def figure(job: str, size: str) -> str:
        row = row_of(results, "jobs", job=job, size=size)
        goal = "" if row["goal"] is None else f", goal {row['goal']:g}x"
        return f"{row['httpmw us']['median']:.0f}, {row['times']['median']:.1f}x{goal}"

    return part(
        results,
        "jobs",
        markdown(
            ["µs added, times by hand", *sizes],
            [
                [job, *(figure(job, size) for size in sizes)]
                for job in dict.fromkeys(row["job"] for row in rows)
            ],
        ),
    )


def jobs(results: Results) -> str:
    answer = by_hand(results, "httpmw: early answer", 1)["times"]["asgi: early answer"]

    def figure(job: str, body: str) -> str:
        row = in_loop(results, f"httpmw: {job}", 1, body, "jobs")
        return f"{row['added']['median']:.0f}, {times(row, f'asgi: {job}'):.1f}x"

    return part(
        results,
        "grid",
        (
            "A request that is answered early takes, response and all, "
            f"{answer['median']:.2f} times ({answer['low']:.2f} to {answer['high']:.2f}) as long "
            "as with a hand-written layer."
        ),
        markdown(
            ["µs added by one layer, times hand-written", *BODIES],
            [[job, *(figure(job, body) for body in BODIES)] for job in JOBS if job != ANSWER],
        ),
    )


def stack(results: Results) -> str:
    rows = results["stack"]["rows"]
    numbers = sorted({row["layers"] for row in rows})
    arms = dict.fromkeys((row["application"], row["kind"]) for row in rows)

    def figure(application: str, kind: str, number: int) -> str:
        where = {"application": application, "kind": kind, "layers": number}
        row = find(rows, **where)
        return f"{row['times']['median']:.2f}x" if row else ""

    return part(
        results,
        "stack",
        markdown(
            ["times the whole request without a stack", *map(counted, numbers)],
            [
                [", ".join((application, NAMED.get(kind, kind)))]
                + [figure(application, kind, number) for number in numbers]
                for application, kind in arms
            ],
        ),
    )


def pythons(results: Results) -> str:
    rows = results["pythons"]["rows"]
    versions = list(dict.fromkeys(row["python"] for row in rows))
    bounds = {target.says: target for target in TARGETS if "at first" not in target.says}
    figures = [says for says in bounds if find(rows, figure=says)]

    def figure(python: str, name: str) -> str:
        row = find(rows, python=python, figure=name)
        return "" if row is None else f"{row['measured']:.2f} {bounds[name].unit}"

    table = [[name, *(figure(python, name) for python in versions)] for name in figures]
    return (
        f"{markdown(['', *versions], table)}\n\nMeasured by `benchmarks/grid.py`, on each Python."
    )


# ---------------------------------------------------------------------- memory and bodies


def memory(results: Results) -> str:
    bare = row_of(results, "memory", style="bare")
    head = ["", "bytes", "times hand-written", "blocks", "tasks created", "process, all open"]
    return part(
        results,
        "memory",
        "What Python holds for one stream and layer, and how large the process is with all open:",
        markdown(
            head,
            [
                [
                    NAMED[row["style"]],
                    f"{row['layer']['bytes']:,.0f}",
                    f"{row['times']['asgi']:.2f}x",
                    f"{row['layer']['blocks']:.1f}",
                    f"{row['layer']['tasks']:.0f}",
                    f"{row['stream']['MiB']:.0f} MiB",
                ]
                for row in results["memory"]["rows"]
                if row["layers"]
            ],
        ),
        f"Without middleware the process is {bare['stream']['MiB']:.0f} MiB large.",
    )


def bodies(results: Results) -> str:
    rows = results["bodies"]["rows"]
    down, up = (row_of(results, "bodies", direction=each, kind="bare") for each in DIRECTIONS)
    table = []
    for one in rows:
        if one["layers"] == 1:
            arm = {key: one[key] for key in ("direction", "way", "kind")}
            pair = [one, row_of(results, "bodies", **arm, layers=5)]
            table.append(
                [
                    f"{DIRECTIONS[one['direction']]}, {one['way']}, {NAMED[one['kind']]}",
                    *(f"{row['ms']['median']:.1f}" for row in pair),
                    *(f"{row['MiB per second']:,}" for row in pair),
                    *(f"{row['peak MiB']:.1f}" for row in pair),
                ]
            )
    whats = ("ms of CPU time", "MiB per second", "most MiB")
    return part(
        results,
        "bodies",
        (
            f"Without middleware the download takes {down['ms']['median']:.1f} ms of CPU time and "
            f"{down['peak MiB']:.1f} MiB of memory, the upload {up['ms']['median']:.1f} ms and "
            f"{up['peak MiB']:.1f} MiB."
        ),
        markdown(["", *(f"{what}, {counted(n)}" for what in whats for n in (1, 5))], table),
    )


# ---------------------------------------------------------------------- servers


def served(results: Results, *, route: str) -> str:
    def median(row: Row, other: str) -> str:
        return f"{times(row, other):.2f}" if other in row["times"] else ""

    rows = [row for row in results["servers"]["rows"] if row["route"] == route]
    where = {"framework": "starlette", "route": route, "layers": 5}
    five = row_of(results, "servers", **where, style="one yield")
    cpu = {
        style: row_of(results, "servers", **(where | {"layers": number}), style=style)["cpu us"]
        for style, number in (("bare", 0), ("asgi", 5), ("one yield", 5), ("BaseHTTP", 5))
    }
    head = ["layers", "requests per second", "of no middleware", "of hand-written", "p50", "p99"]
    return part(
        results,
        "servers",
        (
            "With Starlette and five layers of httpmw the server answers "
            f"{times(five, 'bare'):.2f} times the requests per second that it answers without "
            f"middleware, {times(five):.2f} times those with five hand-written layers and "
            f"{times(five, 'BaseHTTP'):.1f} times those with five `BaseHTTPMiddleware`.\n"
            f"A request takes {cpu['one yield']['median']:,.0f} µs of the server's CPU time, "
            f"{cpu['bare']['median']:,.0f} µs without middleware, "
            f"{cpu['asgi']['median']:,.0f} µs with the hand-written layers and "
            f"{cpu['BaseHTTP']['median']:,.0f} µs with `BaseHTTPMiddleware`."
        ),
        markdown(
            [*head, "server CPU per request"],
            [
                [
                    f"{row['framework']}, {NAMED[row['style']]}, {row['layers']}",
                    f"{row['per second']['median']:,.0f}",
                    median(row, "bare"),
                    median(row, "asgi"),
                    f"{row['p50 ms']:.2f} ms",
                    f"{row['p99 ms']:.2f} ms",
                    f"{row['cpu us']['median']:,.0f} µs",
                ]
                for row in rows
            ],
        ),
    )


# ---------------------------------------------------------------------- the rest


def import_time(results: Results) -> str:
    rows = [
        [f"`{row['module']}`", with_quartiles(row["ms"]), str(row["modules"])]
        for row in results["import_time"]["rows"]
    ]
    return part(
        results, "import_time", markdown(["import", "ms of CPU time", "modules loaded"], rows)
    )


def budget(results: Results) -> str:
    rows = results["budget"]["rows"]
    table = []
    for layer in dict.fromkeys(row["layer"] for row in rows):
        found = [row for row in rows if row["layer"] == layer]
        if not table:
            noop = [f"{row['no-op us']:.2f}" for row in found]
            table.append(
                ["a wrapper that does nothing", *noop, f"{found[-1]['no-op peak bytes']:,}"]
            )
        name = NAMED.get(layer, f"httpmw, {layer}")
        table.append([name, *(f"{row['us']:.2f}" for row in found), f"{found[-1]['peak bytes']:,}"])
    head = ["µs", "before", "at the start", "per chunk", "after", "20 chunks", "most bytes"]
    return part(results, "budget", markdown(head, table))


def targets(results: Results) -> str:
    """
    Hold each figure, and what the same costs without the rules of httpmw, against its target.
    """
    rows = []
    for target in TARGETS:
        least = None if target.floor is None else target.floor.measured(results)
        cells = [
            (f"{each:.2f}", "ok" if target.holds(each) else "missed") if each is not None else None
            for each in (target.measured(results), least)
        ]
        measured, floor = cells[0] or ("", "not run"), ", ".join(cells[1] or ())
        source = f"`benchmarks/{target.benchmark}.py`"
        rows.append([target.says, measured[0], target.bound, measured[1], floor, source])
    return markdown(["figure", "measured", "target", "", "floor", "measured by"], rows)


def dearest(results: Results) -> str:
    """
    Name the figures of the grid in which httpmw stands worst against code written by hand.
    """
    found = []
    for row in results["grid"]["rows"]:
        kind, _, job = row["style"].partition(": ")
        if kind not in {"asgi", "BaseHTTP", "raw bytes"} and not kind.startswith("bare"):
            what = f"{job or NAMED[kind]}, {counted(row['layers'])}, {row['body']}, {row['series']}"
            found.append((times(row, f"asgi: {job}" if job else "asgi"), what))
    found.sort(reverse=True)
    dearer = sum(number > 1 for number, _ in found)
    words = (
        f"* In {dearer} of the {len(found)} figures of httpmw in `benchmarks/results/grid.json` "
        "its layers add more than those written by hand. The dearest, measured by "
        "`benchmarks/grid.py`:"
    )
    return "\n".join([words, *(f"    * {what}: {number:.1f}x" for number, what in found[:8])])


# Each with the benchmark whose results it shows.
PARTS: dict[str, tuple[str, Part]] = {
    "layers": ("grid", layers),
    "chunks": ("grid", chunks),
    "loops": ("grid", loops),
    "work": ("jobs", work),
    "jobs": ("grid", jobs),
    "stack": ("stack", stack),
    "pythons": ("pythons", pythons),
    "memory": ("memory", memory),
    "bodies": ("bodies", bodies),
    "json": ("servers", partial(served, route="json")),
    "heavy": ("servers", partial(served, route="heavy")),
    "import": ("import_time", import_time),
    "budget": ("budget", budget),
    "targets": ("grid", targets),
    "dearest": ("grid", dearest),
}
