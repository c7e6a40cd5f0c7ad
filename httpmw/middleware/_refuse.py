# What all layers have in common that refuse requests.
#
# Rule 1: who refuses an upload receives the rest of it before the answer, up to a bound: behind a
# proxy the answer would else be lost by chance. Beyond the bound the connection ends.
# Rule 2: what says *that* it was refused (the status, Retry-After) is the layer's; the words are
# the user's, where he has some.

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from starlette.requests import HTTPConnection
from starlette.responses import Response

from httpmw import _errors
from httpmw._connection import Connection

from ._draining import Drain, Draining
from ._ids import request_id

if TYPE_CHECKING:
    from ._problem_details import Problem

Respond: TypeAlias = "Callable[[Connection[Any], Problem], Response]"
"""
Makes the response to a refused request, from the problem that would be sent.
"""

UNAVAILABLE: Final = 503

# Where limits are found by what is further in.
COUNTED: Final = "httpmw.rate_limit"

# Media types that stay open as long as there is something to say.
STREAMS: Final = frozenset(
    (
        *(b"text/event-stream", b"application/x-ndjson", b"application/jsonl"),
        *(b"application/json-seq", b"application/jsonlines", b"multipart/x-mixed-replace"),
    )
)


class Refusal:
    """
    How a layer refuses.

    Args:
        owner: The class of the layer.
        respond: The option `response=` of the layer.
        drain: Its option `drain=`.
    """

    def __init__(self, owner: type, respond: Respond | None, drain: Drain) -> None:
        self._draining = Draining(owner, drain)
        self._respond = respond

    async def response(
        self,
        conn: Connection[Any],
        status: int,
        detail: str | None,
        code: str,
        headers: Mapping[str, str] | None = None,
        *,
        type: str | None = None,  # noqa: A002 - the name of the member
        members: Mapping[str, Any] | None = None,
    ) -> Response:
        """
        Make the response that refuses a request, whose body is dropped.

        Args:
            conn: The connection.
            status: The status.
            detail: What is wrong, for a person to read.
            code: What is wrong, in a short name.
            headers: Headers of the response, whatever it is made by.
            type: The URI of what is wrong.
            members: Further members of the problem, by the names that a standard gives them.

        Returns:
            The response.
        """
        from ._problem_details import Problem  # noqa: PLC0415 - when something is refused

        tell_refused(conn)
        problem = Problem(status, detail, code=code, type=type)
        problem.extensions.update(members or {})
        if self._respond is None:
            document = problem.members()
            if (known := request_id.get()) is not None:
                document["request_id"] = known
            response = Response(json.dumps(document), status, media_type="application/problem+json")
        else:
            response = self._respond(conn, problem)
            if not isinstance(response, Response):
                raise _errors.bad_result("response", self._respond, response, "a response")
        for name, value in (headers or {}).items():
            response.headers[name] = value
        if not await self._draining.drain(conn):
            response.headers["connection"] = "close"
        return response

    async def unavailable(
        self, conn: Connection[Any], detail: str, code: str, wait: int, *, retries: bool
    ) -> Response:
        """
        Refuse a request with a 503 for *wait* seconds.

        Where it *retries*, an `EventSource` is told so in its own words.
        """
        if retries and wants_events_alone(conn):
            return retry_events(conn, wait * 1000)
        return await self.response(conn, UNAVAILABLE, detail, code, {"retry-after": str(wait)})


class Counted:
    """
    What a limit learns of a request from what is further in.

    Attributes:
        layer: The layer.
        outer: That of a limit further out.
        more: What `rate_limit()` has taken.
        is_refused: Whether a layer has answered, and not the application.
        is_shed: Whether the request was turned away before anything was done for it.
    """

    __slots__ = ("is_refused", "is_shed", "layer", "more", "outer")

    def __init__(self, layer: Any, outer: Counted | None) -> None:
        self.layer = layer
        self.outer = outer
        self.more: list[Any] = []
        self.is_refused = False
        self.is_shed = False


def tell_refused(conn: HTTPConnection[Any]) -> None:
    """
    Have all limits further out know that it is not the application that answers.
    """
    for counted in _counted(conn):
        counted.is_refused = True


def tell_shed(conn: Connection[Any]) -> None:
    """
    Have all limits further out know that a request is turned away.
    """
    for counted in _counted(conn):
        counted.is_shed = counted.is_refused = True


def _counted(conn: HTTPConnection[Any]) -> Iterator[Counted]:
    counted: Counted | None = conn.scope.get(COUNTED)
    while counted is not None:
        yield counted
        counted = counted.outer


def wants_events_alone(conn: Connection[Any]) -> bool:
    """
    Whether it is the `EventSource` of a browser that asks: by a GET, without a body.
    """
    if conn.is_websocket or conn["method"] != "GET":
        return False
    accepted = [value for name, value in conn.headers.raw if name == b"accept"]
    return accepted == [b"text/event-stream"]


def retry_events(conn: Connection[Any], milliseconds: int = 5000) -> Response:
    """
    Give an `EventSource` what has it ask again: to a 429, 503 or 504 a browser never does.
    """
    tell_refused(conn)
    return Response(
        f"retry: {milliseconds}\n\n",
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )
