# Rule 1: strangers see nothing: it is there for a debug application, for clients on this machine
# that came here by no proxy, and for pages of its own; for everybody else it is not there.
# Rule 2: what it shows is drawn by `httpmw.show`; here is who may see it, and how it is sent.

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any, Final

import anyio
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp

from httpmw import _errors
from httpmw._adapter import Flow, Predicate
from httpmw._connection import Connection
from httpmw._order import inward
from httpmw.show._hub import Hub
from httpmw.show._page import page, policy
from httpmw.show._record import CURRENT

from ._ready import Exclude, Ready

_EVERY: Final = 0.25  # seconds between two looks
# The same where more come in than are listed: nobody reads that fast, and to draw it takes time.
_SELDOM: Final = 1.0
# A server that shuts down waits for its responses; the page comes back by itself.
_WATCH: Final = 10.0  # seconds
_MOST_KEPT: Final = 10_000
_FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
_HEADERS: Final = {
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class InspectorMiddleware(Ready):
    """
    Show the stack and the last requests on a page of their own, while the application serves.

    For development only: it refuses to be there outside of a debug application, and answers clients
    on this machine only. To everybody else, and for all other paths, it is not there.

        app = FastAPI(debug=True)
        app.add_middleware(InspectorMiddleware)  # then open /_httpmw

    Args:
        app: The inner app.
        path: Where the page is.
        enabled: None: where the application has `debug=True`, and an error elsewhere; True: also
            elsewhere; False: it stands aside.
        allow: A predicate on the connection that says who may see the page, in place of the rule
            that it has to be a client on this machine.
        keep: How many of the last requests are kept, from 1 to 10,000.
        headers: Names of headers of the request whose values are kept; by default none.
        when: As in `HTTPMiddleware`.
        exclude: Paths that are not looked at, or a predicate.
        websocket: Whether handshakes are looked at, and what passes over the socket is counted;
            by default True.

    Raises:
        TypeError: An option is not what it has to be.
        RuntimeError: The application has `debug=False`, and *enabled* is not given.
    """

    kind = "inspector"
    websocket = True

    def __init__(
        self,
        app: ASGIApp,
        *,
        path: str = "/_httpmw",
        enabled: bool | None = None,
        allow: Callable[[Connection[Any]], bool] | None = None,
        keep: int = 200,
        headers: Collection[str] = (),
        when: Predicate | None = None,
        exclude: Exclude = (),
        websocket: bool | None = None,
    ) -> None:
        if not _is_path(path):
            raise self._bad("path", path, 'a path, as in `path="/_httpmw"`')
        if enabled is not None:
            self._check_flags(enabled=enabled)
        self._check_callables(allow=allow)
        if type(keep) is not int or not 1 <= keep <= _MOST_KEPT:
            raise self._bad("keep", keep, "a number from 1 to 10000")
        if not _are_names(headers):
            raise self._bad("headers", headers, 'names, as in `headers=["x-request-id"]`')
        self._path = path.rstrip("/")
        self._enabled = enabled
        self._allow = allow
        self._hub = Hub(keep, headers)
        super().__init__(app, when=when, exclude=exclude, websocket=websocket)
        if enabled is None:
            # What stands around the routes of an application knows; else its first request does.
            found = (getattr(each, "debug", None) for each in inward(self))
            if next((each for each in found if isinstance(each, bool)), None) is False:
                raise _errors.not_in_debug(type(self))

    def dispatch(self, conn: Connection[Any], /) -> Flow | None:
        """
        Answer for the page, and look at everything else.
        """
        if self._enabled is False:
            return None
        if self._enabled is None and not self._is_debugged(conn):
            raise _errors.not_in_debug(type(self))
        path = conn["path"]
        if self._path in path:
            path = path.removeprefix(conn.get("root_path", ""))
            if path == self._path or path.startswith(f"{self._path}/"):
                return self._answered(conn, path) if self._may_see(conn) else None
        return self._looked_at(conn) if self._hub.count() else None

    def _is_debugged(self, conn: Connection[Any]) -> bool:
        try:
            application = conn["app"]
        except KeyError:
            return any(getattr(each, "debug", False) is True for each in inward(self))
        return bool(getattr(application, "debug", False))

    # ------------------------------------------------------------------ the page

    def _may_see(self, conn: Connection[Any]) -> bool:
        if conn.is_websocket:
            return False
        if self._allow is not None:
            return bool(self._allow(conn))
        headers = conn.headers
        client = conn.client.host if conn.client is not None else ""
        # Behind a proxy on this machine every client is on this machine.
        if not _is_loopback(client) or any(name in headers for name in _FORWARDED):
            return False
        # A page of somebody else's in this browser, also where its name leads to here.
        if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
            return False
        return _is_here(headers.get("host", ""))

    async def _answered(self, conn: Connection[Any], path: str) -> Flow:
        yield self._answer(conn, path)

    def _answer(self, conn: Connection[Any], path: str) -> Response:
        if conn.method not in {"GET", "HEAD"}:
            return PlainTextResponse("GET only", 405, {**_HEADERS, "allow": "GET, HEAD"})
        if path.rstrip("/") == self._path:
            headers = {**_HEADERS, "content-security-policy": policy()}
            return HTMLResponse(page("httpmw inspector", {"events": "events"}), headers=headers)
        if path == f"{self._path}/events":
            self._follow(conn)
            events = self._events(conn.headers.get("last-event-id", ""))
            headers = {**_HEADERS, "x-accel-buffering": "no"}
            return StreamingResponse(events, headers=headers, media_type="text/event-stream")
        return PlainTextResponse("there is nothing here", 404, _HEADERS)

    def _follow(self, conn: Connection[Any]) -> bool:
        return self._hub.follow(conn.get("app") or self, self)

    async def _events(self, last_seen: str) -> AsyncIterator[str]:
        hub = self._hub
        since = int(last_seen) if last_seen.isdecimal() else 0
        until = time.monotonic() + _WATCH
        yield "retry: 200\n\n"
        tree = None
        passed = hub.passed
        while time.monotonic() < until:
            if tree is None or hub.is_edited:
                # What a layer on Starlette's class takes is measured for it: in a thread.
                tree = await anyio.to_thread.run_sync(hub.read)
                hub.renew(tree, self)
                yield f"event: tree\ndata: {json.dumps(tree.as_json())}\n\n"
            since, news = hub.news(since)
            passed, before = hub.passed, passed
            if news["requests"] or not since:
                yield f"id: {since}\nevent: requests\ndata: {json.dumps(news)}\n\n"
            await anyio.sleep(_EVERY if passed == before else _SELDOM)

    # ------------------------------------------------------------------ all other requests

    async def _looked_at(self, conn: Connection[Any]) -> Flow:
        hub = self._hub
        followed = self._follow(conn)
        began = time.perf_counter()
        entry = hub.begin(conn, whole=followed)
        token = CURRENT.set(entry.record)
        response = raised = None
        try:
            response = yield
            yield response
        except BaseException as exc:
            raised = exc
            raise
        finally:
            CURRENT.reset(token)
            hub.end(entry, began, response, raised)
            raised = None


def _is_path(value: object) -> bool:
    return isinstance(value, str) and value.startswith("/") and bool(value.strip("/"))


def _are_names(value: object) -> bool:
    if isinstance(value, str) or not isinstance(value, Collection):
        return False
    return all(isinstance(each, str) for each in value)


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _is_here(host: str) -> bool:
    """
    Whether a `Host` header names this machine by itself, and not by a name of somebody's.
    """
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name == "localhost" or name.endswith(".localhost") or _is_loopback(name)
