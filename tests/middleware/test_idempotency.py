"""`IdempotencyMiddleware`: what was done once is answered again, and not done again."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import Depends, FastAPI, Request
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as StarletteRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from httpmw import Connection, DeadlineExceeded, Flow, HTTPMiddleware
from httpmw.middleware import (
    Claim,
    CompressionMiddleware,
    Idempotency,
    IdempotencyMiddleware,
    MemoryStore,
    RequestIDMiddleware,
    _stores,
    idempotency,
)
from httpmw.middleware._idempotency import _key_of
from httpmw.middleware._refuse import COUNTED, Counted
from httpmw.testing import Server
from tests.harness import Chunks, PassThrough, body, request, start


class App:
    """An application that counts its runs, and answers with their number."""

    def __init__(self, make: Callable[[int], Response] | None = None) -> None:
        self.runs = 0
        self.make = make or (lambda run: JSONResponse({"run": run}, 201, {"x-run": str(run)}))
        self.seen: list[Idempotency | None] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.runs += 1
        self.seen.append(idempotency(StarletteRequest(scope)))
        await self.make(self.runs)(scope, receive, send)


def whose(conn: Connection) -> str:
    return conn.headers.get("x-user", "somebody")


def layer(app: ASGIApp, **options: Any) -> IdempotencyMiddleware:
    return IdempotencyMiddleware(app, **{"store": MemoryStore(), "partition": whose, **options})


async def post(app: ASGIApp, key: str | None = "k", **options: Any) -> Server:
    headers = dict(options.pop("headers", {}))
    if key is not None:
        headers["idempotency-key"] = key
    options = {"method": "POST", "body": b"{}", "headers": headers, **options}
    return await request(app, **options)


# -- the same request again ------------------------------------------------------------------


@pytest.mark.parametrize("between", [None, PassThrough], ids=["fused", "nested"])
async def test_a_request_that_was_sent_again(spec: str | None, between: Any) -> None:
    """Gets the same answer, marked as one, and the application is run once."""
    app = App()
    seen = []

    async def outer(conn: Connection) -> Flow:
        response = yield
        response.on_sent(lambda sent: seen.append((sent.status_code, sent.outcome)))

    inner: ASGIApp = layer(app)
    kept = HTTPMiddleware(between(inner) if between else inner, dispatch=outer)
    first, second = await post(kept, spec=spec), await post(kept, spec=spec)

    assert app.runs == 1
    assert (first.status, first.body) == (second.status, second.body) == (201, b'{"run":1}')
    assert second.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert second.headers["x-run"] == "1"
    assert seen == [(201, "completed")] * 2


async def test_keys_of_others_and_other_keys_are_apart() -> None:
    """Each partition has its own, and so has each key."""
    app = App()
    kept = layer(app)
    for key, user in (("k", "a"), ("k", "b"), ("l", "a")):
        await post(kept, key, headers={"x-user": user})

    assert app.runs == 3


async def test_without_a_key_and_with_other_methods_it_is_not_there() -> None:
    """Nothing is stored, and nothing is said."""
    app = App()
    kept = layer(app)
    for options in ({"key": None}, {"method": "GET"}, {"method": "PUT"}):
        first, second = await post(kept, **options), await post(kept, **options)
        assert first.status == second.status == 201

    assert app.runs == 6
    assert app.seen == [None] * 6


async def test_methods_and_the_field_are_options() -> None:
    """PUT as well, and a name of one's own."""
    app = App()
    kept = layer(app, methods=["PUT"], header_name="X-Once")
    for _ in range(2):
        await post(kept, None, method="PUT", headers={"x-once": "k"})

    assert app.runs == 1


@pytest.mark.parametrize("spec", ["2.3", "2.4"])
async def test_a_client_that_left_gets_the_answer_later(spec: str) -> None:
    """It is stored before its first byte goes out: that client is the one that asks again."""
    app = App()
    kept = layer(app)
    first = await post(kept, spec=spec, leaves_after=0, keep_error=True)
    second = await post(kept, spec=spec)

    assert first.sent == [] or spec == "2.3"
    assert app.runs == 1
    assert (second.status, second.body) == (201, b'{"run":1}')


async def test_the_answer_is_stored_before_its_first_byte() -> None:
    """As the server sees it."""
    order = []

    class Store(MemoryStore):
        async def complete(self, *args: Any, **options: Any) -> bool:
            order.append("stored")
            return await super().complete(*args, **options)

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        async def note(message: Message) -> None:
            order.append(message["type"])
            await send(message)

        await layer(App(), store=Store())(scope, receive, note)

    await post(noting)
    assert order == ["stored", "http.response.start", "http.response.body"]


async def test_the_body_is_still_there_for_the_application() -> None:
    """It was read to know what the request is."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        data = await StarletteRequest(scope, receive).body()
        await PlainTextResponse(data)(scope, receive, send)

    server = await post(layer(app), body=[b"a", b"b"])
    assert server.body == b"ab"


# -- other requests --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        {"body": b"{1}"},
        {"path": "/other"},
        {"query": "x=1"},
        {"method": "PATCH"},
        {"headers": {"content-type": "text/plain"}},
    ],
)
async def test_a_key_of_another_request_is_refused(other: Any) -> None:
    """With a 422; body, path, query, method and type make the request."""
    app = App()
    kept = layer(app, docs_url="https://docs.example/keys")
    await post(kept)
    server = await post(kept, **other)

    assert server.status == 422
    assert server.json()["code"] == "idempotency-key-reused"
    assert server.headers["link"] == '<https://docs.example/keys>; rel="describedby"'
    assert "retry-after" not in server.headers
    assert app.runs == 1


async def test_a_form_with_another_boundary_is_the_same() -> None:
    """A client makes one each time."""
    app = App()
    kept = layer(app)
    for boundary in ("one", "two"):
        form = (
            f'--{boundary}\r\ncontent-disposition: form-data; name="a"\r\n\r\n1\r\n--{boundary}--'
        )
        headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
        server = await post(kept, body=form.encode(), headers=headers)
        assert server.status == 201

    assert app.runs == 1


async def test_a_fingerprint_of_one_s_own() -> None:
    """Says what the request is."""
    app = App()

    async def fingerprint(conn: Connection) -> str:
        return str((await conn.json())["order"])

    kept = layer(app, fingerprint=fingerprint)
    answers = [
        (await post(kept, body=data)).status
        for data in (b'{"order": 1}', b'{"order": 1, "at": 2}', b'{"order": 2}')
    ]
    assert answers == [201, 201, 422]


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (b"8e03978e-40d5", "8e03978e-40d5"),
        (b'"8e03978e-40d5"', "8e03978e-40d5"),
        (b'"a\\"b";x=1', 'a"b'),
        (b" k ", "k"),
        (b"x" * 255, "x" * 255),
        (b"x" * 256, None),
        (b"", None),
        (b'""', None),
        (b'"a b"', None),
        (b"a b", None),
        (b'"open', None),
        (b"\xe4", None),
        (b'"a"b', None),
    ],
)
def test_keys_are_read(line: bytes, key: str | None) -> None:
    """Bare or as a String, with the same meaning; 1 to 255 visible characters."""
    assert _key_of(line) == key


async def test_what_is_no_key_is_refused() -> None:
    """With a 400; and several fields, and none where one is needed."""
    app = App()
    kept = layer(app, required=True)
    two = [("idempotency-key", "a"), ("idempotency-key", "b")]
    answers = [
        await post(kept, "a b"),
        await request(kept, method="POST", headers=two),
        await post(kept, None),
    ]
    codes = [each.json()["code"] for each in answers]

    assert [each.status for each in answers] == [400] * 3
    assert codes == ["idempotency-key-invalid"] * 2 + ["idempotency-key-required"]
    assert app.runs == 0


async def test_a_body_that_is_too_large_is_refused() -> None:
    """With a 413, and the application is not run."""
    app = App()
    server = await post(layer(app, max_request=10), body=b"x" * 11)

    assert (server.status, app.runs) == (413, 0)


async def test_a_partition_may_refuse() -> None:
    """As where it finds no account."""

    async def partition(conn: Connection) -> str:
        raise HTTPException(401)

    assert (await post(layer(App(), partition=partition))).status == 401


@pytest.mark.parametrize("option", ["partition", "fingerprint"])
async def test_what_a_function_gives_is_checked(option: str) -> None:
    """The error names the function."""

    def wrong(conn: Connection) -> Any:
        return None

    given: Any = {option: wrong}
    server = await post(layer(App(), **given), keep_error=True)
    assert "test_idempotency.py" in str(server.error)


# -- what is stored --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "runs"),
    [
        *((200, 1), (204, 1), (303, 1), (400, 1), (404, 1), (409, 1)),
        *((401, 2), (422, 2), (429, 2), (500, 2), (503, 2)),
    ],
)
async def test_by_status(status: int, runs: int) -> None:
    """What was done is stored; where nothing was done the key is let go."""
    app = App(lambda run: Response(status_code=status))
    kept = layer(app)
    answers = [await post(kept), await post(kept)]

    assert [each.status for each in answers] == [status] * 2
    assert app.runs == runs


async def test_the_statuses_are_an_option() -> None:
    """A function says which of them."""
    app = App(lambda run: Response(status_code=404))
    kept = layer(app, status=lambda status: status < 300)
    await post(kept)
    await post(kept)

    assert app.runs == 2


async def test_errors_as_answers() -> None:
    """With `errors="store"` a 500 is what there is to be had, also of an exception."""
    app = App(lambda run: Response(b"no", 500))
    kept = layer(app, errors="store")
    assert [(await post(kept)).body for _ in range(2)] == [b"no", b"no"]
    assert app.runs == 1

    def fail(run: int) -> Response:
        raise RuntimeError("of the application, with a secret")

    failing = App(fail)
    kept = layer(failing, errors="store")
    first = await post(kept, keep_error=True)
    second = await post(kept)
    assert isinstance(first.error, RuntimeError)
    assert (second.status, second.json()["title"]) == (500, "Internal Server Error")
    assert b"secret" not in second.body
    assert failing.runs == 1


async def test_an_exception_lets_the_key_go() -> None:
    """By default: where it rolls everything back that is right."""

    def make(run: int) -> Response:
        if run == 1:
            raise RuntimeError
        return PlainTextResponse("ok")

    app = App(make)
    kept = layer(app)
    await post(kept, keep_error=True)

    assert (await post(kept)).body == b"ok"


@pytest.mark.parametrize("raises", [False, True])
async def test_an_application_may_say_that_it_has_begun(raises: bool) -> None:
    """After `keep()` a failure does not let the key go."""
    runs = []

    async def endpoint(request: StarletteRequest) -> Response:
        known = idempotency(request)
        assert known is not None
        known.keep()
        runs.append(known.key)
        if raises:
            raise RuntimeError
        return Response(status_code=503)

    app = Starlette()
    app.add_route("/", endpoint, methods=["POST"])
    kept = layer(app)
    await post(kept, keep_error=True)
    server = await post(kept)

    assert runs == ["k"]
    assert server.status == (500 if raises else 503)


async def test_headers_of_one_moment_are_not_stored() -> None:
    """Nor those of one connection; repeated ones are all kept."""
    headers = [
        *((b"date", b"now"), (b"age", b"1"), (b"set-cookie", b"a=1"), (b"connection", b"close")),
        *((b"link", b"<a>"), (b"link", b"<b>"), (b"location", b"/x")),
    ]

    def make(run: int) -> Response:
        response = PlainTextResponse("ok")
        response.raw_headers.extend(headers)
        return response

    kept = layer(App(make))
    await post(kept)
    server = await post(kept)
    names = [name for name, _ in server.sent[0]["headers"]]

    assert names.count(b"link") == 2
    assert names.count(b"content-length") == 1
    assert b"location" in names
    assert not {b"date", b"age", b"set-cookie", b"connection"} & {*names}


async def test_layers_further_out_answer_for_themselves() -> None:
    """A replay has an id of its own, and is coded anew."""
    app = App(lambda run: PlainTextResponse("x" * 2000))
    kept = RequestIDMiddleware(CompressionMiddleware(layer(app)))
    first = await post(kept, headers={"accept-encoding": "gzip"})
    second = await post(kept)

    assert first.headers["content-encoding"] == "gzip"
    assert second.body == b"x" * 2000
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


@pytest.mark.parametrize("streams", [True, False])
async def test_a_stream_is_stored_where_it_ends(spec: str | None, streams: bool) -> None:
    """One of a type that does not stream; of events only that there was one."""
    kind = "text/event-stream" if streams else "text/plain"
    app = App(lambda run: StreamingResponse(Chunks(b"a", b"b"), media_type=kind))
    kept = layer(app)
    first, second = await post(kept, spec=spec), await post(kept, spec=spec)

    assert first.body == b"ab"
    assert app.runs == 1
    if streams:
        assert second.status == 409
        assert second.json()["code"] == "idempotency-not-replayable"
    else:
        assert second.body == b"ab"


async def test_events_are_not_held_back() -> None:
    """The first one is out before the second is there."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(headers=[(b"content-type", b"text/event-stream")]))
        await send(body(b"1", more=True))
        assert [each.get("body") for each in sent] == [None, b"1"]
        await send(body(b"2"))

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        async def note(message: Message) -> None:
            sent.append(message)
            await send(message)

        await layer(app)(scope, receive, note)

    assert (await post(noting)).body == b"12"


@pytest.mark.parametrize("why", ["large", "coded"])
async def test_what_cannot_be_given_again_is_not_run_again(why: str) -> None:
    """What is too large, or coded for one client; it goes out whole the first time."""
    coded = {"content-encoding": "gzip"} if why == "coded" else {}
    app = App(lambda run: PlainTextResponse("x" * 100, headers=coded))
    kept = layer(app, max_response=1000 if why == "coded" else 99)
    first, second = await post(kept), await post(kept)

    assert first.body == b"x" * 100
    assert (second.status, app.runs) == (409, 1)
    assert "retry-after" not in second.headers


async def test_a_failure_behind_the_answer_is_told(caplog: Any) -> None:
    """With the cure; the answer is kept, or released where the option says so."""

    def fail() -> None:
        raise RuntimeError("the commit")

    for late_failure, runs in (("keep", 1), ("release", 2)):
        caplog.clear()
        app = App(lambda run: PlainTextResponse("ok", background=BackgroundTask(fail)))
        kept = layer(app, late_failure=late_failure)
        first = await post(kept, keep_error=True)
        second = await post(kept, keep_error=True)
        assert (first.body, second.body) == (b"ok", b"ok")
        assert isinstance(first.error, RuntimeError)
        assert app.runs == runs
        assert 'scope="function"' in caplog.messages[0]


async def test_keys_expire() -> None:
    """And then it is another request."""
    app = App()
    store = MemoryStore()
    kept = layer(app, store=store, expires=60)
    await post(kept)
    now = store._now()
    store._now = lambda: now + 61_000_000  # type: ignore[method-assign]
    server = await post(kept, body=b"other")

    assert (server.status, app.runs) == (201, 2)


# -- at the same time ------------------------------------------------------------------------


class Gate:
    """An application that waits until it is let through."""

    def __init__(self) -> None:
        self.runs = 0
        self.entered = anyio.Event()
        self.opened = anyio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.runs += 1
        self.entered.set()
        await self.opened.wait()
        await PlainTextResponse(f"run {self.runs}")(scope, receive, send)


async def test_a_second_one_waits_for_the_first() -> None:
    """And gets its answer."""
    gate = Gate()
    kept = layer(gate)
    answers = []

    async def ask() -> None:
        answers.append(await post(kept))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await gate.entered.wait()
        group.start_soon(ask)
        await anyio.sleep(0.01)
        gate.opened.set()

    assert [each.body for each in answers] == [b"run 1", b"run 1"]
    assert gate.runs == 1


async def test_it_does_not_wait_for_ever() -> None:
    """A 409 with `Retry-After` after that."""
    gate = Gate()
    kept = layer(gate, wait=0)
    async with anyio.create_task_group() as group:
        group.start_soon(post, kept)
        await gate.entered.wait()
        server = await post(kept)
        gate.opened.set()

    assert server.status == 409
    assert server.json()["code"] == "idempotency-key-in-use"
    assert 1 <= int(server.headers["retry-after"]) <= 3


@pytest.mark.parametrize("on_unknown", ["rerun", "refuse"])
async def test_a_run_that_was_cancelled_is_unknown(on_unknown: Any) -> None:
    """And then the option decides."""
    gate = Gate()
    kept = layer(gate, on_unknown=on_unknown)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(post, kept)
            await gate.entered.wait()
            scope.cancel()
    gate.opened.set()
    server = await post(kept)

    if on_unknown == "rerun":
        assert (server.body, gate.runs) == (b"run 2", 2)
    else:
        assert (server.status, gate.runs) == (409, 1)
        assert server.json()["code"] == "idempotency-outcome-unknown"
        assert "retry-after" not in server.headers


async def test_a_time_limit_further_in_leaves_it_unknown() -> None:
    """Nobody knows how far a run came that was ended from outside."""
    gate = Gate()

    async def limited(conn: Connection) -> Flow:
        conn.fail_after(0.01)
        yield

    kept = layer(HTTPMiddleware(gate, dispatch=limited), on_unknown="refuse")
    await post(kept, keep_error=True)
    server = await post(kept)

    assert (server.status, gate.runs) == (409, 1)


async def test_tokens_grow() -> None:
    """With each run of a key, so that one that was taken for dead can be told."""
    app = App(lambda run: Response(status_code=500))
    kept = layer(app)
    for _ in range(3):
        await post(kept)
    tokens = [each.token for each in app.seen if each is not None]

    assert len({*tokens}) == 3
    assert tokens == sorted(tokens)


# Two requests of one key, in every order of up to four steps each: before and after the store is
# asked for a claim, before and after it is told of the end.
ORDERS = [
    "".join("a" if place in places else "b" for place in range(8))
    for places in itertools.combinations(range(8), 4)
]


class Stepped(MemoryStore):
    """A store each of whose calls, and each run, waits for its turn before and behind it."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = list(order)
        self.waiting: dict[str, anyio.Event] = {}

    async def turn(self, who: str) -> None:
        if self.order:
            self.waiting[who] = anyio.Event()
            await self.waiting[who].wait()

    async def claim(self, key: str, claim: str, *args: Any, **options: Any) -> Claim:
        who = WHO.get(claim) or WHO.setdefault(claim, "ab"[len(WHO) % 2])
        await self.turn(who)
        claimed = await super().claim(key, claim, *args, **options)
        await self.turn(who)
        return claimed

    async def complete(self, key: str, claim: str, *args: Any, **options: Any) -> bool:
        await self.turn(WHO[claim])
        done = await super().complete(key, claim, *args, **options)
        await self.turn(WHO[claim])
        return done

    async def release(self, key: str, claim: str, **options: Any) -> None:
        await self.turn(WHO[claim])
        await super().release(key, claim)
        await self.turn(WHO[claim])

    async def drive(self) -> None:
        """Give each its turns."""
        for who in [*self.order, *"ab" * 4]:
            for _ in range(8):
                await anyio.lowlevel.checkpoint()
            event = self.waiting.pop(who, None)
            if event is not None:
                event.set()
        self.order.clear()
        for event in self.waiting.values():
            event.set()


WHO: dict[str, str] = {}


@pytest.mark.parametrize("status", [201, 500])
async def test_two_at_once_in_every_order(status: int) -> None:
    """One of them is run at a time, whatever comes between; what was stored is not run again."""
    for order in ORDERS:
        WHO.clear()
        running = 0
        overlapped = False
        runs = 0

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal running, overlapped, runs
            running += 1
            runs += 1
            overlapped = overlapped or running > 1
            await anyio.lowlevel.checkpoint()
            running -= 1
            await Response(str(runs), status)(scope, receive, send)

        store = Stepped(order)
        kept = layer(app, store=store, wait=0)
        answers: list[Server] = []

        async def ask(kept: ASGIApp = kept, answers: list[Server] = answers) -> None:
            answers.append(await post(kept))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            group.start_soon(ask)
            group.start_soon(store.drive)

        assert not overlapped, order
        assert {each.status for each in answers} <= {status, 409}, order
        given = [each for each in answers if each.status == status]
        assert given, order
        if status == 201:
            assert runs == 1, order
            assert {each.body for each in given} == {b"1"}, order


# -- the store -------------------------------------------------------------------------------


class Broken(MemoryStore):
    """A store that fails at what it is told to fail at."""

    fails: str = ""
    asked = 0

    async def claim(self, *args: Any, **options: Any) -> Claim:
        self.asked += 1
        if self.fails == "claim":
            raise OSError("gone")
        return await super().claim(*args, **options)

    async def complete(self, *args: Any, **options: Any) -> bool:
        if self.fails == "complete":
            raise OSError("gone")
        if self.fails == "lost":
            return False
        return await super().complete(*args, **options)


async def test_without_the_store_requests_are_refused(caplog: Any) -> None:
    """With a 503, told once; each of them asks, as there is nothing else to go by."""
    app, store = App(), Broken()
    store.fails = "claim"
    kept = layer(app, store=store)
    server = await post(kept)
    await post(kept)

    assert (server.status, app.runs, store.asked) == (503, 0, 2)
    assert "retry-after" in server.headers
    assert len(caplog.messages) == 1
    store.fails = ""
    assert (await post(kept)).status == 201
    assert "is back" in caplog.messages[1]


async def test_open_runs_them_without_their_keys() -> None:
    """Where an answer matters more."""
    app, store = App(), Broken()
    store.fails = "claim"
    kept = layer(app, store=store, on_store_error="open")
    for _ in range(2):
        assert (await post(kept)).status == 201

    assert app.seen == [None, None]


@pytest.mark.parametrize("fails", ["complete", "lost"])
async def test_an_answer_that_cannot_be_stored_goes_out(fails: str, caplog: Any) -> None:
    """It was done; from then on nobody knows of it, and the log says so."""
    app, store = App(), Broken()
    store.fails = fails
    kept = layer(app, store=store, on_unknown="refuse")
    first = await post(kept)
    store.fails = ""

    assert (first.status, first.body) == (201, b'{"run":1}')
    assert "not known" in caplog.text if fails == "complete" else "not stored" in caplog.text
    assert (await post(kept)).status == 409


async def test_a_store_in_memory_that_is_full_refuses() -> None:
    """Keys and bytes are bounded, and nothing is forgotten before its time."""
    app = App(lambda run: PlainTextResponse("x" * 100))
    kept = layer(app, store=MemoryStore(max_keys=2))
    assert [(await post(kept, key)).status for key in "abcab"] == [200, 200, 503, 200, 200]
    kept = layer(app, store=MemoryStore(max_bytes=200))
    assert [(await post(kept, key)).status for key in "abcab"] == [200, 200, 503, 200, 200]


class Leased(MemoryStore):
    """A store with leases, which counts how often they are renewed."""

    asyncio_only = True

    def __init__(self) -> None:
        super().__init__()
        self.renewed = anyio.Event()
        self.count = 0
        self.released: list[str] = []
        self.hangs = False

    async def renew(self, *args: Any, **options: Any) -> bool:
        self.count += 1
        if self.count == 3:
            self.renewed.set()
        return await super().renew(*args, **options)

    async def claim(self, *args: Any, **options: Any) -> Claim:
        claimed = await super().claim(*args, **options)
        if self.hangs:
            await anyio.sleep_forever()
        return claimed

    async def release(self, key: str, claim: str, *, deadline: float = 0) -> None:
        self.released.append(claim)
        await super().release(key, claim)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_lease_is_renewed_while_a_request_runs() -> None:
    """And no longer."""
    store = Leased()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await store.renewed.wait()
        await PlainTextResponse("ok")(scope, receive, send)

    server = await post(layer(app, store=store, lease=0.2, store_timeout=0.05))
    count = store.count
    await anyio.sleep(0.3)

    assert server.body == b"ok"
    assert store.count == count


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_claim_that_was_given_up_is_taken_back() -> None:
    """Nobody runs for it, and the next one need not wait for its lease."""
    store = Leased()
    store.hangs = True
    app = App()
    kept = layer(app, store=store, store_timeout=0.2, on_unknown="refuse")
    assert (await post(kept)).status == 503
    await anyio.sleep(0.01)
    store.hangs = False

    assert len(store.released) == 1
    assert (await post(kept)).status == 201


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_client_of_asyncio_is_refused_on_trio() -> None:
    """In words."""
    server = await post(layer(App(), store=Leased()), keep_error=True)

    assert "runs on asyncio only" in str(server.error)


# -- FastAPI ---------------------------------------------------------------------------------


async def test_in_fastapi() -> None:
    """An endpoint has its key and its token, as a dependency or by itself."""
    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware, store=MemoryStore(), partition=whose)

    @app.post("/")
    async def endpoint(
        request: Request, known: Annotated[Idempotency | None, Depends(idempotency)]
    ) -> dict[str, Any]:
        assert known is idempotency(request)
        return {"key": known.key if known else None}

    first, second = await post(app), await post(app)
    assert first.json() == second.json() == {"key": "k"}
    assert second.headers["idempotent-replayed"] == "true"
    assert (await post(app, None)).json() == {"key": None}


# -- what a reviewer found -------------------------------------------------------------------


async def test_the_example_refuses_who_is_not_signed_in() -> None:
    """Else all of them would be one partition, and get one another's answers."""
    from starlette.authentication import SimpleUser, UnauthenticatedUser

    page = Path(__file__).parents[2] / "docs" / "ready" / "idempotency.md"
    block = page.read_text("utf-8").split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {"Connection": Connection, "FastAPI": FastAPI}
    exec(compile(block, str(page), "exec", dont_inherit=True), names)  # noqa: S102 - our own page

    class User(SimpleUser):
        identity = "7"

    for scope in ({}, {"user": UnauthenticatedUser()}):
        with pytest.raises(HTTPException) as refused:
            names["account"](Connection({"type": "http", "headers": [], **scope}))
        assert refused.value.status_code == 401
    signed_in = Connection({"type": "http", "headers": [], "user": User("x")})
    assert names["account"](signed_in) == "7"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("ticks", range(8))
async def test_a_claim_that_was_cancelled_at_any_turn_is_taken_back(ticks: int) -> None:
    """The application has not run, so the next one does, or it is known that nobody knows."""
    app = App()
    kept = layer(app, wait=0)
    await post(kept, "warm")
    task = asyncio.create_task(post(kept))
    for _ in range(ticks):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    for _ in range(20):
        await asyncio.sleep(0)

    assert (await post(kept)).status == 201


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_release_that_overtakes_its_claim_is_said_again() -> None:
    """A claim that was given up may be carried out until its deadline."""

    class Overtaken(MemoryStore):
        asyncio_only = True
        asked: asyncio.Event
        late: Any = None

        async def claim(self, *args: Any, **options: Any) -> Claim:
            if self.late is None:
                self.late = lambda: super(Overtaken, self).claim(*args, **options)
                self.asked.set()
                await asyncio.sleep(60)
            return await super().claim(*args, **options)

        async def release(self, *args: Any, **options: Any) -> None:
            await super().release(*args, **options)
            self.count = getattr(self, "count", 0) + 1
            if self.count == 1:
                await self.late()  # the server comes to it now
            self.released.set()

    store = Overtaken()
    store.asked, store.released = asyncio.Event(), asyncio.Event()  # type: ignore[attr-defined]
    kept = layer(App(), store=store, wait=0, store_timeout=0.1)
    task = asyncio.create_task(post(kept))
    await store.asked.wait()
    task.cancel()
    await asyncio.wait([task])
    await store.released.wait()  # type: ignore[attr-defined]
    store.released.clear()  # type: ignore[attr-defined]
    with anyio.fail_after(10):
        await store.released.wait()  # type: ignore[attr-defined]

    assert (await post(kept)).status == 201


async def test_a_key_does_not_expire_while_its_request_runs() -> None:
    """However short `expires` is: two runs at once are what the key is for."""
    gate, store = Gate(), MemoryStore()
    kept = layer(gate, store=store, expires=1, wait=0)
    async with anyio.create_task_group() as group:
        group.start_soon(post, kept)
        await gate.entered.wait()
        now = store._now()
        store._now = lambda: now + 5_000_000  # type: ignore[method-assign]
        with anyio.fail_after(5):  # a second run would wait at the gate
            server = await post(kept)
        gate.opened.set()

    assert (server.status, gate.runs) == (409, 1)


async def test_what_has_expired_behind_what_has_not_makes_room() -> None:
    """One store serves layers whose answers are kept for different times."""
    store = MemoryStore(max_keys=4)
    long, short = layer(App(), store=store), layer(App(), store=store, expires=1)
    await post(long, "long")
    for key in "abc":
        await post(short, key)
    now = store._now()
    store._now = lambda: now + 5_000_000  # type: ignore[method-assign]

    assert (await post(short, "d")).status == 201


@pytest.mark.parametrize("kind", [ClientDisconnect, lambda: DeadlineExceeded("total", 1)])
async def test_a_client_that_left_within_a_task_group_leaves_it_unknown(kind: Any) -> None:
    """A task group makes a group of it; it is as one that comes alone."""
    runs = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        runs.append(1)
        raise ExceptionGroup("in a task group", [ValueError("else"), kind()])

    kept = layer(app, wait=0, on_unknown="refuse")
    await post(kept, keep_error=True)

    assert (await post(kept)).status == 409
    assert len(runs) == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_call_that_never_ends_is_cancelled_less_and_less_often(monkeypatch: Any) -> None:
    """Else many of them would keep the loop busy for nothing."""
    pauses: list[float] = []
    task = asyncio.get_running_loop().create_future()
    loop = SimpleNamespace(call_later=lambda pause, *rest: pauses.append((pause, rest)))
    stuck = SimpleNamespace(done=lambda: False, cancel=lambda: None)
    arguments: Any = (stuck, loop, 0.02)
    for _ in range(20):
        _stores._cancel(*arguments)
        arguments = pauses[-1][1][1:]
    task.cancel()

    assert [round(pause, 2) for pause, _ in pauses[:3]] == [0.02, 0.04, 0.08]
    assert pauses[-1][0] == 5.0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_not_more_than_a_hundred_claims_are_taken_back_at_once() -> None:
    """A store that hangs does not gather tasks."""

    class Hanging(MemoryStore):
        asyncio_only = True
        asked = 0

        async def claim(self, *args: Any, **options: Any) -> Claim:
            raise OSError("gone")

        async def release(self, *args: Any, **options: Any) -> None:
            self.asked += 1
            await asyncio.sleep(60)

    store = Hanging()
    kept = layer(App(), store=store)
    for number in range(120):
        await post(kept, str(number))
    await asyncio.sleep(0)

    assert store.asked == 100


@pytest.mark.parametrize("option", ["expires", "lease", "wait", "store_timeout"])
def test_a_time_without_end_is_refused(option: str) -> None:
    """No store can keep it."""
    with pytest.raises(TypeError, match=f"`{option}` must be"):
        layer(App(), **{option: math.inf})


async def test_methods_may_come_from_a_generator() -> None:
    """They are read once."""
    app = App()
    kept = layer(app, methods=(each for each in ("POST",)))
    await post(kept)
    await post(kept)

    assert app.runs == 1


async def test_a_replay_is_told_to_limits_further_out() -> None:
    """Its time says nothing of the application's."""
    counted = Counted(None, None)
    kept = layer(App())

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        await kept({**scope, COUNTED: counted}, receive, send)

    await post(outer)
    assert not counted.is_refused
    await post(outer)
    assert counted.is_refused


async def test_tokens_of_a_store_in_memory_grow_over_a_reboot() -> None:
    """The application has them in its own database: a clock that begins anew would be behind."""
    claim = await MemoryStore().claim("k", "a", "f", expires=60, rerun=True)

    assert claim.token > 1_700_000_000_000_000


# -- options and random input ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"store": "redis://"}, "`store` must be"),
        ({"partition": None}, "`partition` must be"),
        ({"partition": "user"}, "`partition` must be"),
        ({"fingerprint": 3}, "`fingerprint` must be"),
        ({"methods": "POST"}, '`methods=["POST"]`'),
        ({"methods": 5}, '`methods=["POST"]`'),
        ({"methods": ["post"]}, '`methods=["POST"]`'),
        ({"header_name": "a b"}, "name of a field"),
        ({"required": 1}, "a bool"),
        ({"expires": 0}, "more than 0"),
        ({"wait": -1}, "0 or more"),
        ({"lease": 3, "store_timeout": 1}, "three times"),
        ({"on_unknown": "x"}, '"rerun" or "refuse"'),
        ({"errors": "x"}, '"release" or "store"'),
        ({"late_failure": "x"}, '"keep" or "release"'),
        ({"on_store_error": "x"}, '"closed" or "open"'),
        ({"status": 200}, "plain function"),
        ({"max_request": -1}, "number of bytes"),
        ({"max_response": "1"}, "number of bytes"),
        ({"docs_url": "docs"}, "absolute URL"),
    ],
)
def test_options_are_checked(options: Any, words: str) -> None:
    """A wrong one is refused where the layer is made."""
    with pytest.raises(TypeError, match=re.escape(words)):
        layer(App(), **options)


async def test_whatever_a_client_says() -> None:
    """Random keys and types raise nothing, and are no 500."""
    chosen = random.Random(7)
    kept = layer(App())
    parts = [b'"', b"\\", b";", b"a", b" ", b"\xff", b"\t", b"=", b"multipart/x; boundary=", b"--"]
    for _ in range(150):
        lines = [
            (name, b"".join(chosen.choices(parts, k=chosen.randrange(6))))
            for name in (b"idempotency-key", b"content-type")
        ]
        server = await request(kept, method="POST", headers=lines, body=b"".join(parts))
        assert server.status in (201, 400, 422)
