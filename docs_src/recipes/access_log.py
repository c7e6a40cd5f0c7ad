import logging
import time

from httpmw import Connection, Flow

log = logging.getLogger("access")


async def access_log(conn: Connection) -> Flow:
    started = time.perf_counter()
    response = None
    try:
        response = yield
        yield response
    finally:
        log.info(
            "%s %s %s, %d bytes in %.1f ms, %s",
            conn.method,
            conn.url.path,
            "-" if response is None else response.status_code,
            0 if response is None else response.bytes_sent,
            (time.perf_counter() - started) * 1000,
            "no response" if response is None else response.outcome,
        )
