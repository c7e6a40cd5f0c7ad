from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from httpmw import Connection, Flow

from .route_template import route_template

tracer = trace.get_tracer("shop")


def traced(conn: Connection) -> Flow | None:
    # FastAPI makes one itself, from 0.143 on, as an instrumentation does: one is
    # enough, sampled or not. One that has ended is another request's.
    span = trace.get_current_span()
    sampled = span.get_span_context().trace_flags.sampled
    unsampled = span.get_span_context().is_valid and not sampled
    return None if span.is_recording() or unsampled else in_a_span(conn)


async def in_a_span(conn: Connection) -> Flow:
    with tracer.start_as_current_span(
        conn.method,
        context=propagate.extract(conn.headers),
        kind=SpanKind.SERVER,
        attributes={
            "http.request.method": conn.method,
            "url.path": conn.url.path,
        },
    ) as span:
        response = yield
        route = route_template(conn)
        span.update_name(f"{conn.method} {route}")
        span.set_attribute("http.route", route)
        span.set_attribute("http.response.status_code", response.status_code)
        if response.status_code >= 500:
            span.set_status(Status(StatusCode.ERROR))
        yield response  # the span ends with the last byte
        span.set_attribute("http.response.body.size", response.bytes_sent)
