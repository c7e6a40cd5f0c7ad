# Whose scope it is: what a layer changes of the request is seen further in, and by nobody else.
#
# Words: a layer is *given* a scope, by the server or by the layer outside of it; its *own* is the
# copy that its function reads and changes; what goes *inward* from it is a copy of that.
#
# Rule 1: nobody pays for what nobody does. A layer has no copy of its own until its function
# touches `conn.scope`; `conn.method`, `conn.headers` and the like read what was given. If nothing
# was changed, what was given goes inward.
# Rule 2: what goes inward is a dict of the inner app alone. What the app writes into it is
# handed outward at the response start and when the app has ended, to the layer and to whoever gave
# the scope, as if there were no layer: `route`, `session`, `user`, keys of anybody.
# Rule 3: what the layer itself has put there is not handed outward, unless the app has put
# something else in its place. What describes the request never is.
# Rule 4: a value is handed on as the object that it is. Only containers of the request, which are
# edited in place (`headers`), are copied with the scope.
# Rule 5: after the yield nothing goes inward any more. Then a layer reads a copy that follows what
# the app writes, and what the layer writes is seen by itself alone.

from __future__ import annotations

import sys
from collections.abc import Awaitable, Iterator, Mapping, MutableMapping, Sequence
from operator import is_
from typing import TYPE_CHECKING, Any, Final, cast

from starlette.datastructures import URL, Address, Headers, QueryParams, State
from starlette.requests import Request, empty_receive, empty_send
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import _errors

if sys.version_info >= (3, 13):
    from typing import TypeVar
else:
    from typing_extensions import TypeVar

if TYPE_CHECKING:
    from ._exchange import Exchange

# As in `starlette.requests`, which has it from 0.52 on.
StateT = TypeVar("StateT", bound=Mapping[str, Any] | State, default=State)

_MISSING: Final = object()

# ASGI, "HTTP connection scope" and "WebSocket connection scope": what is said of the request
# itself. (`state` is for all to share.)
_OF_THE_REQUEST: Final = frozenset({
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
    "server",
    "subprotocols",
    "extensions",
})  # fmt: skip
# What of that, and of a router's, is edited in place and therefore copied with a scope: where it
# is a list or a dict.
_CONTAINERS: Final = (
    "headers",
    "asgi",
    "extensions",
    "path_params",
    "client",
    "server",
    "subprotocols",
)
_EDITED: Final = (list, dict)
_ANSWERS: Final = frozenset({
    "http.response.start",
    "websocket.accept",
    "websocket.close",
    "websocket.http.response.start",
})  # fmt: skip
# What a request has read of its scope and keeps.
_READ: Final = ("_headers", "_cookies", "_url", "_base_url", "_query_params", "_state")
_READ_OF_HEADERS: Final = _READ[1:4]


class LayerRequest(Request[StateT]):
    # The request of one layer.

    # Always set, and without a default here: from Python 3.12 on that would make it dearer.
    if TYPE_CHECKING:  # `typing.get_type_hints` would not find the names
        # None where it was made by hand: then the scope is the one that it was made with.
        _exchange: Exchange | None
    _given: Scope
    _own: Scope | None = None
    # What goes inward in place of the own; for a dispatch function that passes another request.
    _other: Scope | None = None
    # Whether there may be a change to go inward; then the exchange is told, too, which is asked
    # in each layer.
    _touched = False
    # Before the yield the own as it was made, and after it what had been given by then.
    _known: Scope | None = None
    _headers: Any = None

    def __init__(
        self, scope: Scope, receive: Receive = empty_receive, send: Send = empty_send
    ) -> None:
        self._exchange = None
        super().__init__(scope, receive, send)

    @property
    def scope(self) -> Scope:
        """
        The ASGI scope, as this layer and those further in see it.

        Edits before the yield, in place or by assignment, are seen further in and by nobody else.
        After the yield it shows what the inner app has written, and edits are seen by nobody.
        """
        exchange = self._exchange
        own = self._own
        if exchange is None:
            return self._given
        if exchange.entered and (own is None or self._touched):
            self._touched = False
            own = self._own = _copy_of(self._given)
            self._known = {**self._given}
        elif own is None:
            own = self._own = _copy_of(self._given)
            self._touched = exchange.touched = True
            self._known = {**own}
            if self._headers is not None:
                self._headers._list = own["headers"]
        elif not self._touched and (known := self._known) is not None:
            for key, value in self._given.items():
                if known.get(key, _MISSING) is not value:
                    own[key] = known[key] = value
        return own

    @scope.setter
    def scope(self, scope: Scope) -> None:
        if self._exchange is None:
            self._given = scope
        else:
            self._may_change("conn.scope = ...")
            if not isinstance(scope, MutableMapping):
                raise _errors.bad_scope(scope)
            self._own = scope
            self._touched = not self._exchange.entered
            self._exchange.touched = True
            self._known = None
        self._forget(_READ)

    def _may_change(self, what: str) -> None:
        """
        Raise where a change comes too late.
        """

    def _forget(self, names: Sequence[str]) -> None:
        for name in names:
            self.__dict__.pop(name, None)

    def _put_header(self, name: bytes, value: bytes) -> None:
        headers = _headers_of(self.scope)
        places = [place for place, pair in enumerate(headers) if pair[0].lower() == name]
        if not places:
            headers.append((name, value))
        else:
            headers[places[0]] = name, value
            for place in reversed(places[1:]):
                del headers[place]
        self._headers_changed(headers)

    def _drop_headers(self, *names: bytes) -> None:
        headers = _headers_of(self.scope)
        headers[:] = [pair for pair in headers if pair[0].lower() not in names]
        self._headers_changed(headers)

    def _headers_changed(self, headers: list[tuple[bytes, bytes]]) -> None:
        self._forget(_READ_OF_HEADERS)
        if self._headers is not None and self._headers._list is not headers:
            del self._headers

    # Starlette's readers, of which each would copy the scope, without that.

    def _view(self) -> Scope:
        return self._given if self._own is None else self.scope

    def __getitem__(self, key: str) -> Any:
        value = self._view()[key]
        if self._own is None and key in _CONTAINERS:
            return self.scope[key]
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._view())

    def __len__(self) -> int:
        return len(self._view())

    @property
    def app(self) -> Any:
        return self._view()["app"]

    @property
    def method(self) -> str:
        method: str = (self._given if self._own is None else self.scope)["method"]
        return method

    @property
    def url(self) -> URL:
        url: URL | None = self.__dict__.get("_url")
        if url is None:
            url = self._url = URL(scope=self._view())
        return url

    @property
    def headers(self) -> Headers:
        headers: Headers | None = self._headers
        if headers is None:
            headers = self._headers = object.__new__(Headers)  # `Headers(raw=...)`, without checks
            headers._list = _headers_of(self._given if self._own is None else self.scope)
        return headers

    @property
    def query_params(self) -> QueryParams:
        params: QueryParams | None = self.__dict__.get("_query_params")
        if params is None:
            params = self._query_params = QueryParams(self._view()["query_string"])
        return params

    @property
    def path_params(self) -> dict[str, Any]:
        params: dict[str, Any] = self.get("path_params", {})
        return params

    @property
    def client(self) -> Address | None:
        client = self._view().get("client")
        return None if client is None else Address(*client)

    @property
    def state(self) -> StateT:
        state: State | None = self.__dict__.get("_state")
        if state is None:
            # It is for all to share, whoever makes it.
            shared = self._given.setdefault("state", {})
            own = self._own
            state = self._state = State(shared if own is None else own.setdefault("state", shared))
        return cast(StateT, state)


def _copy_of(scope: Scope) -> Scope:
    _headers_of(scope)
    own = {**scope}
    for key in _CONTAINERS:
        if key in own and type(value := own[key]) in _EDITED:
            own[key] = value.copy()
    return own


def _are_same(one: Scope, other: Scope) -> bool:
    """
    Whether both have the same objects under the same keys, in the same order.
    """
    # The second alone would take an object for another one that is equal to it.
    return (
        len(one) == len(other)
        and all(map(is_, one.values(), other.values()))
        and one == other
    )  # fmt: skip


def _headers_of(scope: Scope) -> list[tuple[bytes, bytes]]:
    # By the specification an iterable of any kind, which may be there once only; tests that call
    # an app by hand leave it out.
    given: Any = scope.get("headers", ())
    if isinstance(given, list):
        headers: list[tuple[bytes, bytes]] = given
    else:
        headers = scope["headers"] = [*given]
    return headers


class Inward:
    """
    What one layer, which has changed something of its request, gives to those further in.
    """

    __slots__ = ("_changed", "_known", "_own", "depth", "for_answers", "given", "scope")

    def __init__(
        self, depth: int, given: Scope, own: Scope, changed: dict[str, Any], *, foreign: bool
    ) -> None:
        # How many flows are further out.
        self.depth = depth
        self.given = given
        self._own = own
        self.scope = scope = {**own}
        for key in _CONTAINERS:
            if key not in own:
                continue
            if key not in changed:  # it goes on as the object that it was
                scope[key] = given[key]
            elif isinstance(value := own[key], _EDITED):
                scope[key] = changed[key] = value.copy()
        self._changed = changed
        # As it was handed outward last.
        self._known = {**scope}
        # Where the layer itself answers; another request that it has passed on is not its own.
        self.for_answers = given if foreign else scope

    def hand_outward(self) -> None:
        """
        Hand outward what the inner app has written so far.
        """
        if _are_same(self.scope, self._known):
            return
        self._known = {**self.scope}
        given, own, changed = self.given, self._own, self._changed
        for key, value in self.scope.items():
            if key in changed:
                if value is changed[key] or key in _OF_THE_REQUEST:
                    continue
                changed[key] = value
            elif given.get(key, _MISSING) is value:
                continue
            given[key] = own[key] = value
        for key in [key for key in given if key not in self.scope and key not in changed]:
            del given[key]
            own.pop(key, None)


def inward_of(conn: LayerRequest[Any], depth: int) -> Inward | None:
    """
    Give what a layer hands inward in place of what it was given; None where it is the same.

    To be called when its function has come to its first yield, where `conn._touched`.
    """
    conn._touched = False
    given, own, other = conn._given, conn._own, conn._other
    if other is not None:
        own, conn._other = other, None
    assert own is not None
    if (known := conn._known) is not None:
        conn._known = None
        # As in `_are_same()`, but for the lists that were copied.
        if all(map(is_, own.values(), known.values())) and own == given:
            conn._own = None  # what the app writes is seen in what was given
            return None
    changed = {
        key: value
        for key, value in own.items()
        if (was := given.get(key, _MISSING)) is not value
        and not (key in _CONTAINERS and was == value)
    }
    if changed or len(own) != len(given):
        changed.update((key, _MISSING) for key in given if key not in own)
    if changed:
        return Inward(depth, given, own, changed, foreign=other is not None)
    conn._own = None
    return None


def handing_outward(app: ASGIApp, inwards: Sequence[Inward]) -> ASGIApp:
    """
    Hand outward what *app* has written into its scope when it answers, and when it has ended.
    """

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        def send_on(message: Message) -> Awaitable[None]:
            if message["type"] in _ANSWERS:
                hand_outward()
            return send(message)

        def hand_outward() -> None:
            for inward in reversed(inwards):
                inward.hand_outward()

        # A handshake looks whether an adapter of ours is behind it.
        send_on.__wrapped__ = send  # type: ignore[attr-defined]  # pyrefly: ignore[missing-attribute]
        try:
            await app(scope, receive, send_on)
        finally:
            hand_outward()

    return run
