"""
What the type checkers refuse. Checked by mypy and pyrefly, never run.

Each mistake is marked with the error that both must report; an ignore that is not needed is an
error itself, so whatever they begin to accept fails the check.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator

from starlette.applications import Starlette
from starlette.middleware import Middleware

from httpmw import AppResponse, Connection, Flow, HTTPMiddleware, http_middleware

app = Starlette()


async def without_a_yield(conn: Connection) -> None:
    pass


def sync_generator(conn: Connection) -> Generator[None, AppResponse, None]:
    yield


async def async_iterator(conn: Connection) -> AsyncIterator[None]:
    yield


async def default_send_type(conn: Connection) -> AsyncGenerator[None]:
    yield


async def call_next_style(conn: Connection, call_next: object) -> Flow:
    yield


async def good(conn: Connection) -> Flow:
    response = yield
    response.bytes_sent = 1  # type: ignore[misc]  # pyrefly: ignore[read-only]


async def async_predicate(conn: Connection) -> bool:
    return conn.url.path == "/"


HTTPMiddleware(app, dispatch=without_a_yield)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
HTTPMiddleware(app, dispatch=sync_generator)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
HTTPMiddleware(app, dispatch=async_iterator)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
HTTPMiddleware(app, dispatch=default_send_type)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
HTTPMiddleware(app, dispatch=call_next_style)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
HTTPMiddleware(app, dispatch=good, when=async_predicate)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
HTTPMiddleware(app, dispatch=good, unless=async_predicate)  # type: ignore[call-arg]  # pyrefly: ignore[unexpected-keyword]

Middleware(HTTPMiddleware, dispatch=without_a_yield)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
Middleware(HTTPMiddleware, dispatch=sync_generator)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
Middleware(HTTPMiddleware, dispatch=async_iterator)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
Middleware(HTTPMiddleware, dispatch=default_send_type)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
Middleware(HTTPMiddleware, dispatch=call_next_style)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]

app.add_middleware(HTTPMiddleware, dispatch=without_a_yield)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
app.add_middleware(HTTPMiddleware, dispatch=sync_generator)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
app.add_middleware(HTTPMiddleware, dispatch=async_iterator)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
app.add_middleware(HTTPMiddleware, dispatch=default_send_type)  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]


@http_middleware(app)  # type: ignore[type-var]  # pyrefly: ignore[bad-specialization]
async def decorated_without_a_yield(conn: Connection) -> None:
    pass


@http_middleware(app)  # type: ignore[type-var]  # pyrefly: ignore[bad-specialization]
def decorated_sync_generator(conn: Connection) -> Generator[None, AppResponse, None]:
    yield


@http_middleware(app)  # type: ignore[type-var]  # pyrefly: ignore[bad-specialization]
async def decorated_async_iterator(conn: Connection) -> AsyncIterator[None]:
    yield


@http_middleware(object())  # type: ignore[arg-type]  # pyrefly: ignore[bad-argument-type]
async def decorated_with_no_application(conn: Connection) -> Flow:
    yield


class CoroutineDispatch(HTTPMiddleware):
    async def dispatch(self, conn: Connection) -> None:  # type: ignore[override]  # pyrefly: ignore[bad-override]
        pass
