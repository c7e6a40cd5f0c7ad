import logging
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse

from httpmw import Connection, Flow, HTTPMiddleware

log = logging.getLogger(__name__)


class OutOfStockError(Exception):
    def __init__(self, item: str) -> None:
        super().__init__(item)
        self.item = item


class Problem(JSONResponse):
    """
    A problem document, as RFC 9457 section 3 has it.
    """

    media_type = "application/problem+json"

    def __init__(self, status: int, detail: str = "", **members: Any) -> None:
        content = {
            "title": HTTPStatus(status).phrase,
            "status": status,
            **members,
        }
        if detail:
            content["detail"] = detail
        super().__init__(content, status)


async def problems(conn: Connection) -> Flow:
    try:
        yield
    except OutOfStockError as error:
        yield Problem(409, type="/problems/out-of-stock", item=error.item)
    except Exception:
        # What went wrong is for the log, not for the client.
        log.exception("%s %s failed", conn.method, conn.url.path)
        yield Problem(500)


async def http_exception(request: Request, error: Exception) -> Problem:
    assert isinstance(error, HTTPException)
    problem = Problem(error.status_code, error.detail)
    problem.headers.update(error.headers or {})
    return problem


app = Starlette(
    middleware=[Middleware(HTTPMiddleware, dispatch=problems)],
    exception_handlers={HTTPException: http_exception},
)
