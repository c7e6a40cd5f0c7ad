import logging

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from httpmw import Connection, Flow, HTTPMiddleware, MiddlewareStack

from .request_id import request_id, with_request_id

log = logging.getLogger(__name__)


async def broken() -> None:
    raise RuntimeError("the database is down")


def by_stack() -> ASGIApp:
    """
    A layer outside of the page for errors, in a stack.
    """
    app = FastAPI()
    app.add_api_route("/broken", broken)
    MiddlewareStack.install(app).add(with_request_id, outside_errors=True)
    return app


def around() -> ASGIApp:
    """
    The same without a stack: the server is given the layer, not the application.
    """
    app = FastAPI()
    app.add_api_route("/broken", broken)
    return HTTPMiddleware(app, dispatch=with_request_id)


async def page(request: Request, error: Exception) -> PlainTextResponse:
    headers = {"x-request-id": request_id.get()}
    return PlainTextResponse("Internal Server Error", 500, headers=headers)


def by_handler() -> ASGIApp:
    """
    An ordinary layer, and a page of one's own outside of it.
    """
    app = FastAPI(exception_handlers={Exception: page})
    app.add_api_route("/broken", broken)
    app.add_middleware(HTTPMiddleware, dispatch=with_request_id)
    return app


async def error_page(conn: Connection) -> Flow:
    try:
        yield
    except Exception:
        log.exception("%s %s failed", conn.method, conn.url.path)
        yield PlainTextResponse("Internal Server Error", 500)


def by_layer() -> ASGIApp:
    """
    Ordinary layers, of which the inner one answers: the server is told nothing.
    """
    app = FastAPI()
    app.add_api_route("/broken", broken)
    app.add_middleware(HTTPMiddleware, dispatch=error_page)
    app.add_middleware(HTTPMiddleware, dispatch=with_request_id)
    return app
