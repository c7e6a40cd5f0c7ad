import zlib
from collections.abc import AsyncIterator

from starlette.exceptions import HTTPException

from httpmw import Connection, Flow

LARGEST = 50_000_000  # bytes, unpacked
PIECE = 65_536
GZIP = 31  # `wbits` of zlib


async def gunzipped(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    unpacker = zlib.decompressobj(wbits=GZIP)
    size = 0
    try:
        async for chunk in chunks:
            packed = chunk
            while packed:
                # RFC 1952 section 2.2: a body may be several members in a row.
                if unpacker.eof:
                    unpacker = zlib.decompressobj(wbits=GZIP)
                # A few bytes can unpack to gigabytes: only a piece at a time.
                piece = unpacker.decompress(packed, PIECE)
                packed = unpacker.unconsumed_tail or unpacker.unused_data
                size += len(piece)
                if size > LARGEST:
                    raise HTTPException(413)
                yield piece
    except zlib.error as error:
        raise HTTPException(400, "the body is not gzip") from error
    if not unpacker.eof:
        raise HTTPException(400, "the body is cut off")


async def gunzip_upload(conn: Connection) -> Flow:
    # RFC 9110 section 8.4.1.3: the second is an old name for the first.
    if conn.headers.get("content-encoding", "").lower() in ("gzip", "x-gzip"):
        conn.body_iterator = gunzipped(conn.body_iterator)
        conn.delete_header("content-encoding")
    yield
