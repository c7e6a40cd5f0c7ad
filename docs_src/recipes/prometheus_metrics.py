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

from httpmw import AppResponse, Connection, Flow

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

    def count(status: int, outcome: str, size: int, ended: float) -> None:
        route = route_template(conn)
        requests.labels(method, route, str(status), outcome).inc()
        seconds.labels(method, route).observe(ended - started)
        sent.labels(method, route).inc(size)

    def done(response: AppResponse) -> None:
        ended = response.ended_at or time.perf_counter()
        outcome = str(response.outcome)
        count(response.status_code, outcome, response.bytes_sent, ended)

    try:
        response = yield
    except BaseException:
        count(500, "failed", 0, time.perf_counter())
        raise
    response.on_sent(done)  # the last byte, or none any more


async def metrics_page(request: Request) -> Response:
    return Response(
        render(registry), headers={"content-type": CONTENT_TYPE_LATEST}
    )
