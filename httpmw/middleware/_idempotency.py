# Requests that may be sent again: what was done once is answered again, and not done again.
#
# Rule 1: the answer is stored before its first byte goes out: the client that does not get it is
# the very one that asks again.
# Rule 2: a key is let go only where it is known that nothing was done, or the application says so.
# Of a run that ended in any other way nobody knows: its lease ends, and then an option decides.
# Rule 3: whose key it is, is part of it: there is no default that would mix the keys of two users.
# Rule 4: nothing is waited for while the application runs but the application.

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
import random
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from typing import Any, Final, Literal, TypeAlias

import anyio
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp

from httpmw import _errors
from httpmw._adapter import Flow, Predicate
from httpmw._connection import Connection
from httpmw._context import running_loop, task_of
from httpmw._response import AppResponse

from ._draining import Drain
from ._idempotency_store import Claim, IdempotencyStore, decoded, encoded, not_replayable
from ._ready import Exclude, Ready
from ._refuse import STREAMS, Refusal, Respond, tell_refused
from ._stores import Caller, StoreError, aside, check_loop, hashed, is_like, is_seconds, within

_log: Final = logging.getLogger("httpmw.idempotency")

Partition: TypeAlias = "Callable[[Connection[Any]], str | Awaitable[str]]"
"""
Says whose key it is.
"""

_SCOPE: Final = "httpmw.idempotency"
_METHOD: Final = re.compile(r"[A-Z]+")
_URL: Final = re.compile(r"[a-z]+:[!#-;=?-~]+")
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# A String of RFC 9651 section 3.3.3, with or without parameters.
_STRING: Final = re.compile(rb'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"(?:;.*)?', re.DOTALL)
_KEY: Final = re.compile(rb"[\x21-\x7e]{1,255}")
# With these nothing was done, and the same request may be right later.
_RELEASED: Final = frozenset(
    (401, 403, 405, 406, 407, 408, 411, 412, 413, 415, 416, 417, 421, 422, 425, 426, 428, 429, 431)
)
_SERVER_ERROR: Final = 500
# How long who waits for another one's answer does not ask for it, in seconds.
_SHORTEST: Final = 0.05
_LONGEST: Final = 0.5
# How many claims of a layer are taken back at once; of more the lease ends by itself.
_TAKEN_BACK: Final = 100


class Idempotency:
    """
    What an endpoint knows of the key with which it was asked.

    Attributes:
        key: The key, as the client has sent it.
        token: A number that is greater with each run of one key: for a `WHERE token < ?` in a
            transaction of the application's own, so that a run that was taken for dead cannot write
            behind the next one.
    """

    def __init__(self, key: str, token: int) -> None:
        self.key = key
        self.token = token
        self._is_kept = False

    def keep(self) -> None:
        """
        Have whatever is answered stored from here on, failures too.

        To be called before the first effect that cannot be taken back: a failure behind it must not
        let the key go.
        """
        self._is_kept = True


def idempotency(conn: HTTPConnection) -> Idempotency | None:
    """
    Give what is known of the key of a request.

    Args:
        conn: The request.

    Returns:
        It; None where the request has no key, or no `IdempotencyMiddleware` around it.
    """
    found: Idempotency | None = conn.scope.get(_SCOPE)
    return found


class IdempotencyMiddleware(Ready):
    """
    Answer a request that was sent again, with the same `Idempotency-Key`, as the first time.

    Promised, as long as the store keeps what it has acknowledged: a key whose answer is stored is
    not run again before it expires. The answer is stored before its first byte goes out. A run that
    ends without an answer (its worker was killed, it was cancelled) is *unknown*: its lease ends,
    and then *on_unknown* decides. Exactly once is for the application, with
    `idempotency(request).token` in its own transaction.

    Args:
        app: The inner app.
        store: Where keys are kept: `MemoryStore()`, `RedisStore(client)`, `PostgresStore(pool)`, or
            what has the methods of `IdempotencyStore`.
        partition: Whose key it is: a function of the connection, also `async def`, that gives a
            name of the verified account, one that outlives its tokens. It may raise an
            `HTTPException`.
        methods: The methods with which a key counts.
        header_name: The field that has the key.
        required: Whether a request without a key is refused, with a 400.
        expires: How long an answer is kept, in seconds.
        lease: For how long a run holds its key where it does not renew it, in seconds.
        wait: How long a request waits for the answer to another one with its key, in seconds; then
            it is a 409. None: a lease and a second.
        on_unknown: What becomes of a key whose run has ended without an answer: `"rerun"`, the next
            request is run; `"refuse"`, it is a 409 until the key expires.
        errors: What becomes of a 5xx or an exception: `"release"`, the key is let go, so that it
            may be tried again; `"store"`, it is the answer.
        late_failure: What becomes of an answer that was stored, when the application fails after
            it: `"keep"` or `"release"`.
        status: A function of a status that says whether such an answer is stored; by default 2xx,
            3xx and 4xx, but for those with which nothing was done (401, 403, 409 is stored, 422,
            429 and others).
        fingerprint: A function of the connection that says what the request is, to know one that
            has the key of another; by default method, path, query, media type and body.
        max_request: The largest body of a request with a key, in bytes; others are a 413.
        max_response: The largest body that is stored, in bytes; of others it is stored that they
            cannot be given again.
        on_store_error: What happens without the store: `"closed"`, a 503; `"open"`, the request is
            run without its key.
        store_timeout: How long the store may take for each call, in seconds.
        docs_url: Where clients can read about keys; refusals have it in `Link`.
        response: Makes the response in place of a problem document (RFC 9457): called with the
            connection and the `Problem`.
        drain: Whether the body of a refused request is received, and up to which bounds; a mapping
            has `max_size` (bytes, by default 1 MiB) and `seconds` (by default 1).
        when: As in `HTTPMiddleware`.
        exclude: Paths for which it is not there, or a predicate.
        websocket: As in `HTTPMiddleware`; by default False.

    Raises:
        TypeError: An option is not what it has to be.
    """

    kind = "idempotency"

    def __init__(
        self,
        app: ASGIApp,
        *,
        store: IdempotencyStore,
        partition: Partition,
        methods: Collection[str] = ("POST", "PATCH"),
        header_name: str = "idempotency-key",
        required: bool = False,
        expires: float = 86_400,
        lease: float = 10.0,
        wait: float | None = None,
        on_unknown: Literal["rerun", "refuse"] = "rerun",
        errors: Literal["release", "store"] = "release",
        late_failure: Literal["keep", "release"] = "keep",
        status: Callable[[int], bool] | None = None,
        fingerprint: Callable[[Connection[Any]], str | Awaitable[str]] | None = None,
        max_request: int = 1024 * 1024,
        max_response: int = 1024 * 1024,
        on_store_error: Literal["closed", "open"] = "closed",
        store_timeout: float = 1.0,
        docs_url: str | None = None,
        response: Respond | None = None,
        drain: Drain = True,
        when: Predicate | None = None,
        exclude: Exclude = (),
        websocket: bool | None = None,
    ) -> None:
        for method in ("claim", "renew", "complete", "release", "abandon"):
            if not callable(getattr(store, method, None)):
                raise self._bad("store", store, "a store, such as `RedisStore(client)`")
        if not callable(partition):
            raise self._bad("partition", partition, "a function of the connection")
        if fingerprint is not None and not callable(fingerprint):
            raise self._bad("fingerprint", fingerprint, "a function of the connection, or None")
        counting = _methods_of(methods)
        if counting is None:
            raise self._bad("methods", methods, 'methods, as in `methods=["POST"]`')
        if not is_like(_NAME, header_name):
            raise self._bad("header_name", header_name, "the name of a field")
        self._check_flags(required=required)
        times: dict[str, Any] = {"expires": expires, "lease": lease, "store_timeout": store_timeout}
        for option, value in times.items():
            if not is_seconds(value):
                raise self._bad(option, value, "seconds, more than 0")
        if wait is not None and wait != 0 and not is_seconds(wait):
            raise self._bad("wait", wait, "seconds, 0 or more, or None")
        if lease <= 3 * store_timeout:
            raise self._bad("lease", lease, "more than three times `store_timeout`")
        choices: dict[str, tuple[object, tuple[str, str]]] = {
            "on_unknown": (on_unknown, ("rerun", "refuse")),
            "errors": (errors, ("release", "store")),
            "late_failure": (late_failure, ("keep", "release")),
            "on_store_error": (on_store_error, ("closed", "open")),
        }
        for option, (value, both) in choices.items():
            if value not in both:
                raise self._bad(option, value, f'"{both[0]}" or "{both[1]}"')
        self._check_callables(status=status, response=response)
        self._check_integer("max_request", max_request, 0, None, "a number of bytes")
        self._check_integer("max_response", max_response, 0, None, "a number of bytes")
        if docs_url is not None and not is_like(_URL, docs_url):
            raise self._bad("docs_url", docs_url, "an absolute URL, or None")
        self.store = store
        self._partition = partition
        self._methods = counting
        self._header = header_name.lower().encode()
        self._required = required
        self._expires = expires
        self._lease = lease
        self._wait = lease + 1 if wait is None else wait
        self._rerun = on_unknown == "rerun"
        self._stores_errors = errors == "store"
        self._keeps_late = late_failure == "keep"
        self._status = status
        self._fingerprint = fingerprint
        self._max_request = max_request
        self._max_response = max_response
        self._open = on_store_error == "open"
        self._is_shared = bool(getattr(store, "asyncio_only", False))
        self._store_timeout = store_timeout
        self._taking_back = 0
        self._caller = Caller(
            store,
            timeout=store_timeout,
            retry=0,
            log=_log,
            meanwhile="requests are run without their keys" if self._open else "they are refused",
        )
        self._link = None if docs_url is None else {"link": f'<{docs_url}>; rel="describedby"'}
        self._refusal = Refusal(type(self), response, drain)
        super().__init__(app, when=when, exclude=exclude, websocket=websocket)

    def dispatch(self, conn: Connection[Any], /) -> Flow | None:
        """
        Run a request, or answer it as it was answered.
        """
        if conn.is_websocket or conn["method"] not in self._methods:
            return None
        lines = [value for name, value in conn.headers.raw if name == self._header]
        if not lines:
            return self._refuse(conn, "required") if self._required else None
        key = _key_of(lines[0]) if len(lines) == 1 else None
        return self._refuse(conn, "invalid") if key is None else self._keyed(conn, key)

    # ------------------------------------------------------------------ one request

    async def _keyed(self, conn: Connection[Any], key: str) -> Flow:
        if self._is_shared:
            check_loop(self.store)
        whose: Any = self._partition(conn)
        if inspect.isawaitable(whose):
            whose = await whose
        if not isinstance(whose, str) or not whose:
            raise _errors.bad_result(
                "partition", self._partition, whose, "a text, not an empty one"
            )
        fingerprint = await self._fingerprint_of(conn)
        name, claim = hashed("key", whose, key), uuid.uuid4().hex
        claimed = None
        try:
            claimed = await self._claim(conn, name, claim, fingerprint)
        except StoreError:
            if not self._open:
                yield await self._answer(conn, "unavailable")
                return
        finally:
            if claimed is None:
                # It may have been carried out all the same, and nobody will run.
                await self._give_up(name, claim)
        if claimed is None:
            yield
            return
        if claimed.state != "mine":
            stored = decoded(claimed.answer) if claimed.state == "done" else None
            if stored is not None:
                tell_refused(conn)  # its time says nothing of the application's
            yield stored or await self._answer(conn, claimed.state)
            return
        known = conn.scope[_SCOPE] = Idempotency(key, claimed.token)
        run = _Run(self, name, claim)
        try:
            try:
                response = yield
                verdict = self._verdict(conn, response, known)
                answer = await self._answer_of(response) if verdict == "store" else None
            except Exception as exc:
                await run.fail(exc, is_kept=known._is_kept or self._stores_errors)
                raise
            if verdict == "release":
                await run.release()
            elif await run.complete(answer or not_replayable(response.status_code)):
                try:
                    yield response
                except Exception as exc:
                    await run.fail_late(exc, conn)
                    raise
        finally:
            run.close()

    async def _claim(self, conn: Connection[Any], name: str, claim: str, fingerprint: str) -> Claim:
        """
        Claim the key; where somebody else has it, wait for the answer or for the end of its lease.
        """
        end = anyio.current_time() + self._wait
        pause = _SHORTEST
        while True:
            claimed = await self._caller.call(
                lambda deadline: self.store.claim(
                    name,
                    claim,
                    fingerprint,
                    lease=self._lease,
                    expires=self._expires,
                    rerun=self._rerun,
                    deadline=deadline,
                )
            )
            left = end - anyio.current_time()
            if claimed.state != "running" or left <= 0 or await conn.is_disconnected():
                return claimed
            await anyio.sleep(min(pause, left))
            pause = min(pause * 2, _LONGEST)

    async def _give_up(self, name: str, claim: str) -> None:
        """
        Have a claim taken back of which nothing was heard; on asyncio nobody waits for it.
        """
        if self._taking_back >= _TAKEN_BACK:
            return
        self._taking_back += 1
        loop = running_loop()
        if loop is None or task_of(loop) is None:
            try:
                with anyio.CancelScope(shield=True):
                    await self._take_back(name, claim)
            finally:
                self._taken_back()
        else:
            aside(self._take_back(name, claim)).add_done_callback(self._taken_back)

    async def _take_back(self, name: str, claim: str) -> None:
        """
        Release a claim at once, and once more when it is too late for it to be carried out.

        On another connection a release may overtake the claim. It is no news of the store: a server
        whose memory is full refuses claims, and takes releases.
        """
        timeout = self._store_timeout
        for pause in (0.0, timeout) if self._is_shared else (0.0,):
            if pause:
                await anyio.sleep(pause)
            with suppress(Exception):
                await within(
                    timeout,
                    lambda: self.store.release(name, claim, deadline=time.monotonic() + timeout),
                )

    def _taken_back(self, _: object = None) -> None:
        self._taking_back -= 1

    def _verdict(
        self, conn: Connection[Any], response: AppResponse, known: Idempotency
    ) -> Literal["release", "mark", "store"]:
        """
        Say what becomes of an answer.
        """
        status = response.status_code
        is_kept = known._is_kept or (self._stores_errors and status >= _SERVER_ERROR)
        if not is_kept:
            if self._status is not None:
                if not self._status(status):
                    return "release"
            elif status >= _SERVER_ERROR or status in _RELEASED:
                return "release"
        headers = dict(response.raw_headers)
        media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        nonce = (conn.get("state") or {}).get("csp_nonce")
        if (
            (media_type in STREAMS and b"content-length" not in headers)
            or b"content-encoding" in headers
            or getattr(nonce, "is_used", False)
        ):
            return "mark"
        return "store"

    async def _answer_of(self, response: AppResponse) -> str | None:
        """
        Read an answer to the end, before its first byte; None: it is too large to be kept.
        """
        headers = list(response.raw_headers)
        try:
            body = await response.read(max_size=self._max_response)
        except _errors.ResponseTooLarge:
            return None  # what was read is still sent
        return encoded(response.status_code, headers, body)

    async def _fingerprint_of(self, conn: Connection[Any]) -> str:
        body = await conn.body(max_size=self._max_request)
        if self._fingerprint is not None:
            given: Any = self._fingerprint(conn)
            if inspect.isawaitable(given):
                given = await given
            if not isinstance(given, str):
                raise _errors.bad_result("fingerprint", self._fingerprint, given, "a text")
            return hashed("fingerprint", given)
        media_type, _, parameters = conn.headers.get("content-type", "").partition(";")
        if media_type.strip().lower().startswith("multipart/"):
            # A client makes another boundary each time it sends the same.
            match = re.search(r'boundary="?([^";]+)', parameters, re.IGNORECASE)
            if match is not None:
                body = body.replace(b"--" + match[1].encode("latin-1"), b"--")
        query = conn["query_string"].decode("latin-1")
        digest = hashlib.sha256(body).hexdigest()
        return hashed(conn["method"], conn["path"], query, media_type.strip().lower(), digest)

    # ------------------------------------------------------------------ what is answered

    async def _refuse(self, conn: Connection[Any], why: str) -> Flow:
        yield await self._answer(conn, why)

    async def _answer(self, conn: Connection[Any], why: str) -> Response:
        status, code, detail = _REFUSALS[why]
        headers = dict(self._link or {})
        if why in ("running", "unavailable"):
            headers["retry-after"] = str(random.randint(1, 3))  # noqa: S311 - no secret
        return await self._refusal.response(conn, status, detail, code, headers)


_REFUSALS: Final = {
    "required": (400, "idempotency-key-required", "This request needs an Idempotency-Key."),
    "invalid": (
        400,
        "idempotency-key-invalid",
        "An Idempotency-Key is one field with 1 to 255 visible characters of ASCII.",
    ),
    "other": (
        422,
        "idempotency-key-reused",
        "This Idempotency-Key was used for another request.",
    ),
    "running": (
        409,
        "idempotency-key-in-use",
        "A request with this Idempotency-Key is still being processed.",
    ),
    "unknown": (
        409,
        "idempotency-outcome-unknown",
        "What came of the first request with this Idempotency-Key is not known.",
    ),
    "done": (
        409,
        "idempotency-not-replayable",
        "The request with this Idempotency-Key was processed; its answer cannot be given again.",
    ),
    "unavailable": (503, "store-unavailable", "Idempotency keys cannot be kept at the moment."),
}


def _methods_of(methods: Any) -> frozenset[str] | None:
    """
    Read the option, once; None where these are no methods.
    """
    if isinstance(methods, str) or not isinstance(methods, Iterable):
        return None
    given = list(methods)
    return frozenset(given) if all(is_like(_METHOD, each) for each in given) else None


def _has(exc: BaseException, kinds: tuple[type[Exception], ...]) -> bool:
    """
    Whether an exception is of *kinds*, or is a group that has one: a task group makes one of it.
    """
    if isinstance(exc, BaseExceptionGroup):
        return any(_has(each, kinds) for each in exc.exceptions)
    return isinstance(exc, kinds)


def _key_of(line: bytes) -> str | None:
    """
    Read a key, bare or a String; None where it is none.
    """
    line = line.strip(b" \t")
    match = _STRING.fullmatch(line)
    if match is not None:
        line = re.sub(rb"\\(.)", rb"\1", match[1])
    elif line.startswith(b'"'):
        return None
    return line.decode("ascii") if _KEY.fullmatch(line) else None


class _Run:
    # The run of a request that has claimed its key: it ends in one way, once.

    def __init__(self, layer: IdempotencyMiddleware, name: str, claim: str) -> None:
        self._layer = layer
        self._name = name
        self._claim = claim
        self._is_over = False
        self._renewing: asyncio.Task[None] | None = None
        if layer._is_shared:
            loop = running_loop()
            assert loop is not None  # noqa: S101 - the store was asked on it
            self._renewing = loop.create_task(self._renew())

    async def _renew(self) -> None:
        layer = self._layer
        lease = layer._lease
        while True:
            await asyncio.sleep(lease / 3)
            try:
                is_held = await layer._caller.call(
                    lambda deadline: layer.store.renew(
                        self._name, self._claim, lease=lease, deadline=deadline
                    )
                )
            except StoreError:
                continue  # there is time for another try
            if not is_held:
                _log.warning("the lease of a key was lost while its request was being processed")
                return

    async def fail(self, exc: Exception, *, is_kept: bool) -> None:
        """
        Let the key go after an exception that came instead of an answer, or make it the answer.
        """
        if _has(exc, (ClientDisconnect, _errors.DeadlineExceeded)):
            return  # nobody knows how far it got
        if is_kept:
            body = b'{"type":"about:blank","title":"Internal Server Error","status":500}'
            headers = [(b"content-type", b"application/problem+json")]
            await self.complete(encoded(_SERVER_ERROR, headers, body))
        else:
            await self.release()

    async def fail_late(self, exc: Exception, conn: Connection[Any]) -> None:
        """
        Say that the application failed behind an answer that is stored.
        """
        layer = self._layer
        if isinstance(exc, ClientDisconnect | OSError):
            return
        _log.error(
            "%s %s has failed after its answer was stored, which is %s: put what can still fail,"
            ' such as a commit, before the response (FastAPI: `Depends(..., scope="function")`)',
            ascii(conn["method"])[1:-1],
            ascii(conn["path"])[1:-1],
            "kept" if layer._keeps_late else "released",
            exc_info=exc,
        )
        if not layer._keeps_late:
            await self._call(
                lambda deadline: layer.store.release(self._name, self._claim, deadline=deadline)
            )

    async def complete(self, answer: str) -> bool:
        """
        Store the answer; False where it is not stored.
        """
        layer = self._layer
        is_stored = await self._call(
            lambda deadline: layer.store.complete(
                self._name, self._claim, answer, expires=layer._expires, deadline=deadline
            )
        )
        self._is_over = bool(is_stored)
        if is_stored is False:
            _log.error("an answer was not stored: its key has been claimed by another request")
        return self._is_over

    async def release(self) -> None:
        """
        Let the key go.
        """
        layer = self._layer
        self._is_over = True
        await self._call(
            lambda deadline: layer.store.release(self._name, self._claim, deadline=deadline)
        )

    async def _call(self, make: Any) -> Any:
        self._stop()
        try:
            return await self._layer._caller.call(make)
        except StoreError:
            _log.error("what came of a request is not known: its store has failed")
            return None

    def _stop(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()

    def close(self) -> None:
        """
        End what is left; a run without an answer is unknown from here on.
        """
        self._stop()
        if not self._is_over:
            self._layer.store.abandon(self._name, self._claim)
