# What a rule is, and who keeps to it.
#
# Rule 1: a rule is one function: its docstring is the sentence that users read, in an error and
# on the page `docs/asgi-rules.md`, and it tells whether that sentence is broken.
# Rule 2: it is asked before its conversation has taken note of the message, and only if no rule
# of the same event that was written down before it is broken; so it may rely on those.
# Rule 3: the text of the specification decides. Where servers refuse what the text allows, or
# the other way round, the rule says which one it follows.

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final, Literal, NamedTuple

from starlette.types import Message, Scope

from httpmw import HTTPMiddleware
from httpmw._errors import place
from httpmw._exchange import layers_of

Side = Literal["app", "server"]

# Events that are no message types: any message that is sent or received, the scope itself, an
# exception out of the server's `send`, the return of the app.
SEND: Final = "(send)"
RECEIVE: Final = "(receive)"
SCOPE: Final = "(scope)"
RAISED: Final = "(raised)"
RETURN: Final = "(return)"

# RFC 9110 section 5.6.2.
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VERSION: Final = re.compile(r"\d+\.\d+")
# RFC 9110 section 5.5.
_FORBIDDEN: Final = re.compile(rb"[\0\r\n]")


class Rule(NamedTuple):
    """
    One sentence of the ASGI specification, or of what it refers to.
    """

    id: str
    side: Side
    """Who has to keep to it: the app, or the server and every middleware that acts as one."""
    sentence: str
    source: str
    is_broken: Callable[[Any, Any], Any]
    """Takes the conversation and the message; what it returns, if true, says what is wrong."""


class ASGIViolation(RuntimeError):  # noqa: N818 - what it is, not what went wrong with it
    """
    An app or a server broke a rule of ASGI.

    Attributes:
        rule: The rule; `rule.id`, `rule.side`, `rule.sentence` and `rule.source` describe it.
        message: The message that broke it, or the scope; None where it was no message.
    """

    def __init__(self, rule: Rule, app: object, message: Any, what: object) -> None:
        got = what if isinstance(what, str) else _short(message)
        who = "the app" if rule.side == "app" else "what stands around the app"
        super().__init__(
            f"{rule.id}: {rule.sentence} (ASGI, {rule.source})\n"
            f"This was broken by {who} {_name(app)}: {got}"
        )
        self.rule = rule
        self.message = message


class Conversation:
    """
    What was said so far between a server and an app, in one protocol.
    """

    RULES: ClassVar[dict[str, list[Rule]]] = {}

    def __init_subclass__(cls) -> None:
        cls.RULES = {event: rules.copy() for event, rules in cls.RULES.items()}

    def __init__(self, scope: Scope, app: object = None) -> None:
        # A copy, because apps and middleware write into it; what was announced stays announced.
        self.scope = dict(scope)
        self.app = app
        # Whether the app has returned.
        self.over = False

    def broken(self, event: str, message: Any) -> ASGIViolation | None:
        """
        Give the first rule that is broken by *event*.
        """
        for each in self.RULES.get(event, ()):
            what = each.is_broken(self, message)
            if what:
                return ASGIViolation(each, self.app, message, what)
        return None

    def sending(self, message: Any) -> ASGIViolation | None:
        """
        The app sends *message*: give the rule it breaks, or take note of it.
        """
        return self._noted(SEND, message, self.sent)

    def receiving(self, message: Any) -> ASGIViolation | None:
        """
        The server gives *message*: give the rule it breaks, or take note of it.
        """
        return self._noted(RECEIVE, message, self.received)

    def _noted(
        self, event: str, message: Any, note: Callable[[Message], None]
    ) -> ASGIViolation | None:
        broken = self.broken(event, message) or self.broken(message["type"], message)
        if broken is None:
            note(message)
        return broken

    def sent(self, message: Message) -> None:
        raise NotImplementedError

    def received(self, message: Message) -> None:
        raise NotImplementedError


def rule(
    owner: type[Conversation],
    id: str,  # noqa: A002 - it is what users call it
    side: Side,
    source: str,
    *events: str,
) -> Callable[[Callable[[Any, Any], Any]], Callable[[Any, Any], Any]]:
    """
    Make a function a rule of a protocol, and of those made from it later, asked at *events*.
    """

    def register(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        sentence = " ".join((function.__doc__ or "").split())
        made = Rule(id, side, sentence, source, function)
        for event in events:
            owner.RULES.setdefault(event, []).append(made)
        return function

    return register


def spec_version(scope: Scope) -> tuple[int, ...]:
    """
    The version of the protocol's specification; 2.0 where the scope names none.
    """
    asgi = scope.get("asgi")
    text = asgi.get("spec_version") if isinstance(asgi, dict) else None
    if not isinstance(text, str) or not _VERSION.fullmatch(text):
        return (2, 0)
    return tuple(int(each) for each in text.split("."))


def with_lists(message: Any) -> Any:
    """
    Give a message whose headers and links are lists of its own.

    ASGI allows any iterable, which can be read once only, and may be changed later on.
    """
    if not isinstance(message, dict) or message.keys().isdisjoint(_ITERABLES):
        return message
    lists = {
        key: list(message[key])
        for key in _ITERABLES
        if isinstance(message.get(key), Iterable) and not isinstance(message[key], (str, bytes))
    }
    return {**message, **lists}


def bad_pairs(headers: Any) -> str | None:
    """
    Tell what is wrong with *headers* as pairs of bytes.
    """
    if not isinstance(headers, (list, tuple)):
        return f"headers {headers!r}"
    for pair in headers:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:  # noqa: PLR2004 - a pair
            return f"header {pair!r}"
        if not (isinstance(pair[0], bytes) and isinstance(pair[1], bytes)):
            return f"header {pair!r}"
    return None


def bad_names(headers: Any) -> str | None:
    """
    Tell which name is no token in lower case; a pseudo header is none.
    """
    for name, _ in headers:
        if name != name.lower() or not _TOKEN.fullmatch(name):
            return f"header {name!r}"
    return None


def bad_values(headers: Any) -> str | None:
    """
    Tell which value would break the header section.
    """
    for name, value in headers:
        if _FORBIDDEN.search(value):
            return f"header {name!r}: {value!r}"
    return None


def is_int(value: object) -> bool:
    """
    Whether *value* is an int; a bool is none.
    """
    return isinstance(value, int) and not isinstance(value, bool)


def _name(app: object) -> str:
    if isinstance(app, HTTPMiddleware):
        _, function, _ = layers_of(app)[0][0]
        return f"{place(function)}, or by what is inside of it"
    return place(app)


def _short(message: Any) -> str:
    text = repr(message)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


_LONGEST: Final = 300  # characters
_ITERABLES: Final = ("headers", "links")


# ---------------------------------------------------------------------- every protocol


@rule(Conversation, "A01", "app", "Events", SEND)
def message_is_a_dict(talk: Conversation, message: Any) -> Any:
    """A message is a dict with a str under the key `type`."""
    return not isinstance(message, dict) or not isinstance(message.get("type"), str)


@rule(Conversation, "A02", "app", "Applications", SEND)
def sends_in_time(talk: Conversation, message: Any) -> Any:
    """Nothing is sent after the app has returned."""
    return talk.over


@rule(Conversation, "A11", "server", "Events", RECEIVE)
def received_is_a_dict(talk: Conversation, message: Any) -> Any:
    """What is received is a dict with a str under the key `type`."""
    return not isinstance(message, dict) or not isinstance(message.get("type"), str)


# Starlette's test client gives no `asgi` at all, which the text reads as version 2.0.
@rule(Conversation, "S01", "server", "Applications", SCOPE)
def asgi_versions(talk: Conversation, scope: Any) -> Any:
    """The `version` and `spec_version` that a scope has under `asgi` are str such as "3.0"."""
    asgi = scope.get("asgi", {})
    if not isinstance(asgi, dict):
        return True
    versions = [asgi[key] for key in ("version", "spec_version") if key in asgi]
    return not all(isinstance(each, str) and _VERSION.fullmatch(each) for each in versions)


@rule(Conversation, "S02", "server", "Extensions; Lifespan: Lifespan State", SCOPE)
def scope_dicts(talk: Conversation, scope: Any) -> Any:
    """The `extensions` of a scope are a dict of dicts, its `state` is a dict; both are optional."""
    extensions = scope.get("extensions") or {}
    if not isinstance(extensions, dict) or not isinstance(scope.get("state", {}), dict):
        return True
    return not all(isinstance(each, dict) for each in extensions.values())
