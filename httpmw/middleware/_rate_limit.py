# Rate limits.
#
# Rule 1: every request counts that comes here, whatever becomes of it: HEAD, 304, 404, handshakes.
# Refused ones do not, and what a `ConcurrencyLimitMiddleware` further in has turned away is given
# back.
# Rule 2: nobody is counted together with others by accident: where there is no address, that is an
# error and not one bucket for all.
# Rule 3: nothing that a client says decides who it is: no `X-Forwarded-For` is read here.
# Rule 4: without the store, limits are counted in this process, or the request is refused; it never
# waits longer than the deadline, and never fails.

from __future__ import annotations

import inspect
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache, wraps
from typing import Any, Final, Literal, TypeAlias
from weakref import WeakSet

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp

from httpmw import _errors
from httpmw._adapter import Flow, Predicate, check_predicate
from httpmw._connection import Connection
from httpmw._response import AppResponse

from . import _rate_fields
from ._draining import Drain
from ._gcra import RatePolicy, RateStore, is_count, policies_of
from ._memory_store import MemoryStore
from ._rate_fields import Standing
from ._ready import Exclude, Ready, view_of
from ._refuse import (
    COUNTED,
    UNAVAILABLE,
    Counted,
    Refusal,
    Respond,
    retry_events,
    tell_refused,
    wants_events_alone,
)
from ._route import route_template
from ._stores import Caller, StoreError, hashed, is_seconds

_log: Final = logging.getLogger("httpmw.rate_limit")

Key: TypeAlias = "Callable[[Connection[Any]], str | Awaitable[str | None] | None]"
"""
Says who is counted; None: the request is not.
"""
Cost: TypeAlias = "int | Callable[[Connection[Any]], int | Awaitable[int]]"
"""
How many units a request takes.
"""
Refund: TypeAlias = Callable[[AppResponse], bool | int]
"""
Says of a response how many units are given back; True: all.
"""

_TOO_MANY: Final = 429  # RFC 6585 section 4
_CLIENT_ERROR: Final = 400

# Where a layer says to `rate_limit()` that it is there, and leaves this request alone.
_ASIDE: Final = "httpmw.rate_limit.aside"


class RateLimitMiddleware(Ready):
    """
    Limit how many requests each client may send.

    Who sends more gets a 429 with `Retry-After` and problem details (RFC 9457); every response has
    the fields `RateLimit` and `RateLimit-Policy`. With `limit="100/minute"` at most
    `burst + t * 100 / 60` requests pass in any span of t seconds, in all workers together where the
    store is one that they share.

    Args:
        app: The inner app.
        limit: `"100/minute"`, `"5 per 10 seconds"`, several with `;` between them or in a list. A
            request takes a unit of each, or is refused and takes none.
        burst: How many may come at once after a while without any; by default as many as *limit*
            has, 1 has them come one by one. One for all limits, or one for each.
        key: Who is counted: a function of the connection, also `async def`, that gives a text, or
            None for who is not counted; by default `client_address`.
        cost: How many units a request takes, or a function of the connection that says so.
        refund: A function of the response that says how many units are given back: True for all of
            them, as `lambda response: response.status_code >= 500`. It is not asked where there is
            no response here: of an exception that nothing further in has answered the units stay
            taken.
        name: What the limits are called in header fields, and which of several layers on one store
            they are.
        store: Where it is counted: `MemoryStore()`, `RedisStore(client)`, `LimitsStore(storage)`,
            or what has the methods of `RateStore`; by default a `MemoryStore` of this layer's own.
        store_timeout: How long the store may take for each request, in seconds.
        retry_store: For how long a store that has failed is left alone, in seconds.
        on_store_error: What happens meanwhile: `"open"`, the same limits are counted in this
            process; or `"closed"`, a 503.
        ipv6_prefix: How many bits of an IPv6 address are one client.
        headers: Which fields a response has: `"draft"`, those of draft-ietf-httpapi-ratelimit-
            headers; `"legacy"`, `X-RateLimit-Limit` and its two companions; False, none.
        event_stream: What an `EventSource` gets in place of a 429, with which a browser would never
            ask again: `"retry"`, an empty stream after which it does; or `"status"`.
        response: Makes the response in place of a problem document: called with the connection and
            the `Problem`. Status and `Retry-After` are the layer's.
        drain: Whether the body of a refused request is received, and up to which bounds; a mapping
            has `max_size` (bytes, by default 1 MiB) and `seconds` (by default 1).
        when: As in `HTTPMiddleware`.
        exclude: Paths for which it is not there, or a predicate.
        websocket: As in `HTTPMiddleware`; by default True: a handshake takes what a request takes.

    Raises:
        TypeError: An option is not what it has to be, or the store cannot do it.
    """

    kind = "rate_limit"

    def __init__(
        self,
        app: ASGIApp,
        *,
        limit: str | Sequence[str],
        burst: int | Sequence[int] | None = None,
        key: Key | None = None,
        cost: Cost = 1,
        refund: Refund | None = None,
        name: str = "default",
        store: RateStore | None = None,
        store_timeout: float = 0.1,
        retry_store: float = 1.0,
        on_store_error: Literal["open", "closed"] = "open",
        ipv6_prefix: int = 56,
        headers: Literal["draft", "legacy", False] = "draft",
        event_stream: Literal["retry", "status"] = "retry",
        response: Respond | None = None,
        drain: Drain = True,
        when: Predicate | None = None,
        exclude: Exclude = (),
        websocket: bool | None = True,
    ) -> None:
        self._check_name(name)
        try:
            self._policies = policies_of(limit, burst, name)
        except ValueError as exc:
            option = "burst" if "burst" in str(exc) else "limit"
            raise self._bad(option, {"limit": limit, "burst": burst}[option], str(exc)) from None
        if key is not None and not callable(key):
            raise self._bad("key", key, "a function of the connection, or None")
        if not callable(cost) and not is_count(cost):
            raise self._bad("cost", cost, "a number of units, 0 or more, or a function")
        self._check_callables(refund=refund, response=response)
        for option, value in (("store_timeout", store_timeout), ("retry_store", retry_store)):
            if not is_seconds(value):
                raise self._bad(option, value, "seconds, more than 0 and finite")
        if on_store_error not in ("open", "closed"):
            raise self._bad("on_store_error", on_store_error, '"open" or "closed"')
        self._check_integer("ipv6_prefix", ipv6_prefix, 1, 128, "a number of bits, 1 to 128")
        if headers not in ("draft", "legacy", False):
            raise self._bad("headers", headers, '"draft", "legacy" or False')
        if event_stream not in ("retry", "status"):
            raise self._bad("event_stream", event_stream, '"retry" or "status"')
        self.store: RateStore = MemoryStore() if store is None else store
        for method in ("check", "take", "give_back"):
            if not callable(getattr(store, method, None)) and store is not None:
                raise self._bad("store", store, "a store, such as `MemoryStore()`")
        missing = self.store.check(self._policies, refunds=refund is not None)
        if missing is not None:
            raise self._bad("store", store, f"one for what is asked of it: {missing}")
        self.name = name
        self._key = key
        self._cost = cost
        self._refund = refund
        self._prefix = ipv6_prefix
        self._headers = headers
        self._retries = event_stream == "retry"
        self._refusal = Refusal(type(self), response, drain)
        self._local = self.store if isinstance(self.store, MemoryStore) else None
        self._fallback = MemoryStore() if on_store_error == "open" else None
        self._retry_store = retry_store
        self._caller = Caller(
            self.store,
            timeout=store_timeout,
            retry=retry_store,
            log=_log,
            meanwhile="limits are counted in this process"
            if self._fallback
            else "requests are refused",
        )
        self._has_seen_proxy = False
        if when is not None:
            check_predicate(when)
        super().__init__(app, when=_telling(when), exclude=exclude, websocket=websocket)

    def _wanted(self, exclude: Any) -> Predicate | None:
        return _telling(super()._wanted(exclude))

    @classmethod
    def _check_name(cls, name: object) -> None:
        is_name = isinstance(name, str) and name.isascii() and name.isprintable() and name
        if not is_name or '"' in name or "\\" in name:  # type: ignore[operator]
            raise cls._bad("name", name, "printable ASCII without quotes and backslashes")

    async def dispatch(self, conn: Connection[Any], /) -> Flow:
        """
        Count the request, and refuse it where it is one too many.
        """
        key = self._address(conn) if self._key is None else self._key(conn)
        if inspect.isawaitable(key):
            key = await key
        if key is None:
            conn.scope[_ASIDE] = True
            yield
            return
        if not isinstance(key, str):
            raise _errors.bad_result("key", self._key, key, "a text, or None")
        cost = self._cost
        if not isinstance(cost, int):
            cost = await self._cost_of(conn)
        counted = hashed(self.name, key)
        try:
            standings = await self.count(counted, self._policies, cost)
        except StoreError:
            yield await self._unavailable(conn)
            return
        if any(level.wait for _, level in standings):
            yield await self._too_many(conn, standings)
            return
        request = conn.scope[COUNTED] = Counted(self, conn.scope.get(COUNTED))
        response = yield
        if response.is_acceptance:
            return
        if self._headers:
            # Of a 429 that a route has made by itself only what it has violated.
            self._put(response, _rate_fields.violated(request.more) or [*standings, *request.more])
        back = cost if request.is_shed else self._to_give_back(response, cost)
        if back:
            await self._give_back(counted, back)

    # ------------------------------------------------------------------ what is counted

    def _address(self, conn: HTTPConnection[Any]) -> str:
        address = conn.scope.get("client")
        if address is None or not address[0]:
            raise _errors.no_client(type(self))
        host: str = address[0]
        if not self._has_seen_proxy:
            self._look_for_proxy(conn, host)
        return host if "." in host and ":" not in host else _network(host, self._prefix)

    def _look_for_proxy(self, conn: HTTPConnection[Any], host: str) -> None:
        """
        Say once that all clients are one, as it is a proxy that asks.
        """
        if not any(name in (b"x-forwarded-for", b"forwarded") for name, _ in conn.scope["headers"]):
            return
        try:
            is_near = ipaddress.ip_address(host.partition("%")[0]).is_private
        except ValueError:
            is_near = True
        if is_near:
            self._has_seen_proxy = True
            _log.warning(
                "requests come from %s, which is a proxy, and are counted as those of one client;"
                " have the server trust what the proxy says of them: `--proxy-headers"
                " --forwarded-allow-ips=%s` (uvicorn)",
                ascii(host)[1:-1],
                ascii(host)[1:-1],
            )

    async def _cost_of(self, conn: Connection[Any]) -> int:
        function: Any = self._cost
        cost: Any = function(conn)
        if inspect.isawaitable(cost):
            cost = await cost
        if not is_count(cost):
            raise _errors.bad_result("cost", function, cost, "a number of units, 0 or more")
        return int(cost)

    async def count(self, key: str, policies: Sequence[RatePolicy], cost: int) -> list[Standing]:
        """
        Take units of the store, or of this process while there is none.

        Raises:
            StoreError: There is none, and the option says that it is needed.
        """
        if self._local is not None:
            levels = self._local.take_now(key, policies, cost)
        else:
            store = self.store
            try:
                levels = await self._caller.call(
                    lambda deadline: store.take(key, policies, cost, deadline)
                )
            except StoreError:
                if self._fallback is None:
                    raise
                levels = self._fallback.take_now(key, policies, cost)
        return list(zip(policies, levels, strict=True))

    def _to_give_back(self, response: AppResponse, cost: int) -> int:
        if self._refund is None:
            return 0
        back: Any = self._refund(response)
        if back is True:
            return cost
        if back is not False and not is_count(back):
            raise _errors.bad_result("refund", self._refund, back, "a bool or a number of units")
        return min(int(back), cost)

    async def _give_back(self, key: str, cost: int) -> None:
        if self._local is not None:
            self._local.take_now(key, self._policies, -cost)
            return
        store = self.store
        await self._caller.call_aside(
            lambda deadline: store.give_back(key, self._policies, cost, deadline)
        )

    # ------------------------------------------------------------------ what is said

    async def _too_many(self, conn: Connection[Any], standings: list[Standing]) -> Response:
        wait = _rate_fields.retry_after(standings)
        violated = _rate_fields.violated(standings)
        if self._retries and wants_events_alone(conn) and wait:
            events = retry_events(conn, wait * 1000)
            self._put(events, violated)
            return events
        is_draft = self._headers == "draft"
        response = await self._refusal.response(
            conn,
            _TOO_MANY,
            "Too many requests."
            if wait is not None
            else "The request takes more than can be had at once.",
            "rate-limited",
            None if wait is None else {"retry-after": str(wait)},
            type=_rate_fields.PROBLEM_TYPE if is_draft else None,
            members=_rate_fields.problem_members(violated) if is_draft else None,
        )
        self._put(response, violated)
        return response

    def _put(self, response: Response, standings: list[Standing]) -> None:
        if self._headers == "draft":
            _rate_fields.put(response.headers, standings, response.status_code)
        elif self._headers == "legacy":
            _rate_fields.put_legacy(response.headers, standings)

    async def _unavailable(self, conn: Connection[Any]) -> Response:
        wait = _rate_fields.seconds(self._retry_store)
        return await self._refusal.unavailable(
            conn,
            "Rate limits cannot be counted at the moment.",
            "store-unavailable",
            wait,
            retries=self._retries,
        )


def _telling(predicate: Predicate | None) -> Predicate | None:
    """
    Have `rate_limit()` know of a layer that is not there for a request.
    """
    if predicate is None:
        return None

    @wraps(predicate)
    def telling(conn: Connection[Any]) -> bool:
        meant = predicate(conn)
        if not meant:
            # What a layer that is not there writes in a scope of its own, nobody would see.
            view_of(conn)[_ASIDE] = True
        return meant

    return telling


def client_address(conn: HTTPConnection[Any], *, ipv6_prefix: int = 56) -> str:
    """
    Say who has sent a request, as far as his network tells: the `key=` of a rate limit.

    It is the address in `scope["client"]`, which the server sets from the headers of a proxy that
    it trusts. Of an IPv6 address the network: a client has as many addresses as it likes (RIPE-690
    gives an end site 56 or 48 bits). An IPv4 address that is mapped into IPv6 is itself.

    Args:
        conn: The connection, or a request or WebSocket of Starlette.
        ipv6_prefix: How many bits of an IPv6 address are one client.

    Returns:
        The address or the network.

    Raises:
        RuntimeError: There is no address: the server listens on a Unix socket, say.
    """
    if conn.client is None or not conn.client.host:
        raise _errors.no_client(client_address)
    host = conn.client.host
    return host if "." in host and ":" not in host else _network(host, ipv6_prefix)


@lru_cache(maxsize=4096)
def _network(host: str, prefix: int) -> str:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host  # a name, as test clients have one
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), prefix), strict=False))


# ---------------------------------------------------------------------- for each route


def rate_limit(
    limit: str | Sequence[str],
    *,
    burst: int | Sequence[int] | None = None,
    key: Callable[[HTTPConnection[Any]], str | Awaitable[str | None] | None] | None = None,
    cost: int = 1,
    name: str | None = None,
) -> Callable[[HTTPConnection], Awaitable[None]]:
    """
    Make a dependency for FastAPI that limits one route, on the store of the layer around it.

        @app.get("/report", dependencies=[Depends(rate_limit("5/minute"))])

    Args:
        limit: As in `RateLimitMiddleware`.
        burst: As there.
        key: Who is counted, by default the address as the layer sees it; None: the request is not.
        cost: How many units a request takes.
        name: Routes with one name are counted together; None: each route for itself.

    Returns:
        A dependency, for `Depends`.

    Raises:
        TypeError: An option is not what it has to be.

    The request that is one too many raises an `HTTPException` with status 429 and `Retry-After`,
    which has the fields of the layer. A request that the layer leaves alone (`exclude=`, `when=`,
    a `key=` that gave None) is not counted here either.
    """
    label = "route" if name is None else name
    RateLimitMiddleware._check_name(label)  # noqa: SLF001 - one thing
    try:
        policies = policies_of(limit, burst, label)
    except ValueError as exc:
        option = "burst" if "burst" in str(exc) else "limit"
        value = {"limit": limit, "burst": burst}[option]
        raise _errors.bad_option(rate_limit, option, value, str(exc)) from None
    if key is not None and not callable(key):
        raise _errors.bad_option(rate_limit, "key", key, "a function, or None")
    if not is_count(cost):
        raise _errors.bad_option(rate_limit, "cost", cost, "a number of units, 0 or more")

    checked: WeakSet[RateLimitMiddleware] = WeakSet()

    async def limited(conn: HTTPConnection) -> None:
        request: Counted | None = conn.scope.get(COUNTED)
        while request is not None and not isinstance(request.layer, RateLimitMiddleware):
            request = request.outer
        if request is None:
            if _ASIDE in conn.scope:
                return
            raise _errors.no_rate_limit_layer(rate_limit)
        layer: RateLimitMiddleware = request.layer
        if layer not in checked:
            missing = layer.store.check(policies, refunds=False)
            if missing is not None:
                raise _errors.bad_option(
                    rate_limit, "burst", burst, f"one that the layer's store has: {missing}"
                )
            checked.add(layer)
        who = layer._address(conn) if key is None else key(conn)  # noqa: SLF001 - one thing
        if inspect.isawaitable(who):
            who = await who
        if who is None:
            return
        if not isinstance(who, str):
            raise _errors.bad_result("key", key, who, "a text, or None")
        where = name
        if where is None:
            where = f"{conn.scope.get('method')} {route_template(conn) or conn.scope['path']}"
        try:
            standings = await layer.count(hashed("route", where, who), policies, cost)
        except StoreError:
            tell_refused(conn)
            wait = _rate_fields.seconds(layer._retry_store)  # noqa: SLF001 - one thing
            raise HTTPException(
                UNAVAILABLE,
                "Rate limits cannot be counted at the moment.",
                {"retry-after": str(wait)},
            ) from None
        request.more += standings
        if _rate_fields.violated(standings):
            tell_refused(conn)
            after = _rate_fields.retry_after(standings)
            raise HTTPException(
                _TOO_MANY,
                "Too many requests.",
                None if after is None else {"retry-after": str(after)},
            )

    return limited
