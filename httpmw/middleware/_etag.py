# Conditional requests, answered with 304, 412 and 428.
#
# Rule 1: a condition is looked at where the answer without it would have been a 200, or a 206 that
# has a tag (RFC 9110 section 13.2.1); the order is that of section 13.2.2.
# Rule 2: the application's own tag is the tag. One is made where there is none, of a 200 whose
# bytes are whole and at hand, and that is neither for one client alone nor new each time.
# Rule 3: a 304 says all that the 200 would have said, but for what describes its content.

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.responses import Response
from starlette.types import ASGIApp

from httpmw import _errors
from httpmw._adapter import Flow, Predicate
from httpmw._connection import Connection
from httpmw._response import AppResponse

from ._conditions import Conditions, Tag, tag_of, verdict
from ._draining import Drain
from ._ready import Exclude, Ready, headers_of, view_of
from ._refuse import Refusal, Respond

Current = Callable[[Connection[Any]], Awaitable[str | None]]

_READS: Final = frozenset(("GET", "HEAD"))
# Section 13.2.1: those that neither select nor change a representation.
_NEITHER: Final = frozenset(("OPTIONS", "TRACE", "CONNECT"))
_CHANGES: Final = frozenset(("PUT", "PATCH", "DELETE"))
_FIELDS: Final = frozenset(
    (b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since")
)
# Of the content that a 304 does not have.
_OF_CONTENT: Final = frozenset(
    (
        *(b"content-length", b"content-type", b"content-encoding", b"content-language"),
        *(b"content-range", b"content-digest", b"content-md5", b"accept-ranges", b"trailer"),
    )
)


class ETagMiddleware(Ready):
    """
    Answer conditional requests: 304 in place of what the client has already.

    A response without a tag gets one, made of its bytes: a GET or HEAD answered with 200, with a
    `content-length`, that is neither an event stream nor `no-store`, sets no cookie, and names no
    nonce. `If-Match`, `If-None-Match`, `If-Modified-Since` and `If-Unmodified-Since` are then
    evaluated (RFC 9110 section 13) against the tag and the date of the response.

    Around a route, *current* has them evaluated for methods that change something, before that is
    done: 412 where somebody else has changed it meanwhile.

    Args:
        app: The inner app.
        weak: Whether the tags that are made are weak. A strong one promises the same bytes, which
            compression further out breaks where it leaves the tag as it is.
        max_size: The largest body, in bytes, of which a tag is made.
        hash: Makes the text of a tag of the bytes of a body; by default 128 bits of BLAKE2b.
        streams: Whether tags are made as well of bodies without a length; they are held back until
            they are complete, or are more than *max_size*.
        cookies: Whether they are made as well of responses that set a cookie.
        cache_control: The value of `Cache-Control` for responses that have a tag and say nothing
            themselves, such as `"no-cache"`.
        current: For a route: an `async def` that takes the connection and returns the strong tag of
            what is there now, such as `'"v7"'`, or None where nothing is. It may raise an
            `HTTPException`.
        require_condition: Whether PUT, PATCH and DELETE without `If-Match` or `If-None-Match` are
            answered with 428 (RFC 6585 section 3).
        response: Makes the response to what is refused (412, 428) in place of a problem document:
            called with the connection and the `Problem`.
        drain: Whether the body of a refused request is received, and up to which bounds; a mapping
            has `max_size` (bytes, by default 1 MiB) and `seconds` (by default 1).
        when: As in `HTTPMiddleware`.
        exclude: Paths for which it is not there, or a predicate.
        websocket: As in `HTTPMiddleware`; by default False.

    Raises:
        TypeError: An option is not what it has to be.

    With *current*, `request.state.if_match` is the tag that the client has named and that was
    current, for `UPDATE ... WHERE version = ?`; else None. Between the two somebody else may come.
    """

    kind = "etag"

    def __init__(
        self,
        app: ASGIApp,
        *,
        weak: bool = True,
        max_size: int = 1024 * 1024,
        hash: Callable[[bytes], str] | None = None,  # noqa: A002 - what it is
        streams: bool = False,
        cookies: bool = False,
        cache_control: str | None = None,
        current: Current | None = None,
        require_condition: bool = False,
        response: Respond | None = None,
        drain: Drain = True,
        when: Predicate | None = None,
        exclude: Exclude = (),
        websocket: bool | None = None,
    ) -> None:
        self._check_flags(
            weak=weak, streams=streams, cookies=cookies, require_condition=require_condition
        )
        self._check_callables(hash=hash, response=response)
        self._check_integer("max_size", max_size, 0, None, "a number of bytes")
        if not _is_text_or_none(cache_control):
            raise self._bad("cache_control", cache_control, "a text, or None")
        if current is not None and not callable(current):
            raise self._bad("current", current, "an `async def`, or None")
        self._weak = weak
        self._max_size = max_size
        self._hash = hash or _sum
        self._streams = streams
        self._cookies = cookies
        self._cache_control = cache_control
        self._current = current
        self._require = require_condition
        self._refusal = Refusal(type(self), response, drain)
        super().__init__(app, when=when, exclude=exclude, websocket=websocket)

    def dispatch(self, conn: Connection[Any], /) -> Flow | None:
        """
        Answer a conditional request, and give responses their tags.
        """
        if conn.is_websocket:
            return None
        method = view_of(conn)["method"]
        if method in _READS:
            return self._read(conn)
        if method in _NEITHER or (self._current is None and not self._require):
            return None
        return self._change(conn, method)

    # ------------------------------------------------------------------ what changes something

    async def _change(self, conn: Connection[Any], method: str) -> Flow:
        conditions = _conditions(conn)
        is_conditional = bool(conditions.if_match or conditions.if_none_match)
        if not is_conditional and self._require and method in _CHANGES:
            yield await self._refusal.response(
                conn,
                428,
                "Say in If-Match which version to change, or If-None-Match: * to create one.",
                "precondition-required",
            )
            return
        if self._current is not None:
            conn.state.if_match = None
        if self._current is not None and is_conditional:
            given = await self._current(conn)
            tag = tag_of(given) if isinstance(given, str) else None
            if given is not None and (tag is None or tag.is_weak):
                raise _errors.bad_result(
                    "current", self._current, given, "a strong tag, such as '\"v7\"', or None"
                )
            found = verdict(conditions, is_get=False, tag=tag, exists=tag is not None)
            if found != 200:  # noqa: PLR2004
                yield await self._failed(conn, given)
                return
            conn.state.if_match = given if conditions.if_match else None
        yield

    async def _failed(self, conn: Connection[Any], tag: str | None) -> Response:
        """
        Refuse a request whose condition does not hold, and name the tag of what is there.
        """
        return await self._refusal.response(
            conn,
            412,
            "What is there is not what the request expects.",
            "precondition-failed",
            None if tag is None else {"etag": tag},
        )

    # ------------------------------------------------------------------ what reads

    async def _read(self, conn: Connection[Any]) -> Flow:
        response = yield
        status = response.status_code
        if status != 200 and status != 206:  # noqa: PLR1714, PLR2004 - quicker
            return
        named, may_make = self._look(response.raw_headers)
        if named is None and status == 200 and may_make and not self._names_nonce(conn):  # noqa: PLR2004
            named = await self._make(conn, response)
        if named is not None and self._cache_control is not None:
            response.headers.setdefault("cache-control", self._cache_control)
        conditions = _conditions(conn)
        if conditions is _NONE or (named is None and status == 206):  # noqa: PLR2004
            return
        date = response.headers.get("last-modified")
        found = verdict(conditions, is_get=True, tag=tag_of(named), last_modified=date)
        if found == 304:  # noqa: PLR2004
            self._not_modified(response)
        elif found == 412:  # noqa: PLR2004
            yield await self._failed(conn, named)

    def _look(self, headers: list[tuple[bytes, bytes]]) -> tuple[str | None, bool]:
        """
        Give the tag that a response has, and whether one may be made where it has none.
        """
        has_length = self._streams
        may_make = True
        for name, value in headers:  # in one pass: all responses come here
            if name == b"content-length":
                may_make = may_make and value.isdigit() and int(value) <= self._max_size
                has_length = True
            elif name == b"content-type":
                may_make = may_make and not value.lower().startswith(b"text/event-stream")
            elif name == b"etag":
                return value.decode("latin-1"), False
            elif name == b"cache-control":
                may_make = may_make and b"no-store" not in value.lower()
            elif name == b"set-cookie":
                may_make = may_make and self._cookies
        return None, may_make and has_length

    def _names_nonce(self, conn: Connection[Any]) -> bool:
        state = view_of(conn).get("state") or {}
        return bool(getattr(state.get("csp_nonce"), "is_used", False))

    async def _make(self, conn: Connection[Any], response: AppResponse) -> str | None:
        try:
            body = await response.read(max_size=self._max_size)
        except _errors.ResponseTooLarge:
            return None  # what was read is still sent
        # An application may leave out the body for a HEAD, and then nobody knows it.
        if view_of(conn)["method"] == "HEAD" and response.headers.get("content-length") != str(
            len(body)
        ):
            return None
        made = str(Tag(self._hash(body), self._weak))
        if self._hash is not _sum and tag_of(made) is None:
            raise _errors.bad_result(
                "hash", self._hash, made, "a text in printable ASCII without quotes and spaces"
            )
        response.raw_headers.append((b"etag", made.encode("latin-1")))
        return made

    def _not_modified(self, response: AppResponse) -> None:
        headers = response.headers
        tagged = "etag" in headers
        kept = [
            pair
            for pair in response.raw_headers
            if pair[0].lower() not in _OF_CONTENT
            and not (tagged and pair[0].lower() == b"last-modified")
        ]
        length = headers.get("content-length", "")
        if not (length.isdecimal() and int(length) <= self._max_size):
            response.body = b""  # nobody needs to go on with it
        response.status_code = 304
        response.raw_headers[:] = kept


def _conditions(conn: Connection[Any]) -> Conditions:
    fields: dict[bytes, list[str]] = {}
    for name, value in headers_of(conn):
        if name in _FIELDS:
            fields.setdefault(name, []).append(value.decode("latin-1"))
    return Conditions.of(fields) if fields else _NONE


_NONE: Final = Conditions()


def _is_text_or_none(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.isascii() and bool(value.strip()))


def _sum(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=16).hexdigest()
