# Rule 1: no request is counted twice. FastAPI (from 0.165 or so) records the same metrics itself,
# where a meter provider is set: then this layer leaves them to it, and says so once.

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from starlette.types import ASGIApp

from httpmw import __version__, _errors
from httpmw._adapter import Predicate
from httpmw._connection import Connection

from ._metrics import BYTES, LONG_SECONDS, SECONDS, Observation, Recorder
from ._ready import Exclude, view_of

try:
    from opentelemetry import metrics
except ImportError as exc:
    raise _errors.missing_extra(
        "OpenTelemetryMetricsMiddleware", "opentelemetry-api", "opentelemetry"
    ) from exc

_SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"
_OF_FASTAPI: Final = "fastapi.telemetry"

_log: Final = logging.getLogger("httpmw")


class OpenTelemetryMetricsMiddleware(Recorder):
    """
    Count and time requests with OpenTelemetry's meters.

    * `http.server.request.duration`: a histogram in seconds, to the last byte, as the stable
      semantic conventions have it.
    * `http.server.active_requests`, and with *body_sizes* `http.server.request.body.size` and
      `http.server.response.body.size`: in development in the conventions.
    * `httpmw.websocket.handshake.duration`, `httpmw.websocket.duration`, `httpmw.websocket.active`,
      for WebSockets.

    Where FastAPI records the metrics of the conventions itself, this layer does not: it warns once
    in the log, and still has those of WebSockets. `FastAPI(telemetry={"metrics": False})` leaves
    them to this layer.

    Args:
        app: The inner app.
        meter_provider: Where the meter comes from; None: the global one.
        buckets: As in `PrometheusMiddleware`; a view of the SDK wins over it.
        labels: As in `PrometheusMiddleware`: further attributes.
        max_label_values: As in `PrometheusMiddleware`.
        outcome_label: Whether the attribute `httpmw.outcome` says how it ended.
        inprogress: Whether requests in flight are counted.
        body_sizes: As in `PrometheusMiddleware`.
        force: Whether to record beside FastAPI: each request is there twice then, unless the meter
            providers are different ones.
        when: As in `HTTPMiddleware`.
        exclude: Paths for which it is not there, or a predicate.
        websocket: As in `HTTPMiddleware`; by default True.

    Raises:
        TypeError: An option is not what it has to be.
        ImportError: Without `opentelemetry-api`, from the import; `httpmw[opentelemetry]` installs
            it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        meter_provider: metrics.MeterProvider | None = None,
        buckets: Sequence[float] = SECONDS,
        labels: Mapping[str, Callable[[Connection[Any]], object]] = {},
        max_label_values: int = 1000,
        outcome_label: bool = False,
        inprogress: bool = True,
        body_sizes: bool = False,
        force: bool = False,
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
        self._check_flags(force=force)
        if meter_provider is not None and not isinstance(meter_provider, metrics.MeterProvider):
            raise self._bad("meter_provider", meter_provider, "a MeterProvider")
        self._force = force
        self._warned = False
        self._inside = _fastapi_in(app)
        meter = metrics.get_meter("httpmw", __version__, meter_provider, _SCHEMA)
        self._duration = meter.create_histogram(
            "http.server.request.duration",
            "s",
            "Duration of HTTP server requests.",
            explicit_bucket_boundaries_advisory=buckets,
        )
        if inprogress:
            self._in_flight = meter.create_up_down_counter(
                "http.server.active_requests",
                "{request}",
                "Number of active HTTP server requests.",
            )
        if body_sizes:
            self._in_size, self._out_size = (
                meter.create_histogram(
                    f"http.server.{which}.body.size",
                    "By",
                    f"Size of HTTP server {which} bodies.",
                    explicit_bucket_boundaries_advisory=BYTES,
                )
                for which in ("request", "response")
            )
        self._handshakes = meter.create_histogram(
            "httpmw.websocket.handshake.duration",
            "s",
            "Duration of WebSocket handshakes.",
            explicit_bucket_boundaries_advisory=buckets,
        )
        self._sockets = meter.create_histogram(
            "httpmw.websocket.duration",
            "s",
            "Duration of accepted WebSockets.",
            explicit_bucket_boundaries_advisory=LONG_SECONDS,
        )
        self._sockets_active = meter.create_up_down_counter(
            "httpmw.websocket.active", "{connection}", "Number of accepted WebSockets."
        )

    def _records(self, conn: Connection[Any]) -> bool:
        if self._force:
            return True
        scope = view_of(conn)
        if _OF_FASTAPI in scope:  # inside of the application
            is_recorded = scope[_OF_FASTAPI] is not None and _has_metrics(scope.get("app"))
        else:
            is_recorded = self._inside is not None and _has_metrics(self._inside)
        if is_recorded:
            self._warn()
        return not is_recorded

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                "FastAPI records http.server.request.duration itself, so"
                " OpenTelemetryMetricsMiddleware does not. Write"
                ' `FastAPI(telemetry={"metrics": False})` to have it from here, or leave the layer'
                " out; `force=True` records both."
            )

    def active(self, method: str, scheme: str, change: int) -> None:
        self._in_flight.add(change, {"http.request.method": method, "url.scheme": scheme})

    def socket_active(self, scheme: str, change: int) -> None:
        self._sockets_active.add(change, {"url.scheme": scheme})

    def request(self, seen: Observation) -> None:
        scope = view_of(seen.conn)
        # One that is mounted further in is only known now.
        if not self._force and scope.get(_OF_FASTAPI) is not None and _has_metrics(scope["app"]):
            self._warn()
            return
        attributes = {"http.request.method": seen.method, **self._attributes(seen)}
        self._duration.record(seen.seconds, attributes)
        if self._body_sizes:
            if seen.request_bytes is not None:
                self._in_size.record(seen.request_bytes, attributes)
            self._out_size.record(seen.response_bytes, attributes)

    def handshake(self, seen: Observation) -> None:
        self._handshakes.record(seen.seconds, self._attributes(seen))

    def socket(self, seen: Observation) -> None:
        self._sockets.record(seen.seconds, self._attributes(seen))

    def _attributes(self, seen: Observation) -> dict[str, str | int]:
        attributes: dict[str, str | int] = {"url.scheme": seen.scheme}
        version = view_of(seen.conn).get("http_version")
        if version:
            attributes["network.protocol.version"] = version
        if seen.route is not None:
            attributes["http.route"] = seen.route
        if seen.status is not None:
            attributes["http.response.status_code"] = seen.status
        if seen.error_type is not None:
            attributes["error.type"] = seen.error_type
        if self._outcome_label:
            attributes["httpmw.outcome"] = seen.outcome
        more = zip(self.labels, seen.labels, strict=True)
        return {**attributes, **{name: value for name, value in more if value}}


def _fastapi_in(app: Any) -> Any:
    """
    Find the FastAPI application that layers stand around from outside; None where none is.
    """
    for _ in range(100):  # somebody's layers could go round in a circle
        if app is None or hasattr(app, "_telemetry"):
            return app
        app = getattr(app, "app", None)
    return None


def _has_metrics(application: Any) -> bool:
    """
    Say whether FastAPI's own metrics are on, and go anywhere.
    """
    # Private, so a test holds it against the newest FastAPI; where it has gone, do not count twice.
    config = getattr(application, "_telemetry", None)
    if not isinstance(config, Mapping):
        return True
    if not config.get("metrics"):
        return False
    own = config.get("meter_provider")
    provider = own or metrics.get_meter_provider()
    is_set = own is not None or type(provider).__name__ != "_ProxyMeterProvider"
    return is_set and not isinstance(provider, metrics.NoOpMeterProvider)
