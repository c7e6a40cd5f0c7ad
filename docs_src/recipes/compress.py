import zlib
from collections.abc import AsyncIterator

from httpmw import Connection, Flow

MEDIA_TYPES = {
    "application/json",
    "application/x-ndjson",
    "image/svg+xml",
    "text/css",
    "text/csv",
    "text/event-stream",
    "text/html",
    "text/javascript",
    "text/plain",
}
GZIP = 31  # `wbits` of zlib


def accepts_gzip(accept_encoding: str) -> bool:
    for part in accept_encoding.lower().split(","):
        coding, *parameters = (each.strip() for each in part.split(";"))
        if coding in ("gzip", "*"):
            return not any(
                each in ("q=0", "q=0.0", "q=0.00", "q=0.000")
                for each in parameters
            )
    return False


async def gzipped(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    packer = zlib.compressobj(wbits=GZIP)
    async for chunk in chunks:
        # Flushed each time, so that nothing of a live stream is held back.
        yield packer.compress(chunk) + packer.flush(zlib.Z_SYNC_FLUSH)
    yield packer.flush()


async def compress(conn: Connection) -> Flow:
    response = yield
    # A 304 says of the body that is not sent what the 200 would have said.
    is_304 = response.status_code == 304
    if not is_304 and response.media_type not in MEDIA_TYPES:
        return
    if response.status_code == 206:  # a part of the plain bytes
        return
    response.headers.add_vary_header("accept-encoding")
    if "content-encoding" in response.headers:
        return
    if not accepts_gzip(conn.headers.get("accept-encoding", "")):
        return
    # RFC 9110 section 8.8.3.3: other bytes need another etag, unless it is weak.
    tag = response.headers.get("etag", "")
    if tag.startswith('"'):
        response.headers["etag"] = f"W/{tag}"
    if not is_304:
        response.headers["content-encoding"] = "gzip"
        response.body_iterator = gzipped(response.body_iterator)
