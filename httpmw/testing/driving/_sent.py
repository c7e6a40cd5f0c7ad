from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.types import Message

from httpmw.testing.checking.rules._http import BODY, START
from httpmw.testing.checking.rules._websocket import ACCEPT, CLOSE, DATA, DENIAL

_REFUSED: Final = 403  # what servers make of a close before the acceptance


class Sent:
    """
    What was sent for one request, as the client sees it.

    Attributes:
        sent: The messages that the server took, as they were.
    """

    sent: list[Message]
    # A client that asked for HEAD gets no body, whatever the app sends.
    is_head: bool

    @property
    def status(self) -> int | None:
        """
        The status of the response, None before its start.
        """
        return next((each["status"] for each in self._response() if each["type"] == START), None)

    @property
    def headers(self) -> Headers:
        """
        The headers of the response.

        Raises:
            LookupError: There is no response.
        """
        for message in self._response():
            if message["type"] == START:
                return Headers(raw=message.get("headers", []))
        raise LookupError("there is no response")

    @property
    def chunks(self) -> list[bytes]:
        """
        The body of the response, message by message.
        """
        if self.is_head:
            return []
        return [bytes(each.get("body", b"")) for each in self._response() if each["type"] == BODY]

    @property
    def body(self) -> bytes:
        """
        The body of the response.
        """
        return b"".join(self.chunks)

    @property
    def text(self) -> str:
        """
        The body of the response, decoded as UTF-8.
        """
        return self.body.decode()

    def json(self) -> Any:
        """
        Parse the body of the response.
        """
        return json.loads(self.body)

    @property
    def starts(self) -> int:
        """
        How many response starts were sent: 0 or 1.
        """
        return sum(each["type"] == START for each in self._response())

    @property
    def messages(self) -> list[str | bytes]:
        """
        What the app has sent over a WebSocket, message by message.
        """
        return [
            each["bytes"] if each.get("bytes") is not None else each["text"]
            for each in self.sent
            if each["type"] == DATA
        ]

    @property
    def close_code(self) -> int | None:
        """
        The code with which the app has closed a WebSocket; None where it has not.
        """
        for message in self.sent:
            if message["type"] == CLOSE:
                return int(message.get("code", 1000))
        return None

    def _response(self) -> Iterator[Message]:
        """
        Give what was sent; the answer to a WebSocket handshake as the response that it is.
        """
        accepted = False
        for message in self.sent:
            kind = message["type"]
            if kind == ACCEPT:
                accepted = True
                yield {"type": START, "status": 101, "headers": message.get("headers", [])}
            elif kind == CLOSE and not accepted:
                yield {"type": START, "status": _REFUSED, "headers": []}
                yield {"type": BODY}
            elif kind.startswith(DENIAL):
                yield {**message, "type": kind.removeprefix("websocket.")}
            else:
                yield message

    @property
    def types(self) -> list[str]:
        """
        The types of the messages, without their `http.response.`.
        """
        return [each["type"].removeprefix("http.response.") for each in self.sent]
