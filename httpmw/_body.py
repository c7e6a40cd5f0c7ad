# The bodies: a request's on its way in, a response's on its way out.
#
# Rule 1: reading never steals. Who reads without changing anything reads *ahead*: the message
# stays, and is handed on unchanged to whoever would have had it.
# Rule 2: who transforms takes the messages, keeps none of them, and is asked for the next chunk
# only when the far side wants one: back-pressure is the far side's own pace.
# Rule 3: nothing here awaits the server or the inner app directly. A request's messages come
# from a `pull` that is given, a response's from the `message()` of its driver.
# Rule 4: a transform that is cancelled or fails never ends its body cleanly: a truncated body
# looks truncated.

from __future__ import annotations

import math
import os
import time
import types
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Sequence,
)
from io import BytesIO
from types import AsyncGeneratorType
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

import anyio
import anyio.to_thread
from starlette.concurrency import iterate_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.types import Message

from . import _errors
from ._drive import CLOSING, PAUSED, Driven, Turn

if TYPE_CHECKING:
    from typing import Self

    from ._exchange import Exchange
    from ._observe import Observer

CHUNK = 64 * 1024  # of a file, as in starlette.responses.FileResponse
DISCONNECT: Message = {"type": "http.disconnect"}
# Of a response that has no body, whatever its headers say (RFC 9110 section 15); 205 has one in
# the framing alone, which must be empty (section 15.3.6).
FINAL: Final = 200  # and above; an enum's members would cost a request more
# The status of the acceptance of a WebSocket handshake (RFC 6455 section 4.2.2).
ACCEPTED: Final = 101
BODILESS: Final = frozenset((*range(100, 200), 204, 205, 304))
_END: Final = object()
# Of a request that is read ahead: so many bytes to see whether the client has left; and from so
# many messages on, those of fewer bytes than that are joined.
LOOK_AHEAD: Final = 64 * 1024
_MANY: Final = 64
_SMALL: Final = 4 * 1024
# Of a response: up to so many bytes.
_JOINED: Final = 32 * 1024


def as_bytes(data: Any, charset: str = "utf-8") -> bytes:
    if isinstance(data, bytes):
        return data
    if isinstance(data, str):
        return data.encode(charset)
    if isinstance(data, (bytearray, memoryview)):
        return bytes(data)
    raise _errors.bad_body(data)


def as_iterator(value: Any) -> AsyncIterator[Any]:
    if isinstance(value, AsyncIterable):
        return aiter(value)
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, bytearray, memoryview)):
        return iterate_in_threadpool(value)
    raise _errors.bad_body_iterator(value)


async def close(iterator: Any) -> None:
    aclose = getattr(iterator, "aclose", None)
    if aclose is not None:
        await aclose()


# ---------------------------------------------------------------------- the request


class Place:
    # How far somebody has read ahead: the message, how much of it, and how much of all.

    __slots__ = ("begun", "joined", "number", "total", "within")

    def __init__(self) -> None:
        self.number = 0
        self.within = 0
        # Whether the message has been given; its bytes alone do not tell where it has none.
        self.begun = False
        self.total = 0
        # Whether it is counted in a body that has become one message.
        self.joined = False


class Incoming:
    """
    Where a layer gets the request from: its messages, in order, and some of them read ahead.

    What is kept takes hardly more memory than its bytes, whatever the sizes of the messages:
    those without content are not kept, and where there are many of them small ones are joined.
    """

    # Whether the layers further in have begun to take the body.
    taken = False
    # Whether its last message has come.
    complete = False
    # What takes the messages in place of the layers further in.
    transform: TransformedRequest | None = None
    _joined = False
    # The bytes that are kept, and how far somebody has read among them.
    _size = 0
    _read = 0
    _pulls = 0
    _room: anyio.Event | None = None

    def __init__(
        self, pull: Callable[[], Awaitable[Message]], exchange: Exchange | None = None
    ) -> None:
        self._pull = pull
        self._exchange = exchange
        self._ahead: deque[Message] = deque()
        self._looking = Turn()

    async def receive(self) -> Message:
        message = self.take_ahead()
        if message is None:
            message = await self._pull()
            if message["type"] == "http.request":
                self.taken = True
                self.complete = not message.get("more_body", False)
        return message

    def take_ahead(self) -> Message | None:
        if not self._ahead:
            return None
        message = self._ahead.popleft()
        if message["type"] == "http.request":
            self.taken = True
            self._read = 0
            body = message.get("body", b"")
            self._size -= len(body)
            if type(body) is bytearray:
                message = {**message, "body": bytes(body)}
        if self._room is not None:
            self._room.set()
            self._room = None
        return message

    def take_to(self, place: Place) -> None:
        """
        Take what somebody has read.
        """
        self._find(place)
        for _ in range(place.number):
            self.take_ahead()
        if place.begun and (message := self.take_ahead()) is not None:
            rest = message.get("body", b"")[place.within :]
            if rest:
                self._ahead.appendleft({**message, "body": rest})
                self._size += len(rest)
        place.number = place.within = place.total = 0
        place.begun = False

    async def peek(self, place: Place) -> Message:
        """
        Give what comes next for somebody who has read up to *place*, and leave it there.
        """
        ahead = self._ahead
        while True:
            if self.taken:
                raise _errors.request_body_taken()
            self._find(place)
            if place.number < len(ahead):
                message = ahead[place.number]
                if message["type"] != "http.request":
                    return message
                body = message.get("body", b"")
                size = len(body)
                if not place.begun or place.within < size:
                    if place.within or type(body) is bytearray:
                        message = {**message, "body": bytes(body[place.within :])}
                    place.total += size - place.within
                    place.within = size
                    place.begun = True
                    self._read = max(self._read, place.total)
                    return message
                if place.number + 1 < len(ahead) or not message.get("more_body", False):
                    place.number += 1
                    place.within = 0
                    place.begun = False
                    continue
            await self._look()

    def _find(self, place: Place) -> None:
        if self._joined and not place.joined:
            place.joined = True
            place.number, place.within = 0, place.total

    async def _look(self) -> None:
        # One at a time: two that read the same body must not pull a message each.
        turn = self._looking
        pulls = self._pulls
        await turn.wait()
        if pulls != self._pulls:
            return
        turn.taken = True
        try:
            self._keep(await self._pull())
            self._pulls += 1
        finally:
            turn.leave()

    def _keep(self, message: Message) -> None:
        ahead = self._ahead
        if message["type"] == "http.request":
            if self.complete:  # from a `receive` that was made for one body, and gives it again
                return
            body = message.get("body", b"")
            size = len(body)
            if not message.get("more_body", False):
                self.complete = True
            elif not size:
                return
            elif len(ahead) >= _MANY and size < _SMALL and type(body) is bytes:
                last = ahead[-1]
                before = last.get("body", b"")
                if last["type"] == "http.request" and len(before) < _SMALL:
                    if type(before) is not bytearray:
                        before = bytearray(before)
                        ahead[-1] = {**last, "body": before}
                    before += body
                    self._size += size
                    return
            self._size += size
        ahead.append(message)

    async def peek_latest(self) -> Message:
        """
        Read one message more ahead, and give the last one; nothing is pulled behind a disconnect.

        As long as there is room: back-pressure is for those who want nothing but news, too.
        """
        ahead = self._ahead
        if self.has_room() and not (ahead and ahead[-1]["type"] == "http.disconnect"):
            await self._look()
        return ahead[-1] if ahead else {}

    def has_room(self) -> bool:
        """
        Whether it may be read further for no other reason than to see if the client has left.

        Behind the end of a body nothing else is to come.
        """
        return self.complete or self._size - self._read < LOOK_AHEAD

    async def until_gone(self) -> Message:
        """
        Wait until the client has left; where there is no room, until something has been taken.
        """
        while (message := await self.peek_latest()).get("type") != "http.disconnect":
            if not self.has_room():
                if self._room is None:
                    self._room = anyio.Event()
                await self._room.wait()
        return message

    @property
    def asked(self) -> bool:
        """
        Whether anything has been received of it.
        """
        return self.taken or self.complete or bool(self._ahead) or self._pulls > 0

    async def drain(self, max_size: int) -> None:
        """
        Take what is left of the body and drop it, as far as *max_size* bytes and a message more.
        """
        while not self.complete and max_size >= 0:
            is_new = not self._ahead
            message = await self.receive()
            if message["type"] != "http.request":
                return
            if is_new:
                max_size -= len(message.get("body", b""))

    async def read(self, place: Place, max_size: int | None = None) -> bytes:
        """
        Read all of the body, and make one message of it, where those who are in it find their way.
        """
        if not (self._ahead or self.taken or self._looking.taken):
            await self._look_to_the_end(place, max_size)
        while not place.begun or self._ahead[place.number].get("more_body", False):
            message = await self.peek(place)
            if message["type"] == "http.disconnect":
                raise self.client_left()
            if max_size is not None and place.total > max_size:
                raise _errors.BodyTooLarge(max_size)
        first = self._ahead[0]
        if first.get("more_body", False):
            # Neither the parts nor a copy of the whole are there beside it.
            whole = BytesIO()
            more_body = True
            while more_body:
                message = self._ahead.popleft()
                whole.write(as_bytes(message.get("body", b"")))
                more_body = message.get("more_body", False)
            self.put(whole.getvalue())
        return as_bytes(self._ahead[0].get("body", b""))

    async def _look_to_the_end(self, place: Place, max_size: int | None) -> None:
        """
        Read as far ahead as nobody else wants to: who then reads needs no call for each message.
        """
        turn, ahead = self._looking, self._ahead
        most = math.inf if max_size is None else max_size
        turn.taken = True
        try:
            while not self.complete and self._size <= most and turn.free is None:
                message = await self._pull()
                self._pulls += 1
                self._keep(message)
                if message["type"] != "http.request":
                    return
        finally:
            turn.leave()
        if self.complete and self._size <= most:
            place.number = len(ahead) - 1
            place.begun = True
            place.within = len(ahead[-1].get("body", b""))
            place.total = self._read = self._size

    def put(self, body: bytes) -> None:
        """
        Put a whole body in front of what comes.
        """
        self._ahead.appendleft({"type": "http.request", "body": body, "more_body": False})
        self._size = len(body)
        self._joined = self.complete = True

    def client_left(self) -> ClientDisconnect:
        """
        Give what is raised where a layer waits for the body of a client that has left.

        That is nobody's fault: the adapter drops it where nobody has handled it.
        """
        exchange = self._exchange
        if exchange is None:
            return ClientDisconnect()
        if exchange.disconnect is None:
            exchange.disconnect = ClientDisconnect()
        return exchange.disconnect


class RequestChunks(AsyncIterator[bytes]):
    """
    The chunks of a request body: read ahead, or taken once a transform stands in between.
    """

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        self._place = Place()
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._ended:
            message = await self._next()
            if message["type"] == "http.disconnect":
                raise self._incoming.client_left()
            self._ended = not message.get("more_body", False)
            if body := as_bytes(message.get("body", b"")):
                return body
        raise StopAsyncIteration

    async def _next(self) -> Message:
        incoming = self._incoming
        transform = incoming.transform
        if transform is None:
            return await incoming.peek(self._place)
        incoming.take_to(self._place)  # read before the transform was put in place
        return (
            incoming.take_ahead()
            or await (transform.message() if transform.stepper else incoming.receive())
        )  # fmt: skip

    async def aclose(self) -> None:
        self._ended = True


class RequestStream(RequestChunks):
    """
    The same as `Request.stream()` gives it: from a body that was read, and with an empty end.

    Not a generator, as one that is left in the middle has to be closed by somebody.
    """

    def __init__(self, incoming: Incoming | None, body: bytes = b"") -> None:
        if incoming is not None:
            super().__init__(incoming)
        self._left = None if incoming is not None else iter((body, b""))

    async def __anext__(self) -> bytes:
        if self._left is None:
            try:
                return await super().__anext__()
            except StopAsyncIteration:
                self._left = iter((b"",))
        for chunk in self._left:
            return chunk
        raise StopAsyncIteration


class TransformedRequest(Driven):
    """
    A request body on its way through a middleware's async generator.

    The generator is driven by hand and waits for its input at the marker. So a `receive` of the
    inner app that is cancelled, as `Request.is_disconnected()` does each time, never kills it
    while it waits for that; where it waits for something of its own it does.
    """

    is_closed = False

    def __init__(self, task: Any, source: Incoming, iterator: AsyncIterator[Any]) -> None:
        self.task = task
        self.stepper = None
        self._source = source
        self._iterator = iterator
        self._ended = False
        self._failure: BaseException | None = None
        source.transform = self

    async def pull(self) -> Message:
        await self.wait()
        self.taken = True
        try:
            return await self._pull()
        finally:
            self.leave()

    async def _pull(self) -> Message:
        if self._failure is not None:
            raise self._failure
        while not self._ended:
            if self.paused:
                message = await self._source.receive()
                step = self.resume(message)
            else:
                step = self.start(self._advance())
            try:
                chunk = await step
            except ClientDisconnect:
                self._ended = True
                return DISCONNECT
            except BaseException as exc:
                self._failure = exc if isinstance(exc, Exception) else _errors.transform_cancelled()
                raise
            if chunk is _END:
                self._ended = True
                return {"type": "http.request", "body": b"", "more_body": False}
            if chunk and chunk is not PAUSED:
                return {"type": "http.request", "body": chunk, "more_body": True}
        while True:  # a transform that ended early leaves something over
            message = await self._source.receive()
            if message["type"] != "http.request":
                return message

    def crossed(self) -> BaseException:
        return _errors.scope_over_request()

    async def _advance(self) -> Any:
        try:
            return as_bytes(await anext(self._iterator))
        except StopAsyncIteration:
            return _END

    async def aclose(self) -> None:
        if self.paused:
            try:
                await self.give_up()
            except (GeneratorExit, ClientDisconnect):
                pass
        self._source.transform = None
        await close(self._iterator)


# ---------------------------------------------------------------------- the response


class Progress:
    """
    What has become of one body on its way out.
    """

    __slots__ = (
        "_last",
        "_trailers",
        "bytes_sent",
        "complete",
        "ended_at",
        "lost",
        "made",
        "observers",
        "silent",
        "started_at",
    )

    def __init__(self, *, trailers: bool, made: bool = False, silent: bool = False) -> None:
        self.bytes_sent = 0
        self.complete = False
        # Whether the client was known to be gone when the end was sent.
        self.lost = False
        self.started_at: float | None = None
        # When the server had the last message, or it was known that it would never get it.
        self.ended_at: float | None = None
        # Who is told of that moment, the outermost first.
        self.observers: Sequence[Observer] = ()
        self._trailers = trailers
        # Whether what is handed over is not sent: to HEAD (RFC 9110 section 9.3.2), or because of
        # the status.
        self.silent = silent
        # Whether the messages are made by a middleware, and not the source's own.
        self.made = made
        self._last: Message | None = None

    def take(self, message: Message) -> None:
        """
        Note a message that is about to leave; it has left when the next one does, or on `settle`.
        """
        self.settle()
        self._last = message

    def settle(self) -> None:
        if self._last is not None:
            self.count(self._last)
            self._last = None

    def count(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.body":  # nearly always: so without a further call
            if not self.silent:
                self.bytes_sent += len(message.get("body", b""))
            if not message.get("more_body") and not self._trailers:
                self.complete = True
                if self.ended_at is None:  # as in `end`, without the calls
                    self.ended_at = time.perf_counter()
                if self.observers:
                    self.end()
            return
        if kind in _BODY and not self.silent:
            self.bytes_sent += message.get("size") or _file_size(message)
        if is_last(message, trailers=self._trailers):
            self.complete = True
            self.end()

    def lose(self) -> None:
        """
        The client is gone: the end comes no more, or nobody gets it.
        """
        if not self.complete:
            self.lost = True
            self.end()

    def end(self) -> None:
        """
        Note the moment, and tell of it.
        """
        self.over()
        observers, self.observers = self.observers, ()
        for each in observers:
            each.tell("disconnected" if self.lost else "completed")

    def over(self) -> None:
        if self.ended_at is None:
            self.ended_at = time.perf_counter()


def is_last(message: Message, *, trailers: bool) -> bool:
    """
    Whether *message* ends a response.

    ASGI HTTP extensions: `pathsend` has no `more_body`, and trailers follow the body where the
    start announced them.
    """
    if message["type"] == "http.response.trailers":
        return not message.get("more_trailers")
    return not trailers and ends_body(message)


def ends_body(message: Message) -> bool:
    if message["type"] == "http.response.pathsend":
        return True
    return message["type"] in _BODY and not message.get("more_body")


class Body:
    """
    The messages that follow a start, as one layer hands them to the next.
    """

    __slots__ = ("ahead", "aside", "ended", "in_use", "readers", "transformed")

    def __init__(self) -> None:
        self.ahead: deque[Message] = deque()
        # What is neither body nor end of it, met by a transform: handed on in its place.
        self.aside: Sequence[Message] = ()
        self.ended = False
        self.transformed = False
        self.in_use = False
        self.readers: Sequence[ref[ResponseChunks]] = ()

    def __repr__(self) -> str:
        rest = "complete" if self.ended else "more to come"
        return f"<{type(self).__name__}: {len(self.ahead)} messages ahead, {rest}>"

    @property
    def source(self) -> Body:
        """
        Where the bytes come from, through all transforms.
        """
        return self

    def is_made(self) -> bool:
        """
        Whether its messages are made by a middleware, and not the source's own.
        """
        return False

    @property
    def thrown(self) -> BaseException | None:
        """
        What is raised for want of further messages: no failure of whom it is raised in.
        """
        return None

    async def pull(self) -> Message:
        """
        Give the next message, straight from the inside.
        """
        raise NotImplementedError

    async def take(self) -> Message:
        return self.ahead.popleft() if self.ahead else await self.pull()

    async def peek(self, reader: ResponseChunks) -> Message:
        """
        Give the message that *reader* comes to, and leave it for whoever takes the body.
        """
        ahead = self.ahead
        reader.joined = False
        while len(ahead) <= reader.position:
            message = await self.pull()
            if len(ahead) < _MANY or not self._join(message, reader):
                ahead.append(message)
            elif reader.joined:
                return message
        message = ahead[reader.position]
        reader.position += 1
        return message

    def _join(self, message: Message, reader: ResponseChunks | None = None) -> bool:
        """
        Make a small message one with the last of many, so that memory is that of their bytes.

        One without content is not kept at all. Whoever else has read as far as here would miss it.
        """
        if message["type"] != "http.response.body" or not message.get("more_body"):
            return False
        chunk, last = message.get("body", b""), self.ahead[-1]
        if not chunk:
            return True
        held = last.get("body", b"")
        if (
            not held
            or type(held) is not bytes
            or type(chunk) is not bytes
            or len(held) + len(chunk) > _JOINED
            or (reader is not None and reader.position != len(self.ahead))
            or any(
                other is not reader and other is not None and other.position >= len(self.ahead)
                for other in (each() for each in self.readers)
            )
        ):
            return False
        self.ahead[-1] = {**last, "body": held + chunk}
        if reader is not None:
            reader.joined = True
        return True

    def drop(self) -> list[Message]:
        """
        Take what was read ahead further in, as something else is sent in its place.
        """
        return []


class LiveBody(Body):
    """
    The body that the source is still producing.
    """

    __slots__ = ("_driver", "_grown", "_most", "_size")

    def __init__(self, driver: Any) -> None:
        super().__init__()
        self._driver = driver
        # How many bytes are kept for who reads all of them, and how many he wants at most.
        self._size = 0
        self._most: float = 0
        # What the last of the messages has become that were read ahead.
        self._grown: bytearray | None = None

    @property
    def thrown(self) -> BaseException | None:
        thrown: BaseException | None = self._driver.thrown
        return thrown

    async def pull(self) -> Message:
        if (thrown := self.thrown) is not None:
            raise thrown
        message: Message = await self._driver.message()
        self.ended = ends_body(message)
        return message

    @types.coroutine
    def read(self, max_size: int | None) -> Generator[Any, Any, bytes | None]:
        """
        Read all of it ahead, as long as it is no larger; None where some of it is in a file.

        The messages up to the last are kept as they come, and nobody is resumed for them.
        """
        driver = self._driver
        ahead = self.ahead
        self._size = sum([len(each.get("body", b"")) for each in ahead])
        self._most = math.inf if max_size is None else max_size
        while not self.ended and self._size <= self._most:
            if (thrown := driver.thrown) is not None:
                raise thrown
            driver.check()
            driver.collecting = self
            try:
                message = yield driver
            finally:
                self._grow_no_more()
            if message is CLOSING:
                raise GeneratorExit
            self.ended = ends_body(message)
            self._size += len(message.get("body", b""))
            ahead.append(message)
        if max_size is not None and self._size > max_size:
            raise _errors.ResponseTooLarge(max_size)
        chunks = []
        for message in ahead:
            if message["type"] == "http.response.body":
                chunk = message.get("body", b"")
                chunks.append(chunk if type(chunk) is bytes else as_bytes(chunk))
            elif message["type"] in _BODY:
                return None
        return b"".join(chunks)

    def keep(self, message: Message) -> bool:
        """
        Keep a message for who reads all of them, unless it is the last or there is no room.

        Where there are many, small ones are joined, so that memory is that of their bytes.
        """
        if message["type"] != "http.response.body" or not message.get("more_body"):
            return False
        chunk = message.get("body", b"")
        size = self._size + len(chunk)
        if size > self._most:
            return False
        self._size = size
        ahead = self.ahead
        if len(ahead) < _MANY:
            ahead.append(message)
        elif type(chunk) is not bytes:
            self._grow_no_more()
            ahead.append(message)
        elif self._grown is not None and len(self._grown) + len(chunk) <= _JOINED:
            self._grown += chunk
        elif chunk:
            self._grow_no_more()
            if self._join(message):  # nobody else has read as far
                self._grown = bytearray(ahead[-1]["body"])
            else:
                ahead.append(message)
        return True

    def _grow_no_more(self) -> None:
        if self._grown is not None:
            self.ahead[-1] = {**self.ahead[-1], "body": bytes(self._grown)}
            self._grown = None


class FixedBody(Body):
    """
    A body that a middleware gave whole.
    """

    __slots__ = ("data", "inner")

    def __init__(self, data: bytes, inner: Body) -> None:
        super().__init__()
        self.data = data
        self.inner = inner

    def is_made(self) -> bool:
        return True

    async def pull(self) -> Message:
        self.ended = True
        return {"type": "http.response.body", "body": self.data, "more_body": False}


class TransformedBody(Body):
    """
    A body on its way through a middleware's async generator.
    """

    __slots__ = ("_made", "charset", "failure", "inner", "iterator")

    def __init__(self, inner: Body, iterator: Any, charset: str) -> None:
        super().__init__()
        self.inner = inner
        self.failure: BaseException | None = None
        self.iterator = iterator
        self.charset = charset
        self._made: deque[Message] = deque()
        inner.transformed = True

    def is_made(self) -> bool:
        return True

    @property
    def source(self) -> Body:
        return self.inner.source

    async def pull(self) -> Message:
        chunk = b""
        try:
            while not self._made and not chunk and not self.inner.aside:
                chunk = as_bytes(await anext(self.iterator), self.charset)
        except StopAsyncIteration:
            self.hand_on(b"", more_body=False)
        except BaseException as exc:
            self.fail(exc)
            raise
        else:
            if not self._made:
                self.hand_on(chunk)
        message = self._made.popleft()
        self.ended = ends_body(message)
        return message

    def hand_on(self, chunk: bytes, *, more_body: bool = True) -> None:
        """
        Note a chunk that was made as what goes on next, behind what was met on the way to it.
        """
        made = self._made
        if self.inner.aside:
            made.extend(self.inner.aside)
            self.inner.aside = ()
        if chunk or not more_body:
            made.append({"type": "http.response.body", "body": chunk, "more_body": more_body})

    def fail(self, exc: BaseException) -> None:
        """
        Note what the transform has raised, unless it was raised for want of messages.
        """
        if exc is not self.source.thrown:
            self.failure = exc

    @property
    def is_closed(self) -> bool:
        """
        Whether there is nothing to close: its generator has run to its end.
        """
        return type(self.iterator) is AsyncGeneratorType and self.iterator.ag_frame is None

    async def aclose(self) -> None:
        await close(self.iterator)


class PassedBody(Body):
    """
    A body on its way through a layer, which takes each of its messages in hand.
    """

    __slots__ = ("inner",)

    def __init__(self, inner: Body) -> None:
        super().__init__()
        self.inner = inner

    def is_made(self) -> bool:
        return self.inner.is_made()

    @property
    def source(self) -> Body:
        return self.inner.source

    @property
    def thrown(self) -> BaseException | None:
        return self.inner.thrown


class SilentBody(PassedBody):
    """
    A body on its way out of a layer behind which the response has none.

    It is taken to its end all the same, as its making may do more than to give bytes.
    """

    __slots__ = ()

    async def pull(self) -> Message:
        while True:
            message = without_bytes(await self.inner.take())
            self.ended = ends_body(message)
            # The source's own messages keep their number: each is a chance to learn of the end.
            if self.ended or message["type"] != "http.response.body" or not self.is_made():
                return message

    def drop(self) -> list[Message]:
        messages = [*self.inner.ahead, *self.inner.drop()]
        self.inner.ahead.clear()
        return [without_bytes(message) for message in messages]


class CountedBody(PassedBody):
    """
    A body on its way out of a layer that wants to know how much of it left.
    """

    __slots__ = ("_progress",)

    def __init__(self, inner: Body, progress: Progress) -> None:
        super().__init__(inner)
        self._progress = progress

    async def pull(self) -> Message:
        message = await self.inner.take()
        self.ended = ends_body(message)
        is_file = message["type"] == "http.response.pathsend"
        self._progress.take(await sized(message) if is_file else message)
        return message

    def drop(self) -> list[Message]:
        # Taken quietly, so it has left this layer.
        messages = [*self.inner.ahead, *self.inner.drop()]
        self.inner.ahead.clear()
        for message in messages:
            self._progress.count(message)
        return messages


class ResponseChunks(AsyncIterator[bytes]):
    """
    The chunks of a response body: read ahead, or taken once a transform stands in between.
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        # How many messages of the body it has read.
        self.position = 0
        # Whether what it read last has been joined with what it read before; `last` is both.
        self.joined = False
        self._ended = False
        self._file: AsyncIterator[bytes] | None = None
        body.in_use = True
        readers: tuple[Any, ...] = (*body.readers, ref(self))
        body.readers = readers

    def __aiter__(self) -> Self:
        return self

    @types.coroutine
    def __anext__(self) -> Generator[Any, Any, bytes]:
        # Nearly always the source's own messages, for a transform; so without a call in between.
        body = self._body
        if body.transformed and type(body) is LiveBody and not (self._ended or body.ahead):
            driver = body._driver
            while self._file is None and driver.thrown is None:
                driver.check()
                message = yield driver
                if message is CLOSING:
                    raise GeneratorExit
                if message["type"] != "http.response.body":
                    body.ended = ends_body(message)
                    body.ahead.append(message)
                    break
                if not message.get("more_body"):
                    self._ended = body.ended = True
                chunk: bytes = message.get("body", b"")
                if chunk:
                    return chunk if type(chunk) is bytes else as_bytes(chunk)
                if body.ended:
                    break
        given: bytes = yield from self._next()  # pyrefly: ignore[invalid-yield]
        return given

    async def _next(self) -> bytes:
        body = self._body
        while not self._ended or self._file is not None:
            if self._file is not None:
                async for chunk in self._file:
                    return chunk
                self._file = None
                continue
            if body.transformed:
                while self.position and body.ahead:  # read before there was a transform
                    body.ahead.popleft()
                    self.position -= 1
                message = await body.take()
            else:
                message = await body.peek(self)
            if message["type"] == "http.response.body":
                self._ended = not message.get("more_body")
                if chunk := as_bytes(message.get("body", b"")):
                    return chunk
            elif message["type"] in _BODY:
                self._ended = ends_body(message)
                self._file = file_chunks(message)
            elif body.transformed:
                body.aside = (*body.aside, message)
        body.in_use = False
        raise StopAsyncIteration

    @property
    def last(self) -> bytes:
        chunk: bytes = self._body.ahead[-1]["body"]
        return chunk

    @property
    def is_closed(self) -> bool:
        return self._ended and self._file is None

    async def aclose(self) -> None:
        self._ended = True
        self._body.in_use = False
        if self._file is not None:
            await close(self._file)
            self._file = None


_BODY = ("http.response.body", "http.response.pathsend", "http.response.zerocopysend")


def without_bytes(message: Message) -> Message:
    """
    Give what stands in the place of a message where there is no body.
    """
    kind = message["type"]
    if kind not in _BODY or (kind == "http.response.body" and not message.get("body")):
        return message
    return {"type": "http.response.body", "body": b"", "more_body": not ends_body(message)}


async def sized(message: Message) -> Message:
    """
    Note the size of the file of a `pathsend`, for who counts; not in the event loop.
    """
    return {**message, "size": await anyio.to_thread.run_sync(_file_size, message)}


def _file_size(message: Message) -> int:
    # Counting never fails what would pass: the file may be out of our reach.
    try:
        if message["type"] == "http.response.pathsend":
            return os.stat(message["path"]).st_size  # noqa: PTH116 - any path the app may send
        return _file_part(message)[2]
    except OSError:
        return 0


def _file_part(message: Message) -> tuple[int, int, int]:
    # `file` is a file object with a descriptor; without an offset it is sent from where it
    # stands, and without a count to its end (ASGI extensions, zero copy send).
    file = message["file"]
    descriptor = file if isinstance(file, int) else file.fileno()
    offset = message.get("offset")
    if offset is None:
        offset = os.lseek(descriptor, 0, os.SEEK_CUR)
    rest = max(os.fstat(descriptor).st_size - offset, 0)
    count = message.get("count")
    return descriptor, offset, rest if count is None else min(count, rest)


async def file_chunks(message: Message) -> AsyncIterator[bytes]:
    """
    Read the file of a `pathsend` or `zerocopysend` message, and leave its position alone.
    """
    if message["type"] == "http.response.pathsend":
        async with await anyio.open_file(message["path"], "rb") as file:
            while chunk := await file.read(CHUNK):
                yield chunk
        return
    descriptor, offset, rest = _file_part(message)
    while rest > 0:
        chunk = await anyio.to_thread.run_sync(os.pread, descriptor, min(CHUNK, rest), offset)
        if not chunk:
            return
        yield chunk
        offset += len(chunk)
        rest -= len(chunk)
