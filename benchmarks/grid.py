"""
What a layer of middleware costs, by style, number of layers and body: `python -m benchmarks.grid`.

Every layer sets one header on the response, around an application that sends a start with three
headers and a body. The styles:

* `bare`          no middleware, the control arm;
* `raw bytes`     an ASGI class written by hand, which edits the list of pairs of bytes;
* `asgi`          the same with Starlette's `MutableHeaders`, as its documentation has it;
* `one yield`     httpmw, `response = yield`;
* `two yields`    httpmw, `response = yield` and `yield response`;
* `subclass`      httpmw, a subclass that overrides `dispatch`;
* `when true`     httpmw, one yield, behind a predicate that holds;
* `when false`    httpmw, behind a predicate that does not: the layer steps aside;
* `returns None`  httpmw, a `dispatch` that returns None: the layer steps aside;
* `drop-in`       `httpmw.compat.BaseHTTPMiddleware`;
* `BaseHTTP`      Starlette's `BaseHTTPMiddleware`.

The floors, none of which keeps a rule of httpmw:

* `bare generator`  generators that are begun and resumed with the headers: under `one yield`;
* `bare predicate`  a predicate is asked about an object with the scope: under `when false`;
* `bare dispatch`   a dispatch coroutine that is begun and resumed: under `drop-in`.

The jobs are written twice, `asgi: JOB` by hand and `httpmw: JOB`: one layer does the job and the
layers around it set the header; the floor under an early answer is `bare: early answer`. They are
an early answer that is given after a look at a header, a response replaced by another, a body read
whole, a body set, a body transformed chunk by chunk.

"N times the cost of the hand-written layers" is `(httpmw - bare) / (asgi - bare)`:
the time that the layers add to a request, divided by the time that the same number of
hand-written layers adds. The time of the application itself and of the loop around it is in
neither. An early answer has no application to take off: there the whole requests are compared.
Each round of samples gives one such ratio; the table shows the median and, in brackets,
the quartiles.

The series, each from one run:

* by hand: no event loop. None of these layers suspends, so a request is one `send(None)`: the
  figures are the code's own. A request that suspends is an error here.
* asyncio, uvloop where there is one, trio: every request is a task of that loop, as on a server.
  `BaseHTTPMiddleware` needs the loop, so the comparisons with it are made there.
* anyio: asyncio under `anyio.run()`, where anyio knows of a task that may hold scopes open.
* jobs: the jobs under asyncio, as a discarded application is given turns of the loop.

`benchmarks.measure` says how time is taken.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.document import Row, document, options, write
from benchmarks.measure import (
    ANYIO,
    ASYNCIO,
    BY_HAND,
    TRIO,
    UVLOOP,
    Driver,
    Figure,
    added,
    measure,
    ratio,
)
from benchmarks.styles import ASIDE, BODIES, JOBS, App, at_work, layered
from benchmarks.targets import of_grid

LAYERS = (1, 2, 5, 10, 20)
ANSWER = "early answer"
FLOOR = "bare generator"
DIGITS = 4
HEADER_STYLES = ("raw bytes", "asgi", FLOOR, "one yield", "two yields", "subclass", "when true")
LOOP_STYLES = ("raw bytes", "asgi", "one yield", "two yields", "drop-in", "BaseHTTP")


class Arm(NamedTuple):
    style: str
    layers: int
    body: str


def bare(arm: Arm) -> Arm | None:
    """
    Give the control arm; None where the layers answer in place of the application.
    """
    return None if arm.style.endswith(ANSWER) else Arm("bare", 0, arm.body)


def application(arm: Arm) -> App:
    app = BODIES[arm.body]
    kind, _, job = arm.style.partition(": ")
    return at_work(app, job, kind, arm.layers) if job else layered(app, arm.style, arm.layers)


def job_styles(*jobs: str) -> tuple[str, ...]:
    return tuple(
        f"{kind}: {job}"
        for job in jobs
        for kind, style in JOBS[job]._asdict().items()
        if style is not None
    )


@dataclass(frozen=True)
class Series:
    """
    What is measured in one run by one driver.

    Args:
        title: For the table.
        driver: How samples are taken.
        styles: The styles of the table; an early answer has one body only.
        against: The styles that the others are compared with; a job is compared with the same
            job written by hand.
        rounds: How many samples are taken of each arm.
    """

    title: str
    driver: Driver
    styles: Sequence[str]
    against: Sequence[str] = ("asgi",)
    rounds: int = 20

    def arms(self) -> list[Arm]:
        grid = [
            Arm(style, number, body)
            for body in BODIES
            for number in LAYERS
            for style in self.styles
            if body == "one message" or not style.endswith(ANSWER)
        ]
        return [Arm("bare", 0, body) for body in BODIES] + grid

    def others(self, arm: Arm) -> list[Arm]:
        """
        Give the arms that this one is compared with.
        """
        _, _, job = arm.style.partition(": ")
        styles = [f"asgi: {job}"] if job else self.against
        return [arm._replace(style=style) for style in styles if style != arm.style]


SERIES = {
    "by hand": Series(
        "Stepped by hand, without the event loop",
        BY_HAND,
        (*HEADER_STYLES, *ASIDE, *job_styles(ANSWER)),
        rounds=40,
    ),
    "asyncio": Series(
        "Under asyncio",
        ASYNCIO,
        (*LOOP_STYLES, FLOOR, "bare dispatch"),
        against=("asgi", FLOOR, "bare dispatch", "one yield", "drop-in"),
    ),
    "anyio": Series("Under anyio.run(), which has a task with scopes", ANYIO, LOOP_STYLES),
    **({"uvloop": Series("Under uvloop", UVLOOP, LOOP_STYLES)} if UVLOOP else {}),
    "trio": Series("Under trio", TRIO, LOOP_STYLES),
    "jobs": Series(
        "Other jobs, under asyncio",
        ASYNCIO,
        job_styles(*(job for job in JOBS if job != ANSWER)),
    ),
}


def in_targets(name: str) -> list[Arm]:
    """
    Give the arms of one series that its targets need.
    """
    series = SERIES[name]
    arms: dict[Arm, None] = {}
    for target in of_grid(name):
        where = target.where
        arm = Arm(where["style"], where["layers"], where.get("body", "one message"))
        control = bare(arm)
        for each in (arm, *series.others(arm), *([control] if control else ())):
            arms[each] = None
    return list(arms)


class Results:
    """
    The samples of one series, and the figures made of them.
    """

    def __init__(self, name: str, samples: dict[Arm, list[float]]) -> None:
        self.name = name
        self.series = SERIES[name]
        self.samples = samples

    def microseconds(self, arm: Arm) -> Figure:
        return Figure.of(seconds * 1e6 for seconds in self.samples[arm])

    def ratio(self, arm: Arm, other: Arm) -> Figure:
        return ratio(self.samples, arm, other, bare(arm))

    def row(self, arm: Arm) -> Row:
        row = {"series": self.name, **arm._asdict(), "us": self.microseconds(arm).rounded(DIGITS)}
        control = bare(arm)
        if control not in {None, arm}:
            of_layers = added(self.samples, arm, control)
            row["added"] = of_layers.rounded(DIGITS)
            row["added per layer"] = round(of_layers.median / arm.layers, DIGITS)
        if arm != control:
            others = [other for other in self.series.others(arm) if other in self.samples]
            row["times"] = {o.style: self.ratio(arm, o).rounded(DIGITS) for o in others}
        return row

    def table(self) -> str:
        """
        Lay the series out: µs per request, and the cost of the layers as a ratio.
        """
        series = self.series
        lines = [f"{series.title}: µs per request, cost of the layers against hand-written ones"]
        for body in BODIES:
            control = Arm("bare", 0, body)
            if control not in self.samples:
                continue
            styles = dict.fromkeys(arm.style for arm in self.samples if arm.body == body)
            del styles["bare"]
            numbers = sorted({a.layers for a in self.samples if a.body == body and a.layers})
            lines += ["", f"{body}, bare {short(self.microseconds(control).median)} µs"]
            lines += [f"{'layers':<26}" + "".join(f"{number:>26}" for number in numbers)]
            for style in styles:
                cells = [self.cell(Arm(style, number, body)) for number in numbers]
                lines += [f"{style:<26}" + "".join(f"{text:>26}" for text in cells)]
        return "\n".join(lines)

    def cell(self, arm: Arm) -> str:
        if arm not in self.samples:
            return ""
        time = short(self.microseconds(arm).median)
        if arm.style.startswith("asgi"):
            return time
        times = self.ratio(arm, self.series.others(arm)[0])
        spread = f"[{short(times.low)} {short(times.high)}]"
        return f"{time} {short(times.median)}x {spread:>13}"


def short(number: float) -> str:
    """
    Write a number with about three digits.
    """
    return f"{number:.{2 if abs(number) < 10 else 1 if abs(number) < 100 else 0}f}"  # noqa: PLR2004


def run(name: str, arms: Sequence[Arm], *, quick: bool) -> Results:
    series = SERIES[name]
    rounds, seconds = (5, 0.001) if quick else (series.rounds, 0.01)
    apps = {arm: application(arm) for arm in arms}
    return Results(name, measure(apps, series.driver, rounds=rounds, seconds=seconds))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options(__doc__, "grid")
    parser.add_argument(
        "--targets", action="store_true", help="only what the targets need, on every Python alike"
    )
    parser.add_argument(
        "--series", nargs="*", choices=SERIES, default=list(SERIES), help="only these series"
    )
    chosen = parser.parse_args(arguments)

    print(f"Python {platform.python_version()}")
    rows: list[Row] = []
    for name in chosen.series:
        arms = in_targets(name) if chosen.targets else SERIES[name].arms()
        if not arms:
            continue
        results = run(name, arms, quick=chosen.quick)
        rows += [results.row(arm) for arm in results.samples]
        print(f"\n{results.table()}", flush=True)

    if chosen.json:
        write(chosen.json, document(rows, ["trio", *["uvloop"] * bool(UVLOOP)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
