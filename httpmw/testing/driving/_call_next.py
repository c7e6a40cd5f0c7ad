# A middleware function in the clothes of a `dispatch(request, call_next)`.
#
# The real engine runs it, around an app that awaits `call_next` and sends what that gives. Tests
# that were written for `call_next` bring mocks, though, and compare objects, so:
#
# Rule 1: what the test brings is what the function gets where the engine can do without: a mock
# of a request or of a response is handed over as it is.
# Rule 2: what comes back is an object that the test knows: the response of `call_next`, with the
# edits of the function, or the very response that the function gave instead.
# Rule 3: nothing is done that `dispatch` would not do: a response that comes back was not run,
# so its background task was not either, and no exception becomes a response.

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, TypeAlias

import anyio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from httpmw import AppResponse, Connection
from httpmw.testing.checking.rules._http import BODY, START

from ._layers import AnyMiddleware, Dispatch, Watcher, function_of

CallNext: TypeAlias = Callable[[Any], Awaitable[Any]]
DispatchFunction: TypeAlias = Callable[[Any, CallNext], Awaitable[Any]]

_SCOPE: Final = {"type": "http", "method": "GET", "path": "/", "query_string": b""}


def as_call_next(mw: AnyMiddleware) -> DispatchFunction:
    """
    Give a middleware function the form that Starlette's `BaseHTTPMiddleware` has.

    Unit tests that call `dispatch` with a `call_next` of their own, often a mock, go on working
    after a migration:

        dispatch = as_call_next(served_by)
        response = await dispatch(request, call_next)

    *request* may be a `Request` or a mock of one, which the function then gets as it is.
    *call_next* is awaited with that very object; it may return a Starlette response or a mock of
    one, or raise. What comes back is the same response, edited, or the response that the
    function gave in its place; an exception, `HTTPException` too, is raised.

    Args:
        mw: A middleware function, or an `HTTPMiddleware`: an instance, a subclass or
            `Middleware(...)`.

    Returns:
        A coroutine function `dispatch(request, call_next)`.

    Raises:
        TypeError: *mw* is something else.
    """
    function = function_of(mw, _nothing)
    if function is None:
        raise TypeError(
            f"as_call_next() takes a middleware function or an HTTPMiddleware, got {mw!r}.\n"
            "Test another ASGI middleware with `await run(mw, app)`."
        )

    async def dispatch(request: Any, call_next: CallNext) -> Any:
        return await _Call(request, call_next).run(function)

    return dispatch


class _Call(Watcher):
    # One call of `dispatch`.

    def __init__(self, request: Any, call_next: CallNext) -> None:
        super().__init__()
        self._request = request
        self._call_next = call_next
        # What `call_next` gave, and whether it is a response of Starlette's.
        self._given: Any = None
        self._is_mock = False
        # What the function gave instead; it need not be a response of Starlette's either.
        self._replaced = False
        self._background: Any = None
        self._sent: list[Message] = []

    async def run(self, function: Dispatch) -> Any:
        layer = self.around(function, self._app)
        try:
            await layer(_scope_of(self._request), _receive_of(self._request), self._send)
        finally:
            # An HTTPException of the function has become a response, which `dispatch` never is.
            raised, self.raised = self.raised, None
            if raised is not None:
                raise raised
        if self._replaced:
            self._write_body(self.answer)
            return self.answer
        if not self._is_mock:
            self._write_back()
        return self._given

    # ------------------------------------------------------------------ between flow and engine

    def as_conn(self, conn: Connection) -> Any:
        request = self._request
        if not _is(request, Request):
            return request
        # What a test has put onto the object, such as `request.body = AsyncMock()`.
        own = {key: value for key, value in vars(request).items() if not key.startswith("_")}
        vars(conn).update(own)
        return conn

    def given(self, value: Any) -> Any:
        value = super().given(value)
        if not isinstance(value, AppResponse):
            return value
        if self._is_mock:
            return self._given
        if not hasattr(self._given, "body_iterator"):
            # No response of `call_next` has a body at hand, but that of a test has.
            value._bytes = bytes(self._given.body)  # noqa: SLF001 - as if it were read
        return value

    def yielded(self, value: Any) -> Any:
        if value is None or value is self.response or hasattr(type(value), "asend"):
            return super().yielded(value)
        if self._is_mock and value is self._given:
            return self.response
        if not _is(value, Response) and not _is_mock(value):
            return value  # the engine says what is wrong with it
        self._replaced = True
        self.answer = value
        if isinstance(value, StreamingResponse) and self._body_is_read():
            return value  # it is made of the body that the app has still to send
        return Response()

    def stepped(self) -> None:
        received = self.response
        if received is not None and received.background is not None:
            self._background, received.background = received.background, None

    def _body_is_read(self) -> bool:
        # As long as nobody asks for it there is none.
        return self.response is not None and self.response._body is not None  # noqa: SLF001

    # ------------------------------------------------------------------ the app and its server

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        self._given = response = await self._call_next(self._request)
        self._is_mock = not _is(response, Response)
        if self._is_mock:
            await send({"type": START, "status": 200, "headers": []})
            await send({"type": BODY})
            return
        headers = list(response.raw_headers)
        await send({"type": START, "status": response.status_code, "headers": headers})
        # A stream is left alone where nobody has asked for it.
        if self._body_is_read() or not hasattr(response, "body_iterator"):
            async with aclosing(_chunks(response)) as chunks:
                async for chunk in chunks:
                    await send({"type": BODY, "body": chunk, "more_body": True})
        await send({"type": BODY})

    async def _send(self, message: Message) -> None:
        self._sent.append(message)

    def _write_back(self) -> None:
        response, start = self._given, self._sent[0]
        response.status_code = start["status"]
        response.raw_headers[:] = start["headers"]
        if self._background is not None:
            response.background = self._background
        self._write_body(response)

    def _write_body(self, response: Any) -> None:
        if not self._body_is_read() or not _is(response, Response):
            return
        chunks = [bytes(each.get("body", b"")) for each in self._sent if each["type"] == BODY]
        if hasattr(response, "body_iterator"):
            response.body_iterator = _each([chunk for chunk in chunks if chunk])
        elif response is self._given:
            response.body = b"".join(chunks)


async def _nothing_comes() -> Message:
    await anyio.sleep_forever()
    raise AssertionError


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    pass


def _is(value: Any, kind: type) -> bool:
    # `isinstance` would believe what a mock says of itself.
    return issubclass(type(value), kind)


def _is_mock(value: Any) -> bool:
    # Without importing `unittest.mock`, which is not needed where nobody mocks.
    return any(base.__module__ == "unittest.mock" for base in type(value).__mro__)


def _scope_of(request: Any) -> Scope:
    """
    The scope of *request*, filled up to what the engine needs.
    """
    if _is(request, Request):
        scope: Scope = request.scope  # the very same, as edits of it are seen by the test
    else:
        method = getattr(request, "method", None)
        scope = {"method": method} if isinstance(method, str) else {}
    for key, value in _SCOPE.items():
        scope.setdefault(key, value)
    scope.setdefault("headers", [])
    return scope


def _receive_of(request: Any) -> Receive:
    """
    The `receive` of *request*; a body that the test has read or set already comes again.
    """
    if not _is(request, Request):
        return _nothing_comes
    body = vars(request).get("_body")
    receive: Receive = request.receive
    if body is None:
        return receive
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


async def _chunks(response: Response) -> AsyncGenerator[bytes, None]:
    iterator = getattr(response, "body_iterator", None)
    if iterator is None:
        yield bytes(response.body)
        return
    async for chunk in iterator:
        yield chunk.encode(response.charset) if isinstance(chunk, str) else bytes(chunk)


async def _each(chunks: list[bytes]) -> AsyncGenerator[bytes, None]:
    for chunk in chunks:
        yield chunk
