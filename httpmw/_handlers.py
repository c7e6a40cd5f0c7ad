# What the application makes of an HTTPException (rule 9 of the contract).
#
# Starlette puts its `ExceptionMiddleware` inside of all user middleware, so an HTTPException of
# a middleware would never meet the handlers. They are found in the scope where that middleware
# has passed already (per-route layers), and else at the application itself.

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

if TYPE_CHECKING:
    from ._connection import Connection


async def answer(
    conn: Connection, exc: HTTPException, application: Any, handlers: Any
) -> Response | None:
    """
    Make a response of *exc* with the application's own handler; None where it gives none.
    """
    handler = _find(exc, application, handlers)
    if handler is None:
        return _default(exc)
    if is_async(handler):
        response = await handler(conn, exc)
    else:
        response = await run_in_threadpool(handler, conn, exc)
    return response if isinstance(response, Response) else None


def _find(exc: HTTPException, application: Any, found: Any) -> Any:
    by_class: Mapping[Any, Any]
    if found is not None:
        by_class, by_status = found
    else:
        handlers = getattr(application, "exception_handlers", None)
        by_class = handlers if isinstance(handlers, Mapping) else {}
        # 500 and Exception belong to ServerErrorMiddleware, which sits outside of everything.
        by_class = {key: value for key, value in by_class.items() if key not in (500, Exception)}
        by_status = by_class
    if exc.status_code in by_status:
        return by_status[exc.status_code]
    return next((by_class[cls] for cls in type(exc).__mro__ if cls in by_class), None)


def _default(exc: HTTPException) -> Response:
    # As starlette.middleware.exceptions.ExceptionMiddleware.http_exception.
    if exc.status_code in {204, 304}:
        return Response(status_code=exc.status_code, headers=exc.headers)
    return PlainTextResponse(exc.detail, status_code=exc.status_code, headers=exc.headers)


def is_plain_callable(value: object) -> bool:
    return callable(value) and not is_async(value)


def is_async(handler: Any) -> bool:
    while isinstance(handler, functools.partial):
        handler = handler.func
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004
    )
