import logging
from collections.abc import Mapping
from http.client import responses as phrases
from typing import Any

from fastapi import FastAPI
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

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

    def __init__(
        self, status: int, members: Mapping[str, Any] | None = None
    ) -> None:
        title = phrases.get(status, "Unknown")
        super().__init__(
            {"title": title, **(members or {}), "status": status}, status
        )


async def problems(conn: Connection) -> Flow:
    try:
        yield
    except OutOfStockError as error:
        yield Problem(409, {"type": "/problems/out-of-stock", "item": error.item})
    except Exception:
        # What went wrong is for the log, not for the client.
        log.exception("%s %s failed", conn.method, conn.url.path)
        yield Problem(500)


async def http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code in (204, 304):  # they have no body
        return Response(status_code=error.status_code, headers=error.headers)
    # Starlette's is a text. FastAPI's can be anything: RFC 9457 section 3.1.4 has
    # only texts there, and section 3.2 members of one's own beside it.
    detail: Any = error.detail
    if isinstance(detail, Mapping):
        members = detail
    elif isinstance(detail, str):
        members = {"detail": detail}
    else:
        members = {"errors": detail}
    problem = Problem(error.status_code, members)
    problem.headers.update(error.headers or {})
    return problem


async def invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return Problem(422, {"errors": jsonable_encoder(error.errors())})


app = FastAPI(
    exception_handlers={
        HTTPException: http_exception,
        RequestValidationError: invalid,
    }
)
app.add_middleware(HTTPMiddleware, dispatch=problems)


@app.get("/items/{number}")
async def item(number: int) -> int:
    if number == 0:
        raise OutOfStockError("tea")
    return number
