import asyncio

import anyio
from starlette.responses import PlainTextResponse

from httpmw import Connection, Flow

START_SECONDS = 30.0
WHOLE_SECONDS = 300.0
UPLOAD_SECONDS = 60.0
LARGEST = 10_000_000  # bytes


async def until_the_start(conn: Connection) -> Flow:
    """
    The app has this long to start its response; a stream may take longer.
    """
    conn.fail_after(START_SECONDS)
    try:
        yield
    except TimeoutError:
        yield PlainTextResponse("too slow", 504)


async def until_the_end(conn: Connection) -> Flow:
    """
    The whole exchange has this long, on asyncio; then the body is cut off.
    """
    response = None
    try:
        async with asyncio.timeout(WHOLE_SECONDS):
            response = yield
            yield response
    except TimeoutError:
        if response is not None:
            raise  # it has begun: the server cuts the connection
        yield PlainTextResponse("too slow", 504)


async def until_the_upload_is_here(conn: Connection) -> Flow:
    """
    The client has this long to send its body, which is read before the app runs.
    """
    try:
        with anyio.fail_after(UPLOAD_SECONDS):  # closed again before the yield
            await conn.body(max_size=LARGEST)
    except TimeoutError:
        yield PlainTextResponse("too slow", 408)
        return
    yield
