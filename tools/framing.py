"""
Random layers around random apps, over the wire, against a model of HTTP.

    python -m tools.framing                    100,000 connections
    python -m tools.framing --cases 2000 --first 0
    python -m tools.framing --show 1234        one connection, in full

A case is an app, one to four layers and up to three requests on one connection. Its bytes go
through `tests.wire.PlainServer`, which corrects nothing, and are taken apart by `tests.wire.parse`,
which refuses what RFC 9110 or 9112 forbids.

1. `Model` and what is made of it know what each layer asks for and what HTTP says of that, and
   nothing of how httpmw does it: RFC 9110 sections 6.4.1, 8.6, 9.3.2 and 15, RFC 9112 sections 6
   and 9.3.
2. Compared are how many answers there are, and of each the status, the body, `content-length` and
   whether another request may follow. A byte that belongs to no answer is a difference.
3. The app keeps to HTTP by itself: what is wrong is for the layers to get wrong.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import anyio
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware
from httpmw.compat import BaseHTTPMiddleware
from tests.harness import PassThrough, body, start
from tests.wire import Answer, PlainServer, WireError, get, parse

PIECE = 500  # cases
CHUNKS = (b"", b"a", b"bc", b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 100)
TEXTS = (b"", b"new", b"a longer text than there was")
# Final, and without content (RFC 9110 sections 15.3.5, 15.3.6 and 15.4.5).
NO_CONTENT, RESET_CONTENT, NOT_MODIFIED = BODILESS = (204, 205, 304)
INTERIM = (100, 101, 103)  # no final status (RFC 9110 section 15.2)
STATUSES = (200, 200, 200, 201, 404, 500, *BODILESS)
UNKNOWN = -1


class Planned(Exception):  # noqa: N818 - no error of anybody's
    """What a layer raises."""


class Refused(Exception):  # noqa: N818 - what is expected
    """Nothing of the app's or of a layer's goes out: the server answers 500 by itself."""


# ---------------------------------------------------------------------- the case


@dataclass(frozen=True)
class Request:
    """One request, and whether its client goes on with the connection (RFC 9112 section 9.3)."""

    method: str
    version: str
    option: str

    @property
    def persists(self) -> bool:
        return self.option == "keep-alive" or (self.version == "1.1" and self.option != "close")

    def __bytes__(self) -> bytes:
        fields = [f"connection: {self.option}"] if self.option else []
        return get("/", *fields, method=self.method, version=self.version)


@dataclass(frozen=True)
class App:
    """An app that keeps to HTTP."""

    status: int
    chunks: tuple[bytes, ...]
    framing: str  # it declares the length, or the coding of the transfer, or leaves it open
    hands_over: bool  # the content to HEAD too, as Starlette's responses do

    def coded(self, version: str) -> bool:
        return self.framing == "coding" and version == "1.1"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = []
        if self.framing == "length":
            headers.append((b"content-length", b"%d" % len(b"".join(self.chunks))))
        elif self.coded(scope["http_version"]):
            headers.append((b"transfer-encoding", b"chunked"))
        await send(start(self.status, headers))
        if self.status not in BODILESS and (self.hands_over or scope["method"] != "HEAD"):
            for chunk in self.chunks[:-1]:
                await send(body(chunk, more=True))
            await send(body(b"".join(self.chunks[-1:])))
        else:
            await send(body())


@dataclass(frozen=True)
class Step:
    """One thing that a layer does."""

    kind: str
    status: int
    text: bytes
    transform: str


@dataclass(frozen=True)
class Layer:
    """What a layer does, and how it is written."""

    steps: tuple[Step, ...]
    waits: bool  # it yields the response, and is resumed when everything is over
    call_next: bool  # it is the drop-in's
    apart: bool  # a plain layer stands between it and what is further in, so that nothing is fused


@dataclass(frozen=True)
class Case:
    """A connection."""

    spec: str
    app: App
    layers: tuple[Layer, ...]  # the outermost first
    requests: tuple[Request, ...]

    @classmethod
    def draw(cls, seed: int) -> Case:
        """Draw the case of *seed*."""
        rng = random.Random(seed)
        status = rng.choice(STATUSES)
        framing = rng.choice(("length", "coding", "open"))
        if status in (NO_CONTENT, RESET_CONTENT) or (
            status == NOT_MODIFIED and framing != "length"
        ):
            framing = "open"
        return cls(
            spec=rng.choice(("2.1", "2.3", "2.4")),
            app=App(
                status=status,
                chunks=tuple(rng.choices(CHUNKS, k=rng.randrange(4))),
                framing=framing,
                hands_over=rng.random() < 0.5,
            ),
            layers=tuple(draw_layer(rng) for _ in range(rng.randrange(1, 5))),
            requests=tuple(
                Request(
                    rng.choice(("GET", "GET", "HEAD", "DELETE")),
                    rng.choice(("1.1", "1.1", "1.0")),
                    rng.choice(("", "", "", "keep-alive", "keep-alive", "close")),
                )
                for _ in range(rng.randrange(1, 4))
            ),
        )


REPLACING = ("other", "other with old headers", "other stream", "raise", "raise answer")
EVERYWHERE = (
    *("status", "status", "other", "other with old headers", "other stream", "no length", "raise"),
)
IN_FUNCTIONS = (
    *("HEAD to GET", "answer early", "raise early"),
    *("body", "read", "read and body", "transform", "raise answer"),
)


def draw_layer(rng: random.Random) -> Layer:
    call_next = rng.random() < 0.25
    kinds = EVERYWHERE if call_next else (*EVERYWHERE, *IN_FUNCTIONS, *IN_FUNCTIONS)
    return Layer(
        steps=tuple(
            Step(
                rng.choice(kinds),
                rng.choice(STATUSES if rng.random() < 0.97 else INTERIM),
                rng.choice(TEXTS),
                rng.choice(("twice", "nothing")),
            )
            for _ in range(rng.choice((0, 1, 1, 2, 3)))
        ),
        waits=rng.random() < 0.4,
        call_next=call_next,
        apart=rng.random() < 0.3,
    )


# ---------------------------------------------------------------------- the model


@dataclass(frozen=True)
class Model:
    """
    A response on its way outward, as HTTP sees it.

    Attributes:
        status: The status.
        content: The content; of an answer to HEAD what was handed over, which nobody sends.
        length: The declared length, None without one, `UNKNOWN` where HTTP does not say.
    """

    status: int
    content: bytes = b""
    length: int | None = None

    def left_by_a_layer(self, seen: Model | None = None) -> Model:
        """
        Say what goes on from the layer that made it, or that got it as *seen*.

        A status that allows no content leaves none, nor a length of what there would have been.
        """
        if self.status in INTERIM:
            raise Refused
        if self.status not in BODILESS:
            # The length of a 304 was that of another response (RFC 9110 section 8.6).
            was_another = seen is not None and seen.status == NOT_MODIFIED and not self.content
            return replace(self, length=UNKNOWN) if was_another else self
        if self == seen:
            return self
        return Model(self.status, length=UNKNOWN if self.status == RESET_CONTENT else None)


def of_app(app: App, request: Request, method: str) -> Model:
    content = b"".join(app.chunks)
    length = len(content) if app.framing == "length" else None
    if app.status in BODILESS or (method == "HEAD" and not app.hands_over):
        content = b""
    return Model(app.status, content, UNKNOWN if app.coded(request.version) else length)


def expected(case: Case, request: Request) -> Model:
    """
    Say what has to come of *request*.

    Raises:
        Refused: It is an error, of which the server makes what it likes.

    """
    return through(case.layers, case.app, request, request.method)


def through(layers: tuple[Layer, ...], app: App, request: Request, method: str) -> Model:
    if not layers:
        return of_app(app, request, method)
    layer, *rest = layers
    for step in layer.steps:
        if step.kind == "answer early":
            return Model(step.status, step.text, len(step.text)).left_by_a_layer()
        if step.kind == "raise early":
            return Model(step.status, b"early", len(b"early")).left_by_a_layer()
        if step.kind == "HEAD to GET" and method == "HEAD":
            method = "GET"
    is_head = request.method == "HEAD"
    seen = model = through(tuple(rest), app, request, method)
    for step in layer.steps:
        if step.kind in REPLACING:
            return other(step, model, is_head=is_head).left_by_a_layer()
        model = changed(step, model, is_head=is_head)
    return model.left_by_a_layer(seen)


def changed(step: Step, model: Model, *, is_head: bool) -> Model:
    if step.kind == "status":
        return replace(model, status=step.status)
    if step.kind == "no length":
        # A coding that the app declared itself is there all the same.
        return model if model.length == UNKNOWN else replace(model, length=None)
    if step.kind == "body":
        return replace(model, content=step.text, length=len(step.text))
    if step.kind == "read and body":
        content = step.text + model.content
        # What there is to read of an answer to HEAD is not HTTP's to say.
        return replace(model, content=content, length=UNKNOWN if is_head else len(content))
    if step.kind == "transform":
        length = UNKNOWN if model.length == UNKNOWN else None
        return replace(model, content=transformed(step, model), length=length)
    return model


def transformed(step: Step, model: Model) -> bytes:
    return model.content + model.content if step.transform == "twice" else b""


def other(step: Step, model: Model, *, is_head: bool) -> Model:
    if step.kind == "raise":
        raise Refused
    if step.kind == "other stream":
        return Model(step.status, transformed(step, model))
    text = b"late" if step.kind == "raise answer" else step.text
    length = len(text)
    if step.kind == "other with old headers" and (
        # Either framing will do where the old headers may declare the coding of the transfer, and
        # an answer to HEAD that is made without content may say how long that of GET would be.
        model.length == UNKNOWN or (is_head and not text)
    ):
        length = UNKNOWN
    return Model(step.status, text, length)


def differences(request: Request, model: Model, answer: Answer) -> list[str]:
    """Tell what HTTP does not allow of *answer*, where *model* was meant."""
    found = []

    def compare(name: str, got: object, *allowed: object) -> None:
        if got not in allowed:
            found.append(f"{name}: {got!r}, not {' or '.join(map(repr, allowed))}")

    compare("status", answer.status, model.status)
    has_content = request.method != "HEAD" and model.status not in BODILESS
    compare("body", answer.body, model.content if has_content else b"")

    length = answer.get("content-length")
    declared = None if model.length is None else b"%d" % model.length
    if model.status == RESET_CONTENT:
        compare("content-length", length, None, b"0")
    elif model.length == UNKNOWN:
        if length is not None and has_content:
            compare("content-length", length, b"%d" % len(model.content))
    elif model.status == NOT_MODIFIED:
        compare("content-length", length, declared, None)
    else:
        compare("content-length", length, declared)

    is_delimited = (
        request.version == "1.1" or length is not None or model.status in (NO_CONTENT, NOT_MODIFIED)
    )
    compare("persistent", answer.persistent, request.persists and is_delimited)
    return found


# ---------------------------------------------------------------------- the layers


async def twice(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    content = b"".join([chunk async for chunk in chunks])
    yield content
    yield content


async def nothing(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for _ in chunks:
        yield b""


TRANSFORMS: dict[str, Any] = {"twice": twice, "nothing": nothing}


def early(step: Step, conn: Connection) -> Response | None:
    """Do what *step* does before the app runs; give its answer, if it has one."""
    if step.kind == "HEAD to GET" and conn.scope["method"] == "HEAD":
        conn.scope["method"] = "GET"
    if step.kind == "raise early":
        raise HTTPException(step.status, "early")
    return Response(step.text, step.status) if step.kind == "answer early" else None


async def late(step: Step, response: Any) -> Response | None:  # noqa: C901 - one branch a kind
    """Do what *step* does to the response; give another one, if it does."""
    if step.kind == "status":
        response.status_code = step.status
    elif step.kind == "no length":
        del response.headers["content-length"]
    elif step.kind == "body":
        response.body = step.text
    elif step.kind == "read":
        await response.read()
    elif step.kind == "read and body":
        response.body = step.text + await response.read()
    elif step.kind == "transform":
        response.body_iterator = TRANSFORMS[step.transform](response.body_iterator)
    elif step.kind == "raise":
        raise Planned
    elif step.kind == "raise answer":
        raise HTTPException(step.status, "late")
    elif step.kind == "other":
        return Response(step.text, step.status)
    elif step.kind == "other with old headers":
        return Response(step.text, step.status, headers=dict(response.headers))
    elif step.kind == "other stream":
        iterator = TRANSFORMS[step.transform](response.body_iterator)
        return StreamingResponse(iterator, step.status)
    return None


async def as_function(layer: Layer, conn: Connection) -> Flow:
    for step in layer.steps:
        answer = early(step, conn)
        if answer is not None:
            yield answer
            return
    response = yield
    for step in layer.steps:
        answer = await late(step, response)
        if answer is not None:
            yield answer
            return
    if layer.waits:
        yield response


async def as_call_next(layer: Layer, request: Any, call_next: Any) -> Response:
    response: Response = await call_next(request)
    for step in layer.steps:
        answer = await late(step, response)
        if answer is not None:
            return answer
    return response


def stack(case: Case) -> ASGIApp:
    """Make the app with its layers."""
    app: ASGIApp = case.app
    for layer in reversed(case.layers):
        app = PassThrough(app) if layer.apart else app
        if layer.call_next:
            app = BaseHTTPMiddleware(app, dispatch=partial(as_call_next, layer))
        else:
            app = HTTPMiddleware(app, dispatch=partial(as_function, layer))
    return app


# ---------------------------------------------------------------------- the comparison


async def run(case: Case) -> tuple[bytes, list[BaseException]]:
    """Give what goes out over the connection, and what the server had to catch."""
    server = PlainServer(stack(case), spec_version=case.spec)
    with anyio.fail_after(60):
        data = await server.answer(b"".join(map(bytes, case.requests)))
    return data, server.errors


def compared(case: Case, data: bytes, errors: list[BaseException]) -> list[str]:
    """Tell what differs from the model."""
    try:
        answers = parse(data, *map(bytes, case.requests))
    except WireError as error:
        return [str(error)]
    found = []
    errors = list(errors)
    for request, answer in zip(case.requests, answers, strict=False):
        try:
            found += differences(request, expected(case, request), answer)
        except Refused:
            if not errors:
                found.append(f"{answer.status}, where it had to be refused")
            elif answer.status != 500 or answer.body:
                found.append(f"{answer.status} {answer.body!r}, where it was refused")
            errors[:1] = []
    found += map(repr, errors)
    if len(answers) < len(case.requests) and answers[-1].persistent:
        found.append(f"{len(answers)} answers")
    return found


async def run_piece(seeds: range) -> tuple[Counter[str], list[tuple[int, list[str]]]]:
    counts: Counter[str] = Counter()
    found = []
    for seed in seeds:
        case = Case.draw(seed)
        data, errors = await run(case)
        difference = compared(case, data, errors)
        if difference:
            found.append((seed, difference))
        counts["answers"] += data.count(b"HTTP/1.1 ")
        counts["refused"] += len(errors)
    return counts, found


def piece(first: int, last: int) -> tuple[Counter[str], list[tuple[int, list[str]]]]:
    """Run the cases from *first* to before *last*, every other piece on trio."""
    backend = "trio" if first // PIECE % 2 else "asyncio"
    return anyio.run(run_piece, range(first, last), backend=backend)


def show(seed: int) -> int:
    """Print one case, what came of it, and what differs."""
    case = Case.draw(seed)
    print(f"{case.app}, spec {case.spec}")
    for layer in case.layers:
        print(f"  {layer}")
    data, errors = anyio.run(run, case)
    print(f"{data!r}\n{errors!r}")
    for request in case.requests:
        try:
            print(f"{request}: {expected(case, request)}")
        except Refused:
            print(f"{request}: refused")
    found = compared(case, data, errors)
    print("\n".join(f"DIFFERENT {each}" for each in found))
    return bool(found)


def main() -> int:
    """Compare as many cases as asked for; give 1 when there was a difference."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--show", type=int, metavar="SEED")
    options = parser.parse_args()
    if options.show is not None:
        return show(options.show)
    started = time.monotonic()
    counts: Counter[str] = Counter()
    found = []
    end = options.first + options.cases
    pieces = [(first, min(first + PIECE, end)) for first in range(options.first, end, PIECE)]
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for some, differing in pool.starmap(piece, pieces, chunksize=1):
            counts.update(some)
            found += differing
            for seed, difference in differing:
                print(f"DIFFERENT {seed}: {'; '.join(difference)}", flush=True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("starlette", "anyio"))
    print(f"Python {platform.python_version()}, {packages}")
    print(f"{options.cases:,} connections in {time.monotonic() - started:,.0f} s")
    for name, count in sorted(counts.items()):
        print(f"  {name}: {count:,}")
    print(f"{len(found):,} differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
