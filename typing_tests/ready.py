"""
The layers that are ready to import. Checked by mypy and pyrefly, never run.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any, assert_type
from uuid import uuid4

from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket

from httpmw import Connection, MiddlewareStack
from httpmw.middleware import (
    CORS_ALLOW,
    CORS_EXPOSE,
    REDACTED_KEYS,
    AccessLogMiddleware,
    AccessRecord,
    AdaptiveLimit,
    Claim,
    CompressionMiddleware,
    ConcurrencyLimitMiddleware,
    CrossOriginProtectionMiddleware,
    CSPNonce,
    ETagMiddleware,
    Idempotency,
    IdempotencyMiddleware,
    IdempotencyStore,
    InspectorMiddleware,
    LimitsStore,
    MemoryStore,
    OpenTelemetryMetricsMiddleware,
    PostgresStore,
    Problem,
    ProblemDetailsMiddleware,
    PrometheusMiddleware,
    RateLevel,
    RateLimitMiddleware,
    RatePolicy,
    RateStore,
    RedisStore,
    RequestIDFilter,
    RequestIDMiddleware,
    SecurityHeadersMiddleware,
    ServerTiming,
    ServerTimingMiddleware,
    TimeoutMiddleware,
    add_request_id,
    client_address,
    idempotency,
    metrics_endpoint,
    problem_responses,
    rate_limit,
    recommended,
    request_id,
    route_template,
    timing,
    trace_id,
)

app = FastAPI()

# Registered in every way, with options.

app.add_middleware(
    RequestIDMiddleware,
    header_name="x-correlation-id",
    generator=lambda: uuid4().hex,
    validator=str.isalnum,
    transformer=str.lower,
    trust=lambda conn: "x-proxy" in conn.headers,
    exclude=["/health"],
)
Starlette(middleware=[Middleware(RequestIDMiddleware, sentry=True, websocket=False)])
MiddlewareStack(app).add(Middleware(RequestIDMiddleware, exclude=lambda conn: True))
RequestIDMiddleware(app, from_traceparent=True)


def level(record: AccessRecord) -> int:
    assert_type(record.status, int | None)
    return 10 if record.route == "/health" else 20


app.add_middleware(
    AccessLogMiddleware,
    logger=logging.getLogger("shop"),
    format="ecs",
    level=level,
    fields=lambda conn, response: {"status": response and response.status_code},
    query="redacted",
    redact=[*REDACTED_KEYS, "email"],
    client="prefix",
    sample=0.1,
)
AccessLogMiddleware(app, format=lambda record: f"{record.method} {record.path}")
AccessLogMiddleware(app, format="apache")  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
app.add_middleware(
    PrometheusMiddleware,
    names="pfi",
    labels={"tenant": lambda conn: conn.headers.get("x-tenant")},
    outcome_label=True,
)
app.add_middleware(OpenTelemetryMetricsMiddleware, buckets=[0.1, 1], body_sizes=True)
app.add_route("/metrics", metrics_endpoint())


class OutOfStockError(Problem):
    def __init__(self, item: str) -> None:
        super().__init__(409, code="out-of-stock", item=item)


def out_of_stock(conn: Connection, exc: KeyError) -> Problem:
    return OutOfStockError(str(exc))


async def gone(conn: Connection, exc: Exception) -> int:
    return 410


app.add_middleware(
    ProblemDetailsMiddleware,
    handlers={KeyError: out_of_stock, LookupError: gone},
    instance=lambda conn: None,
    include=["request_id", "trace_id"],
)
FastAPI(responses=problem_responses(404, 422))

app.add_middleware(ServerTimingMiddleware, enabled=lambda conn: "x" in conn.headers, total=None)


def measures(request: Request) -> None:
    assert_type(timing(request), ServerTiming)
    with timing(request).measure("db", "PostgreSQL"):
        timing(request).add("cache", 0.1)


app.add_middleware(
    SecurityHeadersMiddleware,
    preset="strict",
    csp={"img-src": ["'self'", "data:"], "sandbox": True, "object-src": False},
    csp_nonce=["script-src"],
    permissions_policy={"camera": "(self)", "usb": False},
    hsts=False,
    docs=["/v1/docs"],
)
SecurityHeadersMiddleware(app, csp="default-src 'self'", coep="require-corp", preset=None)
SecurityHeadersMiddleware(app, preset="best")  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
SecurityHeadersMiddleware(app, hsts=True)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
assert_type(CSPNonce().is_used, bool)


def refused(conn: Connection, problem: Problem) -> PlainTextResponse:
    return PlainTextResponse(problem.code, problem.status)


app.add_middleware(
    CrossOriginProtectionMiddleware,
    trusted_origins=["https://a.example"],
    response=refused,
    drain={"max_size": 1_000_000, "seconds": 0.5},
    when=lambda conn: "cookie" in conn.headers,
)
CrossOriginProtectionMiddleware(app, drain=False, require_origin=True)
CrossOriginProtectionMiddleware(app, drain=3)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]


async def current(conn: Connection) -> str | None:
    return '"v1"'


app.add_middleware(ETagMiddleware, weak=False, hash=lambda body: str(len(body)))
ETagMiddleware(app, current=current, require_condition=True, cache_control="no-cache")
ETagMiddleware(app, current=lambda conn: "v1")  # type: ignore[arg-type,return-value]  # pyrefly: ignore[bad-argument-type]
app.add_middleware(CompressionMiddleware, codings=["br", "gzip"], flush="always", etag="weaken")
CompressionMiddleware(app, flush=True)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
app.add_middleware(TimeoutMiddleware, start=None, idle=1, total=2.5, upload_idle=3, status=503)
TimeoutMiddleware(app, event_stream="retry", response=refused)
recommended(cors={"allow_headers": CORS_ALLOW, "expose_headers": CORS_EXPOSE}, timeout={"start": 5})
FastAPI(middleware=recommended(access_log={"format": "json"}, request_id=False, cors={}))
MiddlewareStack(app, recommended())
recommended(access_log="json")  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]

app.add_middleware(
    InspectorMiddleware,
    path="/look",
    enabled=True,
    allow=lambda conn: conn.client is not None,
    keep=50,
    headers=["x-request-id"],
)
InspectorMiddleware(app, keep="50")  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]


async def key(conn: Connection) -> str | None:
    return client_address(conn, ipv6_prefix=64)


memory = MemoryStore(max_keys=1000)
app.add_middleware(
    RateLimitMiddleware,
    limit=["10/second", "1000/hour"],
    burst=[5, 1000],
    key=key,
    cost=lambda conn: 2,
    refund=lambda response: not response.bytes_sent,
    store=memory,
    headers="legacy",
    on_store_error="closed",
)
store: RateStore = memory
store = RedisStore(object())
store = LimitsStore(object(), strategy="fixed-window")
FastAPI(dependencies=[Depends(rate_limit("5/minute", name="all"))])
RateLimitMiddleware(app, limit="1/minute", store=3)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
RateLimitMiddleware(app)  # type: ignore[call-arg]  # pyrefly: ignore[missing-argument]


app.add_middleware(
    ConcurrencyLimitMiddleware,
    limit=AdaptiveLimit(min=2, max=50, initial=10, tolerance=2),
    max_queue=10,
    hold="body",
    partition=lambda conn: conn["path"],
)
ConcurrencyLimitMiddleware(app, limit="5")  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]


async def account(conn: Connection) -> str:
    return "account"


keys: IdempotencyStore = memory
keys = RedisStore(object())
keys = PostgresStore(object(), table="keys")
app.add_middleware(
    IdempotencyMiddleware,
    store=keys,
    partition=account,
    wait=0,
    on_unknown="refuse",
    errors="store",
    status=bool,
    fingerprint=account,
)
IdempotencyMiddleware(app, store=memory)  # type: ignore[call-arg]  # pyrefly: ignore[missing-argument]
IdempotencyMiddleware(app, store=LimitsStore(object()), partition=account)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]


async def keyed(request: Request, known: Idempotency | None) -> None:
    assert_type(idempotency(request), Idempotency | None)
    claim = await memory.claim("k", "c", "f", expires=1, rerun=True)
    assert_type(claim, Claim)


async def levels(policies: list[RatePolicy]) -> None:
    assert_type(await memory.take("k", policies, 1), list[RateLevel])


# Options of another type.

PrometheusMiddleware(app, names="starlette")  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
ProblemDetailsMiddleware(app, include=["user"])  # type: ignore[list-item]  # pyrefly: ignore[bad-argument-type]
Problem("404")  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]

app.add_middleware(RequestIDMiddleware, header_name=b"x")  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
RequestIDMiddleware(app, generator=lambda: 7)  # type: ignore[arg-type,return-value]  # pyrefly: ignore[bad-argument-type]
RequestIDMiddleware(app, colour="red")  # type: ignore[call-arg]  # pyrefly: ignore[unexpected-keyword]

# The names beside it.

assert_type(request_id, ContextVar[str | None])
assert_type(trace_id.get(), str | None)
logging.StreamHandler().addFilter(RequestIDFilter(length=8))
add_request_id(None, "info", {"event": "x"})


def names(
    conn: Connection, request: Request, websocket: WebSocket, any_state: Connection[Any]
) -> None:
    assert_type(route_template(conn), str | None)
    route_template(request)
    route_template(websocket)
    route_template(any_state)
