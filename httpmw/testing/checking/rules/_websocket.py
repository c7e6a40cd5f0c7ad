# Websockets: the specification "HTTP & WebSocket ASGI Message Format" 2.5.

from __future__ import annotations

from typing import Any, Final

from starlette.types import Message, Scope

from ._rule import RECEIVE, RETURN, SEND, bad_names, bad_pairs, bad_values, is_int, rule
from ._web import Web

CONNECT: Final = "websocket.connect"
ACCEPT: Final = "websocket.accept"
RECEIVED: Final = "websocket.receive"
DATA: Final = "websocket.send"
DISCONNECT: Final = "websocket.disconnect"
CLOSE: Final = "websocket.close"
DENIAL: Final = "websocket.http.response"
DENIAL_START: Final = "websocket.http.response.start"
DENIAL_BODY: Final = "websocket.http.response.body"

_SENT: Final = frozenset({ACCEPT, DATA, CLOSE})
_DENIALS: Final = frozenset({DENIAL_START, DENIAL_BODY})
# RFC 6455 section 7.4.1: they stand for what was not said, and are never sent.
_RESERVED: Final = (1005, 1006, 1015)


class WebSocket(Web):
    """
    What was said so far over one websocket.
    """

    def __init__(self, scope: Scope, app: object = None) -> None:
        super().__init__(scope, app)
        self.connected = False
        self.accepted = False
        # Whether the app denies it with a response, and whether it has closed or denied it.
        self.denying = False
        self.closed = False
        self.told_gone = False

    def sent(self, message: Message) -> None:
        kind = message["type"]
        if kind == ACCEPT:
            self.accepted = True
        elif kind == DENIAL_START:
            self.denying = True
        elif kind == CLOSE or (kind == DENIAL_BODY and not message.get("more_body", False)):
            self.closed = True

    def received(self, message: Message) -> None:
        self.connected = True
        if message["type"] == DISCONNECT:
            self.told_gone = True


@rule(WebSocket, "W01", "app", "Error Handling; Extensions: Websocket Denial Response", SEND)
def known_type(socket: WebSocket, message: Any) -> Any:
    """A message has one of the types of websockets, or one that the scope announces."""
    kind = message["type"]
    extensions = socket.scope.get("extensions") or {}
    return kind not in _SENT | extensions.keys() | (_DENIALS if DENIAL in extensions else set())


@rule(WebSocket, "W02", "app", "WebSocket: Close", SEND)
def nothing_after_close(socket: WebSocket, message: Any) -> Any:
    """Nothing is sent after the websocket was closed or denied."""
    return socket.closed


@rule(WebSocket, "W03", "app", "WebSocket: Connect", ACCEPT, DENIAL_START)
def one_answer(socket: WebSocket, message: Any) -> Any:
    """A connect is answered once: accepted, closed, or denied."""
    return socket.accepted or socket.denying


@rule(WebSocket, "W04", "app", "WebSocket: Connect", DATA)
def accept_first(socket: WebSocket, message: Any) -> Any:
    """Data is sent after the accept."""
    return not socket.accepted


@rule(WebSocket, "W05", "app", "WebSocket: Accept", ACCEPT)
def subprotocol(socket: WebSocket, message: Any) -> Any:
    """The `subprotocol` that is accepted is None, or one that the client offered (RFC 6455)."""
    value = message.get("subprotocol")
    return value is not None and value not in socket.scope.get("subprotocols", ())


@rule(WebSocket, "W06", "app", "WebSocket: Accept", ACCEPT, DENIAL_START)
def headers(socket: WebSocket, message: Any) -> Any:
    """Headers are pairs of bytes: tokens in lower case, and values without CR, LF or NUL."""
    pairs = message.get("headers", ())
    return bad_pairs(pairs) or bad_names(pairs) or bad_values(pairs)


@rule(WebSocket, "W07", "app", "WebSocket: Accept", ACCEPT)
def no_subprotocol_header(socket: WebSocket, message: Any) -> Any:
    """An accept has no header `sec-websocket-protocol`."""
    return any(name == b"sec-websocket-protocol" for name, _ in message.get("headers", ()))


@rule(WebSocket, "W08", "app", "WebSocket: Send", DATA)
def one_kind_of_data(socket: WebSocket, message: Any) -> Any:
    """Exactly one of `bytes`, which is bytes, and `text`, which is str, is not None."""
    return _bad_data(message)


@rule(WebSocket, "W09", "app", "WebSocket: Close; RFC 6455 section 7.4", CLOSE)
def close_code(socket: WebSocket, message: Any) -> Any:
    """A close `code` is an int from 1000 to 4999 that may be sent, the `reason` a str or None."""
    code = message.get("code", 1000)
    return not (
        is_int(code)
        and 1000 <= code <= 4999  # noqa: PLR2004 - RFC 6455 section 7.4.2
        and code not in _RESERVED
        and isinstance(message.get("reason"), str | None)
    )


@rule(WebSocket, "W10", "app", "Extensions: Websocket Denial Response", DENIAL_START)
def denial_status(socket: WebSocket, message: Any) -> Any:
    """The status of a denial is an int of three digits."""
    status = message.get("status")
    return not is_int(status) or not 100 <= status <= 999  # noqa: PLR2004 - three digits


@rule(WebSocket, "W11", "app", "Extensions: Websocket Denial Response", DENIAL_BODY)
def denial_body(socket: WebSocket, message: Any) -> Any:
    """The body of a denial comes after its start, and is bytes; `more_body` is a bool."""
    return not (
        socket.denying
        and isinstance(message.get("body", b""), bytes)
        and isinstance(message.get("more_body", False), bool)
    )


@rule(WebSocket, "W12", "app", "Extensions: Websocket Denial Response", ACCEPT, CLOSE)
def denied_is_denied(socket: WebSocket, message: Any) -> Any:
    """The messages of a denial are not followed by others."""
    return socket.denying


@rule(WebSocket, "W13", "app", "WebSocket: Connect", RETURN)
def app_answers(socket: WebSocket, message: Any) -> Any:
    """An app returns after it has accepted, closed or denied, unless the client has left."""
    return not (socket.accepted or socket.closed or socket.told_gone)


@rule(WebSocket, "W31", "server", "WebSocket: Connect; Receive; Disconnect", RECEIVE)
def known_event(socket: WebSocket, message: Any) -> Any:
    """What is received is a `websocket.connect`, `websocket.receive` or `websocket.disconnect`."""
    return message["type"] not in {CONNECT, RECEIVED, DISCONNECT}


@rule(WebSocket, "W32", "server", "WebSocket: Connect", RECEIVE)
def connect_first(socket: WebSocket, message: Any) -> Any:
    """The connect is received first, and once."""
    return (message["type"] == CONNECT) is socket.connected


@rule(WebSocket, "W33", "server", "WebSocket: Connect", RECEIVED)
def nothing_before_the_accept(socket: WebSocket, message: Any) -> Any:
    """Data is received only after the accept."""
    return not socket.accepted


@rule(WebSocket, "W34", "server", "WebSocket: Receive", RECEIVED)
def one_kind_of_received_data(socket: WebSocket, message: Any) -> Any:
    """Exactly one of `bytes`, which is bytes, and `text`, which is str, is not None."""
    return _bad_data(message)


@rule(WebSocket, "W35", "server", "WebSocket: Disconnect", RECEIVED)
def gone_is_gone(socket: WebSocket, message: Any) -> Any:
    """After the disconnect no data is received."""
    return socket.told_gone


@rule(WebSocket, "W36", "server", "WebSocket: Disconnect", DISCONNECT)
def disconnect_code(socket: WebSocket, message: Any) -> Any:
    """The `code` of a disconnect is an int."""
    return not is_int(message.get("code", 1005))


def _bad_data(message: Any) -> bool:
    data, text = message.get("bytes"), message.get("text")
    if (data is None) is (text is None):
        return True
    return not isinstance(data, bytes | None) or not isinstance(text, str | None)
