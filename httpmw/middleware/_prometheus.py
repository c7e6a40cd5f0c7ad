# Rule 1: one set of collectors for each registry: layers are made again whenever the stack is.
# Rule 2: of the gauge of a worker that was killed somebody has to let go: nobody else does under
# uvicorn, so each scrape looks which processes are still there.

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal
from weakref import WeakKeyDictionary

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from httpmw import _errors
from httpmw._adapter import Predicate
from httpmw._connection import Connection

from ._metrics import BYTES, IS_PAGE, LONG_SECONDS, SECONDS, Observation, Recorder
from ._ready import Exclude

try:
    import prometheus_client
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.multiprocess import MultiProcessCollector
except ImportError as exc:
    raise _errors.missing_extra("PrometheusMiddleware", "prometheus-client", "prometheus") from exc

_PREFIX: Final = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)?")
_DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"
_LIVE: Final = re.compile(r"gauge_live\w*_(\d+)\.db")

# Those of prometheus-fastapi-instrumentator 8.1.
_HIGH: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1),
    *(1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 7.5, 10, 30, 60),
)
_LOW: Final = (0.1, 0.5, 1)

Names = Literal["otel", "pfi"]


class PrometheusMiddleware(Recorder):
    """
    Count and time requests for Prometheus.

    * `http_server_request_duration_seconds`: a histogram to the last byte, with the labels
      `http_request_method`, `http_response_status_code`, `http_route`, `url_scheme`, `error_type`.
    * `http_server_active_requests`: a gauge with `http_request_method`, `url_scheme`.
    * `httpmw_websocket_handshake_duration_seconds`, `httpmw_websocket_duration_seconds` and
      `httpmw_websocket_active`, for WebSockets.

    These are the names of OpenTelemetry's semantic conventions, as Prometheus writes them. A label
    without a value is empty, which is no label to Prometheus. `metrics_endpoint()` shows them.

    Args:
        app: The inner app.
        registry: Where the metrics are registered; None: prometheus-client's own.
        names: `"otel"`, or `"pfi"` for the five metrics that prometheus-fastapi-instrumentator has
            by default, and its `http_requests_inprogress`.
        prefix: What stands before each name.
        buckets: The upper bounds of the histogram of durations, in seconds.
        labels: Further labels: a name, and a function of the connection that gives the value. It is
            called when the request is over. One that fails is logged, and its label is empty.
        max_label_values: How many values each of those labels may have; what comes after them is
            `_OTHER`.
        outcome_label: Whether the label `outcome` says how it ended: the words of
            `response.outcome`.
        inprogress: Whether requests in flight are counted.
        body_sizes: Whether there are histograms of the sizes of bodies, in bytes: of the request
            by its content-length, of the response what was sent.
        unmatched: What `http_route` is where no route was matched.
        exemplars: Whether the duration has the ids of the current span, where it is sampled, as its
            exemplar. OpenMetrics shows them; not where several processes share a directory.
        when: As in `HTTPMiddleware`.
        exclude: Paths for which it is not there, or a predicate.
        websocket: As in `HTTPMiddleware`; by default True.

    Raises:
        TypeError: An option is not what it has to be.
        ValueError: The registry has a metric of that name with other labels or buckets.
        ImportError: Without `prometheus-client`, from the import; `httpmw[prometheus]` installs it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        registry: CollectorRegistry | None = None,
        names: Names = "otel",
        prefix: str = "",
        buckets: Sequence[float] = SECONDS,
        labels: Mapping[str, Callable[[Connection[Any]], object]] = {},
        max_label_values: int = 1000,
        outcome_label: bool = False,
        inprogress: bool = True,
        body_sizes: bool = False,
        unmatched: str | None = None,
        exemplars: bool = False,
        when: Predicate | None = None,
        exclude: Exclude = (),
        websocket: bool | None = None,
    ) -> None:
        super().__init__(
            app,
            buckets=buckets,
            labels=labels,
            max_label_values=max_label_values,
            outcome_label=outcome_label,
            inprogress=inprogress,
            body_sizes=body_sizes,
            when=when,
            exclude=exclude,
            websocket=websocket,
        )
        self._check_flags(exemplars=exemplars)
        if not _is_registry(registry):
            raise self._bad("registry", registry, "a CollectorRegistry")
        if names not in {"otel", "pfi"}:
            raise self._bad("names", names, "'otel' or 'pfi'")
        if not _is_prefix(prefix):
            raise self._bad("prefix", prefix, "the beginning of a name, such as 'shop_'")
        if unmatched is not None and not isinstance(unmatched, str):
            raise self._bad("unmatched", unmatched, "a str or None")
        if names == "pfi" and tuple(buckets) != SECONDS:
            raise self._bad("buckets", buckets, "left out with `names='pfi'`, which has its own")
        if names == "pfi" and body_sizes:
            raise self._bad("body_sizes", body_sizes, "left out with `names='pfi'`, which has them")
        self.wants_length = body_sizes or names == "pfi"
        self._unmatched = unmatched or ("none" if names == "pfi" else "")
        self._span = _current_span(type(self)) if exemplars else None
        self._into = _collectors(
            registry if registry is not None else prometheus_client.REGISTRY,
            (
                names,
                prefix,
                tuple(map(float, buckets)),
                tuple(labels),
                outcome_label,
                inprogress,
                body_sizes,
            ),
        )

    def active(self, method: str, scheme: str, change: int) -> None:
        self._into.active(method, scheme, change)

    def socket_active(self, scheme: str, change: int) -> None:
        self._into.socket_active(scheme, change)

    def request(self, seen: Observation) -> None:
        more = (*seen.labels, seen.outcome) if self._outcome_label else seen.labels
        exemplar = None if self._span is None else self._span()
        self._into.request(seen, seen.route or self._unmatched, more, exemplar)

    def handshake(self, seen: Observation) -> None:
        status = "" if seen.status is None else str(seen.status)
        labels = (status, seen.route or self._unmatched, seen.scheme, *seen.labels)
        self._into.of(self._into.handshake, labels).observe(seen.seconds)

    def socket(self, seen: Observation) -> None:
        more = (*seen.labels, seen.outcome) if self._outcome_label else seen.labels
        labels = (seen.route or self._unmatched, seen.scheme, seen.error_type or "", *more)
        self._into.of(self._into.socket, labels).observe(seen.seconds)


class _Collectors:
    """
    The metrics in one registry.
    """

    def __init__(self, registry: CollectorRegistry, options: tuple[Any, ...]) -> None:
        names, prefix, buckets, labels, outcome_label, inprogress, body_sizes = options
        self._made: list[Any] = []
        self._registry = registry
        self._prefix = prefix
        more = (*labels, "outcome") if outcome_label else labels
        self._children: dict[Any, dict[tuple[str, ...], Any]] = {}
        self._is_pfi = names == "pfi"
        self._sizes = body_sizes
        try:
            if self._is_pfi:
                self._make_pfi(labels, more, inprogress=inprogress)
            else:
                self._make(buckets, more, inprogress=inprogress)
            of_socket = ("http_route", "url_scheme")
            self.handshake = self._new(
                Histogram,
                "httpmw_websocket_handshake_duration_seconds",
                "Duration of WebSocket handshakes.",
                ("http_response_status_code", *of_socket, *labels),
                buckets=buckets,
            )
            self.socket = self._new(
                Histogram,
                "httpmw_websocket_duration_seconds",
                "Duration of accepted WebSockets.",
                (*of_socket, "error_type", *more),
                buckets=LONG_SECONDS,
            )
            self._sockets = self._new(
                Gauge,
                "httpmw_websocket_active",
                "Number of accepted WebSockets.",
                ("url_scheme",),
                multiprocess_mode="livesum",
            )
        except ValueError as exc:
            for each in self._made:
                registry.unregister(each)
            raise ValueError(
                f"PrometheusMiddleware cannot register its metrics: {exc}.\n"
                "Give labels other names, all layers of one registry the same options, or each a"
                " `prefix=` or a `registry=` of its own."
            ) from exc

    def _new(self, kind: Any, name: str, text: str, labels: Sequence[str], **options: Any) -> Any:
        if len(set(labels)) < len(labels):
            raise ValueError(f"{name} has a label twice, of {', '.join(labels)}")
        made = kind(self._prefix + name, text, labels, registry=self._registry, **options)
        self._made.append(made)
        return made

    def _make(self, buckets: Sequence[float], more: Sequence[str], *, inprogress: bool) -> None:
        labels = (
            "http_request_method",
            "http_response_status_code",
            "http_route",
            "url_scheme",
            "error_type",
            *more,
        )
        self._duration = self._new(
            Histogram,
            "http_server_request_duration_seconds",
            "Duration of HTTP server requests.",
            labels,
            buckets=buckets,
        )
        if inprogress:
            self._in_flight = self._new(
                Gauge,
                "http_server_active_requests",
                "Number of active HTTP server requests.",
                ("http_request_method", "url_scheme"),
                multiprocess_mode="livesum",
            )
        if self._sizes:
            self._in_size, self._out_size = (
                self._new(
                    Histogram,
                    f"http_server_{which}_body_size_bytes",
                    f"Size of HTTP server {which} bodies.",
                    labels,
                    buckets=BYTES,
                )
                for which in ("request", "response")
            )

    def _make_pfi(self, labels: Sequence[str], more: Sequence[str], *, inprogress: bool) -> None:
        self._total = self._new(
            Counter,
            "http_requests_total",
            "Total number of requests by method, status and handler.",
            ("method", "status", "handler", *more),
        )
        self._in_size, self._out_size = (
            self._new(Summary, f"http_{which}_size_bytes", text, ("handler", *labels))
            for which, text in (
                ("request", "Content length of incoming requests by handler."),
                ("response", "Bytes of outgoing bodies by handler."),
            )
        )
        self._high = self._new(
            Histogram,
            "http_request_duration_highr_seconds",
            "Latency with many buckets but no API specific labels.",
            (),
            buckets=_HIGH,
        )
        self._duration = self._new(
            Histogram,
            "http_request_duration_seconds",
            "Latency with only few buckets by handler.",
            ("handler", "method", *labels),
            buckets=_LOW,
        )
        if inprogress:
            self._in_flight = self._new(
                Gauge,
                "http_requests_inprogress",
                "Number of HTTP requests in progress.",
                (),
                multiprocess_mode="livesum",
            )

    def active(self, method: str, scheme: str, change: int) -> None:
        self._change(self._in_flight, () if self._is_pfi else (method, scheme), change)

    def socket_active(self, scheme: str, change: int) -> None:
        self._change(self._sockets, (scheme,), change)

    def _change(self, gauge: Any, labels: tuple[str, ...], change: int) -> None:
        known = self._children.get(gauge)
        if (known is None or labels not in known) and _DIRECTORY in os.environ:
            self.of(gauge, labels).set(0)  # of a process that had this number before
        self.of(gauge, labels).inc(change)

    def of(self, metric: Any, labels: tuple[str, ...]) -> Any:
        """
        Give what a metric has for *labels*; `metric.labels()` takes a lock and looks at each.
        """
        children = self._children.setdefault(metric, {})
        child = children.get(labels)
        if child is None:
            child = children[labels] = metric.labels(*labels) if labels else metric
        return child

    def request(
        self, seen: Observation, route: str, more: tuple[str, ...], exemplar: dict[str, str] | None
    ) -> None:
        of = self.of
        if self._is_pfi:
            status = "" if seen.status is None else f"{seen.status // 100}xx"
            of(self._total, (seen.method, status, route, *more)).inc()
            of(self._in_size, (route, *seen.labels)).observe(seen.request_bytes or 0)
            of(self._out_size, (route, *seen.labels)).observe(seen.response_bytes)
            self._high.observe(seen.seconds, exemplar)
            of(self._duration, (route, seen.method, *seen.labels)).observe(seen.seconds)
            return
        status = "" if seen.status is None else str(seen.status)
        labels = (seen.method, status, route, seen.scheme, seen.error_type or "", *more)
        of(self._duration, labels).observe(seen.seconds, exemplar)
        if self._sizes:
            if seen.request_bytes is not None:
                of(self._in_size, labels).observe(seen.request_bytes)
            of(self._out_size, labels).observe(seen.response_bytes)


_made: Final[WeakKeyDictionary[CollectorRegistry, dict[tuple[Any, ...], _Collectors]]] = (
    WeakKeyDictionary()
)


def _collectors(registry: CollectorRegistry, options: tuple[Any, ...]) -> _Collectors:
    known = _made.setdefault(registry, {})
    if options not in known:
        known[options] = _Collectors(registry, options)
    return known[options]


def _current_span(owner: type) -> Callable[[], dict[str, str] | None]:
    try:
        from opentelemetry import trace  # noqa: PLC0415 - not everybody has it
    except ImportError as exc:
        raise _errors.missing_extra(owner, "opentelemetry-api", "opentelemetry") from exc

    def span() -> dict[str, str] | None:
        context = trace.get_current_span().get_span_context()
        if not context.is_valid or not context.trace_flags.sampled:
            return None
        return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

    return span


def metrics_endpoint(registry: CollectorRegistry | None = None) -> Callable[[Request], Response]:
    """
    Make an endpoint that Prometheus scrapes.

    With Starlette: `Route("/metrics", metrics_endpoint())`. With FastAPI:
    `app.add_route("/metrics", metrics_endpoint())`.

    It writes what `Accept` asks for, OpenMetrics or the text format, and knows the parameter
    `name[]`. `PrometheusMiddleware` leaves it out. Where the environment has
    `PROMETHEUS_MULTIPROC_DIR`, it shows the sum of all processes that share the directory, and lets
    go of the gauges of those that are gone.

    Args:
        registry: What is shown; None: prometheus-client's own.

    Returns:
        An endpoint for Starlette's routes; it runs in a thread.

    Raises:
        TypeError: *registry* is no `CollectorRegistry`.
    """
    if not _is_registry(registry):
        raise TypeError(
            f"metrics_endpoint({registry!r}): `registry` must be a CollectorRegistry of"
            " prometheus-client, or left out."
        )

    def metrics(request: Request) -> Response:
        shown: Any = registry if registry is not None else prometheus_client.REGISTRY
        directory = os.environ.get(_DIRECTORY)
        if directory:
            _let_go(Path(directory))
            shown = CollectorRegistry()
            MultiProcessCollector(shown, directory)  # type: ignore[no-untyped-call]
        names = request.query_params.getlist("name[]")
        if names:
            shown = shown.restricted_registry(names)
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        # Starlette would add a charset to the type.
        return Response(encode(shown), headers={"content-type": content_type})

    setattr(metrics, IS_PAGE, True)
    return metrics


def _is_prefix(prefix: Any) -> bool:
    return isinstance(prefix, str) and _PREFIX.fullmatch(prefix) is not None


def _is_registry(registry: Any) -> bool:
    return registry is None or isinstance(registry, CollectorRegistry)


def _let_go(directory: Path) -> None:
    """
    Remove the live gauges of processes that are gone.
    """
    if os.name != "posix":
        return  # the signal 0 would be one
    for path in directory.glob("gauge_live*.db"):
        named = _LIVE.fullmatch(path.name)
        if named is not None and not _is_there(int(named[1])):
            with suppress(FileNotFoundError):  # another scrape was quicker
                path.unlink()


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
