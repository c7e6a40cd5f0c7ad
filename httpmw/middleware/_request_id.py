from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, Final

from starlette.types import ASGIApp

from httpmw import _errors
from httpmw._adapter import Flow, Predicate
from httpmw._connection import Connection

from ._ids import request_id, trace_id
from ._ready import Exclude, Ready, headers_of

_log = logging.getLogger("httpmw.request_id")

# Of what ids are made elsewhere: UUIDs, base64, `Root=1-...` of AWS. What a client sends comes into
# the log and into other services, so nothing else is taken.
_ACCEPTED: Final = re.compile(r"[A-Za-z0-9._=:;/+@~,-]{1,200}")
# RFC 9110 section 5.6.2: token.
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
# W3C Trace Context section 3.2: version, trace-id, parent-id, trace-flags; a version that is not
# known may go on after a dash.
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?",
    re.DOTALL,
)


_FIXED_BITS: Final = 0xF << 76 | 0b11 << 62
_VERSION_4: Final = 4 << 76 | 0b10 << 62


class RequestIDMiddleware(Ready):
    """
    Give each request an id: that with which it came, or a new one.

    It stands in the variable `request_id`, in `request.state.request_id` and in the header of the
    response, in place of one that the application has set. It holds to the end of background
    tasks; where an exception passes on it is left in the variable, for whoever logs that.

    On a WebSocket handshake it is in the headers of the acceptance or of the refusal.

    Args:
        app: The inner app.
        header_name: The name of the header, for the request and for the response.
        generator: Called without an argument, gives a new id. By default a UUID (version 4) in 32
            hexadecimal digits.
        validator: Called with the id that came, says whether it is taken. By default 1 to 200
            letters, digits and characters of `._=:;/+@~,-` are. One that is refused is logged at
            DEBUG and replaced.
        transformer: Called with the id, gives the one that is used.
        update_request_header: Whether those further in find the id in the header of the request,
            too. It is a copy of the scope for each request, so only for those that look there.
        response_header: Whether it is set on the response.
        trust: A predicate on the connection; where it is false, an id that came is not looked at.
        from_traceparent: Whether the trace-id of a valid `traceparent` is taken where no id came.
            A trace may have many requests, which have one id then.
        sentry: Whether the tag `request_id` is set on Sentry's isolation scope.
        when: As in `HTTPMiddleware`.
        exclude: Paths for which it is not there, or a predicate.
        websocket: As in `HTTPMiddleware`; by default True.

    Raises:
        TypeError: An option is not what it has to be.
        ImportError: *sentry* without `sentry-sdk`; `httpmw[sentry]` installs it.

    A generator, validator or transformer that fails is logged, and costs its id, not the request: a
    new UUID takes its place.
    """

    kind = "request_id"
    websocket = True

    def __init__(
        self,
        app: ASGIApp,
        *,
        header_name: str = "x-request-id",
        generator: Callable[[], str] | None = None,
        validator: Callable[[str], bool] | None = None,
        transformer: Callable[[str], str] | None = None,
        update_request_header: bool = False,
        response_header: bool = True,
        trust: Callable[[Connection[Any]], bool] | None = None,
        from_traceparent: bool = False,
        sentry: bool = False,
        when: Predicate | None = None,
        exclude: Exclude = (),
        websocket: bool | None = None,
    ) -> None:
        super().__init__(app, when=when, exclude=exclude, websocket=websocket)
        if not _is_token(header_name):
            raise self._bad("header_name", header_name, "the name of a header")
        self._check_callables(
            generator=generator, validator=validator, transformer=transformer, trust=trust
        )
        self._check_flags(
            update_request_header=update_request_header,
            response_header=response_header,
            from_traceparent=from_traceparent,
            sentry=sentry,
        )
        self._name = header_name.lower()
        self._key = self._name.encode()
        self._generator = generator
        self._validator = validator
        self._transformer = transformer
        self._update = update_request_header
        self._answer = response_header
        self._trust = trust
        self._from_traceparent = from_traceparent
        self._tag = _sentry_tag(type(self)) if sentry else None

    async def dispatch(self, conn: Connection[Any], /) -> Flow:
        """
        Give this request its id.
        """
        given: bytes | None = None
        parent: bytes | None = None
        for key, line in headers_of(conn):
            if key == self._key:
                given = line  # of several lines the last one is the nearest proxy's
            elif key == b"traceparent":
                parent = line if parent is None else b""  # two of them say nothing
        trace = _current_trace()
        if trace is None and parent is not None:
            trace = _trace_of(parent)
        came = None if given is None else given.decode("latin-1")
        value = self._id(conn, came, trace)
        token = request_id.set(value)
        trace_token = trace_id.set(trace)
        conn.state.request_id = value
        if self._update and value != came:
            conn.set_header(self._name, value)
        if self._tag is not None:
            self._tag("request_id", value)
        response = yield
        if self._answer:
            response.headers[self._name] = value
        yield response
        # In no `finally`: what is raised is still to be logged, by the server or by Sentry.
        trace_id.reset(trace_token)
        request_id.reset(token)

    def _id(self, conn: Connection[Any], came: str | None, trace: str | None) -> str:
        value: str | None = None
        if came is not None and self._is_taken(conn, came):
            value = came
        elif self._from_traceparent and trace is not None:
            value = trace
        elif self._generator is None:
            value = _new_uuid()
        else:
            value = self._made(self._generator)
        if self._transformer is not None:
            value = self._made(self._transformer, value)
        return value

    def _is_taken(self, conn: Connection[Any], came: str) -> bool:
        try:
            if self._trust is not None and not self._trust(conn):
                return False
            if self._validator is None:
                taken = _ACCEPTED.fullmatch(came) is not None
            else:
                taken = _is_printable(came) and bool(self._validator(came))
        except Exception:  # whatever a callable of the user's raises
            _log.exception("httpmw: an id that came was not taken, as its check has failed")
            return False
        if not taken:
            _log.debug("httpmw: refused the id that came in %s: %a", self._name, came)
        return taken

    def _made(self, make: Callable[..., str], *args: str) -> str:
        """
        Give what *make* gives, or a new id where it is of no use.
        """
        try:
            value = make(*args)
            if not _is_printable(value):
                raise _errors.bad_id(make, value)
        except Exception:  # whatever a callable of the user's raises
            _log.exception("httpmw: a request has got a UUID, as its own id could not be made")
            return _new_uuid()
        return value


class RequestIDFilter(logging.Filter):
    """
    Put `request_id` and `trace_id` on every record, for a handler's format.

        handler.addFilter(RequestIDFilter())
        handler.setFormatter(logging.Formatter("%(request_id)s %(message)s"))

    Args:
        default: What stands there outside of requests.
        length: How many characters of the id are taken; None: all.

    Put it on handlers: a filter on a logger is not asked about records of loggers below it.
    """

    def __init__(self, *, default: str = "-", length: int | None = None) -> None:
        super().__init__()
        self.default = default
        self.length = length

    def filter(self, record: logging.LogRecord) -> bool:
        """
        Let every record pass, with its ids.
        """
        value = request_id.get()
        record.request_id = self.default if value is None else value[: self.length]
        record.trace_id = trace_id.get() or self.default
        return True


def add_request_id(
    logger: object,  # noqa: ARG001 - structlog's signature
    method_name: str,  # noqa: ARG001 - see above
    event_dict: MutableMapping[str, Any],
) -> MutableMapping[str, Any]:
    """
    Put `request_id` and `trace_id` into each event: a processor of structlog.

        structlog.configure(processors=[add_request_id, structlog.processors.JSONRenderer()])

    Args:
        logger: Not used.
        method_name: Not used.
        event_dict: The event; what it has already stays.

    Returns:
        The event.
    """
    for name, variable in (("request_id", request_id), ("trace_id", trace_id)):
        value = variable.get()
        if value is not None:
            event_dict.setdefault(name, value)
    return event_dict


# Ids that were made in advance: to ask the system for random bytes is most of the time of one.
_spare: Final[list[str]] = []
_IN_ADVANCE: Final = 64
if hasattr(os, "register_at_fork"):  # two processes must not have the same ones
    os.register_at_fork(after_in_child=_spare.clear)


def _new_uuid() -> str:
    """
    Give `uuid4().hex`, as `uuid4` would make it.
    """
    while True:
        try:
            return _spare.pop()
        except IndexError:  # or another thread was quicker
            data = os.urandom(16 * _IN_ADVANCE)
            for place in range(0, len(data), 16):
                bits = int.from_bytes(data[place : place + 16], "big")
                # RFC 9562 section 5.4: the version and the variant.
                _spare.append(f"{bits & ~_FIXED_BITS | _VERSION_4:032x}")


def _is_printable(value: object) -> bool:
    """
    Whether it can stand in a header and in a line of a log.
    """
    return isinstance(value, str) and value != "" and value.isascii() and value.isprintable()


def _is_token(value: object) -> bool:
    return isinstance(value, str) and _TOKEN.fullmatch(value) is not None


def _trace_of(parent: bytes) -> str | None:
    match = _TRACEPARENT.fullmatch(parent)
    if match is None or (match[1] == b"00" and match[3] is not None):
        return None
    return match[2].decode()


def _current_trace() -> str | None:
    """
    Give the trace of OpenTelemetry's current span; None where nobody has loaded OpenTelemetry.
    """
    current = getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)
    if current is None:
        return None
    context = current().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else None


def _sentry_tag(owner: type) -> Callable[[str, str], None]:
    try:
        import sentry_sdk  # noqa: PLC0415 - for those who want it
    except ImportError:
        raise _errors.missing_extra(owner, "sentry-sdk", "sentry") from None

    def tag(name: str, value: str) -> None:
        sentry_sdk.get_isolation_scope().set_tag(name, value)

    return tag
