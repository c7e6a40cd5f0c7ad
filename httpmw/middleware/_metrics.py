# The recorder: what is known of a request when it is over, for whatever writes it down.
#
# Rule 1: one observation for each request, on every way out, at the moment when the server has
# taken the last message (`response.on_sent`), or when it is known that none will come.
# Rule 2: what was counted as in flight comes back in the same place, once.
# Rule 3: no label can grow without bound: methods, routes and statuses are few, the path is never
# used, and what a function of the user's gives is cut off.
# Rule 4: a WebSocket is no request of some seconds: it has metrics of its own.
# Names, units and values: OpenTelemetry's semantic conventions for HTTP, 1.44.

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from time import perf_counter
from typing import Any, Final, NamedTuple

from starlette.types import ASGIApp

from httpmw._adapter import Flow, Predicate
from httpmw._connection import Connection
from httpmw._handlers import is_plain_callable
from httpmw._observe import outcome_of
from httpmw._response import AppResponse

from ._ready import Exclude, Ready, view_of
from ._route import route_template

SECONDS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0),
)
# A WebSocket stays: to six hours.
LONG_SECONDS: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 10800.0, 21600.0)
BYTES: Final = tuple(float(10**exponent) for exponent in range(2, 9))

OTHER: Final = "_OTHER"
_KNOWN: Final = (
    *("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS"),
    *("PATCH", "POST", "PUT", "QUERY", "TRACE"),
)
_VARIABLE: Final = "OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS"
_LABEL: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_SERVER_ERROR: Final = 500

_log: Final = logging.getLogger("httpmw")

# What `metrics_endpoint` makes has this, so that scrapes are not counted.
IS_PAGE: Final = "_httpmw_is_metrics_page"


class Observation(NamedTuple):
    """
    One request, or one handshake, that is over.
    """

    conn: Connection[Any]
    method: str
    scheme: str
    route: str | None
    # None: there was no response, and nobody will make one.
    status: int | None
    error_type: str | None
    outcome: str
    seconds: float
    # Of its body; None: not known.
    request_bytes: int | None
    response_bytes: int
    labels: tuple[str, ...]


class _Running:
    """
    A request that is observed.
    """

    __slots__ = (
        "conn",
        "counts",
        "is_accepted",
        "is_over",
        "method",
        "recorder",
        "scheme",
        "started",
    )

    def __init__(self, recorder: Recorder, conn: Connection[Any]) -> None:
        self.started = perf_counter()
        self.recorder = recorder
        self.conn = conn
        self.scheme: str = view_of(conn).get("scheme", "http")
        self.method = "GET" if conn.is_websocket else recorder.known(conn.method)
        self.counts = recorder.counts_active and not conn.is_websocket
        self.is_accepted = self.is_over = False
        if self.counts:
            recorder.active(self.method, self.scheme, 1)

    def accepted(self, response: AppResponse) -> None:
        """
        Write down the handshake; the socket begins.
        """
        self.is_accepted = True
        self.recorder.handshake(self._seen(response, None, perf_counter()))
        self.recorder.socket_active(self.scheme, 1)

    def sent(self, response: AppResponse) -> None:
        """
        Be told by `on_sent`.
        """
        if response.outcome != "failed":  # by what is known next, in the function
            self.over(response)

    def ended(self, response: AppResponse, failure: BaseException | None = None) -> None:
        """
        Come back from `yield response`, mostly after `sent`.
        """
        if not self.is_over:
            self.over(response, failure)

    def over(self, response: AppResponse | None, failure: BaseException | None = None) -> None:
        """
        Write it down.
        """
        self.is_over = True
        recorder = self.recorder
        if self.counts:
            recorder.active(self.method, self.scheme, -1)
        if self.is_accepted:
            recorder.socket_active(self.scheme, -1)
        ended = None if response is None else response.ended_at
        seen = self._seen(response, failure, perf_counter() if ended is None else ended)
        if self.is_accepted:
            recorder.socket(seen)
        elif self.conn.is_websocket:
            recorder.handshake(seen)
        elif not hasattr(view_of(self.conn).get("endpoint"), IS_PAGE):
            recorder.request(seen)

    def _seen(
        self, response: AppResponse | None, failure: BaseException | None, until: float
    ) -> Observation:
        if response is not None:
            status: int | None = response.status_code
            outcome: str = response.outcome or "completed"
            size = response.bytes_sent
        else:
            outcome = "cancelled"  # where nobody waits any more
            if failure is not None and not isinstance(failure, GeneratorExit):
                outcome = outcome_of(failure)
            # What Starlette or the server makes of it; nothing of it is seen here.
            status = _SERVER_ERROR if outcome == "failed" else None
            size = 0
        conn, recorder = self.conn, self.recorder
        return Observation(
            conn,
            self.method,
            self.scheme,
            route_template(conn),
            status,
            _error_type(response, status, outcome, failure),
            outcome,
            max(until - self.started, 0.0),
            recorder.length_of(conn) if recorder.wants_length else None,
            size,
            recorder.values_of(conn) if recorder.labels else (),
        )


class Recorder(Ready):
    """
    A layer that observes; a subclass writes down.
    """

    kind = "metrics"
    websocket = True

    def __init__(
        self,
        app: ASGIApp,
        *,
        buckets: Sequence[float],
        labels: Mapping[str, Callable[[Connection[Any]], object]],
        max_label_values: int,
        outcome_label: bool,
        inprogress: bool,
        body_sizes: bool,
        when: Predicate | None,
        exclude: Exclude,
        websocket: bool | None,
    ) -> None:
        super().__init__(app, when=when, exclude=exclude, websocket=websocket)
        self._check_flags(outcome_label=outcome_label, inprogress=inprogress, body_sizes=body_sizes)
        if not _are_buckets(buckets):
            raise self._bad("buckets", buckets, "seconds that increase")
        if not _are_labels(labels):
            raise self._bad(
                "labels",
                labels,
                "a mapping of names of letters, digits and _ to plain functions of the connection",
            )
        if isinstance(max_label_values, bool) or not isinstance(max_label_values, int):
            raise self._bad("max_label_values", max_label_values, "an int")
        self.labels = dict(labels)
        self._values: dict[str, set[str]] = {name: set() for name in labels}
        self._most_values = max_label_values
        self._outcome_label = outcome_label
        self.counts_active = inprogress
        self.wants_length = self._body_sizes = body_sizes
        named = os.environ.get(_VARIABLE)
        self._methods = frozenset(_KNOWN if named is None else map(str.strip, named.split(",")))

    # What a subclass says.

    def active(self, method: str, scheme: str, change: int) -> None:
        raise NotImplementedError

    def request(self, seen: Observation) -> None:
        raise NotImplementedError

    def handshake(self, seen: Observation) -> None:
        raise NotImplementedError

    def socket_active(self, scheme: str, change: int) -> None:
        raise NotImplementedError

    def socket(self, seen: Observation) -> None:
        raise NotImplementedError

    def _records(self, conn: Connection[Any]) -> bool:  # noqa: ARG002
        """
        Say at the start of a request whether it is for this layer to record.
        """
        return True

    async def dispatch(self, conn: Connection[Any], /) -> Flow:
        """
        Observe this request.
        """
        if not (conn.is_websocket or self._records(conn)):
            yield
            return
        running = _Running(self, conn)
        try:
            response = yield
        except BaseException as exc:
            running.over(None, exc)
            raise
        if response.is_acceptance:
            running.accepted(response)
        response.on_sent(running.sent)
        try:
            yield response
        except BaseException as exc:
            running.ended(response, exc)
            raise
        running.ended(response)

    def known(self, method: str) -> str:
        """
        Return the method, or what stands for all that a client can make up.
        """
        return method if method in self._methods else OTHER

    def length_of(self, conn: Connection[Any]) -> int | None:
        """
        Return the length of the request's body, where it is declared.
        """
        length = conn.headers.get("content-length", "")
        return int(length) if length.isdecimal() and length.isascii() else None

    def values_of(self, conn: Connection[Any]) -> tuple[str, ...]:
        """
        Return the values of the labels that the user has added.
        """
        return tuple(self._value(name, conn) for name in self.labels)

    def _value(self, name: str, conn: Connection[Any]) -> str:
        try:
            given = self.labels[name](conn)
            value = "" if given is None else str(given)
        except Exception as exc:
            _log.error("The label %r of %s failed", name, type(self).__name__, exc_info=exc)
            return ""
        values = self._values[name]
        if value not in values:
            if len(values) >= self._most_values:
                return OTHER
            values.add(value)
        return value


def _error_type(
    response: AppResponse | None, status: int | None, outcome: str, failure: BaseException | None
) -> str | None:
    if outcome == "failed" and failure is not None:
        kind = type(failure)
        module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        return f"{module}{kind.__qualname__}"
    if status is not None and status >= _SERVER_ERROR:
        return str(status)
    if (
        outcome == "disconnected"
        and response is not None
        # That is how such a stream ends, and a WebSocket as well.
        and (response.is_acceptance or response.media_type == "text/event-stream")
    ):
        return None
    return outcome if outcome in {"incomplete", "cancelled", "disconnected", "failed"} else None


def _are_labels(labels: Any) -> bool:
    return isinstance(labels, Mapping) and all(
        isinstance(name, str) and _LABEL.fullmatch(name) and is_plain_callable(function)
        for name, function in labels.items()
    )


def _are_buckets(buckets: Any) -> bool:
    if isinstance(buckets, str) or not isinstance(buckets, Sequence) or not buckets:
        return False
    if not all(isinstance(each, (int, float)) and not math.isnan(each) for each in buckets):
        return False
    return all(one < other for one, other in pairwise(buckets))
