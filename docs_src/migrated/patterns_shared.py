"""
What both sides of the patterns use.
"""

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TypeVar

from starlette.responses import Response

log = logging.getLogger("patterns")

AnyResponse = TypeVar("AnyResponse", bound=Response)


def sign(response: AnyResponse) -> AnyResponse:
    response.headers["x-signed"] = "yes"
    return response


async def upper(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk.upper()


@contextmanager
def span(name: str) -> Iterator[None]:
    log.info("begin %s", name)
    try:
        yield
    finally:
        log.info("end %s", name)
