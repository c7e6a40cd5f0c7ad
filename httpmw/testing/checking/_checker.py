# The checker around an app: it listens to both sides, and says who broke which rule.
#
# Rule 1: what passes is not changed; a message that breaks a rule of the app does not go out.
# Rule 2: an app can swallow what `send` raises, so a violation is raised again when it ends.

from __future__ import annotations

from typing import Final, Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .rules._http import HTTP
from .rules._lifespan import Lifespan
from .rules._rule import RAISED, RETURN, SCOPE, ASGIViolation, Conversation, Rule, with_lists
from .rules._websocket import WebSocket

PROTOCOLS: Final[dict[str, type[Conversation]]] = {
    "http": HTTP,
    "websocket": WebSocket,
    "lifespan": Lifespan,
}


class ASGIChecker:
    """
    Check that an app, and the server that calls it, keep to the ASGI specification.

    Put it around an app, or around and inside of a middleware to check both of its sides:
    `ASGIChecker(SomeMiddleware(ASGIChecker(app)))`. As it is a middleware itself,
    `Middleware(ASGIChecker)` puts it into the stack of an application.

    The rules are listed on the page "The rules of ASGI". Scopes of other types than `http`,
    `websocket` and `lifespan` pass unchecked.

    Args:
        app: The ASGI app.
        side: Whose rules are checked: those of the "app", of the "server" (which is whatever
            calls the app), or of "both".
        violations: A list to collect violations in. Without one they are raised: where the
            broken message is sent or received, and again when the app ends.

    Raises:
        ASGIViolation: On a call, from `receive` and from `send`, when a rule is broken and no
            list was given.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        side: Literal["app", "server", "both"] = "both",
        violations: list[ASGIViolation] | None = None,
    ) -> None:
        self.app = app
        # Under this name errors look for what stands behind a wrapper.
        self.__wrapped__ = app
        self.side = side
        self.violations = violations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Run the app for one connection, and listen.
        """
        protocol = PROTOCOLS.get(scope["type"])
        if protocol is None:
            await self.app(scope, receive, send)
        else:
            talk = protocol(scope, self.app)
            await _Listener(self, talk, receive, send).run(scope)


class _Listener:
    # Between one call of the app and its server.

    def __init__(
        self, checker: ASGIChecker, talk: Conversation, receive: Receive, send: Send
    ) -> None:
        self._checker = checker
        self._talk = talk
        self._receive = receive
        self._send = send
        self._raised: ASGIViolation | None = None

    async def run(self, scope: Scope) -> None:
        talk = self._talk
        self._report(talk.broken(SCOPE, scope))
        try:
            await self._checker.app(scope, self.receive, self.send)
        except Exception as exc:
            if self._raised is None or self._raised is exc:
                raise
            raise self._raised from exc
        finally:
            talk.over = True
        if self._raised is not None:
            raise self._raised
        self._report(talk.broken(RETURN, None))

    async def receive(self) -> Message:
        message = await self._receive()
        self._report(self._talk.receiving(message))
        return message

    async def send(self, message: Message) -> None:
        message = with_lists(message)
        self._report(self._talk.sending(message))
        try:
            await self._send(message)
        except Exception as exc:
            self._report(self._talk.broken(RAISED, exc))
            raise

    def _report(self, violation: ASGIViolation | None) -> None:
        checker = self._checker
        if violation is None or checker.side not in {"both", violation.rule.side}:
            return
        if checker.violations is not None:
            checker.violations.append(violation)
            return
        self._raised = self._raised or violation
        raise violation


def rules() -> list[Rule]:
    """
    All rules, in the order of their ids.
    """
    found = {
        each.id: each
        for protocol in PROTOCOLS.values()
        for rules in protocol.RULES.values()
        for each in rules
    }
    return [found[each] for each in sorted(found)]
