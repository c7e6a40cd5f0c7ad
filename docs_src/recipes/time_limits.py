import asyncio

from starlette.responses import PlainTextResponse

from httpmw import Connection, DeadlineExceeded, Flow

START_SECONDS = 30.0
IDLE_SECONDS = 60.0
WHOLE_SECONDS = 300.0
UPLOAD_SECONDS = 60.0


async def until_the_start(conn: Connection) -> Flow:
    """
    The app has this long to start its response; a stream may take longer.
    """
    conn.fail_after(START_SECONDS)
    try:
        yield
    except DeadlineExceeded:
        yield PlainTextResponse("too slow", 504)


async def while_it_streams(conn: Connection) -> Flow:
    """
    A stream may fall silent this long; then it is cut off.
    """
    conn.fail_after(idle=IDLE_SECONDS)
    yield


async def until_the_end(conn: Connection) -> Flow:
    """
    The whole exchange has this long, on asyncio; then the body is cut off.
    """
    response = None
    try:
        async with asyncio.timeout(WHOLE_SECONDS) as limit:
            response = yield
            yield response
    except TimeoutError:
        # One of the app's own is not ours; and what has begun, the server cuts.
        if response is not None or not limit.expired():
            raise
        yield PlainTextResponse("too slow", 504)


async def while_it_uploads(conn: Connection) -> Flow:
    """
    The client may keep who reads its body waiting this long; then it is a 408.
    """
    conn.fail_upload_after(idle=UPLOAD_SECONDS)
    yield
