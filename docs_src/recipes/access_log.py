import logging
import time

from httpmw import AppResponse, Connection, Flow

log = logging.getLogger("access")


async def access_log(conn: Connection) -> Flow:
    started = time.perf_counter()

    def write(status: object, size: int, ended: float, outcome: object) -> None:
        log.info(
            "%s %s %s, %d bytes in %.1f ms, %s",
            conn.method,
            conn.url.path,
            status,
            size,
            (ended - started) * 1000,
            outcome,
        )

    def done(sent: AppResponse) -> None:
        ended = sent.ended_at or time.perf_counter()
        write(sent.status_code, sent.bytes_sent, ended, sent.outcome)

    try:
        response = yield
    except BaseException:
        write("-", 0, time.perf_counter(), "no response")
        raise
    response.on_sent(done)  # the last byte, or none any more
