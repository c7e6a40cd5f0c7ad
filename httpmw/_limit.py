from __future__ import annotations

import math

import anyio
import anyio.lowlevel
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Limit:
    # `Connection.fail_after`: gives an app so many seconds to start its response.

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        deadline = anyio.current_time() + self.seconds
        with anyio.CancelScope(deadline=deadline) as limit:

            async def send_in_time(message: Message) -> None:
                nonlocal started
                if not started:
                    if limit.cancel_called:
                        await anyio.lowlevel.checkpoint()
                        return  # sent from outside of the limit
                    if message["type"] == "http.response.start":
                        started = True
                        limit.deadline = math.inf
                await send(message)

            await self.app(scope, receive, send_in_time)
        if limit.cancel_called and not started:
            msg = f"the inner app did not respond within {self.seconds} seconds"
            raise TimeoutError(msg)
