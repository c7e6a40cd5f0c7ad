import logging
from uuid import uuid4

from starlette.responses import JSONResponse

from httpmw import Connection, Flow, HTTPMiddleware

log = logging.getLogger("shop.errors")


class ErrorsAsJSON(HTTPMiddleware):
    async def dispatch(self, conn: Connection) -> Flow:
        try:
            yield
        except LookupError as error:
            yield JSONResponse({"detail": str(error)}, 404)
        except Exception:
            error_id = uuid4().hex
            log.exception("error %s", error_id)
            yield JSONResponse({"detail": "internal error", "id": error_id}, 500)
