from __future__ import annotations

import logging
from typing import Any, Final, Literal

from starlette.responses import Response
from starlette.types import ASGIApp, Message

from httpmw._adapter import Flow, Predicate
from httpmw._connection import Connection
from httpmw._errors import DeadlineExceeded, UploadDeadlineExceeded
from httpmw._limit import Limit

from ._draining import Drain
from ._ready import Exclude, Ready
from ._refuse import Refusal, Respond, retry_events, wants_events_alone

_log: Final = logging.getLogger("httpmw.timeout")
# Of a server that is behind another one: 504 is what a proxy says, 503 what it says of itself.
_STATUSES: Final = range(500, 600)


class TimeoutMiddleware(Ready):
    """
    Limit the time of the application and of uploads.

    An application that has not begun its response in time is cancelled, and a 504 is the answer; a
    response that goes on for too long, or is silent for too long, breaks off. An upload that takes
    too long is a 408, or the response breaks off that has begun. `DeadlineExceeded` is raised on to
    the server where the response has begun.

    The thread of a `def` endpoint cannot be stopped, and runs to its end.

    Args:
        app: The inner app.
        start: How long the application may take to its response start, in seconds; None: as long as
            it likes. Below what the proxy in front allows (60 s by default at nginx, Apache and
            Varnish), the answer is this layer's.
        idle: How long it may take for each message that follows, in seconds.
        total: How long from its response start to its last message, in seconds.
        upload_idle: How long the client may take for each part of the request's body, in seconds.
        upload_total: How long for all of it, in seconds.
        status: The status where *start* is over, 500 to 599.
        event_stream: What an `EventSource` gets in place of that status, with which a browser would
            never ask again: `"retry"`, an empty stream after which it does; or `"status"`.
        response: Makes the response in place of a problem document (RFC 9457): called with the
            connection and the `Problem`.
        drain: Whether what is left of the request's body is received, and up to which bounds; a
            mapping has `max_size` (bytes, by default 1 MiB) and `seconds` (by default 1).
        when: As in `HTTPMiddleware`.
        exclude: Paths for which it is not there, or a predicate.
        websocket: As in `HTTPMiddleware`; by default True: *start* limits the time to the
            acceptance.

    Raises:
        TypeError: An option is not what it has to be.

    Event streams (`text/event-stream`) are left alone by *idle* and *total*.
    """

    kind = "timeout"

    def __init__(
        self,
        app: ASGIApp,
        *,
        start: float | None = 30,
        idle: float | None = None,
        total: float | None = None,
        upload_idle: float | None = None,
        upload_total: float | None = None,
        status: int = 504,
        event_stream: Literal["retry", "status"] = "retry",
        response: Respond | None = None,
        drain: Drain = True,
        when: Predicate | None = None,
        exclude: Exclude = (),
        websocket: bool | None = True,
    ) -> None:
        limits = {
            "start": start,
            "idle": idle,
            "total": total,
            "upload_idle": upload_idle,
            "upload_total": upload_total,
        }
        for option, seconds in limits.items():
            is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
            if seconds is not None and not (is_number and seconds > 0):
                raise self._bad(option, seconds, "seconds, more than 0, or None")
        if not any(limits.values()):
            raise self._bad("start", start, "seconds where no other limit is given")
        if isinstance(status, bool) or status not in _STATUSES:
            raise self._bad("status", status, "500 to 599")
        if event_stream not in ("retry", "status"):
            raise self._bad("event_stream", event_stream, '"retry" or "status"')
        self._check_callables(response=response)
        self._start = start
        self._idle = idle
        self._total = total
        self._upload_idle = upload_idle
        self._upload_total = upload_total
        self._status = status
        self._retries = event_stream == "retry"
        self._refusal = Refusal(type(self), response, drain)
        super().__init__(app, when=when, exclude=exclude, websocket=websocket)

    async def dispatch(self, conn: Connection[Any], /) -> Flow:
        """
        Set the limits, and answer where one is over before the response.
        """
        self._limit(conn)
        try:
            yield
        except UploadDeadlineExceeded:
            raise  # that is a 408 by itself
        except DeadlineExceeded:
            _log.warning(
                "%s %s has not begun its response in %s s",
                "WebSocket" if conn.is_websocket else ascii(conn.method)[1:-1],
                ascii(conn["path"])[1:-1],
                self._start,
            )
            yield await self._answer(conn)

    def _limit(self, conn: Connection[Any]) -> None:
        if conn.is_websocket:
            if self._start is not None:
                conn.fail_after(self._start)
            return
        if self._upload_idle is not None or self._upload_total is not None:
            conn.fail_upload_after(idle=self._upload_idle, total=self._upload_total)
        if self._idle is not None or self._total is not None:
            exchange = conn._before_the_yield("conn.fail_after()")  # noqa: SLF001 - see `_Sparing`
            exchange.put_around(
                lambda app: _Sparing(app, exchange, self._start, self._idle, self._total)
            )
        elif self._start is not None:
            conn.fail_after(self._start)

    async def _answer(self, conn: Connection[Any]) -> Response:
        if self._retries and wants_events_alone(conn):
            return retry_events(conn)
        return await self._refusal.response(
            conn, self._status, "The application took too long to answer.", "timeout"
        )


class _Sparing(Limit):
    # The limit of `Connection.fail_after`, but for events: they come when there are some.

    async def _send_in_time(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_event_stream(message):
            self._seconds["idle"] = self._seconds["total"] = float("inf")
        await super()._send_in_time(message)


def _is_event_stream(start: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.lower().startswith(b"text/event-stream")
        for name, value in start.get("headers", ())
    )
