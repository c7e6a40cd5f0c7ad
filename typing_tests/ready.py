"""
The layers that are ready to import. Checked by mypy and pyrefly, never run.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any, assert_type
from uuid import uuid4

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.websockets import WebSocket

from httpmw import Connection, MiddlewareStack
from httpmw.middleware import (
    REDACTED_KEYS,
    AccessLogMiddleware,
    AccessRecord,
    InspectorMiddleware,
    OpenTelemetryMetricsMiddleware,
    Problem,
    ProblemDetailsMiddleware,
    PrometheusMiddleware,
    RequestIDFilter,
    RequestIDMiddleware,
    ServerTiming,
    ServerTimingMiddleware,
    add_request_id,
    metrics_endpoint,
    problem_responses,
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
