from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from httpmw import AppResponse, Connection, Flow

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
    span = tracer.start_span(
        conn.method,
        context=propagate.extract(conn.headers),
        kind=SpanKind.SERVER,
        attributes={
            "http.request.method": conn.method,
            "url.path": conn.url.path,
        },
    )

    def done(sent: AppResponse) -> None:
        span.set_attribute("http.response.body.size", sent.bytes_sent)
        if sent.outcome in ("completed", "disconnected"):
            span.end()  # with the last byte; background tasks come later

    try:
        with trace.use_span(span):  # notes what is raised
            response = yield
            route = route_template(conn)
            span.update_name(f"{conn.method} {route}")
            span.set_attribute("http.route", route)
            status = response.status_code
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                span.set_status(Status(StatusCode.ERROR))
            response.on_sent(done)
            yield response  # what the app streams is inside of the span
    finally:
        if span.is_recording():
            span.end()
