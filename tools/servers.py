"""
What nine configurations of real servers do in each of many situations, alone and inside of layers.

    python tools/servers.py                    writes the table of docs/servers.md
    python tools/servers.py --check            says whether it is stale
    python tools/servers.py --only daphne      shows what one configuration does

It needs uvicorn, httptools, uvloop, hypercorn, trio, granian, daphne and h2.
A difference between alone and inside that is neither in `MEANT` nor in `RACES` is an error.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h11

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "servers.md"
TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end of the table -->)", re.DOTALL)

# After how many seconds without a byte an answer counts as missing.
MISSING = 3
# After how many seconds an upload that is not taken counts as held back.
HELD = 1
DEADLINE = 15
MIB = 1 << 20
REFUSED = "refused by the client"

UVICORN = "--host 127.0.0.1 --port {port} --no-access-log --timeout-graceful-shutdown 1"
HYPERCORN = "--bind 127.0.0.1:{port} --workers 0 --graceful-timeout 1"
GRANIAN = "--interface asgi --host 127.0.0.1 --port {port}"


@dataclass(frozen=True)
class Configuration:
    """
    How to start a server, and which protocol to speak with it.
    """

    module: str
    arguments: str
    is_http2: bool = False


CONFIGURATIONS = {
    "uvicorn h11": Configuration("uvicorn", f"{UVICORN} --http h11 --loop asyncio"),
    "uvicorn httptools": Configuration("uvicorn", f"{UVICORN} --http httptools --loop asyncio"),
    "uvicorn uvloop": Configuration("uvicorn", f"{UVICORN} --http httptools --loop uvloop"),
    "hypercorn asyncio": Configuration("hypercorn", f"{HYPERCORN} --worker-class asyncio"),
    "hypercorn trio": Configuration("hypercorn", f"{HYPERCORN} --worker-class trio"),
    "hypercorn HTTP/2": Configuration(
        "hypercorn", f"{HYPERCORN} --worker-class asyncio", is_http2=True
    ),
    "granian": Configuration("granian", f"{GRANIAN} --http 1"),
    "granian HTTP/2": Configuration("granian", f"{GRANIAN} --http 2", is_http2=True),
    "daphne": Configuration("daphne", "--bind 127.0.0.1 --port {port}"),
}

# Differences that layers are meant to make, with the value that they have to make of it.
MEANT = {
    "`receive()` after the disconnect": ("disconnect", "a disconnect once seen stays seen"),
    "two `receive()` when the response is complete": ("2 of 2", "it stays seen, for everyone"),
    "`receive()` after the response": ("disconnect", "it stays seen"),
    "headers that are an iterator": ("200, there", "httpmw keeps them as a list"),
    "a body with status 204": ("taken; 204", "none may be sent, RFC 9110 section 15.3.5"),
    "app ends without a response": ("500", "`NoResponseError` is raised to the server"),
}
# What a server does now so and now so, without layers as well.
RACES = {
    ("granian HTTP/2", "an upload that is never read"): {
        "200; then 200",
        "200, cut; then closed",
    },
    ("hypercorn HTTP/2", "a client that does not read"): {
        "holds the app back",
        "holds nobody back",
    },
    # It closes while the client still sends, which can reset the connection.
    **{
        (f"hypercorn {which}", "an upload that is never read"): {
            "200; then closed",
            "closed; then closed",
        }
        for which in ("asyncio", "trio", "HTTP/2")
    },
}


# ---------------------------------------------------------------------- clients


@dataclass
class Answer:
    """
    What came back, and how it ended: whole, cut, closed before it began, or missing.
    """

    status: int | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    informational: list[int] = field(default_factory=list)
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    end: str = "missing"

    def __str__(self) -> str:
        if self.end == REFUSED:
            return REFUSED
        if self.status is None:
            return "no answer" if self.end == "missing" else "closed"
        ends = {"whole": "", "cut": ", cut", "missing": ", no end"}
        return f"{self.status}{ends[self.end]}"


class Client:
    """
    One connection, and one request at a time.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=MISSING)
        self.answer = Answer()

    def request(
        self, path: str, method: str = "GET", *, length: int = 0, expect: bool = False
    ) -> None:
        """
        Send the head of a request, whose body will have *length* bytes.
        """
        raise NotImplementedError

    def data(self, data: bytes, *, last: bool = True) -> None:
        """
        Send a part of the body.
        """
        raise NotImplementedError

    def read(self, enough: Callable[[Answer], Any] = lambda _: False) -> Answer:
        """
        Read until it is *enough*, or until the end.
        """
        while self.answer.end == "missing" and not enough(self.answer):
            try:
                data = self.socket.recv(MIB)
            except TimeoutError:
                break
            except OSError:
                data = b""
            if not data and self.answer.status is None:
                self.answer.end = "closed"
            elif not data:
                self.ended()
            else:
                self.feed(data)
        return self.answer

    def feed(self, data: bytes) -> None:
        """
        Take bytes of the server.
        """
        raise NotImplementedError

    def ended(self) -> None:
        """
        Take the end of the connection.
        """
        self.answer.end = "cut"

    def next(self) -> None:
        """
        Make ready for another request on the same connection.
        """
        self.answer = Answer()

    def leave(self) -> None:
        """
        Leave without a word.
        """
        self.close()

    def close(self) -> None:
        """
        Close the connection.
        """
        self.socket.close()


class HTTP1(Client):
    """
    A client of HTTP/1.1.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address)
        self.state = h11.Connection(h11.CLIENT)

    def request(
        self, path: str, method: str = "GET", *, length: int = 0, expect: bool = False
    ) -> None:
        headers = [("host", "testserver"), ("te", "trailers")]
        if length:
            headers.append(("content-length", str(length)))
        if expect:
            headers.append(("expect", "100-continue"))
        event = h11.Request(method=method, target=path, headers=headers)
        self.socket.sendall(self.state.send(event) or b"")
        if not length:
            self.state.send(h11.EndOfMessage())

    def data(self, data: bytes, *, last: bool = True) -> None:
        self.socket.sendall(self.state.send(h11.Data(data=data)) or b"")
        if last:
            self.socket.sendall(self.state.send(h11.EndOfMessage()) or b"")

    def feed(self, data: bytes) -> None:
        self.state.receive_data(data)
        self._take()

    def ended(self) -> None:
        self.feed(b"")
        if self.answer.end == "missing":
            self.answer.end = "cut"

    def next(self) -> None:
        super().next()
        self.state.start_next_cycle()

    def _take(self) -> None:
        while self.answer.end == "missing":
            try:
                event = self.state.next_event()
            except h11.RemoteProtocolError:
                self.answer.end = "cut"
                return
            match event:
                case h11.InformationalResponse():
                    self.answer.informational.append(event.status_code)
                case h11.Response():
                    self.answer.status = event.status_code
                    self.answer.headers = list(event.headers)
                case h11.Data():
                    self.answer.body += bytes(event.data)
                case h11.EndOfMessage():
                    self.answer.trailers = list(event.headers)
                    self.answer.end = "whole"
                case _:
                    return


class HTTP2(Client):
    """
    A client of HTTP/2 without TLS.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address)
        configuration = h2.config.H2Configuration(header_encoding=None)
        self.state = h2.connection.H2Connection(configuration)
        self.state.initiate_connection()
        self.stream = 1
        self.flush()

    def flush(self) -> None:
        """
        Send what the protocol has to say.
        """
        self.socket.sendall(self.state.data_to_send())

    def request(
        self, path: str, method: str = "GET", *, length: int = 0, expect: bool = False
    ) -> None:
        self.stream = self.state.get_next_available_stream_id()
        headers = [
            *((":method", method), (":path", path)),
            *((":scheme", "http"), (":authority", "testserver"), ("te", "trailers")),
        ]
        if length:
            headers.append(("content-length", str(length)))
        if expect:
            headers.append(("expect", "100-continue"))
        self.state.send_headers(self.stream, headers, end_stream=not length)
        self.flush()

    def data(self, data: bytes, *, last: bool = True) -> None:
        self.state.send_data(self.stream, data, end_stream=last)
        self.flush()

    def feed(self, data: bytes) -> None:
        try:
            for event in self.state.receive_data(data):
                self._take(event)
        except h2.exceptions.ProtocolError:
            # Such as a body of another length than was announced.
            self.answer.end = REFUSED
        self.flush()

    def next(self) -> None:
        if self.answer.end == "cut":
            message = "the stream was reset"
            raise ConnectionError(message)
        super().next()

    def leave(self) -> None:
        self.state.reset_stream(self.stream, h2.errors.ErrorCodes.CANCEL)
        self.flush()

    def _take(self, event: Any) -> None:
        match event:
            case h2.events.InformationalResponseReceived():
                self.answer.informational.append(int(dict(event.headers)[b":status"]))
            case h2.events.ResponseReceived():
                self.answer.status = int(dict(event.headers)[b":status"])
                self.answer.headers = [pair for pair in event.headers if pair[0] != b":status"]
            case h2.events.DataReceived():
                self.answer.body += event.data
                self.state.acknowledge_received_data(event.flow_controlled_length, self.stream)
            case h2.events.TrailersReceived():
                self.answer.trailers = list(event.headers)
            case h2.events.StreamEnded():
                self.answer.end = "whole"
            case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                self.answer.end = "cut" if self.answer.status else "closed"


# ---------------------------------------------------------------------- a running server


class Server:
    """
    A configuration that runs.
    """

    def __init__(self, configuration: Configuration, log: Path) -> None:
        self.configuration = configuration
        self.log = log
        self.ids = itertools.count(1)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.address = listener.getsockname()
        arguments = configuration.arguments.format(port=self.address[1]).split()
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", configuration.module, *arguments, "tools.server_probes:app"],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        end = time.monotonic() + DEADLINE
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(log.read_text())
            time.sleep(0.05)

    def is_ready(self) -> bool:
        """
        Say whether the server answers.
        """
        try:
            return self.ask("/ready") == "ready"
        except OSError:
            return False

    def client(self) -> Client:
        """
        Connect.
        """
        return (HTTP2 if self.configuration.is_http2 else HTTP1)(self.address)

    def ask(self, path: str) -> Any:
        """
        Ask the application something that is no probe.
        """
        with closing(self.client()) as client:
            client.socket.settimeout(DEADLINE)
            client.request(path)
            return json.loads(client.read().body or "null")

    def stop(self) -> None:
        """
        Let the server end, or end it.
        """
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Talk:
    """
    One probe, asked for over one connection.
    """

    def __init__(self, server: Server, way: str, name: str) -> None:
        self.server = server
        self.id = f"{way}-{name}-{next(server.ids)}"
        self.path = f"/{way}/{name}/{self.id}"
        self.client = server.client()

    def request(self, method: str = "GET", **options: Any) -> Client:
        """
        Begin the request.
        """
        self.client.request(self.path, method, **options)
        return self.client

    def notes(self) -> dict[str, Any]:
        """
        Wait for the probe to be over, and say what it noted.
        """
        notes: dict[str, Any] = self.server.ask(f"/notes/{self.id}")
        return notes

    def release(self) -> None:
        """
        Let the probe go on.
        """
        self.server.ask(f"/release/{self.id}")


# ---------------------------------------------------------------------- probes

Row = dict[str, str]
Ask = Callable[[Talk], Row]
PROBES: dict[str, Ask] = {}


def probe(ask: Ask) -> Ask:
    """
    Make known how to ask for the probe of this name.
    """
    PROBES[ask.__name__] = ask
    return ask


def answered(name: str, title: str) -> None:
    """
    Make known a probe of which only the answer is of interest.
    """

    def ask(talk: Talk) -> Row:
        return {title: str(talk.request().read())}

    PROBES[name] = ask


def sent(name: str, title: str, method: str = "GET") -> None:
    """
    Make known a probe of which the answer is of interest, and what `send` did.
    """

    def ask(talk: Talk) -> Row:
        answer = talk.request(method).read()
        return {title: f"{talk.notes().get('send')}; {answer}"}

    PROBES[name] = ask


@probe
def scope(talk: Talk) -> Row:
    talk.request().read()
    notes = talk.notes()
    return {
        "ASGI version of HTTP": notes["spec"],
        "extensions": notes["extensions"],
        "`state` in the scope": notes["state"],
        "ports of `client` and `server`": notes["ports"],
    }


@probe
def plain(talk: Talk) -> Row:
    client = talk.request()
    first = str(client.read())
    client.next()
    talk.request()
    return {"two requests on one connection": f"{first}; {client.read()}"}


@probe
def variables(talk: Talk) -> Row:
    # Two requests at once: the second one is there while the first is answered.
    second = f"{talk.id}-second"
    paths = (talk.path, talk.path.replace(talk.id, second))
    if talk.server.configuration.is_http2:
        for path in paths:
            talk.client.request(path)
    else:
        heads = [f"GET {path} HTTP/1.1\r\nhost: testserver\r\n\r\n" for path in paths]
        talk.client.socket.sendall("".join(heads).encode())
    return {"context variables of the next request": talk.server.ask(f"/notes/{second}")["seen"]}


@probe
def streamed(talk: Talk) -> Row:
    answer = talk.request().read()
    kept = [value for name, value in answer.headers if name == b"set-cookie"]
    whole = len(answer.body) == len(b"a chunk") * 1000 and kept == [b"a=1", b"b=2"]
    return {"1000 chunks, a header twice": "whole" if whole else f"not whole: {answer}"}


@probe
def leaves(talk: Talk) -> Row:
    talk.request().read(lambda answer: answer.body)
    talk.client.leave()
    notes = talk.notes()
    return {
        "client leaves, a waiting `receive()`": notes["first"],
        "`receive()` after the disconnect": notes["again"],
        "`send()` after the disconnect": notes["send"],
    }


@probe
def left_alone(talk: Talk) -> Row:
    talk.request().read(lambda answer: answer.body)
    talk.client.leave()
    return {"client leaves, is the app cancelled": talk.notes()["cancelled"]}


@probe
def half_closed(talk: Talk) -> Row:
    title = "client closes its half"
    if talk.server.configuration.is_http2:
        return {title: "as ever"}
    talk.request()
    talk.client.socket.shutdown(socket.SHUT_WR)
    answer = talk.client.read()
    return {title: f"{talk.notes()['told']}; {answer}"}


@probe
def complete(talk: Talk) -> Row:
    talk.request().read()
    notes = talk.notes()
    return {
        "response complete, a waiting `receive()`": notes["woken"],
        "`receive()` after the response": notes["later"],
    }


@probe
def listeners(talk: Talk) -> Row:
    talk.request().read()
    return {"two `receive()` when the response is complete": talk.notes()["woken"]}


@probe
def iterated_headers(talk: Talk) -> Row:
    answer = talk.request().read()
    there = "there" if (b"x-a", b"b") in answer.headers else "lost"
    return {"headers that are an iterator": f"{answer}, {there}"}


@probe
def length_on_304(talk: Talk) -> Row:
    client = talk.request()
    first = str(client.read())
    done = talk.notes().get("send")
    try:
        client.next()
        talk.request()
        again = str(client.read())
    except (OSError, h11.LocalProtocolError, h2.exceptions.ProtocolError):
        again = "closed"
    return {"a 304 with `content-length`": f"{done}; {first}; then {again}"}


answered("no_headers", "a start without `headers`")
sent("after_the_end", "a message after the last one")
sent("second_start", "a second start")
sent("unknown_message", "a message of an unknown type")
answered("no_response", "app ends without a response")
answered("fails_before", "app raises before the start")
answered("fails_after_the_start", "app raises after the start")
answered("fails_within", "app raises within the body")
answered("ends_within", "app ends within the body")
answered("os_error", "app raises `OSError`")
sent("too_long", "more bytes than `content-length`")
sent("too_short", "fewer bytes than `content-length`")
sent("body_on_204", "a body with status 204")
sent("body_on_head", "a body in answer to HEAD", "HEAD")


@probe
def slow_reader(talk: Talk) -> Row:
    # How much of an upload a server takes before the app asks for it.
    size, taken = 8 * MIB, 0
    client = talk.request("POST", length=size)
    for taken in range(0, size, 1 << 14):
        if not writable(client):
            break
        client.data(b"x" * (1 << 14), last=taken + (1 << 14) == size)
    held = taken + (1 << 14) < size
    talk.release()
    while held and taken < size:
        client.read(lambda _: True)
        if writable(client):
            client.data(b"x" * (1 << 14), last=taken + (1 << 14) == size)
            taken += 1 << 14
    # daphne takes seconds for it.
    client.socket.settimeout(4 * DEADLINE)
    answer = client.read()
    whole = talk.notes().get("size") == size
    return {
        "an upload that the app does not read yet": "is held back" if held else "is taken in",
        "and when it reads it": f"{answer}, whole" if whole else f"{answer}, not whole",
    }


def writable(client: Client) -> bool:
    """
    Say whether more of an upload can be sent, after a while of waiting for it.
    """
    if isinstance(client, HTTP2):
        end = time.monotonic() + HELD
        while client.state.local_flow_control_window(client.stream) < 1 << 14:
            if not select.select([client.socket], [], [], max(0, end - time.monotonic()))[0]:
                return False
            if not (data := client.socket.recv(MIB)):
                return False
            client.feed(data)
    return bool(select.select([], [client.socket], [], HELD)[1])


@probe
def unread(talk: Talk) -> Row:
    title = "an upload that is never read"
    client = talk.request("POST", length=MIB)
    try:
        for last in range(64):
            if not writable(client):
                break
            client.data(b"x" * (1 << 14), last=last == 63)
    except (OSError, h2.exceptions.ProtocolError):
        pass
    answer = str(client.read())
    try:
        client.next()
        talk.request()
        again = str(client.read())
    except (OSError, h11.LocalProtocolError, h2.exceptions.ProtocolError):
        again = "closed"
    return {title: f"{answer}; then {again}"}


@probe
def cancelled_receive(talk: Talk) -> Row:
    client = talk.request("POST", length=10)
    client.data(b"first", last=False)
    # The app waits in vain for the rest, and then says so.
    talk.server.ask(f"/released/{talk.id}")
    client.data(b"again")
    answer = client.read()
    whole = talk.notes().get("body") == "firstagain"
    lost = "nothing lost" if whole else "bytes lost"
    return {"a cancelled `receive()`": f"{answer}, {lost}"}


@probe
def idle_start(talk: Talk) -> Row:
    answer = talk.request().read(lambda answer: answer.status)
    value = "at once" if answer.status else "with the body"
    talk.release()
    return {"the start is sent": f"{value}; {talk.client.read()}"}


@probe
def idle_stream(talk: Talk) -> Row:
    answer = talk.request().read(lambda answer: answer.body)
    value = "at once" if answer.body else "later"
    talk.release()
    return {"a chunk is sent": f"{value}; {talk.client.read()}"}


@probe
def endless_stream(talk: Talk) -> Row:
    talk.request()
    # The client reads nothing at all.
    held = talk.notes()["sent"] < 64
    return {"a client that does not read": "holds the app back" if held else "holds nobody back"}


@probe
def background(talk: Talk) -> Row:
    answer = str(talk.request().read())
    talk.release()
    ran = talk.notes().get("released") == "yes"
    return {"work after the response": f"{answer} before it ends" if ran else f"{answer} after it"}


@probe
def expect(talk: Talk) -> Row:
    # The app of `slow_reader`, which asks for the body when it is let go.
    talk.path = talk.path.replace("/expect/", "/slow_reader/")
    client = talk.request("POST", length=5, expect=True)
    before = list(client.read(lambda answer: answer.informational).informational)
    talk.release()
    client.read(lambda answer: answer.informational)
    client.data(b"plain")
    answer = client.read()
    when = "before" if before else "when" if answer.informational else "not even when"
    return {"`100 Continue`": f"{when} the app reads; {answer}"}


def extension(name: str, title: str, value: Callable[[Answer], object]) -> None:
    """
    Make known a probe of an extension, which a server may not have.
    """

    def ask(talk: Talk) -> Row:
        answer = talk.request().read()
        done = talk.notes().get("send")
        arrived = "arrived" if value(answer) else "not arrived"
        return {title: f"{done}; {answer}, {arrived}" if done else "not offered"}

    PROBES[name] = ask


extension("trailers", "trailers", lambda answer: (b"x-sum", b"1") in answer.trailers)
extension("early_hints", "early hints", lambda answer: 103 in answer.informational)
extension("pathsend", "`pathsend`", lambda answer: b"def pathsend" in answer.body)


# ---------------------------------------------------------------------- the table


@dataclass
class Column:
    """
    What one configuration did alone and inside of layers.
    """

    name: str
    alone: Row
    inside: Row

    def cell(self, title: str) -> str:
        """
        Say what happened.
        """
        alone, inside = self.alone[title], self.inside[title]
        if self.is_race(title):
            return " or ".join(sorted(RACES[self.name, title]))
        return alone if alone == inside else f"{alone} → **{inside}**"

    def is_race(self, title: str) -> bool:
        """
        Say whether the server is known to do both.
        """
        both = {self.alone[title], self.inside[title]}
        return both <= RACES.get((self.name, title), set())

    def unmeant(self) -> Iterator[str]:
        """
        Say what layers changed that they should not have.
        """
        for title, value in self.inside.items():
            meant = MEANT.get(title)
            if value == self.alone[title] or self.is_race(title):
                continue
            if meant is None or meant[0] != value:
                yield f"{self.name}: {title}: {value}, without layers {self.alone[title]}"


@contextmanager
def running(name: str) -> Iterator[Server]:
    """
    Run a configuration.
    """
    with tempfile.TemporaryDirectory() as folder:
        server = Server(CONFIGURATIONS[name], Path(folder) / "log")
        try:
            yield server
        finally:
            server.stop()


def column(name: str) -> Column:
    """
    Ask one configuration everything.
    """
    # A server for each way: what a probe leaves behind in one must not change the other.
    rows = []
    for way in ("alone", "inside"):
        with running(name) as server:
            rows.append(ask_all(server, way))
    return Column(name, *rows)


def ask_all(server: Server, way: str) -> Row:
    """
    Run every probe in one *way*, count what the server made of it in its log, and stop it.
    """
    row: Row = {}
    for name, ask in PROBES.items():
        talk = Talk(server, way, name)
        with closing(talk.client):
            row |= ask(talk)
    # The last of it may still be on its way.
    server.ask("/ready")
    row["tracebacks in the log"] = str(tracebacks(server))
    talk = Talk(server, way, "shutdown")
    talk.request().read(lambda answer: answer.body)
    server.stop()
    told = f"cancelled {talk.id}" in server.log.read_text()
    row["shutdown, a request in flight"] = "cancelled" if told else "told nothing"
    talk.client.close()
    return row


def tracebacks(server: Server) -> int:
    """
    Count the tracebacks of exceptions of the probes themselves.
    """
    return len(re.findall(r"^(ValueError|OSError): ", server.log.read_text(), re.MULTILINE))


def table(columns: list[Column]) -> str:
    """
    Make the table of the page.
    """
    titles = list(columns[0].alone)
    packages = ("uvicorn", "httptools", "uvloop", "hypercorn", "granian", "daphne", "starlette")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    head = f"| | {' | '.join(column.name for column in columns)} |"
    return "\n".join(
        [
            f"\nMade on Python {'.'.join(map(str, sys.version_info[:2]))} with {versions}.\n",
            head,
            "|---" * (len(columns) + 1) + "|",
            *(
                f"| {title} | {' | '.join(each.cell(title) for each in columns)} |"
                for title in titles
            ),
            "",
            "",
        ]
    )


def main() -> None:
    """
    Ask the servers, and write the table, compare it, or show a part of it.
    """
    parser = argparse.ArgumentParser(description="The table of docs/servers.md.")
    parser.add_argument("--check", action="store_true", help="only say whether it is stale")
    parser.add_argument("--only", choices=CONFIGURATIONS, help="show what one does")
    options = parser.parse_args()
    chosen = [name for name in CONFIGURATIONS if options.only in {None, name}]
    # Most of the time is spent in waiting for what never comes.
    with ThreadPoolExecutor(3) as pool:
        columns = list(pool.map(column, chosen))
    found = [difference for each in columns for difference in each.unmeant()]
    if options.only:
        for title in columns[0].alone:
            print(f"{title:<46} {columns[0].cell(title)}")
    else:
        page = PAGE.read_text()
        fresh = TABLE.sub(lambda _: table(columns), page)
        if not options.check:
            PAGE.write_text(fresh)
        elif fresh != page:
            found.append(f"{PAGE} is stale: python tools/servers.py")
    if found:
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
