"""
An attack on gates and bodies, on real servers, over raw connections.

    python -m tools.attack                          50,000 requests, on each server a part of them
    python -m tools.attack --server granian --requests 2000

Clients pipeline requests, cut them at every byte, send the beginning of the next one early, hide
requests in bodies, leave at every byte and in the middle of what is answered, while the layers of
a stack are edited. All that is sent goes to a server of our own on the loopback, and it ends by
count or by time.

1. Who has no key must not reach the inner app, whatever it does: the app notes who came.
2. Each answer is, to the last byte, what its own request has to get; `tests.wire` takes it apart,
   and a byte that belongs to no answer is wrong.
3. What a layer holds for a request that has ended, in whichever way, is given back.
4. The server logs nothing but what it logs of such clients by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import platform
import random
import re
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from tests.wire import Answer, Client, Closed, WireError, ask, get, post, read_answer
from tools.load import SERVERS, Server

GATES = (
    *("answers", "answers-and-waits", "raises", "reads", "delegates", "call-next"),
    *("fused", "nested", "live"),
)
CHANGES = ("body", "read", "transform", "other", "other-stream", "204", "205", "304")
# Half a connection that is closed would do, but some servers then wait for their keep-alive's end.
LAST = "connection: close"
PATHS = ("whole", "parts", "slow")
CLIENTS = 4
DEADLINE = 600  # seconds, for one server
# Of hypercorn the worker on asyncio: that on trio may write from two tasks to one connection.
NAMES = tuple(name for name in SERVERS if name != "hypercorn-trio")
# What servers log of such clients, with gates that are plain ASGI as well: a request that is none,
# uvloop's refusal to write to who left, and connections that asyncio ends with their server.
OF_THE_SERVER = re.compile(
    r"WARNING: +Invalid HTTP request received\."
    r"|RuntimeError: unable to perform operation on <TCPTransport closed=True .*"
    r"|(Exception in callback|handle: <Handle) StreamReaderProtocol\.connection_made\..*"
    r"|asyncio\.exceptions\.CancelledError"
    r"|During handling of the above exception, another exception occurred:"
    r"|starlette\.exceptions\.HTTPException: 403: denied .*"
)


@dataclass(frozen=True)
class Asked:
    """
    One request, and the only answer that it may get.
    """

    name: str
    data: bytes
    status: int
    body: bytes
    allowed: bool
    # Whether the server may close the connection over an upload that nobody reads.
    may_close: bool = False

    def check(self, answer: Answer) -> None:
        got = answer.status, answer.body
        if got != (self.status, self.body):
            raise WireError(f"{self.name}: {got!r:.200}, not {(self.status, self.body)!r:.200}")


@dataclass
class Attack:
    """
    What one server was asked, and what came of it.
    """

    address: tuple[str, int]
    wanted: int
    names: Iterator[int] = field(default_factory=itertools.count)
    done: Counter[str] = field(default_factory=Counter)
    allowed: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    edits: int = 0

    def is_over(self) -> bool:
        return sum(self.done.values()) >= self.wanted or len(self.wrong) >= 20

    def request(self, chance: random.Random, *fields: str) -> Asked:
        """
        Make a request at random: to a gate, with or without the key, or to a layer of another kind.
        """
        if chance.random() < 0.3:
            return self.changed(chance, *fields)
        allowed = chance.random() < 0.3
        return self.at_gate(chance, chance.choice(GATES), *fields, allowed=allowed)

    def at_gate(
        self,
        chance: random.Random,
        gate: str,
        *more: str,
        allowed: bool,
        path: str | None = None,
    ) -> Asked:
        name = f"{gate}-{next(self.names)}"
        target = f"/{gate}/{path or chance.choice(PATHS)}"
        fields = [f"x-id: {name}", *["x-key: key"] * allowed, *more]
        upload, data = b"", get(target, *fields)
        if chance.random() < 0.3:
            # A request that is hidden in a body; its name is none that may reach the app.
            upload = get(f"/{gate}/whole", f"x-id: hidden-{name}", "x-key: key")
            upload *= chance.choice((1, 3))
            fields += ["expect: 100-continue"] * (chance.random() < 0.2)
            if chance.random() < 0.5:
                data = post(target, upload, *fields)
            else:
                size = chance.randrange(1, len(upload) + 1)
                data = get(target, "transfer-encoding: chunked", *fields, method="POST")
                for begin in range(0, len(upload), size):
                    chunk = upload[begin : begin + size]
                    data += b"%x\r\n%b\r\n" % (len(chunk), chunk)
                data += b"0\r\n\r\n"
        if not allowed:
            unread = bool(upload) and gate != "reads"
            return Asked(name, data, 403, b"denied " + name.encode(), allowed, unread)
        self.allowed.add(name)
        return Asked(name, data, 200, secret(name, upload), allowed)

    def changed(self, chance: random.Random, *more: str) -> Asked:
        how = chance.choice(CHANGES)
        name = f"{how}-{next(self.names)}"
        self.allowed.add(name)
        method = chance.choice(("GET", "GET", "HEAD"))
        fields = [f"x-id: {name}", "x-key: key", *more]
        data = get(f"/{how}/{chance.choice(PATHS)}", *fields, method=method)
        replaced, plain = b"replaced " + name.encode(), secret(name)
        status, body = {
            "body": (200, replaced),
            "read": (200, plain.upper()),
            "transform": (200, plain.upper()),
            "other": (503, replaced),
            "other-stream": (203, plain.upper()),
        }.get(how) or (int(how), b"")
        return Asked(name, data, status, b"" if method == "HEAD" else body, allowed=True)


def secret(name: str, upload: bytes = b"") -> bytes:
    return b"secret %b %b" % (name.encode(), hashlib.sha256(upload).hexdigest()[:8].encode())


@contextmanager
def connected(attack: Attack) -> Iterator[Client]:
    with Client(attack.address) as client:
        # Each piece leaves at once, as it was cut.
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield client


def take(client: Client, asked: Asked) -> bool:
    """
    Take and check an answer; tell whether another one may follow.
    """
    answer = read_answer(client.reader, asked.data)
    asked.check(answer)
    return answer.persistent and not asked.may_close


def leave(client: Client, chance: random.Random) -> None:
    """
    Go without a word, or with a reset.
    """
    if chance.random() < 0.5:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# ---------------------------------------------------------------------- ways to attack


def pipelined(attack: Attack, chance: random.Random) -> int:
    """
    Many requests at once, cut into pieces that do not know of them.
    """
    requests = [attack.request(chance) for _ in range(chance.randrange(1, 8))]
    requests.append(attack.request(chance, LAST))
    data = b"".join(asked.data for asked in requests)
    with connected(attack) as client:
        size = chance.choice((len(data), 1000, 100, 17))
        try:
            for begin in range(0, len(data), size):
                client.socket.sendall(data[begin : begin + size])
        except OSError:
            # It closed over an upload that was not read; what it answered until then is checked.
            if not any(asked.may_close for asked in requests):
                raise
        for asked in requests:
            try:
                if not take(client, asked):
                    break
            except Closed:
                if not any(each.may_close for each in requests):
                    raise
                break
        else:
            client.end()
    return len(requests)


def cut_at_every_byte(attack: Attack, chance: random.Random) -> int:
    """
    One connection on which each request comes in two pieces, cut one byte later each time.
    """
    gate = chance.choice(GATES)
    number = 0
    with connected(attack) as client:
        for cut in itertools.count(1):
            asked = attack.at_gate(chance, gate, allowed=chance.random() < 0.2, path="whole")
            if cut >= len(asked.data) or attack.is_over():
                break
            number += 1
            client.socket.sendall(asked.data[:cut])
            client.socket.sendall(asked.data[cut:])
            if not take(client, asked):
                break
    return number


def next_one_early(attack: Attack, chance: random.Random) -> int:
    """
    With each request comes the beginning of the next one, and its rest after the answer.
    """
    number = 0
    with connected(attack) as client:
        asked, sent = attack.request(chance), 0
        for _ in range(20):
            following = attack.request(chance)
            early = chance.randrange(len(following.data) + 1)
            client.socket.sendall(asked.data[sent:] + following.data[:early])
            number += 1
            if not take(client, asked):
                break
            asked, sent = following, early
    return number


def gone_at_every_byte(attack: Attack, chance: random.Random) -> int:
    """
    A connection for each byte of a request, at which its client leaves.
    """
    gate = chance.choice(GATES)
    allowed = chance.random() < 0.3
    length = len(attack.at_gate(chance, gate, allowed=allowed).data)
    for cut in range(length):
        asked = attack.at_gate(chance, gate, allowed=allowed)
        with connected(attack) as client:
            client.socket.sendall(asked.data[:cut])
            leave(client, chance)
        if attack.is_over():
            return cut + 1
    return length


def gone_while_answered(attack: Attack, chance: random.Random) -> int:
    """
    A client that leaves while something is held for it, before or within what it gets.
    """
    name = f"held-{next(attack.names)}"
    attack.allowed.add(name)
    path = chance.choice(("/held/slow", "/held/parts"))
    data = get(path, f"x-id: {name}", "x-key: key")
    with connected(attack) as client:
        client.socket.sendall(data)
        if chance.random() < 0.2:
            answer = read_answer(client.reader, data)
            if answer.body != secret(name):
                raise WireError(f"{name}: {answer.body!r}")
        elif chance.random() < 0.7:
            client.socket.recv(chance.choice((1, 50, 200)))
        leave(client, chance)
    return 1


T = TypeVar("T")
Way = Callable[[Attack, random.Random], int]
WAYS: dict[Way, int] = {
    pipelined: 30,
    cut_at_every_byte: 2,
    next_one_early: 8,
    gone_at_every_byte: 1,
    gone_while_answered: 20,
}


# ---------------------------------------------------------------------- the run


def work(attack: Attack, seed: int, end: float) -> None:
    """
    Attack in one way after the other.
    """
    chance = random.Random(seed)
    while not attack.is_over() and time.monotonic() < end:
        [way] = chance.choices(list(WAYS), [*WAYS.values()])
        try:
            attack.done[way.__name__] += way(attack, chance)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is wrong
            attack.wrong.append(f"{way.__name__}: {error!r:.400}")


def keep_editing(attack: Attack, stop: threading.Event) -> None:
    """
    Edit the live stack until the others are through.
    """
    while not stop.wait(0.01):
        try:
            ask(attack.address, get(f"/edit?10&{attack.edits}", LAST))
        except Exception as error:  # noqa: BLE001 - as above
            attack.wrong.append(f"edit: {error!r:.400}")
            return
        attack.edits += 10


def eventually(test: Callable[[], T]) -> T | None:
    """
    Ask until it gives something true, or for 20 seconds.
    """
    for _ in range(200):
        try:
            found = test()
        except OSError:
            found = None
        if found:
            return found
        time.sleep(0.1)
    return None


def counts(attack: Attack) -> dict[str, Any]:
    [answer] = ask(attack.address, get("/counts", LAST))
    return dict(json.loads(answer.body))


def attacked(name: str, requests: int, seed: int) -> Attack:
    """
    Attack one server, and print what came of it.
    """
    with tempfile.TemporaryDirectory() as folder:
        server = Server(name, Path(folder) / "log", app="tools.attack_app:app")
        attack = Attack(server.address, requests)
        try:
            seen = eventually(partial(counts, attack)) and attack_it(attack, seed)
        finally:
            server.stop()
        if not seen:
            raise SystemExit(f"{name} does not answer:\n{server.log.read_text()[-5000:]}")
        lines = server.unexpected(set())
        attack.wrong += [line for line in lines if not OF_THE_SERVER.fullmatch(line)]
    through = {who for who, with_key in seen["reached"].items() if not with_key}
    strangers = sorted(through | (seen["reached"].keys() - attack.allowed))
    attack.wrong += [f"{who} reached the app" for who in strangers]
    attack.wrong += [f"{who} is still held" for who in seen["held"]]
    print(f"{name}: {sum(attack.done.values()):,} requests {dict(attack.done)}")
    print(f"  reached the app: {len(seen['reached']):,}, without the key {len(strangers)}")
    print(f"  edits: {attack.edits:,}; held: {seen['taken']:,}, still {len(seen['held'])}")
    print(f"  wrong: {len(attack.wrong)}", flush=True)
    for each in attack.wrong[:20]:
        print(f"    {each}")
    return attack


def attack_it(attack: Attack, seed: int) -> dict[str, Any] | None:
    """
    Let all clients attack; give the counts at the end, None where the server answers no more.
    """
    stop = threading.Event()
    end = time.monotonic() + DEADLINE
    editor = threading.Thread(target=keep_editing, args=(attack, stop))
    clients = [
        threading.Thread(target=work, args=(attack, seed * CLIENTS + each, end))
        for each in range(CLIENTS)
    ]
    for thread in (editor, *clients):
        thread.start()
    for thread in clients:
        thread.join()
    stop.set()
    editor.join()
    eventually(lambda: not counts(attack)["held"])
    return eventually(partial(counts, attack))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--requests", type=int, default=50_000, help="on all servers together")
    parser.add_argument("--server", choices=NAMES, help="only this one")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    names = [options.server] if options.server else NAMES
    packages = ", ".join(f"{name} {version(name)}" for name in ("uvicorn", "hypercorn", "granian"))
    print(f"Python {platform.python_version()}, {packages}, seed {options.seed}", flush=True)
    share = -(-options.requests // len(names))
    attacks = [attacked(name, share, options.seed) for name in names]
    total = sum(sum(attack.done.values()) for attack in attacks)
    wrong = sum(len(attack.wrong) for attack in attacks)
    print(f"{total:,} requests, {wrong:,} things wrong")
    return 1 if wrong or total < options.requests else 0


if __name__ == "__main__":
    sys.exit(main())
