from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from httpmw import Connection, Flow


async def stop_for_nobody(conn: Connection) -> Flow:
    """
    The endpoint is cancelled when its reader has gone.
    """
    conn.cancel_on_disconnect()
    yield


def ask_model(prompt: str) -> AbstractAsyncContextManager[Any]:
    """
    The client of your model: a stream that is open as long as the block is.
    """
    raise NotImplementedError


async def chat(request: Request) -> StreamingResponse:
    prompt = request.query_params["prompt"]

    async def words() -> AsyncIterator[str]:
        async with ask_model(prompt) as stream:  # closed when it is cancelled
            async for word in stream:
                yield word

    return StreamingResponse(words(), media_type="text/plain")
