import hashlib
import logging
from collections.abc import AsyncIterator

from starlette.exceptions import HTTPException

from httpmw import Connection, Flow

log = logging.getLogger(__name__)

LARGEST = 10_000_000  # bytes


async def at_most(
    largest: int, chunks: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > largest:
            raise HTTPException(413)
        yield chunk


async def limit_upload(conn: Connection) -> Flow:
    length = conn.headers.get("content-length", "")
    if length.isdecimal() and int(length) > LARGEST:
        raise HTTPException(413)  # before a byte is received
    conn.body_iterator = at_most(LARGEST, conn.body_iterator)
    yield


class Upload:
    """
    What is known of an upload while it passes by.
    """

    def __init__(self) -> None:
        self.size = 0
        self.sha256 = hashlib.sha256()

    async def watch(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            self.size += len(chunk)
            self.sha256.update(chunk)
            yield chunk


async def watch_upload(conn: Connection) -> Flow:
    upload = Upload()
    conn.body_iterator = upload.watch(conn.body_iterator)
    response = yield
    yield response
    log.info(
        "%s: %d bytes, sha256 %s",
        conn.url.path,
        upload.size,
        upload.sha256.hexdigest(),
    )
