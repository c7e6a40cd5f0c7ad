import logging

import anyio
from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.types import Message, Receive, Scope, Send

log = logging.getLogger(__name__)

TRIES = 3
WAIT = 0.1  # seconds, and then twice as long each time
LARGEST = 1_000_000  # bytes of a request body that are kept for another try
RETRIED = (ConnectionError, TimeoutError)
# RFC 9110 section 9.2.2: what is done twice here is as good as done once.
IDEMPOTENT = {"DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE"}


class Replay:
    """
    A `receive` that can begin again.
    """

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.kept: list[Message] = []
        self.size = 0
        self.position = 0

    async def __call__(self) -> Message:
        if self.position < len(self.kept):
            message = self.kept[self.position]
        else:
            message = await self.receive()
            self.size += len(message.get("body", b""))
            if self.can_begin_again:
                self.kept.append(message)
            else:
                self.kept.clear()
        self.position += 1
        return message

    @property
    def can_begin_again(self) -> bool:
        return self.size <= LARGEST


class RetriedRoute(APIRoute):
    """
    Run endpoint and dependencies again where one raises before the answer.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in IDEMPOTENT:
            await super().handle(scope, receive, send)
            return
        replay = Replay(receive)
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        for number in range(1, TRIES + 1):
            replay.position = 0
            try:
                await super().handle(dict(scope), replay, watched)
            except RETRIED:
                if has_begun or number == TRIES or not replay.can_begin_again:
                    raise
                log.warning(
                    "try %d of %s failed", number, scope["path"], exc_info=True
                )
            else:
                return
            await anyio.sleep(WAIT * 2 ** (number - 1))


router = APIRouter(route_class=RetriedRoute)
