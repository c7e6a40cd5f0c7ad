"""
What a layer of middleware costs, by style, number of layers and body: `python -m benchmarks.grid`.

Every layer sets one header on the response, around an application that sends a start with three
headers and a body. The styles:

* `bare`        no middleware, the control arm;
* `asgi`        an ASGI class written by hand, with Starlette's `MutableHeaders`;
* `one yield`   httpmw, `response = yield`;
* `two yields`  httpmw, `response = yield` and `yield response`;
* `BaseHTTP`    Starlette's `BaseHTTPMiddleware`.

"N times the cost of the hand-written layers" is `(httpmw - bare) / (asgi - bare)`:
the time that the layers add to a request, divided by the time that the same number of
hand-written layers adds. The time of the application itself and of the loop around it is in
neither. Each round of samples gives one such ratio; the table shows the median and, in brackets,
the quartiles.

There are two tables, each from one run:

1. Stepped by hand. None of these layers suspends, so a request is one `send(None)`: the figures
   are the code's own, without the event loop. A request that suspends is an error here.
2. Under asyncio. `BaseHTTPMiddleware` needs the event loop, so here every request of every style
   is a task, as on a server. "N times cheaper a layer" is `(BaseHTTP - bare) / (httpmw - bare)` of
   this table.

`benchmarks.measure` says how time is taken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import Driver, Figure, by_hand, measure, ratio, under_asyncio
from benchmarks.styles import BODIES, App, layered

LAYERS = (1, 5, 10)


class Arm(NamedTuple):
    style: str
    layers: int
    body: str


def bare(body: str) -> Arm:
    return Arm("bare", 0, body)


@dataclass(frozen=True)
class Series:
    """
    One table: styles that are measured in one run by one driver, as ratios against one of them.
    """

    title: str
    driver: Driver
    styles: Sequence[str]
    against: str

    def arms(self) -> list[Arm]:
        grid = [
            Arm(style, layers, body)
            for body in BODIES
            for layers in LAYERS
            for style in self.styles
        ]
        return [bare(body) for body in BODIES] + grid


SERIES = {
    "by hand": Series(
        "Stepped by hand, without the event loop",
        by_hand,
        ("asgi", "one yield", "two yields"),
        against="asgi",
    ),
    "asyncio": Series(
        "Under asyncio",
        under_asyncio,
        ("asgi", "one yield", "two yields", "BaseHTTP"),
        against="asgi",
    ),
}


class Results:
    """
    The samples of one series, and the figures made of them.
    """

    def __init__(self, series: Series, samples: dict[Arm, list[float]]) -> None:
        self.series = series
        self.samples = samples

    def microseconds(self, arm: Arm) -> Figure:
        return Figure.of([seconds * 1e6 for seconds in self.samples[arm]])

    def ratio(self, arm: Arm, against: str) -> Figure:
        return ratio(self.samples, arm, arm._replace(style=against), bare(arm.body))


async def run(series: Series, *, rounds: int, seconds: float) -> Results:
    arms = {arm: application(arm) for arm in series.arms()}
    return Results(series, await measure(arms, series.driver, rounds=rounds, seconds=seconds))


def application(arm: Arm) -> App:
    return layered(BODIES[arm.body], arm.style, arm.layers)


@dataclass(frozen=True)
class Target:
    """
    A promise about speed: the bounds of one ratio.
    """

    says: str
    series: str
    arm: Arm
    against: str
    at_least: float = 0.0
    at_most: float = math.inf

    def holds(self, measured: float) -> bool:
        return self.at_least <= measured <= self.at_most

    @property
    def bound(self) -> str:
        return f"at least {self.at_least:g}" if self.at_least else f"at most {self.at_most:g}"


TARGETS = [
    Target(
        "1 layer, hand-written = 1",
        "by hand",
        Arm("one yield", 1, "one message"),
        against="asgi",
        at_most=2.6,
    ),
    Target(
        "5 layers, hand-written = 1",
        "by hand",
        Arm("one yield", 5, "one message"),
        against="asgi",
        at_most=1.4,
    ),
    Target(
        "10 layers, hand-written = 1",
        "by hand",
        Arm("one yield", 10, "one message"),
        against="asgi",
        at_most=1.2,
    ),
    Target(
        "5 layers over 20 chunks, hand-written = 1",
        "by hand",
        Arm("one yield", 5, "20 chunks"),
        against="asgi",
        at_most=0.7,
    ),
    Target(
        "1 layer of BaseHTTPMiddleware, httpmw = 1",
        "asyncio",
        Arm("BaseHTTP", 1, "one message"),
        against="one yield",
        at_least=25,
    ),
    Target(
        "5 layers of BaseHTTPMiddleware, httpmw = 1",
        "asyncio",
        Arm("BaseHTTP", 5, "one message"),
        against="one yield",
        at_least=40,
    ),
]


def table(results: Results) -> str:
    """
    Lay the results of one series out: µs per request, and the cost of the layers as a ratio.
    """
    series = results.series
    lines = [f"{series.title}: µs per request, cost of the layers against {series.against}"]
    for body in BODIES:
        lines += ["", f"{body}, bare {results.microseconds(bare(body)).median:.2f} µs"]
        lines += ["layers" + "".join(f"  {style:>26}" for style in series.styles)]
        for layers in LAYERS:
            cells = [cell(results, Arm(style, layers, body)) for style in series.styles]
            lines += [f"{layers:>6}" + "".join(f"  {text:>26}" for text in cells)]
    return "\n".join(lines)


def cell(results: Results, arm: Arm) -> str:
    time = f"{results.microseconds(arm).median:.2f}"
    if arm.style == results.series.against:
        return time
    times = results.ratio(arm, results.series.against)
    return f"{time} {times.median:6.2f}x [{times.low:.2f} {times.high:.2f}]"


def verdict(target: Target, results: Results) -> tuple[bool, str]:
    """
    Hold a target against what was measured.
    """
    measured = results.ratio(target.arm, target.against).median
    holds = target.holds(measured)
    word = "ok" if holds else "MISSED"
    return holds, f"{word:<7} {target.says:<42} {measured:>6.2f}   {target.bound}"


def document(all_results: dict[str, Results]) -> dict[str, Any]:
    """
    Collect every figure of a run for `--json`.
    """
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("starlette", "anyio")},
        "series": {
            name: [
                {
                    **arm._asdict(),
                    "microseconds": asdict(results.microseconds(arm)),
                    "ratio": asdict(results.ratio(arm, results.series.against))
                    if arm.style != "bare"
                    else None,
                }
                for arm in results.samples
            ]
            for name, results in all_results.items()
        },
        "targets": [
            {
                "says": target.says,
                "bound": target.bound,
                "measured": asdict(all_results[target.series].ratio(target.arm, target.against)),
            }
            for target in TARGETS
        ],
    }


async def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.grid", description="What a layer of middleware costs."
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer and shorter samples, rough figures"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    options = parser.parse_args(arguments)
    rounds, seconds = (5, 0.001) if options.quick else (40, 0.01)

    print(f"Python {platform.python_version()}, {rounds} rounds, samples of {seconds * 1e3:g} ms")
    all_results = {}
    for name, series in SERIES.items():
        all_results[name] = await run(series, rounds=rounds, seconds=seconds)
        print(f"\n{table(all_results[name])}", flush=True)

    print("\nTargets")
    verdicts = [verdict(target, all_results[target.series]) for target in TARGETS]
    for _, line in verdicts:
        print(line)
    if options.json:
        options.json.write_text(json.dumps(document(all_results), indent=1) + "\n")
    return 1 if options.check and not all(holds for holds, _ in verdicts) else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
