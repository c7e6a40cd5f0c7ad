"""
A plain client and a plain server that speak HTTP in raw bytes, framed by RFC 9112 and nothing else.

The client is strict: whatever RFC 9110 or 9112 forbids a server to send is a `WireError`, and so
is every byte that belongs to no answer. The server is naive: what the app says goes out as it is.

    ask(address, get("/", method="HEAD"), get("/"))     a real server, twice on one connection
    ask_http2(address, ("HEAD", "/"), ("GET", "/"))     the same over HTTP/2
    data = await PlainServer(app).answer(get("/"))      no socket at all
    parse(data, get("/"))
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

import anyio
import anyio.lowlevel
from starlette.types import ASGIApp, Message, Scope

Address = tuple[str, int]
Headers = list[tuple[bytes, bytes]]

DEADLINE = 15
TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
STATUS_LINE = re.compile(rb"(HTTP/1\.[01]) (\d{3}) ([^\r\n]*)")
REQUEST_LINE = re.compile(rb"(%b) (\S+) (HTTP/1\.[01])" % TOKEN)
FIELD_LINE = re.compile(rb"(%b):[ \t]*([^\x00\r\n]*?)[ \t]*" % TOKEN)
CHUNK_LINE = re.compile(rb"([0-9a-fA-F]+)(?:[ \t]*;[^\r\n]*)?")


class WireError(AssertionError):
    """What came over the wire is not what HTTP allows."""


class Closed(WireError):
    """The connection ended where something had to follow."""


def get(target: str, *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    """Return the bytes of a request without a body."""
    lines = [f"{method} {target} HTTP/{version}", "host: testserver", *fields]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def post(target: str, body: bytes, *fields: str) -> bytes:
    """Return the bytes of a request with a body."""
    return get(target, f"content-length: {len(body)}", *fields, method="POST") + body


@dataclass
class Answer:
    """One response as it came over the wire."""

    status: int
    headers: Headers
    # All of it up to and with the empty line, and what follows, with the framing of its chunks.
    head: bytes = b""
    raw: bytes = b""
    # The content alone.
    body: bytes = b""
    trailers: Headers = field(default_factory=list)
    # The interim responses (1xx) that came before it.
    interim: list[Answer] = field(default_factory=list)
    # Whether another request may follow on the connection.
    persistent: bool = True

    def all(self, name: str) -> list[bytes]:
        """Return the values of all fields called *name*."""
        return _all(self.headers, name.encode())

    def get(self, name: str) -> bytes | None:
        """Return the value of the only field called *name*, None without one."""
        values = self.all(name)
        assert len(values) <= 1, f"{len(values)} fields {name}: {values}"
        return values[0] if values else None


# ---------------------------------------------------------------------- the bytes


class Reader:
    """Takes bytes apart that *receive* gives, b"" at the end."""

    def __init__(self, receive: Callable[[], bytes]) -> None:
        self._receive = receive
        self._held = b""
        self.taken = b""

    @classmethod
    def of(cls, data: bytes) -> Reader:
        """Return a reader of *data*."""
        parts = iter([data])
        return cls(lambda: next(parts, b""))

    def more(self) -> bool:
        """Whether another byte comes; waits for it."""
        if not self._held:
            self._held = self._receive()
        return bool(self._held)

    def line(self) -> bytes:
        """Take a line without its CRLF."""
        while b"\n" not in self._held:
            self._pull("within the line")
        line, end, _ = self._held.partition(b"\n")
        self._take(len(line + end))
        if not line.endswith(b"\r") or b"\r" in line[:-1]:
            raise WireError(f"a bare CR or LF in {line!r}")
        return line[:-1]

    def exactly(self, size: int) -> bytes:
        """Take *size* bytes."""
        while len(self._held) < size:
            self._pull(f"{size - len(self._held)} bytes short of a body, behind")
        return self._take(size)

    def rest(self) -> bytes:
        """Take all up to the end."""
        while chunk := self._receive():
            self._held += chunk
        return self._take(len(self._held))

    def _pull(self, where: str) -> None:
        chunk = self._receive()
        if not chunk:
            raise Closed(f"the connection ended {where} {self._held[-80:]!r}")
        self._held += chunk

    def _take(self, size: int) -> bytes:
        data, self._held = self._held[:size], self._held[size:]
        self.taken += data
        return data


def _all(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key.lower() == name]


def _options(headers: Headers, name: bytes) -> list[bytes]:
    """Return the members of a list field (RFC 9110 section 5.6.1), in lower case."""
    values = b",".join(_all(headers, name)).lower().split(b",")
    return [value.strip() for value in values if value.strip()]


def _fields(reader: Reader) -> Headers:
    headers = []
    while line := reader.line():
        match = FIELD_LINE.fullmatch(line)
        if match is None:
            raise WireError(f"no field line: {line!r}")
        headers.append((match[1], match[2]))
    return headers


def _length(headers: Headers) -> int | None:
    """Return the declared length of a body, None without one (RFC 9112 section 6.3)."""
    values = set(_options(headers, b"content-length"))
    if len(values) > 1 or not all(value.isdigit() for value in values):
        raise WireError(f"content-length: {values}")
    if values and _options(headers, b"transfer-encoding"):
        raise WireError("both content-length and transfer-encoding (RFC 9112 section 6.2)")
    return int(values.pop()) if values else None


def _chunked(reader: Reader) -> tuple[bytes, Headers]:
    body = b""
    while True:
        line = reader.line()
        match = CHUNK_LINE.fullmatch(line)
        if match is None:
            raise WireError(f"no chunk size: {line!r}")
        size = int(match[1], 16)
        if not size:
            return body, _fields(reader)
        body += reader.exactly(size)
        if reader.line():
            raise WireError(f"a chunk is longer than its size {size}")


def _persists(version: bytes, headers: Headers) -> bool:
    # RFC 9112 section 9.3.
    options = _options(headers, b"connection")
    return b"close" not in options and (version == b"HTTP/1.1" or b"keep-alive" in options)


# ---------------------------------------------------------------------- the client


def read_answer(reader: Reader, request: bytes) -> Answer:
    """Take the answer to *request*; a `WireError` where it is not one."""
    asked = REQUEST_LINE.match(request)
    assert asked, request
    interim: list[Answer] = []
    while True:
        begun = len(reader.taken)
        line = reader.line()
        match = STATUS_LINE.fullmatch(line)
        if match is None:
            raise WireError(f"not the beginning of an answer: {line!r}")
        headers = _fields(reader)
        answer = Answer(int(match[2]), headers, reader.taken[begun:], interim=interim)
        _check_head(answer, asked[1], asked[3])
        if not 100 <= answer.status < 200 or answer.status == 101:
            break
        interim.append(answer)

    begun = len(reader.taken)
    codings = _options(headers, b"transfer-encoding")
    length = _length(headers)
    answer.persistent = _persists(match[1], headers) and _persists(asked[3], _head(request))
    if asked[1] == b"HEAD" or answer.status in (101, 204, 304):
        pass
    elif codings[-1:] == [b"chunked"]:
        answer.body, answer.trailers = _chunked(reader)
    elif codings or length is None:
        answer.body = reader.rest()
        answer.persistent = False
    else:
        answer.body = reader.exactly(length)
    answer.raw = reader.taken[begun:]
    if answer.status == 205 and answer.body:
        raise WireError(f"content with a 205 (RFC 9110 section 15.3.6): {answer.body!r}")
    return answer


def _check_head(answer: Answer, method: bytes, version: bytes) -> None:
    codings = _options(answer.headers, b"transfer-encoding")
    length = _length(answer.headers)
    if answer.status < 200 or answer.status == 204:
        if codings:
            raise WireError(f"transfer-encoding with a {answer.status} (RFC 9112 section 6.1)")
        if length is not None:
            raise WireError(f"content-length with a {answer.status} (RFC 9110 section 8.6)")
    if codings and version == b"HTTP/1.0":
        raise WireError("transfer-encoding to HTTP/1.0 (RFC 9112 section 6.1)")
    if answer.status == 205 and length and method != b"HEAD":
        raise WireError(f"content-length: {length} with a 205 (RFC 9110 section 15.3.6)")


def _head(request: bytes) -> Headers:
    reader = Reader.of(request)
    reader.line()
    return _fields(reader)


def parse(data: bytes, *requests: bytes) -> list[Answer]:
    """Take *data* apart into the answers to *requests*; nothing may be left over."""
    return _answers(Reader.of(data), requests)


def _answers(reader: Reader, requests: tuple[bytes, ...]) -> list[Answer]:
    answers: list[Answer] = []
    for request in requests:
        if answers and not answers[-1].persistent:
            break
        answers.append(read_answer(reader, request))
    if rest := reader.rest():
        raise WireError(f"bytes that belong to no answer: {rest!r}")
    return answers


class Client:
    """One connection to a real server; use it in a `with` block."""

    def __init__(self, address: Address) -> None:
        self.socket = socket.create_connection(address, timeout=DEADLINE)
        self.reader = Reader(self._receive)

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(65536)
        except ConnectionResetError:
            return b""

    def ask(self, request: bytes) -> Answer:
        """Send a request and take its answer."""
        self.socket.sendall(request)
        return read_answer(self.reader, request)

    def end(self) -> None:
        """
        Say that no request follows; a `WireError` if the server still sends something.

        Waits until the server has closed: at once where the last request said `connection: close`,
        hypercorn keeps the connection for seconds where none did.
        """
        with suppress(OSError):  # it has closed already
            self.socket.shutdown(socket.SHUT_WR)
        if rest := self.reader.rest():
            raise WireError(f"bytes that belong to no answer: {rest!r}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.socket.close()


def ask(address: Address, *requests: bytes, pipelined: bool = False) -> list[Answer]:
    """
    Ask several times on one connection, all at once or one after the other.

    There are less answers than requests only where one of them says that it is the last.
    """
    with Client(address) as client:
        if pipelined:
            client.socket.sendall(b"".join(requests))
        answers: list[Answer] = []
        for request in requests:
            if answers and not answers[-1].persistent:
                break
            answers.append(
                read_answer(client.reader, request) if pipelined else client.ask(request)
            )
        client.end()
    return answers


def ask_http2(address: Address, *requests: tuple[str, str]) -> list[Answer]:
    """
    Ask with a method and a path several times, one after the other, on one HTTP/2 connection.

    The framing is checked by the `h2` package, which has to be there.
    """
    import h2.config
    import h2.connection
    import h2.events

    config = h2.config.H2Configuration(client_side=True, header_encoding=None)
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    answers = []
    with socket.create_connection(address, timeout=DEADLINE) as raw:

        def events() -> Iterator[h2.events.Event]:
            while True:
                raw.sendall(connection.data_to_send())
                data = raw.recv(65536)
                if not data:
                    raise Closed("the connection ended within an answer")
                yield from connection.receive_data(data)

        for method, path in requests:
            stream = connection.get_next_available_stream_id()
            pseudo = [(":method", method), (":path", path), (":scheme", "http")]
            connection.send_headers(stream, [*pseudo, (":authority", "testserver")], True)
            answer = Answer(0, [])
            for event in events():
                if (getattr(event, "stream_id", None) or stream) != stream:
                    raise WireError(f"{event} belongs to no request")
                if isinstance(event, h2.events.ResponseReceived):
                    answer.headers = [pair for pair in event.headers if pair[0][:1] != b":"]
                    answer.status = int(dict(event.headers)[b":status"])
                    _check_head(answer, method.encode(), b"HTTP/2")
                elif isinstance(event, h2.events.DataReceived):
                    answer.body += event.data
                    connection.acknowledge_received_data(event.flow_controlled_length, stream)
                elif isinstance(event, h2.events.TrailersReceived):
                    answer.trailers = list(event.headers)
                elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                    raise WireError(f"{event}")
                elif isinstance(event, h2.events.StreamEnded):
                    break
            if answer.body and (method == "HEAD" or answer.status in (204, 205, 304)):
                raise WireError(f"content with a {answer.status} to {method}: {answer.body!r}")
            answers.append(answer)
    return answers


# ---------------------------------------------------------------------- the server


class PlainServer:
    """
    An HTTP/1 server that takes an ASGI app at its word, one request after the other, in memory.

    It corrects nothing: a body goes out whatever the status, as many bytes as the app says,
    whatever the declared length. Only what the app leaves open is the server's own: the framing
    where no header tells it, and that the answer to HEAD has no body, which is decided by the
    method in the server's own scope. An app that breaks off has its connection closed.

    Attributes:
        errors: What the app raised.
    """

    def __init__(self, app: ASGIApp, *, spec_version: str = "2.3") -> None:
        self.app = app
        self.spec_version = spec_version
        self.errors: list[BaseException] = []

    async def answer(self, data: bytes) -> bytes:
        """Serve the requests that *data* consists of; return all that goes out."""
        reader = Reader.of(data)
        sent = b""
        while reader.more():
            exchange = _Exchange(reader, self.spec_version)
            try:
                await self.app(exchange.scope, exchange.receive, exchange.send)
            except Exception as error:
                self.errors.append(error)
                if exchange.framing is None:
                    sent += b"HTTP/1.1 500 Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            sent += exchange.sent
            if not exchange.persistent or not exchange.complete.is_set():
                break
        return sent


class _Exchange:
    def __init__(self, reader: Reader, spec_version: str) -> None:
        line = reader.line()
        match = REQUEST_LINE.fullmatch(line)
        assert match, line
        self.version = match[3]
        headers = _fields(reader)
        if b"chunked" in _options(headers, b"transfer-encoding"):
            self.body, _ = _chunked(reader)
        else:
            self.body = reader.exactly(_length(headers) or 0)
        path, _, query = match[2].partition(b"?")
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": spec_version},
            "http_version": match[3].removeprefix(b"HTTP/").decode(),
            "method": match[1].decode(),
            "scheme": "http",
            "path": path.decode(),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": [(key.lower(), value) for key, value in headers],
            "client": ("127.0.0.1", 1),
            "server": ("testserver", 80),
            "extensions": {},
        }
        self.persistent = _persists(self.version, headers)
        self.sent = b""
        # What ends the body: b"chunked", b"length" or b"close"; None before the start.
        self.framing: bytes | None = None
        self.complete = anyio.Event()
        self._received = False

    async def receive(self) -> Message:
        if not self._received:
            self._received = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.complete.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            self._start(message["status"], list(message.get("headers", ())))
        elif message["type"] == "http.response.body":
            self._body(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"no {message['type']} on this server")

    def _start(self, status: int, headers: Headers) -> None:
        if self.framing is not None:
            raise RuntimeError("a second start")
        if _options(headers, b"transfer-encoding"):
            self.framing = b"chunked"
        elif _all(headers, b"content-length") or status in (204, 304) or status < 200:
            self.framing = b"length"
        elif self.version == b"HTTP/1.1":
            self.framing = b"chunked"
            headers.append((b"transfer-encoding", b"chunked"))
        else:
            self.framing = b"close"
            self.persistent = False
        if not self.persistent:
            headers.append((b"connection", b"close"))
        elif self.version == b"HTTP/1.0":
            headers.append((b"connection", b"keep-alive"))
        self.persistent = self.persistent and _persists(self.version, headers)
        lines = [b"HTTP/1.1 %d -" % status, *(key + b": " + value for key, value in headers)]
        self.sent += b"\r\n".join([*lines, b"", b""])

    def _body(self, body: bytes, *, more: bool) -> None:
        if self.framing is None or self.complete.is_set():
            raise RuntimeError("a body without a start, or behind its end")
        if self.scope["method"] != "HEAD":
            if self.framing != b"chunked":
                self.sent += body
            elif body:
                self.sent += b"%x\r\n%b\r\n" % (len(body), body)
            if self.framing == b"chunked" and not more:
                self.sent += b"0\r\n\r\n"
        if not more:
            self.complete.set()
