# HTTP: the specification "HTTP & WebSocket ASGI Message Format" 2.5, and the extensions.

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from starlette.types import Message, Scope

from ._rule import (
    RAISED,
    RECEIVE,
    RETURN,
    SEND,
    bad_names,
    bad_pairs,
    bad_values,
    is_int,
    rule,
    spec_version,
)
from ._web import Web

START: Final = "http.response.start"
BODY: Final = "http.response.body"
PATHSEND: Final = "http.response.pathsend"
ZEROCOPY: Final = "http.response.zerocopysend"
TRAILERS: Final = "http.response.trailers"
HINT: Final = "http.response.early_hint"
DEBUG: Final = "http.response.debug"
PUSH: Final = "http.response.push"
REQUEST: Final = "http.request"
DISCONNECT: Final = "http.disconnect"

BASIC: Final = frozenset({START, BODY})
EXTENSIONS: Final = frozenset({DEBUG, HINT, PATHSEND, PUSH, TRAILERS, ZEROCOPY})

_WITHOUT_BODY: Final = (204, 205, 304)


class HTTP(Web):
    """
    What was said so far about one request.
    """

    def __init__(self, scope: Scope, app: object = None) -> None:
        super().__init__(scope, app)
        self.start: Message | None = None
        # The declared content-length, where it counts, and how much of it was sent.
        self.length: int | None = None
        self.written = 0
        self.body_over = False
        self.complete = False
        self.debugged = False
        # Whether the whole request was received, and whether the client is known to be gone.
        self.request_over = False
        self.told_gone = False

    @property
    def extensions(self) -> Any:
        return self.scope.get("extensions") or {}

    @property
    def is_head(self) -> bool:
        return bool(self.scope.get("method") == "HEAD")

    @property
    def has_no_body(self) -> bool:
        status = 0 if self.start is None else self.start["status"]
        return status < 200 or status in _WITHOUT_BODY  # noqa: PLR2004 - 1xx

    def sent(self, message: Message) -> None:
        kind = message["type"]
        if kind == START:
            self.start = message
            if not self.is_head and not self.has_no_body:
                self.length = content_length(message)
        elif kind == BODY:
            self.written += len(message.get("body", b""))
            if not message.get("more_body", False):
                self._end_body()
        elif kind == PATHSEND:
            self._end_body()
        elif kind == ZEROCOPY:
            self.length = None  # What the kernel copies is not counted here.
            if not message.get("more_body", False):
                self._end_body()
        elif kind == TRAILERS:
            self.complete = not message.get("more_trailers", False)
        elif kind == DEBUG:
            self.debugged = True

    def _end_body(self) -> None:
        self.body_over = True
        self.complete = self.start is not None and not self.start.get("trailers", False)

    def received(self, message: Message) -> None:
        if message["type"] == DISCONNECT:
            self.told_gone = True
        elif not message.get("more_body", False):
            self.request_over = True


def content_length(start: Message) -> int | None:
    for name, value in start.get("headers", ()):
        if name == b"content-length":
            return int(value)
    return None


# ---------------------------------------------------------------------- what the app sends


@rule(HTTP, "H01", "app", "Error Handling; Extensions", SEND)
def known_type(http: HTTP, message: Any) -> Any:
    """A message has one of the types of HTTP, or one that the scope announces as an extension."""
    kind = message["type"]
    if kind in BASIC or kind in http.extensions:
        return None
    return f"message {kind!r} " + ("was not announced" if kind in EXTENSIONS else "is unknown")


@rule(HTTP, "H02", "app", "HTTP: Response Body", SEND)
def nothing_after_the_end(http: HTTP, message: Any) -> Any:
    """Nothing follows the last message of a response."""
    return http.complete


@rule(HTTP, "H03", "app", "HTTP: Response Start", START)
def one_start(http: HTTP, message: Any) -> Any:
    """A response has one start."""
    return http.start is not None


@rule(HTTP, "H04", "app", "HTTP: Response Start; RFC 9110 section 15", START)
def status_is_an_int(http: HTTP, message: Any) -> Any:
    """The status is an int of three digits."""
    status = message.get("status")
    return not is_int(status) or not 100 <= status <= 999  # noqa: PLR2004 - three digits


@rule(HTTP, "H05", "app", "HTTP: Response Start; Extensions: HTTP Trailers", START, TRAILERS, PUSH)
def headers_are_pairs(http: HTTP, message: Any) -> Any:
    """Headers are an iterable of pairs of bytes."""
    return bad_pairs(message.get("headers", ()))


@rule(HTTP, "H06", "app", "HTTP: Response Start; RFC 9110 section 5.1", START, TRAILERS, PUSH)
def header_names_are_tokens(http: HTTP, message: Any) -> Any:
    """The name of a header is a token in lower case, and no pseudo header such as `:status`."""
    return bad_names(message.get("headers", ()))


@rule(HTTP, "H07", "app", "RFC 9110 section 5.5", START, TRAILERS, PUSH)
def header_values_are_clean(http: HTTP, message: Any) -> Any:
    """The value of a header holds no CR, LF or NUL."""
    return bad_values(message.get("headers", ()))


@rule(HTTP, "H08", "app", "RFC 9110 section 8.6", START)
def one_content_length(http: HTTP, message: Any) -> Any:
    """There is at most one content-length, in decimal digits."""
    lengths = [value for name, value in message.get("headers", ()) if name == b"content-length"]
    return len(lengths) > 1 or not all(each.isdigit() for each in lengths)


@rule(HTTP, "H09", "app", "RFC 9110 section 8.6", START)
def no_length_without_content(http: HTTP, message: Any) -> Any:
    """A response with a 1xx or 204 status has no content-length."""
    status = message["status"]
    return (status < 200 or status == 204) and content_length(message) is not None  # noqa: PLR2004


@rule(HTTP, "H10", "app", "HTTP: Response Start", START)
def trailers_is_a_bool(http: HTTP, message: Any) -> Any:
    """`trailers` is a bool."""
    return not isinstance(message.get("trailers", False), bool)


@rule(HTTP, "H11", "app", "Extensions: HTTP Trailers", START)
def trailers_are_supported(http: HTTP, message: Any) -> Any:
    """A start promises trailers only where the scope announces them as an extension."""
    return message.get("trailers", False) and TRAILERS not in http.extensions


@rule(HTTP, "H12", "app", "HTTP: Response Start", BODY, PATHSEND, ZEROCOPY, TRAILERS, PUSH)
def start_comes_first(http: HTTP, message: Any) -> Any:
    """The response start comes before the body, trailers and pushes."""
    return http.start is None


@rule(HTTP, "H13", "app", "HTTP: Response Body", BODY, PATHSEND, ZEROCOPY, PUSH, HINT)
def body_ends_once(http: HTTP, message: Any) -> Any:
    """After the last message of the body come only the trailers that the start promised."""
    return http.body_over


# Starlette sends a memoryview where an endpoint gave one, and every server takes it.
@rule(HTTP, "H14", "app", "HTTP: Response Body", BODY)
def body_is_bytes(http: HTTP, message: Any) -> Any:
    """A body is bytes, or what servers take as such: a bytearray or a memoryview."""
    return not isinstance(message.get("body", b""), (bytes, bytearray, memoryview))


@rule(HTTP, "H15", "app", "HTTP: Response Body", BODY, ZEROCOPY)
def more_body_is_a_bool(http: HTTP, message: Any) -> Any:
    """`more_body` is a bool."""
    return not isinstance(message.get("more_body", False), bool)


@rule(HTTP, "H16", "app", "RFC 9110 sections 6.4.1 and 15.3.6", BODY)
def no_body_where_none_can_be(http: HTTP, message: Any) -> Any:
    """A response with a 1xx, 204, 205 or 304 status has no body; one to HEAD may be given any."""
    return not http.is_head and http.has_no_body and len(message.get("body", b""))


@rule(HTTP, "H17", "app", "RFC 9110 section 8.6", BODY)
def body_not_longer(http: HTTP, message: Any) -> Any:
    """A body is not longer than its content-length."""
    written = http.written + len(message.get("body", b""))
    if http.length is not None and written > http.length:
        return f"body longer than its content-length: {written} bytes of {http.length}"
    return None


@rule(HTTP, "H18", "app", "RFC 9110 section 8.6", BODY)
def body_not_shorter(http: HTTP, message: Any) -> Any:
    """A body is not shorter than its content-length."""
    if message.get("more_body", False) or http.length is None:
        return None
    written = http.written + len(message.get("body", b""))
    if written < http.length:
        return f"body shorter than its content-length: {written} bytes of {http.length}"
    return None


@rule(HTTP, "H19", "app", "HTTP: Response Start", RETURN)
def app_answers(http: HTTP, message: Any) -> Any:
    """An app returns when its response is complete, unless the client has left."""
    if http.complete or http.told_gone:
        return None
    return "it returned " + ("in mid-response" if http.start else "without a response")


# ---------------------------------------------------------------------- extensions


@rule(HTTP, "X01", "app", "Extensions: Path Send", PATHSEND)
def pathsend_path(http: HTTP, message: Any) -> Any:
    """The `path` of a pathsend is a str, and absolute."""
    path = message.get("path")
    return not isinstance(path, str) or not Path(path).is_absolute()


@rule(HTTP, "X02", "app", "Extensions: Path Send", PATHSEND)
def pathsend_is_all(http: HTTP, message: Any) -> Any:
    """A pathsend is the whole body."""
    return http.written


@rule(HTTP, "X03", "app", "Extensions: Zero Copy Send", ZEROCOPY)
def zerocopy_file(http: HTTP, message: Any) -> Any:
    """The `file` of a zerocopysend has a file descriptor; `offset` and `count` are ints."""
    try:
        message["file"].fileno()
    except Exception:  # noqa: BLE001 - whatever it is, it is no open file
        return True
    return any(not is_int(message.get(key, 0)) for key in ("offset", "count"))


@rule(HTTP, "X04", "app", "Extensions: HTTP Trailers", TRAILERS)
def trailers_are_promised(http: HTTP, message: Any) -> Any:
    """Trailers come only where the response start promised them."""
    return http.start is not None and not http.start.get("trailers", False)


@rule(HTTP, "X05", "app", "Extensions: HTTP Trailers", TRAILERS)
def trailers_come_last(http: HTTP, message: Any) -> Any:
    """Trailers come after the last message of the body."""
    return not http.body_over


@rule(HTTP, "X06", "app", "Extensions: HTTP Trailers", TRAILERS)
def more_trailers_is_a_bool(http: HTTP, message: Any) -> Any:
    """`more_trailers` is a bool."""
    return not isinstance(message.get("more_trailers", False), bool)


# The text wants them after the response start; RFC 8297 and the servers that send them, before.
@rule(HTTP, "X07", "app", "Extensions: Early Hints", HINT)
def hint_links(http: HTTP, message: Any) -> Any:
    """The `links` of early hints, before or after the start, are an iterable of bytes."""
    links = message.get("links")
    return not isinstance(links, (list, tuple)) or not all(
        isinstance(each, bytes) for each in links
    )


@rule(HTTP, "X08", "app", "Extensions: HTTP/2 Server Push", PUSH)
def push_path(http: HTTP, message: Any) -> Any:
    """The `path` of a push is a str."""
    return not isinstance(message.get("path"), str)


@rule(HTTP, "X09", "app", "Extensions: Debug", DEBUG)
def debug_info(http: HTTP, message: Any) -> Any:
    """The `info` of a debug message is a dict with keys of str."""
    info = message.get("info")
    return not isinstance(info, dict) or not all(isinstance(key, str) for key in info)


@rule(HTTP, "X10", "app", "Extensions: Debug", DEBUG)
def debug_comes_first(http: HTTP, message: Any) -> Any:
    """A debug message is sent at most once, and before the response start."""
    return http.debugged or http.start is not None


# ---------------------------------------------------------------------- what the server gives


@rule(HTTP, "H31", "server", "HTTP: Request; Disconnect", RECEIVE)
def known_request_type(http: HTTP, message: Any) -> Any:
    """What is received is an `http.request` or an `http.disconnect`."""
    return message["type"] not in {REQUEST, DISCONNECT}


@rule(HTTP, "H32", "server", "HTTP: Request", REQUEST)
def request_body(http: HTTP, message: Any) -> Any:
    """The `body` of a request is bytes, and `more_body` a bool."""
    return not (
        isinstance(message.get("body", b""), bytes)
        and isinstance(message.get("more_body", False), bool)
    )


@rule(HTTP, "H33", "server", "HTTP: Request", REQUEST)
def request_ends_once(http: HTTP, message: Any) -> Any:
    """Nothing but a disconnect is received after the last message of a request."""
    return http.request_over


@rule(HTTP, "H34", "server", "HTTP: Disconnect", REQUEST)
def gone_is_gone(http: HTTP, message: Any) -> Any:
    """After a disconnect nothing else is received."""
    return http.told_gone


# Bridges to other worlds wait for ever after an exception that older servers never raise.
@rule(HTTP, "H35", "server", "HTTP: Disconnected Client", RAISED)
def no_oserror_before_24(http: HTTP, error: BaseException) -> Any:
    """`send` raises an OSError, for a client that left, only if the spec version is 2.4 or more."""
    return isinstance(error, OSError) and spec_version(http.scope) < (2, 4)
