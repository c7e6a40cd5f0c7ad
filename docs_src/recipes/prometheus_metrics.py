import time

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
)
from prometheus_client import generate_latest as render
from starlette.requests import Request
from starlette.responses import Response

from httpmw import Connection, Flow

from .route_template import route_template

registry = CollectorRegistry()
requests = Counter(
    "http_requests",
    "Requests.",
    ["method", "route", "status", "outcome"],
    registry=registry,
)
seconds = Histogram(
    "http_request_seconds",
    "Seconds to the last byte.",
    ["method", "route"],
    registry=registry,
)
sent = Counter(
    "http_sent_bytes", "Bytes of body.", ["method", "route"], registry=registry
)


# A client can send any word.
METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}


async def metrics(conn: Connection) -> Flow:
    started = time.perf_counter()
    method = conn.method if conn.method in METHODS else "other"
    status, outcome, size = "500", "failed", 0
    response = None
    try:
        response = yield
        yield response
    finally:
        if response is not None:
            status, outcome = str(response.status_code), str(response.outcome)
            size = response.bytes_sent
        route = route_template(conn)
        requests.labels(method, route, status, outcome).inc()
        seconds.labels(method, route).observe(time.perf_counter() - started)
        sent.labels(method, route).inc(size)


async def metrics_page(request: Request) -> Response:
    return Response(
        render(registry), headers={"content-type": CONTENT_TYPE_LATEST}
    )
