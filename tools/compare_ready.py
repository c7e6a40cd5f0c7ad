"""
The tables "How it compares" of docs/ready/: the layers of httpmw and those that people use.

    make compare-ready                     run all, write the tables
    make compare-ready ARGS="--check"      only say whether ours is right in each cell

Everybody stands around the same application and gets the same requests (`tools.ready_cases`), in
one run. A cell says what was seen, and is marked where that is right by the rule of its kind, which
is in the docstring of the function that judges. All stand in the same place: around the whole
application, unless a package adds itself to it. Exits with 1 where ours is wrong in a cell.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import anyio
from fastapi import FastAPI
from starlette.types import ASGIApp

import httpmw
from httpmw.middleware import (
    AccessLogMiddleware,
    CompressionMiddleware,
    CrossOriginProtectionMiddleware,
    ETagMiddleware,
    OpenTelemetryMetricsMiddleware,
    ProblemDetailsMiddleware,
    PrometheusMiddleware,
    RequestIDMiddleware,
    SecurityHeadersMiddleware,
    request_id,
)
from tools.ready_cases import CASES, LARGE, PARTS, PLAIN, SECRET, TAG, Case, Seen, application, ask

PAGES = Path(__file__).parent.parent / "docs" / "ready"
OURS = "httpmw"


class Judged(NamedTuple):
    """A cell."""

    is_right: bool
    words: str


@dataclass
class Contender:
    """
    Somebody's layer around the application.

    Args:
        app: What the server asks.
        observe: Gives what the layer has written down elsewhere since it was asked last.
        note: Gives what code of the application would find in a variable of the layer.
    """

    app: ASGIApp
    observe: Callable[[], Any] = lambda: None
    note: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Kind:
    """
    A kind of layer.

    Args:
        page: The page of docs/ready/ that has its table.
        contenders: By name, what puts each around an application; ours is the first.
        judge: Says of what was seen, and observed, whether it is right.
        cases: The requests.
        packages: The distributions whose versions are said.
    """

    page: str
    contenders: dict[str, Callable[[FastAPI], Contender]]
    judge: Callable[[Seen, Any], Judged]
    cases: Sequence[Case] = CASES
    packages: tuple[str, ...] = ()


# ---------------------------------------------------------------------- request id


def ids(seen: Seen, _: Any) -> Judged:
    """
    Judge an id.

    One header on whatever is answered, with the id that the application and the log of the server
    have.
    """
    given = seen.values("x-request-id")
    known = seen.noted[0] if seen.noted else None
    words = "its id" if len(given) == 1 else "no id" if not given else f"{len(given)} ids"
    is_right = len(given) == 1
    if is_right and known not in (None, given[0]):
        is_right, words = False, "another id than in the app"
    if not seen.starts:
        is_right = bool(known)
        words = "nothing to have one; the app has it" if is_right else "the app has none"
        if seen.case.is_websocket and is_right:
            words = "a close has no headers; the app has it"
    if seen.raised is not None:
        has_it = seen.at_server is not None and seen.at_server == known
        words += ", the server's log too" if has_it else ", the server's log has none"
        is_right = is_right and has_it
    return Judged(is_right, words)


def our_ids(app: FastAPI) -> Contender:
    return Contender(RequestIDMiddleware(app), note=request_id.get)


def asgi_correlation_id(app: FastAPI) -> Contender:
    from asgi_correlation_id import CorrelationIdMiddleware, correlation_id

    return Contender(CorrelationIdMiddleware(app), note=correlation_id.get)


# ---------------------------------------------------------------------- access log


def lines(seen: Seen, observed: list[str]) -> Judged:
    """
    Judge the lines of a request.

    One line, with the status that was sent; where the response did not come to its end, it says so.
    """
    case = seen.case
    words = "; ".join(observed) or "no line"
    status = "-" if seen.status is None else str(seen.status)
    is_right = len(observed) == 1 and observed[0].split()[0] == status
    if not case.is_websocket and not seen.is_complete:
        is_right = is_right and not observed[0].endswith((status, "completed"))
    return Judged(is_right, words)


class Lines(logging.Handler):
    """What a logger was given."""

    _numbers = count()

    def __init__(self, form: Callable[[str], str]) -> None:
        super().__init__()
        self.logger = logging.getLogger(f"compared.{next(self._numbers)}")
        self.logger.setLevel(logging.INFO)
        self.logger.propagate = False
        self.logger.addHandler(self)
        self._form = form
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self._form(record.getMessage()))

    def observe(self) -> list[str]:
        written, self._lines = self._lines, []
        return written


def our_log(app: FastAPI) -> Contender:
    def form(line: str) -> str:
        fields = json.loads(line)
        return f"{fields['status'] or '-'} {fields['outcome']}"

    written = Lines(form)
    layer = AccessLogMiddleware(app, format="json", logger=written.logger)
    return Contender(layer, written.observe)


def asgi_logger(app: FastAPI) -> Contender:
    from asgi_logger import AccessLoggerMiddleware

    written = Lines(str)
    return Contender(AccessLoggerMiddleware(app, "%(s)s", written.logger), written.observe)


def hand_log(app: FastAPI) -> Contender:
    from benchmarks import ready_served

    def form(line: str) -> str:
        match = re.match(r"\S+ \S+ (\d+|-), \d+ bytes in \S+ ms, (\w+)", line)
        return f"{match[1]} {match[2]}" if match else line

    written = Lines(form)
    layer = ready_served.HandLog(app)
    layer.logger = written.logger
    return Contender(layer, written.observe)


# ---------------------------------------------------------------------- metrics


def counted(seen: Seen, observed: list[str]) -> Judged:
    """
    Judge the observations of a request.

    One observation, under the route's template, with the status that was sent; where the response
    did not come to its end it is told from one that did. WebSockets are counted, and not as
    requests. Nothing stays in flight.
    """
    case = seen.case
    words = "; ".join(observed) or "not counted"
    if case.is_websocket:
        is_right = bool(observed) and all(each.startswith("WebSocket") for each in observed)
        return Judged(is_right, words)
    is_right = len(observed) == 1
    if is_right:
        _, route, status, *error = observed[0].split()
        is_right = route == (case.route or "-") or (case.name == "405" and route == "-")
        sent = "-" if seen.status is None else str(seen.status)
        is_right = is_right and status in (sent, f"{sent[0]}xx")
        if not seen.is_complete and case.ends != "leaves":
            is_right = is_right and bool(error)
        elif case.ends == "leaves":  # that is how such a stream ends
            is_right = is_right and status[0] == "2"
    return Judged(is_right, words)


def samples_of(registry: Any, read: Callable[[str, dict[str, str]], str | None]) -> Any:
    """
    Make what gives the counts of a registry that have grown, each as *read* has them.
    """
    before: dict[Any, float] = {}

    def observe() -> list[str]:
        found = []
        for family in registry.collect():
            for sample in family.samples:
                words = read(sample.name, sample.labels)
                key = sample.name, tuple(sorted(sample.labels.items()))
                grown = sample.value - before.get(key, 0)
                before[key] = sample.value
                if words is not None:
                    found += [words] * round(grown)
        return found

    return observe


def our_prometheus(app: FastAPI) -> Contender:
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()

    def read(name: str, labels: dict[str, str]) -> str | None:
        route = labels.get("http_route") or "-"
        status = labels.get("http_response_status_code") or "-"
        if name == "http_server_request_duration_seconds_count":
            error = labels["error_type"]
            return f"{labels['http_request_method']} {route} {status} {error}".strip()
        if name == "httpmw_websocket_handshake_duration_seconds_count":
            return f"WebSocket {route} {status}"
        if name == "httpmw_websocket_duration_seconds_count":
            return f"WebSocket {route} over {labels['error_type']}".strip()
        in_flight = ("http_server_active_requests", "httpmw_websocket_active")
        return "in flight" if name in in_flight else None

    layer = PrometheusMiddleware(app, registry=registry)
    return Contender(layer, samples_of(registry, read))


def prometheus_fastapi_instrumentator(app: FastAPI) -> Contender:
    from prometheus_client import CollectorRegistry
    from prometheus_fastapi_instrumentator import Instrumentator

    registry = CollectorRegistry()

    def read(name: str, labels: dict[str, str]) -> str | None:
        if name == "http_requests_inprogress":
            return "in flight"
        if name != "http_requests_total":
            return None
        handler = labels["handler"].replace("none", "-")
        return f"{labels['method']} {handler} {labels['status']}"

    instrumentator = Instrumentator(registry=registry, should_instrument_requests_inprogress=True)
    instrumentator.instrument(app)
    return Contender(app, samples_of(registry, read))


def starlette_exporter(app: FastAPI) -> Contender:
    from prometheus_client import REGISTRY
    from starlette_exporter import PrometheusMiddleware as Exporter

    def read(name: str, labels: dict[str, str]) -> str | None:
        if name == "starlette_requests_in_progress":
            return "in flight"
        if name != "starlette_requests_total":
            return None
        route = labels["path"].replace("__unknown__", "-")
        return f"{labels['method']} {route} {labels['status_code']}"

    # By default it leaves out what matches no route.
    app.add_middleware(Exporter, group_unhandled_paths=True, filter_unhandled_paths=False)
    return Contender(app, samples_of(REGISTRY, read))


def points_of(reader: Any) -> Any:
    """
    Make what gives the observations of OpenTelemetry's durations that have come since.
    """
    before: dict[Any, int] = {}

    def observe() -> list[str]:
        found: list[str] = []
        data = reader.get_metrics_data()
        metrics = [
            metric
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]
        for metric in metrics:
            for point in metric.data.data_points:
                attributes = dict(point.attributes)
                grown = getattr(point, "count", 0) or getattr(point, "value", 0)
                key = metric.name, tuple(sorted(attributes.items()))
                grown -= before.get(key, 0)
                before[key] = before.get(key, 0) + grown
                route = attributes.get("http.route", "-")
                status = attributes.get("http.response.status_code", "-")
                error = attributes.get("error.type", "")
                if metric.name == "http.server.request.duration":
                    method = attributes["http.request.method"]
                    found += [f"{method} {route} {status} {error}".strip()] * grown
                elif metric.name == "httpmw.websocket.handshake.duration":
                    found += [f"WebSocket {route} {status}"] * grown
                elif metric.name == "httpmw.websocket.duration":
                    found += [f"WebSocket {route} over {error}".strip()] * grown
                elif "active" in metric.name:
                    found += ["in flight"] * grown
        return found

    return observe


def provider() -> tuple[Any, Any]:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    return MeterProvider([reader]), reader


def our_opentelemetry(app: FastAPI) -> Contender:
    of_run, reader = provider()
    layer = OpenTelemetryMetricsMiddleware(app, meter_provider=of_run)
    return Contender(layer, points_of(reader))


def opentelemetry_instrumentation(app: FastAPI) -> Contender:
    # Its names of today are for those who ask for them.
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    of_run, reader = provider()
    FastAPIInstrumentor.instrument_app(app, meter_provider=of_run)
    return Contender(app, points_of(reader))


# ---------------------------------------------------------------------- problem details


def problems(seen: Seen, _: Any) -> Judged:
    """
    Judge the answer to an error.

    Errors of the application are problem+json with their status and headers, and show nothing of
    an exception or of the input; the exception comes to the server. After the start nothing is
    sent, and everything else is as it was.
    """
    kind = (seen.values("content-type") or ["-"])[0].partition(";")[0]
    leaks = [word for word in (SECRET, "hunter2") if word.encode() in seen.body]
    case = seen.case
    if case.name in {"404", "405", "422", "500", "raises before the response"}:
        words = f"{seen.status} {kind}"
        is_right = kind == "application/problem+json" and not leaks
        is_right = is_right and seen.status == int(
            {"raises before the response": "500"}.get(case.name, case.name)
        )
        if leaks:
            words += ", shows what it should not"
        for name, of_case in (("allow", "405"), ("retry-after", "500")):
            if case.name == of_case and not seen.values(name):
                words, is_right = f"{words}, {name} is lost", False
        if case.name == "raises before the response" and seen.raised is None:
            words, is_right = f"{words}, the server does not learn of it", False
        return Judged(is_right, words)
    if case.name == "raises within the body":
        is_right = not seen.is_complete and len(seen.starts) == 1 and seen.raised is not None
        return Judged(is_right, "cut off" if is_right else "looks complete, or began twice")
    is_right = not kind.startswith("application/problem") and not seen.hung
    return Judged(is_right, "as it was" if is_right else kind)


def our_problems(app: FastAPI) -> Contender:
    app.add_middleware(ProblemDetailsMiddleware)
    return Contender(app)


def fastapi_problem(app: FastAPI) -> Contender:
    from fastapi_problem.handler import add_exception_handler, new_exception_handler

    add_exception_handler(app, new_exception_handler())
    return Contender(app)


# ---------------------------------------------------------------------- security headers


def secured(seen: Seen, _: Any) -> Judged:
    """
    Judge the headers of a response.

    Whatever is answered has one policy, the application's own where it has one, with names in lower
    case, as ASGI says; Strict-Transport-Security is not said over plain HTTP.
    """
    if not seen.of("http.response.start"):
        return Judged(is_right=not seen.hung, words="as it was")
    policies = seen.values("content-security-policy")
    wrong = []
    if len(policies) != 1:
        wrong.append(f"{len(policies) or 'no'} policies" if policies else "no policy")
    elif seen.case.path == "/own" and policies != ["default-src 'none'"]:
        wrong.append("its own policy is replaced")
    if not seen.values("x-content-type-options"):
        wrong.append("no nosniff")
    if any(key != key.lower() for key, _ in seen.starts[0]["headers"]):
        wrong.append("names in capitals")
    if seen.values("strict-transport-security"):
        wrong.append("HSTS over http")
    if seen.case.name == "raises within the body" and seen.is_complete:
        wrong.append("looks complete")
    return Judged(not wrong, ", ".join(wrong) or "one policy")


def our_headers(app: FastAPI) -> Contender:
    return Contender(SecurityHeadersMiddleware(app))


def secure(app: FastAPI) -> Contender:
    from secure import Secure
    from secure.middleware import SecureASGIMiddleware

    return Contender(SecureASGIMiddleware(app, secure=Secure.with_default_headers()))


# ---------------------------------------------------------------------- cross origin


def _origin(site: str, origin: str | None, **more: Any) -> dict[str, Any]:
    headers = [("cookie", "session=1"), ("content-type", "application/json")]
    headers += [("sec-fetch-site", site)] if site else []
    headers += [("origin", origin)] if origin else []
    return {"headers": tuple(headers), "body": b"{}", **more}


_POST: dict[str, Any] = {"path": "/pay", "method": "POST"}
_SOCKET: dict[str, Any] = {"path": "/socket", "is_websocket": True, "ends": "closes"}
PASSES = (
    Case("page of the site", "/plain", headers=(("sec-fetch-site", "none"),)),
    Case("link from another site", "/plain", headers=(("sec-fetch-site", "cross-site"),)),
    Case("POST of the site's own page", **_POST, **_origin("same-origin", "http://shop.example")),
    Case("POST of the site's own page, old browser", **_POST, **_origin("", "http://shop.example")),
    Case("POST of curl", **_POST),
    Case(
        "WebSocket of the site's own page", **_SOCKET, headers=(("origin", "http://shop.example"),)
    ),
    Case("WebSocket of no browser", **_SOCKET),
)
REFUSED = (
    Case("POST of another site", **_POST, **_origin("cross-site", "https://evil.example")),
    Case("POST of another site, old browser", **_POST, **_origin("", "https://evil.example")),
    Case("POST of a sandboxed frame", **_POST, **_origin("", "null")),
    Case(
        "WebSocket of another site",
        **_SOCKET,
        headers=(("origin", "https://evil.example"), ("cookie", "session=1")),
    ),
)


def guarded(seen: Seen, _: Any) -> Judged:
    """
    Judge who passes.

    What another site has a browser send is refused; pages, their own requests and sockets, and
    clients that are no browsers pass. No page has to carry a token.
    """
    if seen.raised is not None:
        return Judged(is_right=False, words=f"fails: {type(seen.raised).__name__}")
    is_refused = seen.status == 403
    return Judged(is_refused == (seen.case in REFUSED), "refused" if is_refused else "passes")


def our_guard(app: FastAPI) -> Contender:
    return Contender(CrossOriginProtectionMiddleware(app))


def asgi_cross_origin_protection(app: FastAPI) -> Contender:
    from asgi_cross_origin_protection import CrossOriginProtection

    return Contender(CrossOriginProtection(app))


def starlette_csrf(app: FastAPI) -> Contender:
    from starlette_csrf import CSRFMiddleware

    return Contender(CSRFMiddleware(app, secret="not one"))  # noqa: S106


def asgi_csrf(app: FastAPI) -> Contender:
    from asgi_csrf import asgi_csrf as guard

    return Contender(guard(app, signing_secret="not one"))  # noqa: S106


# ---------------------------------------------------------------------- tags


_AGAIN = (("if-none-match", TAG),)
TAG_CASES = (
    *CASES,
    Case("a second visit, the app's tag", "/own", "/own", headers=_AGAIN),
    Case("a second visit, `W/` and a list", "/own", headers=(("if-none-match", f'"x", W/{TAG}'),)),
    Case("a second visit, `*`", "/own", headers=(("if-none-match", "*"),)),
    Case("If-Match of an old version", "/own", headers=(("if-match", '"v0"'),)),
)


def tagged(seen: Seen, _: Any) -> Judged:
    """
    Judge a tag and the answer to a condition.

    What is whole has one tag, the application's own where it has one; streams pass as they come;
    errors have none. A condition is answered as RFC 9110 section 13.2.2 says.
    """
    case = seen.case
    tags = seen.values("etag")
    if case.name.startswith("a second visit"):
        is_right = seen.status == 304 and seen.body == b""
        return Judged(is_right, str(seen.status))
    if case.name.startswith("If-Match"):
        return Judged(seen.status == 412, str(seen.status))
    if case.ends == "leaves" and not case.is_websocket:
        is_right = seen.body.count(b"data:") > 1 and not tags
        return Judged(is_right, "events arrive" if is_right else "no event arrives")
    if case.name == "raises within the body":
        is_right = not seen.is_complete and seen.raised is not None
        began = seen.status == 200
        words = "cut off" if began else f"{seen.status}"
        return Judged(is_right and began, words)
    if case.name == "3-chunk stream":
        is_right = len([each for each in seen.messages if each.get("body")]) == len(PARTS)
        return Judged(is_right, "three chunks" if is_right else "held to its end")
    if seen.status != 200:
        return Judged(not tags and not seen.hung, "a tag" if tags else "no tag")
    is_right = len(tags) == 1 and (case.path != "/own" or tags == [TAG])
    return Judged(is_right, "one tag" if len(tags) == 1 else f"{len(tags)} tags")


def our_tags(app: FastAPI) -> Contender:
    return Contender(ETagMiddleware(app))


def hand_tags(app: FastAPI) -> Contender:
    from benchmarks.ready_served import HandETag

    return Contender(HandETag(app))


# ---------------------------------------------------------------------- compression


def _taking(case: Case, coding: str, name: str | None = None) -> Case:
    values = {**vars(case), "headers": (*case.headers, ("accept-encoding", coding))}
    return Case(**{**values, "name": name or case.name})


_OWN = next(case for case in CASES if case.path == "/own")
CODED_CASES = (
    *(_taking(case, "br, gzip") for case in CASES if case is not _OWN),
    _taking(_OWN, "br, gzip", "a tag and a digest of the app"),
    _taking(_OWN, "br;q=0, gzip;q=0", "`br;q=0, gzip;q=0`"),
    _taking(_OWN, "identity", "`identity`"),
)


def coded(seen: Seen, _: Any) -> Judged:
    """
    Judge the bytes of a response.

    Decoded, the bytes are those of the application, events arrive when they are sent, what broke
    off does not look complete. What the client refuses is not sent. On coded bytes stands no strong
    tag and no digest of others (RFC 9110 section 8.8.1, RFC 9530), and what could have been coded
    has `Vary`.
    """
    case = seen.case
    if not seen.of("http.response.start"):
        return Judged(is_right=not seen.hung and seen.raised is None, words=_untouched(seen))
    coding = (seen.values("content-encoding") or ["plain"])[0]
    wrong = []
    body, is_whole = decoded(seen.body, coding)
    if case.ends == "leaves":
        if body.count(b"data:") < 2:
            wrong.append("no event arrives")
    elif case.name == "raises within the body":
        if seen.is_complete or (is_whole and coding != "plain") or seen.raised is None:
            wrong.append("looks complete")
    elif not is_whole or (case.path == "/own" and body != LARGE):
        wrong.append("other bytes")
    if "q=0" in case.name or case.name == "`identity`":
        if coding != "plain":
            wrong.append("sent all the same")
    elif case.path == "/own":
        if coding == "plain":
            wrong.append("not coded")
        if seen.values("etag") == [TAG]:
            wrong.append("the tag of other bytes")
        if seen.values("content-digest"):
            wrong.append("the digest of other bytes")
    is_forgotten = "accept-encoding" not in ",".join(seen.values("vary")).lower()
    if case.path == "/own" and is_forgotten:
        wrong.append("no `Vary`")
    return Judged(not wrong, ", ".join([coding, *wrong]))


def _untouched(seen: Seen) -> str:
    return "as it was" if seen.raised is None else f"fails: {type(seen.raised).__name__}"


def decoded(data: bytes, coding: str) -> tuple[bytes, bool]:
    """
    Decode what there is of a body; say whether it is whole.
    """
    if coding == "gzip":
        decoder = zlib.decompressobj(31)
        return decoder.decompress(data), decoder.eof
    if coding == "br":
        import brotli

        made = brotli.Decompressor()
        return made.process(data) if data else b"", made.is_finished()
    return data, True


def our_compression(app: FastAPI) -> Contender:
    return Contender(CompressionMiddleware(app))


def starlette_compress(app: FastAPI) -> Contender:
    from starlette_compress import CompressMiddleware

    return Contender(CompressMiddleware(app))


def brotli_asgi(app: FastAPI) -> Contender:
    from brotli_asgi import BrotliMiddleware

    return Contender(BrotliMiddleware(app))


def starlette_gzip(app: FastAPI) -> Contender:
    from starlette.middleware.gzip import GZipMiddleware

    return Contender(GZipMiddleware(app))


# ---------------------------------------------------------------------- all of them


KINDS = {
    "request id": Kind(
        "request-id.md",
        {OURS: our_ids, "asgi-correlation-id": asgi_correlation_id},
        ids,
        packages=("asgi-correlation-id",),
    ),
    "access log": Kind(
        "access-log.md",
        {OURS: our_log, "asgi-logger": asgi_logger, "by hand": hand_log},
        lines,
        packages=("asgi-logger",),
    ),
    "metrics": Kind(
        "metrics.md",
        {
            OURS: our_prometheus,
            "prometheus-fastapi-instrumentator": prometheus_fastapi_instrumentator,
            "starlette-exporter": starlette_exporter,
            "httpmw, OpenTelemetry": our_opentelemetry,
            "opentelemetry-instrumentation-fastapi": opentelemetry_instrumentation,
        },
        counted,
        packages=(
            "prometheus-fastapi-instrumentator",
            "starlette-exporter",
            "opentelemetry-instrumentation-fastapi",
        ),
    ),
    "problem details": Kind(
        "problem-details.md",
        {OURS: our_problems, "fastapi-problem": fastapi_problem},
        problems,
        packages=("fastapi-problem",),
    ),
    "security headers": Kind(
        "security-headers.md", {OURS: our_headers, "secure": secure}, secured, packages=("secure",)
    ),
    "cross origin": Kind(
        "cross-origin.md",
        {
            OURS: our_guard,
            "asgi-cross-origin-protection": asgi_cross_origin_protection,
            "starlette-csrf": starlette_csrf,
            "asgi-csrf": asgi_csrf,
        },
        guarded,
        (*PASSES, *REFUSED),
        ("asgi-cross-origin-protection", "starlette-csrf", "asgi-csrf"),
    ),
    "etag": Kind("etag.md", {OURS: our_tags, "by hand": hand_tags}, tagged, TAG_CASES),
    "compression": Kind(
        "compression.md",
        {
            OURS: our_compression,
            "starlette-compress": starlette_compress,
            "brotli-asgi": brotli_asgi,
            "Starlette's GZip": starlette_gzip,
        },
        coded,
        CODED_CASES,
        ("starlette-compress", "brotli-asgi"),
    ),
}


def is_ours(name: str) -> bool:
    return name.startswith(OURS)


Table = dict[Case, dict[str, Judged]]


async def compared(kind: Kind, *names: str) -> Table:
    """
    Ask the contenders, or those of these *names*, each around an application of its own.
    """
    table: Table = {case: {} for case in kind.cases}
    for name, make in kind.contenders.items():
        if names and name not in names:
            continue
        contender = make(application())
        with suppress(Exception):
            await ask(contender.app, PLAIN, contender.note)  # what is made at first
        contender.observe()
        for case in kind.cases:
            seen = await ask(contender.app, case, contender.note)
            table[case][name] = kind.judge(seen, contender.observe())
    return table


def written(kind: Kind, table: Table) -> str:
    """
    Write the table of a page.
    """
    _, _, rule = (kind.judge.__doc__ or "").partition("\n\n")
    named = [f"{name} {version(name)}" for name in (*kind.packages, "fastapi", "starlette")]
    out = io.StringIO()
    names = [*kind.contenders]
    rule = re.sub(r"\. (?=[A-Z])", ".\n", " ".join(rule.split()))
    print(f"What is right (✓):\n{rule}\n", file=out)
    print(f"| | {' | '.join(names)} |\n|---{'|---' * len(names)}|", file=out)
    for case, cells in table.items():
        marked = [f"{'✓' if each.is_right else '✗'} {_code(each)}" for each in cells.values()]
        print(f"| {case.name} | {' | '.join(marked)} |", file=out)
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    print(f"\n`make compare-ready` has made it on {today}, with {', '.join(named)}.", file=out)
    return out.getvalue()


def _code(cell: Judged) -> str:
    # Braces and stars of templates are no markup.
    words = cell.words.replace("|", "\\|")
    return f"`{words}`" if re.search(r"[{*_]", words) and "`" not in words else words


def put(page: Path, name: str, text: str) -> None:
    """
    Put the table between its marks.
    """
    marks = re.compile(rf"(<!-- compared: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    before = page.read_text()
    if not marks.search(before):
        raise SystemExit(f"{page} has no place for the table of {name}")
    page.write_text(marks.sub(lambda match: f"{match[1]}\n{text}\n{match[2]}", before))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.compare_ready",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="write no page")
    parser.add_argument("--kind", nargs="*", default=[*KINDS], choices=[*KINDS])
    chosen = parser.parse_args()
    logging.disable(logging.NOTSET)
    for name in ("httpmw", "httpmw.cross_origin"):
        logging.getLogger(name).disabled = True
    wrong = 0
    for name in chosen.kind:
        kind = KINDS[name]
        table = anyio.run(compared, kind)
        text = written(kind, table)
        print(f"==> {name}\n\n{text}", flush=True)
        for case, cells in table.items():
            for whose, judged in cells.items():
                if is_ours(whose) and not judged.is_right:
                    wrong += 1
                    print(f"OURS IS WRONG: {name}, {whose}, {case.name}: {judged.words}")
        if not chosen.check:
            put(PAGES / kind.page, name, text)
    print(f"httpmw {httpmw.__version__}: {wrong} cells wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
