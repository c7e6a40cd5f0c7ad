"""
What an editable stack costs: `python -m benchmarks.stack`.

The same layers are put around the same application, once by Starlette and once by a
`MiddlewareStack`. "N times" is the time of a whole request through the stack, divided by that of
one through what Starlette builds: every request pays for the way into the stack, and every layer
for finding the next one. The kinds of layers:

* `asgi`       an ASGI class that sets a header, as in `benchmarks.styles`;
* `one yield`  a middleware function of httpmw; neighbours are fused with and without a stack;
* `no-op`      an ASGI class that does nothing but call what is inside: the worst case, as nothing
  but the way from one layer to the next is measured.

The applications:

* `Starlette`  an application with one route: `MiddlewareStack.install(app)` against
  `Starlette(middleware=[...])`;
* `edited`     the same after 100 edits, all in the middle of the layers;
* `any app`    the application of `benchmarks.styles`, which does nothing but send:
  `MiddlewareStack(app, [...])` against the layers called one around the other.

All is stepped by hand. `benchmarks.measure` says how time is taken.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.document import Row, document, options, write
from benchmarks.grid import DIGITS, short
from benchmarks.measure import BY_HAND, Figure, measure, ratio
from benchmarks.styles import BODIES, App, HandWritten, one_yield
from httpmw import HTTPMiddleware, MiddlewareStack

LAYERS = (0, 1, 5, 10)
EDITS = 100


class NoOp:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


KINDS = {
    "asgi": Middleware(HandWritten),
    "one yield": Middleware(HTTPMiddleware, dispatch=one_yield),
    "no-op": Middleware(NoOp),
}


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello, world")


def starlette(layers: Sequence[Middleware]) -> Starlette:
    return Starlette(routes=[Route("/", hello)], middleware=layers)


def installed(layers: Sequence[Middleware]) -> Starlette:
    app = starlette(layers)
    MiddlewareStack.install(app)
    return app


class Passing(NoOp):
    pass


def edited(layers: Sequence[Middleware]) -> Starlette:
    app = starlette(layers)
    stack = MiddlewareStack.install(app)
    for _ in range(EDITS):
        middle = [*stack, None][len(layers) // 2]
        stack.add(Middleware(Passing), before=middle)
        stack.remove(Passing)
    return app


def nested(layers: Sequence[Middleware]) -> App:
    app = BODIES["one message"]
    for cls, args, kwargs in reversed(layers):
        app = cls(app, *args, **kwargs)
    return app


def around(layers: Sequence[Middleware]) -> App:
    return MiddlewareStack(BODIES["one message"], layers)


class Comparison(NamedTuple):
    stack: Callable[[Sequence[Middleware]], App]
    without: Callable[[Sequence[Middleware]], App]


APPLICATIONS = {
    "Starlette": Comparison(installed, starlette),
    "edited": Comparison(edited, starlette),
    "any app": Comparison(around, nested),
}


class Arm(NamedTuple):
    application: str
    kind: str
    layers: int
    stack: bool

    def app(self) -> App:
        comparison = APPLICATIONS[self.application]
        make = comparison.stack if self.stack else comparison.without
        return make([KINDS[self.kind]] * self.layers)


def compared() -> list[Arm]:
    return [
        Arm(application, kind, layers, stack=True)
        for application in APPLICATIONS
        for kind in KINDS
        for layers in LAYERS
    ]


def row(arm: Arm, samples: dict[Arm, list[float]]) -> tuple[Row, str]:
    other = arm._replace(stack=False)
    times = ratio(samples, arm, other, None)
    us, without = (Figure.of(s * 1e6 for s in samples[each]) for each in (arm, other))
    found = {
        "application": arm.application,
        "kind": arm.kind,
        "layers": arm.layers,
        "us": us.rounded(DIGITS),
        "without us": without.rounded(DIGITS),
        "times": times.rounded(DIGITS),
    }
    line = (
        f"{arm.application:<12}{arm.kind:<12}{arm.layers:>6}{short(without.median):>12}"
        f"{short(us.median):>10}{times.median:>8.3f}x [{times.low:.3f} {times.high:.3f}]"
    )
    return found, line


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = options(__doc__, __name__ if __name__ != "__main__" else "stack").parse_args(arguments)
    rounds, seconds = (5, 0.001) if chosen.quick else (40, 0.01)
    arms = [each for arm in compared() for each in (arm, arm._replace(stack=False))]
    apps = {arm: arm.app() for arm in arms}
    samples = measure(apps, BY_HAND, rounds=rounds, seconds=seconds)
    print(f"{'application':<12}{'kind':<12}{'layers':>6}{'without µs':>12}{'stack µs':>10}   times")
    rows = []
    for arm in compared():
        found, line = row(arm, samples)
        rows.append(found)
        print(line)
    if chosen.json:
        write(chosen.json, document(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
