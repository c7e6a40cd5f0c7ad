import logging
from uuid import uuid4

from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

log = logging.getLogger("shop.errors")


class ErrorsAsJSON(BaseHTTPMiddleware):
    async def dispatch(
        self, request: Request, call_next: RequestResponseEndpoint
    ) -> Response:
        try:
            return await call_next(request)
        except LookupError as error:
            return JSONResponse({"detail": str(error)}, 404)
        except Exception:
            error_id = uuid4().hex
            log.exception("error %s", error_id)
            return JSONResponse({"detail": "internal error", "id": error_id}, 500)
