from collections.abc import AsyncIterator

from httpmw import Connection, Flow

SCRIPT = b'<script src="/static/live.js" defer></script>'


async def inserted(
    addition: bytes, before: bytes, chunks: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    held = b""
    async for chunk in chunks:
        held += chunk
        head, found, rest = held.partition(before)
        if found:
            yield head + addition + found + rest
            break
        # The place may be cut in two: keep back what may be its start.
        ready = max(0, len(held) - len(before) + 1)
        yield held[:ready]
        held = held[ready:]
    else:
        yield held
    async for chunk in chunks:
        yield chunk


async def live_reload(conn: Connection) -> Flow:
    response = yield
    if (
        response.media_type == "text/html"
        and "content-encoding" not in response.headers
    ):
        response.body_iterator = inserted(
            SCRIPT, b"</head>", response.body_iterator
        )
