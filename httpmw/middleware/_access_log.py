# The access log: the record of a request, each format that it is written in, and the layer.
#
# They are one file because a field is one thing in all of them: who adds one, or an option, finds
# the record, the layer and the formats one below the other.
#
# Rule 1: one line for each request, written when the server has taken the last message of the
# response or none will come; where there is no response, when the exception passes by.
# Rule 2: what the client has sent is escaped where it is read; no format has to think of it.
# Rule 3: nothing that fails here fails a request; a callable of the user's costs its own field.

from __future__ import annotations

import ipaddress
import json
import logging
import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias, get_args
from urllib.parse import quote, unquote_plus
from zlib import crc32

from starlette.types import ASGIApp, Scope

from httpmw import _errors
from httpmw._adapter import Flow, Predicate
from httpmw._connection import Connection
from httpmw._observe import outcome_of
from httpmw._response import AppResponse

from ._ids import request_id, trace_id
from ._ready import Exclude, Ready, view_of
from ._route import route_template

_log = logging.getLogger("httpmw.access_log")

Format: TypeAlias = Literal["text", "combined", "json", "ecs", "otel"]
_FORMATS: Final = get_args(Format)

REDACTED_KEYS: Final = (
    # OpenTelemetry's, of `url.query`.
    "AWSAccessKeyId", "Signature", "X-Amz-Credential", "X-Amz-Security-Token", "X-Amz-Signature",
    "X-Goog-Signature", "sig",
    # Of OAuth 2.0 and of applications.
    "access_token", "api_key", "apikey", "code", "id_token", "key", "password", "refresh_token",
    "secret", "session", "token",
)  # fmt: skip
"""
The keys whose values `query="redacted"` does not show.
"""

# Whoever lists these means something else.
_SECRET_HEADERS: Final = frozenset({"authorization", "cookie", "proxy-authorization"})
# Of OpenTelemetry's semantic conventions.
_KNOWN_METHODS: Final = frozenset({
    "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE",
})  # fmt: skip
# `strftime` would have those of a locale.
_MONTHS: Final = (
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"
)  # fmt: skip
_SERVER_ERROR: Final = 500
# What a `LogRecord` has already cannot be given as `extra`.
_TAKEN: Final = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})


@dataclass(slots=True)
class AccessRecord:
    """
    What is known of a request that is over, as the callables of `AccessLogMiddleware` get it.

    What has come from the client is escaped: there are no control characters in it.

    Attributes:
        time: When the request came, in seconds since the epoch.
        method: The method.
        path: The path, percent-encoded, without the query.
        status: The status that was sent; None where there was no response.
        outcome: How it ended, as `AppResponse.outcome` says it; "started" for `log_start`.
        bytes: How many bytes of body the server has taken.
        duration: The time to the last message, in seconds.
        time_to_start: The time to the response start, in seconds; None where there was none.
        query: The query with what is to be redacted redacted; None unless it was asked for.
        route: The template of the route, as of `route_template`.
        client: The address of the client, as far as it was asked for.
        scheme: The scheme of the request.
        http_version: The version of HTTP.
        request_id: The id of the request.
        trace_id: The id of its trace.
        error: The qualified name of the class of the exception that ended it.
        is_websocket: Whether it is a WebSocket.
        close_code: The code with which the WebSocket was closed.
        is_slow: Whether it took longer than `slow`.
        headers: Those request headers that were asked for.
        fields: What the callable `fields` gave.
    """

    time: float
    method: str
    path: str
    status: int | None
    outcome: str
    bytes: int
    duration: float
    time_to_start: float | None = None
    query: str | None = None
    route: str | None = None
    client: str | None = None
    scheme: str = "http"
    http_version: str = "1.1"
    request_id: str | None = None
    trace_id: str | None = None
    error: str | None = None
    is_websocket: bool = False
    close_code: int | None = None
    is_slow: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)


class AccessLogMiddleware(Ready):
    """
    Write one line for each request, when its last byte is out or none will come.

    Args:
        app: The inner app.
        logger: The logger or its name; or one of structlog, or whatever else has methods `debug`,
            `info`, `warning` and `error` that take fields as keywords.
        format: "text", "combined" (Apache), "json", "ecs" (Elastic Common Schema), "otel"
            (OpenTelemetry's attributes, as JSON); or a callable that makes a str or a mapping of a
            record.
        structured: Whether a logger of the standard library gets the fields as `extra=` and a short
            message, for a formatter that writes them; others always do.
        level: A callable that gives the level of a record, such as `logging.INFO`. By default ERROR
            for exceptions and statuses from 500 on, WARNING for what is slow, cancelled or
            incomplete, else INFO.
        fields: A callable that is given the connection and the response, None where there is none,
            and gives a mapping of more fields.
        query: "redacted" shows the query of the path; None does not.
        redact: The keys of queries whose values are not shown, here and in `referer`.
        client: Whether the address of the client is shown: "full", "prefix" (/24 of IPv4, /48 of
            IPv6) or None.
        headers: The request headers that are shown.
        sample: The share of requests that have a line, 0.0 to 1.0, by their id; from WARNING on all
            have one.
        slow: From how many seconds on a request is slow: to its last byte, or to its start if it
            is a WebSocket or an event stream; None: never.
        request_id: A callable that is given the connection and gives the id; by default it is that
            of `RequestIDMiddleware`.
        log_start: Whether there is one line more when the request comes.
        when: As in `HTTPMiddleware`.
        exclude: Paths that have no line, or a predicate.
        websocket: As in `HTTPMiddleware`; by default True, and the line comes when the socket is
            over.

    Raises:
        TypeError: An option is not what it has to be.
    """

    kind = "access_log"
    websocket = True

    def __init__(
        self,
        app: ASGIApp,
        *,
        logger: Any = "httpmw.access",
        format: Format | Callable[[AccessRecord], str | Mapping[str, Any]] = "text",  # noqa: A002 - the field's word
        structured: bool = False,
        level: Callable[[AccessRecord], int] | None = None,
        fields: Callable[[Connection[Any], AppResponse | None], Mapping[str, Any]] | None = None,
        query: Literal["redacted"] | None = None,
        redact: Collection[str] = REDACTED_KEYS,
        client: Literal["full", "prefix"] | None = "full",
        headers: Collection[str] = (),
        sample: float = 1.0,
        slow: float | None = None,
        request_id: Callable[[Connection[Any]], str | None] | None = None,
        log_start: bool = False,
        when: Predicate | None = None,
        exclude: Exclude = (),
        websocket: bool | None = None,
    ) -> None:
        super().__init__(app, when=when, exclude=exclude, websocket=websocket)
        self._check_callables(level=level, fields=fields, request_id=request_id)
        self._check_flags(structured=structured, log_start=log_start)
        if callable(format):
            self._check_callables(format=format)
        elif format not in _FORMATS:
            raise self._bad("format", format, f"one of {', '.join(_FORMATS)}, or a plain function")
        if query not in {None, "redacted"}:
            raise self._bad("query", query, '"redacted" or None')
        if client not in {None, "full", "prefix"}:
            raise self._bad("client", client, '"full", "prefix" or None')
        if not _is_number(sample) or not 0 <= sample <= 1:
            raise self._bad("sample", sample, "a number from 0.0 to 1.0")
        if slow is not None and not _is_number(slow):
            raise self._bad("slow", slow, "a number of seconds, or None")
        for name, names in (("redact", redact), ("headers", headers)):
            if not _are_names(names):
                raise self._bad(name, names, "a list of names")
        shown = [name.lower() for name in headers]
        if secret := _SECRET_HEADERS.intersection(shown):
            raise self._bad("headers", headers, f"without {min(secret)}: logs are no place for it")
        self._write = self._writer(logger, structured=structured)
        self._format: Any = format
        if format == "combined":  # which has them
            shown += ["referer", "user-agent"]
        self._shown_headers = tuple(dict.fromkeys(shown))
        self._structured = structured
        self._level = level
        self._fields = fields
        self._query = query
        self._redact = frozenset(redact)
        self._client = client
        self._sample = sample
        self._slow = slow
        self._request_id = request_id
        self._log_start = log_start
        # The callables that have failed once.
        self._failed: set[str] = set()

    async def dispatch(self, conn: Connection[Any], /) -> Flow:
        """
        Write the line of this request.
        """
        began, came = time.perf_counter(), time.time()
        response: AppResponse | None = None
        failed: AppResponse | None = None
        error: str | None = None
        is_over = False

        def sent(response: AppResponse) -> None:
            nonlocal failed
            if response.outcome == "failed" and not is_over:
                failed = response  # with what, is known in a moment
            else:
                self._finish(conn, response, str(response.outcome), began, came, error)

        if self._log_start:
            self._finish(conn, None, "started", began, came, None)
        try:
            response = yield
            response.on_sent(sent)
            yield response
        except BaseException as exc:
            error = _class_of(exc)
            if response is None:
                gone = isinstance(exc, GeneratorExit)
                outcome = "cancelled" if gone else outcome_of(exc)
                self._finish(conn, None, outcome, began, came, error)
            raise
        finally:
            is_over = True
            if failed is not None:
                self._finish(conn, failed, "failed", began, came, error)

    # ------------------------------------------------------------------ the line

    def _finish(
        self,
        conn: Connection[Any],
        response: AppResponse | None,
        outcome: str,
        began: float,
        came: float,
        error: str | None,
    ) -> None:
        try:
            record = self._record(conn, response, outcome, began, came, error)
            if self._level is None:
                level = _level(record)
            else:
                level = self._asked("level", self._level, _level, record)
            if self._sample < 1 and level < logging.WARNING and not self._is_sampled(record):
                return
            self._write(level, record)
        except Exception:
            _log.exception("httpmw: the line of a request could not be written")

    def _record(
        self,
        conn: Connection[Any],
        response: AppResponse | None,
        outcome: str,
        began: float,
        came: float,
        error: str | None,
    ) -> AccessRecord:
        view = view_of(conn)
        is_websocket = conn.is_websocket
        status = close_code = time_to_start = ended = None
        size = 0
        if response is not None:
            started, ended = response.started_at, response.ended_at
            if started is not None:
                status = response.status_code
                time_to_start = started - began
            size = response.bytes_sent
            if is_websocket and response.is_acceptance:
                close_code = response.close_code
        duration = (time.perf_counter() if ended is None else ended) - began
        address = view.get("client")
        client: str | None = None
        if address is not None and self._client is not None:
            host = address[0]
            client = escaped(host) if self._client == "full" else _prefix(host)
        query: str | None = None
        if self._query is not None:
            query = redacted(view["query_string"].decode("latin-1"), self._redact)
        given = self._request_id
        record = AccessRecord(
            came,
            "GET" if is_websocket else escaped(view["method"]),
            escaped(_path(view)),
            status,
            outcome,
            size,
            duration,
            time_to_start,
            query,
            route_template(conn),
            client,
            view.get("scheme") or ("ws" if is_websocket else "http"),
            view.get("http_version", "1.1"),
            _request_id_of(conn)
            if given is None
            else self._asked("request_id", given, _request_id_of, conn),
            trace_id.get(),
            error,
            is_websocket,
            close_code,
        )
        if self._slow is not None:
            record.is_slow = self._is_slow(record, response)
        for name in self._shown_headers:
            value = conn.headers.get(name)
            if value is not None:
                record.headers[name] = self._shown(name, value)
        if self._fields is not None:
            made = self._asked("fields", self._fields, _nothing, conn, response)
            record.fields = {str(key): value for key, value in made.items()}
        return record

    def _shown(self, name: str, value: str) -> str:
        if name == "referer":
            path, mark, query = value.partition("?")
            value = path + mark + redacted(query, self._redact)
        return escaped(value)

    def _is_slow(self, record: AccessRecord, response: AppResponse | None) -> bool:
        took = record.duration
        assert self._slow is not None  # noqa: S101 - asked before
        if took >= self._slow and response is not None and record.time_to_start is not None:
            kind = response.headers.get("content-type", "")
            if record.is_websocket or kind.startswith("text/event-stream"):
                took = record.time_to_start
        return took >= self._slow

    def _is_sampled(self, record: AccessRecord) -> bool:
        # All services that have the id decide alike.
        value = record.request_id
        if value is None:
            return random.random() < self._sample  # noqa: S311 - no secret
        return crc32(value.encode()) / 2**32 < self._sample

    def _asked(self, name: str, function: Any, default: Any, *args: Any) -> Any:
        """
        Call what the user has given, where there is something, and what is ours where it fails.
        """
        if function is None:
            return default(*args)
        try:
            value = function(*args)
            if name == "fields" and not isinstance(value, Mapping):
                raise _errors.bad_result(name, function, value, "a mapping")
            if name == "level" and not isinstance(value, int):
                raise _errors.bad_result(name, function, value, "an int, such as `logging.INFO`")
            if name == "format" and not isinstance(value, str | Mapping):
                raise _errors.bad_result(name, function, value, "a str or a mapping")
        except Exception as exc:
            # Once; else an access log would be one of errors.
            first = name not in self._failed
            self._failed.add(name)
            level = logging.ERROR if first else logging.DEBUG
            _log.log(level, "httpmw: `%s` of the access log has failed", name, exc_info=exc)
            return default(*args)
        else:
            return value

    # ------------------------------------------------------------------ the logger

    def _writer(self, logger: Any, *, structured: bool) -> Callable[[int, AccessRecord], None]:
        if isinstance(logger, str):
            logger = logging.getLogger(logger)
        if not isinstance(logger, logging.Logger | logging.LoggerAdapter):
            if not all(callable(getattr(logger, name, None)) for name in _METHODS.values()):
                raise self._bad("logger", logger, "a logger or its name")
            return lambda level, record: self._write_fields(logger, level, record)

        def write(level: int, record: AccessRecord) -> None:
            if not logger.isEnabledFor(level):
                return
            if structured:
                message, fields = self._rendered(record, level)
                extra = {f"{k}_" if k in _TAKEN else k: v for k, v in fields.items()}
                logger.log(level, "%s", message, extra=extra)
            elif isinstance(logger, logging.Logger):
                # `logger.log`, which would look through the stack for who calls: always this line.
                of_line = level, __file__, 0, "%s", (self._line(record, level),), None, "write"
                logger.handle(logger.makeRecord(logger.name, *of_line))
            else:
                logger.log(level, "%s", self._line(record, level))

        return write

    def _write_fields(self, logger: Any, level: int, record: AccessRecord) -> None:
        message, fields = self._rendered(record, level)
        name = _METHODS[max((each for each in _METHODS if each <= level), default=logging.DEBUG)]
        # The name of structlog's first parameter.
        fields = {"event_" if key == "event" else key: value for key, value in fields.items()}
        getattr(logger, name)(message, **fields)

    def _line(self, record: AccessRecord, level: int) -> str:
        made = self._made(record, level)
        return made if isinstance(made, str) else _json(made)

    def _rendered(self, record: AccessRecord, level: int) -> tuple[str, Mapping[str, Any]]:
        """
        Give a message and the fields beside it.
        """
        made = self._made(record, level)
        if isinstance(made, str):
            return made, own_fields(record)
        # A formatter has these of its own.
        return _short(record), {k: v for k, v in made.items() if k not in _OF_FORMATTERS}

    def _made(self, record: AccessRecord, level: int) -> str | Mapping[str, Any]:
        form = self._format
        if form == "text":
            return text(record)
        if form == "combined":
            return combined(record)
        if form == "json":
            now = _iso(record.time)
            return {"time": now, "level": _name(level), **own_fields(record)}
        if form == "ecs":
            return ecs_fields(record, level)
        if form == "otel":
            return otel_fields(record)
        made: str | Mapping[str, Any] = self._asked("format", form, text, record)
        return made


_METHODS: Final = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
}
_OF_FORMATTERS: Final = frozenset({"@timestamp", "ecs.version", "level", "log.level", "message"})


# ---------------------------------------------------------------------- what is asked


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_names(names: object) -> bool:
    if isinstance(names, str) or not isinstance(names, Collection):
        return False
    return all(isinstance(each, str) for each in names)


def _nothing(*_: object) -> Mapping[str, Any]:
    return {}


def _class_of(exc: BaseException) -> str:
    kind = type(exc)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def _level(record: AccessRecord) -> int:
    if record.outcome == "failed" or (record.status or 0) >= _SERVER_ERROR:
        return logging.ERROR
    if record.is_slow or record.outcome in {"cancelled", "incomplete"}:
        return logging.WARNING
    return logging.INFO


def _request_id_of(conn: Connection[Any]) -> str | None:
    value = request_id.get()
    if value is None:  # also that of a layer further in, or of another one
        value = (view_of(conn).get("state") or {}).get("request_id")
    return None if value is None else escaped(str(value))


def _path(scope: Scope) -> str:
    raw: bytes | None = scope.get("raw_path")
    if raw:
        # Without a query, which some servers leave there.
        return raw.partition(b"?")[0].decode("latin-1")
    return quote(scope["path"], safe="/:@!$&'()*+,;=~", errors="surrogatepass")


def _prefix(host: str) -> str | None:
    """
    Give the network of a client; None where it is no address.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None) or address
    length = 24 if mapped.version == 4 else 48  # noqa: PLR2004 - of IP
    return str(ipaddress.ip_network((mapped, length), strict=False).network_address)


def redacted(query: str, keys: Collection[str]) -> str:
    """
    Take the values of *keys* out of a query, and escape what is left.
    """
    parts = query.split("&")
    for place, part in enumerate(parts):
        key, equals, _ = part.partition("=")
        if equals and unquote_plus(key) in keys:
            parts[place] = f"{key}=REDACTED"
    return escaped("&".join(parts))


def escaped(value: str) -> str:
    r"""
    Write control characters, and others that are not printed, as `\n` and `\u202e`.
    """
    if value.isprintable():
        return value
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in value
    )


# ---------------------------------------------------------------------- the formats


def _short(record: AccessRecord) -> str:
    kind = "WebSocket" if record.is_websocket else record.method
    return f"{kind} {_target(record)} {'-' if record.status is None else record.status}"


def _target(record: AccessRecord) -> str:
    return f"{record.path}?{record.query}" if record.query else record.path


def text(record: AccessRecord) -> str:
    """
    Write a record for people.
    """
    line = f"{_short(record)}, "
    if record.outcome != "started":
        line += f"{record.bytes} bytes in {record.duration * 1000:.1f} ms, "
    line += record.outcome
    if record.is_slow:
        line += ", slow"
    pairs = ""
    if record.time_to_start is not None:
        pairs = f" start={record.time_to_start * 1000:.1f}ms"
    if record.route is not None:
        pairs += f" route={record.route}"
    if record.client is not None:
        pairs += f" client={record.client}"
    if record.close_code is not None:
        pairs += f" close_code={record.close_code}"
    if record.error is not None:
        pairs += f" error={record.error}"
    if record.request_id is not None:
        pairs += f" request_id={record.request_id}"
    # Of anybody's making: it could look like one of the others.
    for name, value in record.headers.items():
        pairs += f" {name}={value!r}"
    for name, value in record.fields.items():
        pairs += f" {escaped(name)}={value!r}"
    return f"{line},{pairs}" if pairs else line


def combined(record: AccessRecord) -> str:
    """
    Write a record as Apache's `combined` has it.
    """
    came = time.localtime(record.time)
    offset = came.tm_gmtoff // 60
    zone = f"{'-' if offset < 0 else '+'}{abs(offset) // 60:02d}{abs(offset) % 60:02d}"
    day = f"{came.tm_mday:02d}/{_MONTHS[came.tm_mon - 1]}/{came.tm_year}"
    moment = f"{day}:{came.tm_hour:02d}:{came.tm_min:02d}:{came.tm_sec:02d} {zone}"
    request = f"{record.method} {_target(record)} HTTP/{record.http_version}"
    referer, agent = (record.headers.get(name, "-") for name in ("referer", "user-agent"))
    status = "-" if record.status is None else record.status
    return (
        f'{record.client or "-"} - - [{moment}] "{_quoted(request)}" {status} '
        f'{record.bytes or "-"} "{_quoted(referer)}" "{_quoted(agent)}"'
    )


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


def own_fields(record: AccessRecord) -> dict[str, Any]:
    """
    Give the fields of a record under our own names.
    """
    fields: dict[str, Any] = {
        **record.fields,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "outcome": record.outcome,
        "bytes": record.bytes,
        "time_to_start": record.time_to_start,
        "duration": record.duration,
        "http_version": record.http_version,
    }
    more: dict[str, Any] = {
        "query": record.query,
        "route": record.route,
        "client": record.client,
        "request_id": record.request_id,
        "trace_id": record.trace_id,
        "error": record.error,
        "slow": record.is_slow or None,
        "websocket": record.is_websocket or None,
        "close_code": record.close_code,
        "headers": record.headers or None,
    }
    fields.update((name, value) for name, value in more.items() if value is not None)
    return fields


def ecs_fields(record: AccessRecord, level: int) -> dict[str, Any]:
    """
    Give the fields of a record under the names of the Elastic Common Schema.
    """
    fields: dict[str, Any] = {
        "@timestamp": _iso(record.time),
        "log.level": _name(level),
        "message": _short(record),
        "ecs.version": "8.11.0",
        "event.kind": "event",
        "event.category": ["web"],
        "event.type": ["access"],
        "event.outcome": _ecs_outcome(record),
        "event.duration": round(record.duration * 1e9),  # nanoseconds
        "http.request.method": record.method,
        "http.version": record.http_version,
        "http.response.body.bytes": record.bytes,
        "url.path": record.path,
        "url.scheme": record.scheme,
        "httpmw.outcome": record.outcome,
    }
    more: dict[str, Any] = {
        "http.response.status_code": record.status,
        "url.query": record.query,
        "client.address": record.client,
        "http.request.id": record.request_id,
        "trace.id": record.trace_id,
        "error.type": record.error,
        "httpmw.route": record.route,
        "httpmw.time_to_start_s": record.time_to_start,
        "httpmw.close_code": record.close_code,
    }
    fields.update((name, value) for name, value in more.items() if value is not None)
    for name, value in record.headers.items():
        fields[_ECS_HEADERS.get(name, f"http.request.headers.{name}")] = value
    fields.update((f"labels.{name}", value) for name, value in record.fields.items())
    return fields


_ECS_HEADERS: Final = {"user-agent": "user_agent.original", "referer": "http.request.referrer"}


def _ecs_outcome(record: AccessRecord) -> str:
    if record.outcome in {"failed", "incomplete"} or (record.status or 0) >= _SERVER_ERROR:
        return "failure"
    return "success" if record.outcome == "completed" else "unknown"


def otel_fields(record: AccessRecord) -> dict[str, Any]:
    """
    Give the fields of a record under the names of OpenTelemetry's semantic conventions.
    """
    known = record.method in _KNOWN_METHODS
    error = record.error
    if error is None and (record.status or 0) >= _SERVER_ERROR:
        error = str(record.status)
    fields: dict[str, Any] = {
        **record.fields,
        "http.request.method": record.method if known else "_OTHER",
        "url.path": record.path,
        "url.scheme": record.scheme,
        "network.protocol.version": record.http_version,
        "http.response.body.size": record.bytes,
        # There is no attribute for a duration in a record of a log.
        "httpmw.duration_s": record.duration,
        "httpmw.outcome": record.outcome,
    }
    more: dict[str, Any] = {
        "http.request.method_original": None if known else record.method,
        "http.response.status_code": record.status,
        "http.route": record.route,
        "url.query": record.query,
        "client.address": record.client,
        "error.type": error,
        "httpmw.time_to_start_s": record.time_to_start,
        "httpmw.request_id": record.request_id,
        "httpmw.close_code": record.close_code,
    }
    fields.update((name, value) for name, value in more.items() if value is not None)
    for name, value in record.headers.items():
        if name == "user-agent":
            fields["user_agent.original"] = value
        else:
            fields[f"http.request.header.{name}"] = [value]
    return fields


def _name(level: int) -> str:
    return logging.getLevelName(level).lower()


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")


def _json(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, default=str, separators=(",", ":"))
