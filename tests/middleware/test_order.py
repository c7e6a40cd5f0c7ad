"""In which order the layers stand that are ready to import, and what is said of a wrong one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse

from httpmw import MiddlewareStack, _order
from httpmw._exchange import runs_as_adapter
from httpmw.middleware import (
    CORS_ALLOW,
    CORS_EXPOSE,
    AccessLogMiddleware,
    CompressionMiddleware,
    ConcurrencyLimitMiddleware,
    CrossOriginProtectionMiddleware,
    ETagMiddleware,
    IdempotencyMiddleware,
    MemoryStore,
    OrderWarning,
    ProblemDetailsMiddleware,
    RateLimitMiddleware,
    RequestIDMiddleware,
    SecurityHeadersMiddleware,
    ServerTimingMiddleware,
    TimeoutMiddleware,
    recommended,
)
from tests.harness import PassThrough, request

ok = PlainTextResponse("ok")
KEYS: dict[str, Any] = {"store": MemoryStore(), "partition": lambda conn: "somebody"}
CORS: dict[str, Any] = {"allow_origins": ["https://x.example"]}


@pytest.fixture(autouse=True)
def nothing_was_said() -> Iterator[None]:
    """Each test hears all warnings, and no other test hears less."""
    before = set(_order._said)
    _order._said.clear()
    yield
    _order._said.clear()
    _order._said.update(before)


def names(layers: list[Middleware]) -> list[str]:
    return [layer.cls.__name__ for layer in layers]


def test_the_order() -> None:
    """All that can be asked for comes in its order, and nothing is said of it."""
    layers = recommended(
        request_id=True,
        access_log={"format": "json"},
        prometheus=True,
        server_timing={"enabled": True},
        security_headers={"preset": "api"},
        cors=CORS,
        problem_details=True,
        cross_origin={"trusted_origins": CORS["allow_origins"]},
        rate_limit={"limit": "100/minute"},
        concurrency_limit={"limit": 100},
        timeout={"start": 5},
        compression=True,
        idempotency=KEYS,
        etag=True,
    )

    assert names(layers) == [
        "RequestIDMiddleware",
        "AccessLogMiddleware",
        "PrometheusMiddleware",
        "ServerTimingMiddleware",
        "SecurityHeadersMiddleware",
        "CORSMiddleware",
        "ProblemDetailsMiddleware",
        "CrossOriginProtectionMiddleware",
        "RateLimitMiddleware",
        "ConcurrencyLimitMiddleware",
        "TimeoutMiddleware",
        "CompressionMiddleware",
        "IdempotencyMiddleware",
        "ETagMiddleware",
    ]
    Starlette(middleware=layers).build_middleware_stack()
    MiddlewareStack(ok, layers)
    assert layers[1].kwargs == {"format": "json"}


async def test_what_is_not_asked_for_is_left_out() -> None:
    """What asks for no decision is there by default; each can be left out."""
    assert names(recommended()) == [
        "RequestIDMiddleware",
        "AccessLogMiddleware",
        "SecurityHeadersMiddleware",
        "ProblemDetailsMiddleware",
        "CompressionMiddleware",
        "ETagMiddleware",
    ]
    defaults = ("request_id", "access_log", "security_headers", "problem_details")
    left_out: Any = dict.fromkeys((*defaults, "compression", "etag"), False)
    assert recommended(**left_out) == []

    app = FastAPI(middleware=recommended())
    server = await request(app, path="/nowhere")
    assert server.status == 404
    assert "x-request-id" in server.headers
    assert server.headers["content-type"] == "application/problem+json"


async def test_the_first_ones_fuse() -> None:
    """Up to CORS they are one layer, and so is what is further in."""
    app = Starlette(middleware=recommended(server_timing=True))
    await request(app, path="/nowhere")

    first = app.middleware_stack.app  # type: ignore[union-attr]
    assert runs_as_adapter(first)
    functions, inner, _ = first._httpmw
    assert len(functions) == 7
    assert not runs_as_adapter(inner)


@pytest.mark.parametrize("options", [{"access_log": "json"}, {"cors": True}, {"request_id": 3}])
def test_what_is_asked_for_is_checked(options: Any) -> None:
    """Neither a bool nor options: the error names what was asked for."""
    [name] = options
    with pytest.raises(TypeError, match=rf"recommended\({name}="):
        recommended(**options)


WRONG = [
    (ProblemDetailsMiddleware, AccessLogMiddleware, "as one without a response"),
    (ProblemDetailsMiddleware, CORSMiddleware, "no CORS headers"),
    (AccessLogMiddleware, AccessLogMiddleware, "two lines"),
    (CrossOriginProtectionMiddleware, CORSMiddleware, "no CORS headers"),
    (TimeoutMiddleware, CORSMiddleware, "no CORS headers"),
    (ETagMiddleware, CORSMiddleware, "no CORS headers"),
    (CompressionMiddleware, CompressionMiddleware, "coded once"),
    (SecurityHeadersMiddleware, SecurityHeadersMiddleware, "never seen"),
]


@pytest.mark.parametrize(("outer", "inner", "words"), WRONG)
def test_a_wrong_order_is_warned_about_once(outer: Any, inner: Any, words: str) -> None:
    """Where the application builds its layers, with the reason, and not again."""
    layers = [Middleware(outer), Middleware(PassThrough), Middleware(inner)]
    app = Starlette(middleware=layers)
    with pytest.warns(OrderWarning, match=words) as caught:
        app.build_middleware_stack()
    assert len(caught) == 1
    assert outer.__name__ in str(caught[0].message)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        app.build_middleware_stack()


@pytest.mark.parametrize(("outer", "inner", "words"), WRONG)
def test_in_a_stack(outer: Any, inner: Any, words: str) -> None:
    """An edit of a stack that makes a wrong order is warned about."""
    stack = MiddlewareStack(ok, [Middleware(PassThrough), Middleware(inner)])
    with pytest.warns(OrderWarning, match=words):
        stack.add(Middleware(outer))


def test_an_order_that_does_no_harm() -> None:
    """Of all others nothing is said."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for layers in (
            recommended(cors=CORS, server_timing=True),
            [Middleware(AccessLogMiddleware), Middleware(RequestIDMiddleware)],
            [Middleware(CORSMiddleware), Middleware(ProblemDetailsMiddleware)],
            [Middleware(ServerTimingMiddleware), Middleware(AccessLogMiddleware)],
        ):
            Starlette(middleware=layers).build_middleware_stack()
            MiddlewareStack(ok, layers)


@pytest.mark.parametrize("compressor", [GZipMiddleware, CompressionMiddleware])
def test_a_tag_outside_of_compression_is_warned_about(compressor: Any) -> None:
    """Of ours and of Starlette's: the tag would be that of coded bytes."""
    layers = [Middleware(ETagMiddleware), Middleware(compressor)]
    with pytest.warns(OrderWarning, match="the tag is that of the coded bytes"):
        Starlette(middleware=layers).build_middleware_stack()


def test_two_compressors_are_warned_about() -> None:
    """Whoever has made them."""
    with pytest.warns(OrderWarning, match="coded once"):
        CompressionMiddleware(GZipMiddleware(ok))


def test_rate_limits_that_count_in_one_place_are_warned_about() -> None:
    """With two names, or two stores, they are apart."""
    store = MemoryStore()
    inner = RateLimitMiddleware(ok, limit="1/minute", store=store)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RateLimitMiddleware(inner, limit="1/hour", store=store, name="other")
        RateLimitMiddleware(inner, limit="1/hour")
    with pytest.warns(OrderWarning, match="each request counts twice"):
        RateLimitMiddleware(inner, limit="1/hour", store=store)
    with pytest.warns(OrderWarning, match="no CORS headers"):
        RateLimitMiddleware(CORSMiddleware(ok, **CORS), limit="1/hour")


def test_places_of_idempotency() -> None:
    """Inside of compression and of a time limit, outside of a tag."""
    for layer in (GZipMiddleware(ok), TimeoutMiddleware(ok), CORSMiddleware(ok, **CORS)):
        with pytest.warns(OrderWarning):
            IdempotencyMiddleware(layer, **KEYS)
    with pytest.warns(OrderWarning, match="412 in place of its answer"):
        ETagMiddleware(IdempotencyMiddleware(ok, **KEYS))


def test_places_of_a_limit_of_concurrency() -> None:
    """Outside of a time limit, and once."""
    inner = ConcurrencyLimitMiddleware(ok, limit=5)
    with pytest.warns(OrderWarning, match="whose thread still runs"):
        TimeoutMiddleware(inner)
    with pytest.warns(OrderWarning, match="waits for two slots"):
        ConcurrencyLimitMiddleware(inner, limit=5)


async def test_lists_for_cors() -> None:
    """A page of another origin may send and read what these layers take and give."""
    options = {"allow_headers": CORS_ALLOW, "expose_headers": CORS_EXPOSE}
    app = CORSMiddleware(ok, allow_origins=["https://x.example"], allow_methods=["*"], **options)
    asked = ", ".join(name.lower() for name in CORS_ALLOW)
    told = [
        ("origin", "https://x.example"),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", asked),
    ]
    allowed = await request(app, method="OPTIONS", headers=told)
    read = await request(app, headers=told[:1])

    assert allowed.status == 200
    assert {*read.headers["access-control-expose-headers"].split(", ")} == {*CORS_EXPOSE}
