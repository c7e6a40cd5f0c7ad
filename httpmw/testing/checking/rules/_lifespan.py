# Lifespan: the specification "Lifespan Protocol" 2.0.

from __future__ import annotations

from typing import Any, Final

from starlette.types import Message, Scope

from ._rule import RECEIVE, SEND, Conversation, rule

STARTUP: Final = "lifespan.startup"
SHUTDOWN: Final = "lifespan.shutdown"
OUTCOMES: Final = (".complete", ".failed")

_ANSWERS: Final = {phase + outcome: phase for phase in (STARTUP, SHUTDOWN) for outcome in OUTCOMES}


class Lifespan(Conversation):
    """
    What was said so far about the life of an app.
    """

    def __init__(self, scope: Scope, app: object = None) -> None:
        super().__init__(scope, app)
        # The phases that were begun, and how they were answered.
        self.begun: list[str] = []
        self.answers: dict[str, str] = {}

    def sent(self, message: Message) -> None:
        self.answers[_ANSWERS[message["type"]]] = message["type"]

    def received(self, message: Message) -> None:
        self.begun.append(message["type"])


@rule(Lifespan, "L01", "app", "Lifespan: Startup Complete, Failed; Shutdown Complete, Failed", SEND)
def known_type(life: Lifespan, message: Any) -> Any:
    """A message is the `complete` or the `failed` of `lifespan.startup` or `lifespan.shutdown`."""
    return message["type"] not in _ANSWERS


@rule(Lifespan, "L02", "app", "Lifespan: Startup; Shutdown", SEND)
def answer_to_a_question(life: Lifespan, message: Any) -> Any:
    """A phase is answered after its event was received."""
    return _ANSWERS[message["type"]] not in life.begun


@rule(Lifespan, "L03", "app", "Lifespan: Startup Complete; Shutdown Complete", SEND)
def one_answer(life: Lifespan, message: Any) -> Any:
    """A phase is answered once."""
    return _ANSWERS[message["type"]] in life.answers


@rule(Lifespan, "L04", "app", "Lifespan: Startup Failed; Shutdown Failed", SEND)
def failure_message(life: Lifespan, message: Any) -> Any:
    """The `message` of a failure is a str."""
    return not isinstance(message.get("message", ""), str)


@rule(Lifespan, "L31", "server", "Lifespan: Startup; Shutdown", RECEIVE)
def known_event(life: Lifespan, message: Any) -> Any:
    """What is received is `lifespan.startup` or `lifespan.shutdown`, each once."""
    return message["type"] not in {STARTUP, SHUTDOWN} - set(life.begun)


@rule(Lifespan, "L32", "server", "Lifespan: Shutdown", SHUTDOWN)
def shutdown_after_startup(life: Lifespan, message: Any) -> Any:
    """The shutdown comes after the startup was answered with `complete`."""
    return life.answers.get(STARTUP) != STARTUP + ".complete"
