"""`RateLimitMiddleware`: how many requests each client may send, and what it is told."""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.authentication import UnauthenticatedUser
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from httpmw import Connection, Flow, HTTPMiddleware
from httpmw.middleware import (
    MemoryStore,
    ProblemDetailsMiddleware,
    RateLimitMiddleware,
    StoreError,
    client_address,
    rate_limit,
)
from httpmw.middleware import _stores as stores
from httpmw.middleware._gcra import SECOND, policies_of
from httpmw.middleware._refuse import COUNTED, Counted, tell_shed
from httpmw.testing import Server
from httpmw.testing.driving._socket import DENIES, SocketServer
from tests.harness import PassThrough

ok = PlainTextResponse("ok")


async def ask(
    app: ASGIApp, *, host: str | None = "9.9.9.9", fails: bool = False, **options: Any
) -> Server:
    """Ask *app* from an address, None: from none."""
    server = Server(**options)
    server.scope["client"] = None if host is None else (host, 50000)
    return await server.run(app, keep_error=fails)


async def statuses(app: ASGIApp, count: int, **options: Any) -> list[int]:
    return [(await ask(app, **options)).status for _ in range(count)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time of every `MemoryStore`, in microseconds; one item, to be changed."""
    now = [1_000 * SECOND]
    monkeypatch.setattr(MemoryStore, "_now", lambda self: now[0])
    return now


# -- how many pass ---------------------------------------------------------------------------


@pytest.mark.parametrize("between", [None, PassThrough], ids=["fused", "nested"])
async def test_one_too_many_is_refused(spec: str | None, between: Any) -> None:
    """With a 429, for that client alone; layers further out see the response."""
    seen = []

    async def outer(conn: Connection) -> Flow:
        response = yield
        response.on_sent(lambda sent: seen.append((sent.status_code, sent.outcome)))

    inner: ASGIApp = RateLimitMiddleware(ok, limit="2/minute")
    app = HTTPMiddleware(between(inner) if between else inner, dispatch=outer)

    assert await statuses(app, 3, spec=spec) == [200, 200, 429]
    assert await statuses(app, 1, spec=spec, host="203.0.113.8") == [200]
    assert seen == [(200, "completed")] * 2 + [(429, "completed"), (200, "completed")]


async def test_the_application_is_not_run_for_it() -> None:
    """And the rest of the upload is received before the answer."""
    runs = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        runs.append(1)
        await ok(scope, receive, send)

    limited = RateLimitMiddleware(app, limit="1/minute")
    await ask(limited)
    server = await ask(limited, method="POST", body=[b"x"] * 5)

    assert (server.status, server.receives, len(runs)) == (429, 5, 1)


async def test_units_come_back_one_by_one(clock: list[int]) -> None:
    """One each interval, and never more than the burst."""
    app = RateLimitMiddleware(ok, limit="3/minute")
    assert await statuses(app, 4) == [200, 200, 200, 429]

    clock[0] += 20 * SECOND - 1
    assert await statuses(app, 1) == [429]
    clock[0] += 1
    assert await statuses(app, 2) == [200, 429]
    clock[0] += 3600 * SECOND
    assert await statuses(app, 4) == [200, 200, 200, 429]


async def test_a_burst_of_one_paces(clock: list[int]) -> None:
    """Requests come one by one, as far apart as the limit says."""
    app = RateLimitMiddleware(ok, limit="60/minute", burst=1)

    assert await statuses(app, 2) == [200, 429]
    clock[0] += SECOND
    assert await statuses(app, 2) == [200, 429]


async def test_several_limits_are_taken_together_or_not_at_all(clock: list[int]) -> None:
    """What one of them refuses costs nothing of the other."""
    app = RateLimitMiddleware(ok, limit="2/second; 5/hour")
    assert await statuses(app, 4) == [200, 200, 429, 429]

    clock[0] += SECOND
    assert await statuses(app, 3) == [200, 200, 429]
    clock[0] += SECOND
    server = await ask(app)
    assert server.status == 200
    assert server.headers["ratelimit"].startswith('"default-1";r=1;t=1, "default-3600";r=0;t=')
    assert await statuses(app, 1) == [429]


@pytest.mark.parametrize("seed", range(20))
def test_no_more_pass_than_burst_and_rate_allow(seed: int, clock: list[int]) -> None:
    """In any span of time: at most burst + t * quota / window, whatever comes when."""
    chosen = random.Random(seed)
    policy = policies_of(
        f"{chosen.randint(1, 50)}/{chosen.randint(1, 9)} seconds", chosen.randint(1, 20), "x"
    )
    store = MemoryStore()
    passed = []
    for _ in range(600):
        clock[0] += chosen.choice([0, 0, 1, 1000, SECOND // 20, SECOND])
        cost = chosen.choice([1, 1, 1, 2, 3])
        if not store.take_now("k", policy, cost)[0].wait:
            passed += [clock[0]] * cost

    for first in range(len(passed)):
        for last in range(first, len(passed)):
            span = passed[last] - passed[first]
            most = policy[0].burst + span * policy[0].quota / (policy[0].window * SECOND)
            assert last - first + 1 <= most


async def test_a_request_may_cost_more(clock: list[int]) -> None:
    """The cost is a number or a function, also `async def`."""

    async def cost(conn: Connection) -> int:
        await anyio.lowlevel.checkpoint()
        return int(conn.headers["x-cost"])

    app = RateLimitMiddleware(ok, limit="10/minute", cost=cost)

    assert (await ask(app, headers={"x-cost": "7"})).status == 200
    refused = await ask(app, headers={"x-cost": "5"})
    assert refused.status == 429
    assert refused.headers["retry-after"] == "12"
    assert (await ask(app, headers={"x-cost": "3"})).status == 200
    assert (await ask(app, headers={"x-cost": "0"})).status == 200


async def test_what_can_never_pass_is_not_asked_to_come_back() -> None:
    """A request that costs more than all has no `Retry-After`."""
    server = await ask(RateLimitMiddleware(ok, limit="10/minute", cost=11))

    assert server.status == 429
    assert "retry-after" not in server.headers
    assert "more than can be had at once" in server.json()["detail"]


async def test_units_can_be_given_back() -> None:
    """For responses of which the function says so: all of them, some, or none."""
    back: list[bool | int] = [True, 1, False, 0]
    app = RateLimitMiddleware(ok, limit="10/hour", cost=2, refund=lambda response: back.pop(0))
    left = []
    for _ in range(4):
        await ask(app)
        server = await ask(RateLimitMiddleware(ok, limit="10/hour", cost=0, store=app.store))
        left.append(server.headers["ratelimit"].split(";")[1])

    assert left == ["r=10", "r=9", "r=7", "r=5"]


async def test_what_was_shed_further_in_is_given_back() -> None:
    """A request for which nothing was done costs nothing."""

    async def shedding(conn: Connection) -> Flow:
        tell_shed(conn)
        yield PlainTextResponse("busy", 503)

    for between in (lambda app: app, PassThrough):
        inner = RateLimitMiddleware(HTTPMiddleware(ok, dispatch=shedding), limit="1/hour")
        app = RateLimitMiddleware(between(inner), limit="1/hour")
        assert await statuses(app, 3) == [503, 503, 503]


@pytest.mark.parametrize("status", [304, 404, 500])
async def test_whatever_is_answered_counts(status: int) -> None:
    """Not found and not modified, too."""
    app = RateLimitMiddleware(PlainTextResponse(status_code=status), limit="1/minute")

    assert await statuses(app, 2, method="HEAD") == [status, 429]


# -- who is counted --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:0:12ff::1", "2001:db8:0:1200::/56"),
        ("2001:db8:0:1234:5:6:7:8", "2001:db8:0:1200::/56"),
        ("fe80::1%eth0", "fe80::/56"),
        ("testclient", "testclient"),
    ],
)
def test_the_address(host: str, client: str) -> None:
    """IPv6 by its network, IPv4 in IPv6 as itself, without zones."""
    scope = {"type": "http", "client": (host, 1), "headers": []}

    assert client_address(Connection(scope)) == client


async def test_the_networks_of_ipv6_are_an_option() -> None:
    """Two addresses of one network are one client, by as many bits as is said."""
    for prefix, second in ((56, 429), (64, 200)):
        app = RateLimitMiddleware(ok, limit="1/minute", ipv6_prefix=prefix)
        assert await statuses(app, 1, host="2001:db8::1") == [200]
        assert await statuses(app, 1, host="2001:db8:0:1::1") == [second]


async def test_without_an_address_nobody_is_counted_with_others() -> None:
    """It is an error that names the cures, and no bucket for all."""
    server = await ask(RateLimitMiddleware(ok, limit="1/minute"), host=None, fails=True)

    assert isinstance(server.error, RuntimeError)
    assert "--proxy-headers" in str(server.error)
    assert "`key=`" in str(server.error)
    with pytest.raises(RuntimeError, match="`key=`"):
        client_address(Connection({"type": "http", "client": None, "headers": []}))


async def test_a_key_of_one_s_own(caplog: Any) -> None:
    """A function, also `async def`; for None the request is not counted."""

    async def key(conn: Connection) -> str | None:
        await anyio.lowlevel.checkpoint()
        return conn.headers.get("x-user")

    app = RateLimitMiddleware(ok, limit="1/minute", key=key)

    assert await statuses(app, 3, host=None) == [200, 200, 200]
    assert await statuses(app, 2, headers={"x-user": "a"}) == [200, 429]
    assert await statuses(app, 1, headers={"x-user": "b"}) == [200]
    assert "ratelimit" not in (await ask(app)).headers


async def test_an_address_without_a_host_is_none() -> None:
    """Some servers give it for a Unix socket."""
    server = await ask(RateLimitMiddleware(ok, limit="1/minute"), host="", fails=True)

    assert "`key=`" in str(server.error)
    with pytest.raises(RuntimeError, match="`key=`"):
        client_address(Connection({"type": "http", "client": ("", 0), "headers": []}))


async def test_the_key_of_the_docs_keeps_apart_who_is_not_signed_in() -> None:
    """Starlette has a user without a name for all of them."""
    page = Path(__file__).parents[2] / "docs" / "ready" / "rate-limit.md"
    found = re.compile(r"^def user_or_address.*?(?=\n\n)", re.MULTILINE | re.DOTALL)
    source = found.search(page.read_text("utf-8"))
    assert source is not None
    names: dict[str, Any] = {"Connection": Connection, "client_address": client_address}
    exec(source[0], names)  # noqa: S102 - it is ours
    limited = RateLimitMiddleware(ok, limit="1/hour", key=names["user_or_address"])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await limited({**scope, "user": UnauthenticatedUser()}, receive, send)

    assert await statuses(app, 2) == [200, 429]
    assert await statuses(app, 1, host="203.0.113.8") == [200]


async def test_a_key_that_is_no_text_is_an_error() -> None:
    """The message names the function."""

    def key(conn: Connection) -> Any:
        return 7

    server = await ask(RateLimitMiddleware(ok, limit="1/minute", key=key), fails=True)

    assert "Return a text, or None." in str(server.error)
    assert "test_rate_limit.py" in str(server.error)


async def test_a_proxy_that_is_taken_for_all_clients_is_told_of_once(caplog: Any) -> None:
    """Where it stands near and says for whom it asks."""
    app = RateLimitMiddleware(ok, limit="9/minute")
    await ask(app, host="10.0.0.5")
    await ask(app, headers={"x-forwarded-for": "198.51.100.1"})
    assert not caplog.messages

    for _ in range(2):
        await ask(app, host="10.0.0.5", headers={"x-forwarded-for": "198.51.100.1"})
    assert len(caplog.messages) == 1
    assert "--forwarded-allow-ips=10.0.0.5" in caplog.messages[0]


async def test_names_keep_layers_on_one_store_apart() -> None:
    """Two with one name are one, with two names they are two."""
    store = MemoryStore()
    for name, second in (("one", 429), ("two", 200)):
        first = RateLimitMiddleware(ok, limit="1/minute", store=store, name="one")
        other = RateLimitMiddleware(ok, limit="1/minute", store=store, name=name)
        host = f"host-{name}"
        assert await statuses(first, 1, host=host) == [200]
        assert await statuses(other, 1, host=host) == [second]


async def test_a_layer_that_is_made_again_goes_on() -> None:
    """Where the store was given to it."""
    store = MemoryStore()
    layers = [RateLimitMiddleware(ok, limit="1/minute", store=store) for _ in range(2)]

    assert [(await ask(layer)).status for layer in layers] == [200, 429]


# -- what a client is told -------------------------------------------------------------------


async def test_the_fields_of_the_draft(clock: list[int]) -> None:
    """What is left, until when, and of how much."""
    app = RateLimitMiddleware(ok, limit="2/minute", name="api")
    answers = [await ask(app) for _ in range(3)]

    assert [each.headers["ratelimit-policy"] for each in answers] == ['"api-60";q=2;w=60'] * 3
    assert [each.headers["ratelimit"] for each in answers] == [
        '"api-60";r=1;t=30',
        '"api-60";r=0;t=30',
        '"api-60";r=0;t=30',
    ]
    assert answers[2].headers["retry-after"] == "30"
    assert "retry-after" not in answers[1].headers
    assert answers[2].headers["content-type"] == "application/problem+json"
    assert answers[2].json() == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Too Many Requests",
        "status": 429,
        "detail": "Too many requests.",
        "code": "rate-limited",
        "violated-policies": ["api-60"],
    }


async def test_a_refusal_names_only_what_has_refused(clock: list[int]) -> None:
    """A client has to wait for that alone."""
    app = RateLimitMiddleware(ok, limit=["1/second", "9/hour"])
    await ask(app)
    server = await ask(app)

    assert server.headers["ratelimit"] == '"default-1";r=0;t=1'
    assert server.headers["retry-after"] == "1"


async def test_no_redirect_tells_of_the_last_unit() -> None:
    """A client would follow it at once, and be refused."""
    app = RateLimitMiddleware(RedirectResponse("/x"), limit="2/hour")

    assert "ratelimit" in (await ask(app)).headers
    assert "ratelimit" not in (await ask(app)).headers


async def test_layers_add_to_each_other_s_fields() -> None:
    """Each has its policy in the list."""
    inner = RateLimitMiddleware(ok, limit="5/hour", name="user")
    server = await ask(RateLimitMiddleware(inner, limit="9/minute", name="address"))

    assert server.headers["ratelimit-policy"] == '"user-3600";q=5;w=3600, "address-60";q=9;w=60'


async def test_the_fields_that_many_clients_know() -> None:
    """Limit, remaining and reset of what is nearest to its end; and no others."""
    app = RateLimitMiddleware(ok, limit="5/hour; 2/minute", headers="legacy")
    server = await ask(app)

    assert server.headers["x-ratelimit-limit"] == "2"
    assert server.headers["x-ratelimit-remaining"] == "1"
    assert int(server.headers["x-ratelimit-reset"]) > 1_700_000_000
    assert "ratelimit" not in server.headers


async def test_without_fields() -> None:
    """There is nothing of the draft, and `Retry-After` all the same."""
    app = RateLimitMiddleware(ok, limit="1/hour", headers=False)
    first, second = await ask(app), await ask(app)

    assert not [name for name in first.headers if "ratelimit" in name]
    assert second.json()["type"] == "about:blank"
    assert "violated-policies" not in second.json()
    assert second.headers["retry-after"] == "3600"


async def test_an_event_source_is_told_to_ask_again() -> None:
    """When it may; to a 429 a browser never does."""
    app = RateLimitMiddleware(ok, limit="1/hour", burst=1)
    await ask(app)
    server = await ask(app, headers={"accept": "text/event-stream"})

    assert (server.status, server.body) == (200, b"retry: 3600000\n\n")


async def test_an_event_source_gets_the_fields_as_well(clock: list[int]) -> None:
    """Its response is one of this layer's, whatever its status is."""
    app = RateLimitMiddleware(ok, limit="1/hour")
    await ask(app)
    server = await ask(app, headers={"accept": "text/event-stream"})

    assert server.headers["ratelimit"] == '"default-3600";r=0;t=3600'


async def test_what_asks_for_events_by_a_post_is_no_event_source() -> None:
    """It is refused as any upload is: by a status, and its body is received."""
    app = RateLimitMiddleware(ok, limit="1/hour")
    await ask(app)
    headers = {"accept": "text/event-stream"}
    server = await ask(app, method="POST", headers=headers, body=[b"x"] * 5)

    assert (server.status, server.receives) == (429, 5)


@pytest.mark.parametrize("headers", [{}, {"accept": "text/event-stream"}], ids=["429", "events"])
@pytest.mark.parametrize("path", ["/", "/dependency"])
async def test_limits_further_out_know_what_was_refused(headers: Any, path: str) -> None:
    """It is no work of the application's, and tells nothing of how long that takes."""
    told = []

    async def outer(conn: Connection) -> Flow:
        counted = conn.scope[COUNTED] = Counted(None, None)
        yield
        told.append(counted.is_refused)

    app = FastAPI()
    limit = "1/hour" if path == "/" else "9/hour"
    app.add_middleware(RateLimitMiddleware, limit=limit)
    app.add_middleware(HTTPMiddleware, dispatch=outer)
    app.get("/")(lambda: "ok")
    app.get("/dependency", dependencies=[Depends(rate_limit("1/hour"))])(lambda: "ok")
    for _ in range(2):
        await ask(app, path=path, headers=headers)

    assert told == [False, True]


async def test_the_response_is_an_option() -> None:
    """Its status and `Retry-After` are the layer's own."""
    app = RateLimitMiddleware(
        ok, limit="1/hour", response=lambda conn, problem: PlainTextResponse("slow down", 429)
    )
    await ask(app)
    server = await ask(app)

    assert (server.body, server.headers["retry-after"]) == (b"slow down", "3600")


@pytest.mark.parametrize("extensions", [DENIES, {}])
async def test_handshakes_count(extensions: Any) -> None:
    """They take a unit, and are refused by a response or by a close."""

    async def accepting(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})

    app = RateLimitMiddleware(accepting, limit="1/minute")
    first = await SocketServer(extensions=extensions).run(app)
    second = await SocketServer(extensions=extensions).run(app)

    assert first.sent[0]["type"] == "websocket.accept"
    if extensions:
        assert second.sent[0]["status"] == 429
        assert (b"retry-after", b"60") in second.sent[0]["headers"]
    else:
        assert second.sent[0]["type"] == "websocket.close"


# -- each route ------------------------------------------------------------------------------


async def test_of_one_route() -> None:
    """As the layer of a route, like any middleware."""
    limited = [Middleware(RateLimitMiddleware, limit="1/minute")]
    app = Starlette(
        routes=[
            Route("/dear", lambda request: ok, middleware=limited),
            Route("/cheap", lambda request: ok),
        ]
    )

    assert await statuses(app, 2, path="/dear") == [200, 429]
    assert await statuses(app, 2, path="/cheap") == [200, 200]


def routed(**options: Any) -> FastAPI:
    app = FastAPI()
    app.add_middleware(RateLimitMiddleware, limit="100/minute", **options)
    router = APIRouter(prefix="/r")

    @router.get("/{n}", dependencies=[Depends(rate_limit("2/minute"))])
    async def of_itself(n: int) -> str:
        return "ok"

    for path in ("/a", "/b"):
        shared = Depends(rate_limit("1/minute", name="shared"))
        app.get(path, dependencies=[shared])(lambda: "ok")
    app.include_router(router)
    return app


async def test_a_dependency_of_fastapi() -> None:
    """Counts each route for itself, whatever its parameters are; named ones together."""
    app = routed()

    assert await statuses(app, 3, path="/r/1") == [200, 200, 429]
    assert await statuses(app, 1, path="/r/2") == [429]
    assert await statuses(app, 1, path="/r/2", host="203.0.113.9") == [200]
    assert await statuses(app, 1, path="/a") == [200]
    assert await statuses(app, 1, path="/b") == [429]


async def test_the_layer_has_the_fields_of_the_dependency() -> None:
    """Beside its own, and of a refusal those of what has refused alone."""
    app = ProblemDetailsMiddleware(routed())
    first, _, third = [await ask(app, path="/r/1") for _ in range(3)]

    assert first.headers["ratelimit-policy"] == '"default-60";q=100;w=60, "route-60";q=2;w=60'
    assert third.headers["ratelimit"].startswith('"route-60";r=0;t=')
    assert third.headers["retry-after"] == "30"
    assert third.json()["detail"] == "Too many requests."


async def test_a_dependency_without_a_layer_is_an_error() -> None:
    """The message has the layer to write."""
    app = FastAPI()
    app.get("/", dependencies=[Depends(rate_limit("1/minute"))])(lambda: "ok")
    server = await ask(app, fails=True)

    assert "app.add_middleware(RateLimitMiddleware" in str(server.error)


@pytest.mark.parametrize(
    "aside",
    [{"exclude": ["/"]}, {"when": lambda conn: False}, {"key": lambda conn: None}],
    ids=["exclude", "when", "key"],
)
@pytest.mark.parametrize("between", [None, PassThrough], ids=["fused", "nested"])
async def test_a_dependency_leaves_alone_what_the_layer_does(aside: Any, between: Any) -> None:
    """It is no error: there is a layer around the route."""
    app = FastAPI()
    if between:
        app.add_middleware(between)
    app.add_middleware(RateLimitMiddleware, limit="9/minute", **aside)
    app.get("/", dependencies=[Depends(rate_limit("1/minute"))])(lambda: "ok")

    assert await statuses(app, 2) == [200, 200]


async def test_a_key_of_a_dependency_may_say_that_nobody_is_counted() -> None:
    """As that of the layer."""
    app = FastAPI()
    app.add_middleware(RateLimitMiddleware, limit="9/minute")
    limited = rate_limit("1/minute", key=lambda conn: conn.headers.get("x-user"))
    app.get("/", dependencies=[Depends(limited)])(lambda: "ok")

    assert await statuses(app, 2) == [200, 200]
    assert await statuses(app, 2, headers={"x-user": "a"}) == [200, 429]


async def test_a_key_of_a_dependency_that_is_no_text_is_an_error() -> None:
    """The message names the function."""
    app = FastAPI()
    app.add_middleware(RateLimitMiddleware, limit="9/minute")
    wrong: Any = lambda conn: 7  # noqa: E731 - the place is what counts
    app.get("/", dependencies=[Depends(rate_limit("1/minute", key=wrong))])(lambda: "ok")
    server = await ask(app, fails=True)

    assert "Return a text, or None." in str(server.error)
    assert "test_rate_limit.py" in str(server.error)


def test_a_burst_of_a_dependency_is_named_where_it_is_wrong() -> None:
    """And not the limit."""
    with pytest.raises(TypeError, match="`burst`"):
        rate_limit("5/minute", burst=0)


# -- without the store -----------------------------------------------------------------------


class Broken:
    """A store that fails, hangs or works, and counts how often it is asked."""

    def __init__(self) -> None:
        self.works: bool | str = False
        self.asked = 0
        self.inner = MemoryStore()

    def check(self, policies: Any, *, refunds: bool) -> None:
        return None

    async def take(self, key: str, policies: Any, cost: int, deadline: float) -> Any:
        self.asked += 1
        if self.works == "hangs":
            await anyio.sleep_forever()
        if not self.works:
            raise OSError("gone")
        return await self.inner.take(key, policies, cost)

    async def give_back(self, key: str, policies: Any, cost: int, deadline: float) -> None:
        self.asked += 1
        await self.inner.give_back(key, policies, cost)


@pytest.mark.parametrize("works", [False, "hangs"])
async def test_limits_are_counted_here_meanwhile(works: Any, caplog: Any) -> None:
    """The store is asked once, and then left alone; the log says so once."""
    store = Broken()
    store.works = works
    app = RateLimitMiddleware(ok, limit="2/minute", store=store, store_timeout=0.01)

    assert await statuses(app, 4) == [200, 200, 429, 429]
    assert store.asked == 1
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "Broken has failed" in caplog.messages[0]
    assert "limits are counted in this process" in caplog.messages[0]


async def test_a_store_that_is_back_is_asked_again(caplog: Any, monkeypatch: Any) -> None:
    """By one call first, and then by all; the log says for how long it was gone."""
    now = 1000.0
    monkeypatch.setattr(stores, "time", SimpleNamespace(monotonic=lambda: now))
    store = Broken()
    app = RateLimitMiddleware(ok, limit="9/minute", store=store, retry_store=30, store_timeout=9)
    await statuses(app, 3)
    assert store.asked == 1

    now += 31
    await statuses(app, 2)
    assert store.asked == 2  # it has failed again

    now += 31
    store.works = True
    await statuses(app, 3)
    assert store.asked == 5
    assert len(caplog.messages) == 2
    assert "Broken is back after 62.0 s, in which 5 calls went without it" in caplog.messages[1]


async def test_one_call_alone_asks_whether_it_is_back(monkeypatch: Any) -> None:
    """The others do not wait for that."""
    store = Broken()
    app = RateLimitMiddleware(ok, limit="99/minute", store=store, retry_store=30, store_timeout=9)
    await statuses(app, 1)
    now = stores.time.monotonic() + 31
    monkeypatch.setattr(stores, "time", SimpleNamespace(monotonic=lambda: now))
    store.works = "hangs"

    with anyio.move_on_after(0.05):
        await statuses(app, 1)
    assert store.asked == 2
    assert await statuses(app, 3) == [200, 200, 200]
    assert store.asked == 2


async def test_closed(caplog: Any) -> None:
    """A 503 with `Retry-After` where a limit matters more than an answer."""
    store = Broken()
    app = RateLimitMiddleware(ok, limit="9/minute", store=store, on_store_error="closed")
    server = await ask(app)

    assert server.status == 503
    assert server.headers["retry-after"] == "1"
    assert server.json()["code"] == "store-unavailable"
    assert "requests are refused" in caplog.messages[0]


async def test_a_dependency_is_closed_as_well() -> None:
    """It is the layer that says what happens without its store."""
    store = Broken()
    app = routed(store=store, on_store_error="closed", exclude=["/a"])
    assert await statuses(app, 1, path="/r/1") == [503]
    store.works = True


async def test_what_is_given_back_is_not_waited_for() -> None:
    """Nobody's response waits for that; on trio it cannot be done aside."""
    store = Broken()
    store.works = True
    app = RateLimitMiddleware(
        ok, limit="1/hour", store=store, store_timeout=9, refund=lambda response: True
    )

    for n in range(3):
        assert await statuses(app, 1) == [200]
        while store.asked < 2 * n + 2:
            await anyio.lowlevel.checkpoint()
    assert store.asked == 6


async def test_a_request_that_is_cancelled_leaves_the_store(monkeypatch: Any) -> None:
    """The call ends with it, and nothing is left behind."""
    store = Broken()
    store.works = "hangs"
    app = RateLimitMiddleware(ok, limit="9/minute", store=store, store_timeout=30)

    with anyio.move_on_after(0.02) as scope:
        await ask(app)
    await anyio.sleep(0.01)

    assert scope.cancelled_caught
    assert not stores._given_up


async def test_a_client_that_ignores_a_cancellation_holds_nobody() -> None:
    """It is cancelled again and again until it is gone."""
    cancelled = []

    async def stubborn() -> None:
        while len(cancelled) < 3:
            try:
                await anyio.sleep_forever()
            except BaseException as exc:
                cancelled.append(exc)
                if stores.running_loop() is None:
                    raise

    with pytest.raises(StoreError, match=r"no answer in 0\.01 s"):
        await stores.within(0.01, stubborn)
    if stores.running_loop() is not None:
        await asyncio.wait(stores._given_up)
        assert len(cancelled) == 3


# -- in memory -------------------------------------------------------------------------------


def test_what_has_come_to_rest_makes_room(clock: list[int]) -> None:
    """There are never more keys than that, and no key is dropped that still says something."""
    store = MemoryStore(max_keys=10)
    policy = policies_of("2/minute", None, "x")
    assert not store.take_now("first", policy, 2)[0].wait
    for n in range(100):
        store.take_now(f"flood {n}", policy, 1)

    assert len(store._times) <= 11
    assert store.take_now("first", policy, 1)[0].wait
    clock[0] += 61 * SECOND
    for n in range(100):
        assert not store.take_now(f"late {n}", policy, 1)[0].wait or n >= 10


def test_a_clock_that_was_set_back_locks_nobody_out(clock: list[int]) -> None:
    """A key waits for its room at most."""
    store = MemoryStore()
    policy = policies_of("2/minute", None, "x")
    store.take_now("k", policy, 2)
    clock[0] -= 900 * SECOND

    assert store.take_now("k", policy, 1)[0].wait <= 60


def test_who_has_used_one_of_his_limits_is_known_by_it(clock: list[int]) -> None:
    """When the store is full and another of his limits has come to rest, he gets no other's."""
    store = MemoryStore(max_keys=4)
    policies = policies_of("5/second; 3/hour", None, "x")
    assert not store.take_now("bob", policies, 3)[1].wait
    clock[0] += 2 * SECOND
    for n in range(3):
        store.take_now(f"flood {n}", policies_of("1/day", None, "x"), 1)

    assert store.take_now("bob", policies, 1)[1].wait


def test_a_refusal_mends_what_a_clock_that_was_set_back_has_left(clock: list[int]) -> None:
    """So that who waits as long as he is told passes."""
    store = MemoryStore()
    policy = policies_of("2/minute", None, "x")
    store.take_now("k", policy, 2)
    clock[0] -= 900 * SECOND

    assert store.take_now("k", policy, 1)[0].wait == 30
    clock[0] += 30 * SECOND
    assert not store.take_now("k", policy, 1)[0].wait


def test_the_server_s_time_is_never_late() -> None:
    """Each answer makes a bound of what may be; one that contradicts it makes a new one."""
    clock = stores.Clock()
    clock.learn(10, 12, 111)  # 99 to 101 ahead
    assert clock.at(20) == 119
    clock.learn(12, 12.5, 112.25)  # 99.75 to 100.25
    assert clock.at(20) == 119.75
    clock.learn(13, 23, 113)  # 90 to 100: it says nothing new
    assert clock.at(20) == 119.75
    clock.learn(30, 31, 80)  # it was set back
    assert clock.at(40) == 89


def test_hashes() -> None:
    """No two lists of parts have one name, and there are no characters but digits and letters."""
    lists = [("a", "b"), ("a:1", "b"), ("ab",), ("a", "", "b"), ("a\0b",), ("1:a1:b",), ("\ud800",)]
    names = {stores.hashed(*parts) for parts in lists}

    assert len(names) == len(lists)
    assert all(len(name) == 32 and name.isalnum() for name in names)


# -- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "read"),
    [
        ("100/minute", [(100, 60)]),
        ("5 per hour", [(5, 3600)]),
        ("10/10 minutes", [(10, 600)]),
        ("10/second;1000/hour", [(10, 1), (1000, 3600)]),
        (["1/Day", "2/2 days"], [(1, 86400), (2, 172800)]),
    ],
)
def test_limits_are_read(limit: Any, read: Any) -> None:
    """In the notation of the package `limits`, all of them."""
    assert [(each.quota, each.window) for each in policies_of(limit, None, "x")] == read


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limit": "100/minutes/x"}, '"100/minute"'),
        ({"limit": "100/m"}, "not '100/m'"),
        ({"limit": ""}, '"100/minute"'),
        ({"limit": "0/minute"}, "more than 0"),
        ({"limit": "1/0 minutes"}, "more than 0"),
        ({"limit": "200000/second"}, "at most 100000"),
        ({"limit": "1/minute;2/60 seconds"}, "different windows"),
        ({"limit": 5}, '"100/minute"'),
        ({"limit": [5]}, '"100/minute"'),
        ({"limit": "1/minute", "burst": 0}, "a burst of 1 or more"),
        ({"limit": "1/minute", "burst": [1, 2]}, "one burst for each"),
        ({"limit": "1/minute", "burst": True}, "a burst of 1 or more"),
        ({"limit": "1/minute", "key": "client"}, "`key` must be a function"),
        ({"limit": "1/minute", "cost": -1}, "`cost` must be"),
        ({"limit": "1/minute", "refund": 1}, "`refund` must be"),
        ({"limit": "1/minute", "name": 'a"b'}, "without quotes"),
        ({"limit": "1/minute", "name": ""}, "printable ASCII"),
        ({"limit": "1/minute", "store": "redis://localhost"}, "`store` must be a store"),
        ({"limit": "1/minute", "store_timeout": 0}, "seconds, more than 0"),
        ({"limit": "1/minute", "retry_store": "1"}, "seconds, more than 0"),
        ({"limit": "1/minute", "retry_store": float("inf")}, "seconds, more than 0"),
        ({"limit": "1/minute", "store_timeout": float("nan")}, "seconds, more than 0"),
        ({"limit": "1/minute", "on_store_error": "ignore"}, '"open" or "closed"'),
        ({"limit": "1/minute", "ipv6_prefix": 0}, "1 to 128"),
        ({"limit": "1/minute", "headers": True}, '"draft", "legacy" or False'),
        ({"limit": "1/minute", "event_stream": 3}, '"retry" or "status"'),
    ],
)
def test_options_are_checked(options: Any, words: str) -> None:
    """A wrong one is refused where the layer is made."""
    with pytest.raises(TypeError) as caught:
        RateLimitMiddleware(ok, **options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"limit": "x"}, {"key": 3}, {"cost": -1}, {"cost": True}, {"name": "\n"}]
)
def test_options_of_the_dependency_are_checked(options: Any) -> None:
    """As those of the layer."""
    with pytest.raises(TypeError):
        rate_limit(**{"limit": "1/minute", **options})


@pytest.mark.parametrize("option", ["cost", "refund"])
async def test_what_a_function_gives_is_checked(option: str) -> None:
    """The error names the function."""

    def wrong(given: Any) -> Any:
        return "1"

    given: Any = {option: wrong}
    server = await ask(RateLimitMiddleware(ok, limit="1/minute", **given), fails=True)

    assert "test_rate_limit.py" in str(server.error)


async def test_an_exception_of_a_key_answers() -> None:
    """As every `HTTPException` of a middleware does."""

    def key(conn: Connection) -> str:
        raise HTTPException(401)

    assert (await ask(RateLimitMiddleware(ok, limit="1/minute", key=key))).status == 401


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_a_client_says(seed: int) -> None:
    """Random addresses, keys and headers raise nothing."""
    chosen = random.Random(seed)
    app = RateLimitMiddleware(ok, limit="3/minute; 5/hour", key=lambda conn: conn.headers["x"])
    plain = RateLimitMiddleware(ok, limit="1000/minute")
    for _ in range(60):
        text = "".join(chr(chosen.randrange(256)) for _ in range(chosen.randrange(1, 20)))
        assert (await ask(app, headers=[(b"x", text.encode("latin-1"))])).status in (200, 429)
        host = chosen.choice([text, f"fe80::{text}", f"{text}%{text}", "::1", "::ffff:1.2.3.4"])
        assert (await ask(plain, host=host)).status == 200
