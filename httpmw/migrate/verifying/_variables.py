# The context variables that stubs stand for under `--verify`.
#
# Rule: taking a variable back is no side effect of its own, and has no moment in the trace: what
# counts is what the app sees of the variable, and what is left of it in the end.

from __future__ import annotations

import contextvars
from typing import Any, Final

from httpmw.migrate.following._context_variables import CLEARING

__all__ = ["Variables"]

_BINDING: Final = frozenset({"bind_contextvars", "bound_contextvars"})


class Variables:
    """
    The context variables of one world, by the names of the stubs.

    Args:
        managers: The names of context managers that take back what they set, and do no more; and
            what functions do with a variable, as `name=kind:variable`.
    """

    def __init__(self, managers: frozenset[str]) -> None:
        self.known: dict[str, contextvars.ContextVar[str | None]] = {}
        self._managers = frozenset(each for each in managers if "=" not in each) | _BINDING
        self._functions: dict[str, tuple[str, str]] = {}
        for each in managers - self._managers:
            name, _, done = each.partition("=")
            kind, _, variable = done.partition(":")
            self._functions[name] = kind, variable
        self._tokens: dict[int, tuple[object, contextvars.Token[str | None]]] = {}
        # What was read of a variable, and of which one.
        self._read: dict[str, str] = {}

    def _done(self, label: str) -> tuple[str, str]:
        """
        Say what the call of the stub *label* does with which variable.
        """
        for name, done in self._functions.items():
            if f".{label}".endswith(f".{name}"):
                return done
        return "", ""

    def _set(self, name: str, value: str) -> contextvars.Token[str | None]:
        return self.known.setdefault(name, contextvars.ContextVar(name)).set(value)

    def concerns(self, label: str, args: tuple[Any, ...]) -> bool:
        """
        Say whether the call of the stub *label* may be about a context variable.
        """
        name = label.rpartition(".")[2]
        if self._done(label)[0]:
            return True
        return len(args) == {"get": 0, "set": 1}.get(name, -1) or name in _BINDING | CLEARING

    def take_back(self, label: str, args: tuple[Any, ...]) -> bool:
        """
        Take a variable back if the call of the stub *label* does that, and say whether it does.
        """
        owner, _, name = label.rpartition(".")
        given = args[0] if len(args) == 1 else None
        kind, variable = self._done(label)
        if kind == "clear":
            for each in variable.split(","):
                if each in self.known:
                    self.known[each].set(None)
            return True
        if kind == "reset" and id(given) in self._tokens:
            self.known[variable].reset(self._tokens.pop(id(given))[1])
            return True
        if kind == "set" and self._read.get(str(given)) == variable:
            self._set(variable, str(given))
            return True
        if name == "reset" and id(given) in self._tokens and owner in self.known:
            self.known[owner].reset(self._tokens.pop(id(given))[1])
        elif name == "set" and str(given) == f"<{owner}.get()>":
            self._set(owner, str(given))
        elif name in CLEARING:
            self._set("structlog", "")
        else:
            return False
        return True

    def note(self, label: str, args: tuple[Any, ...], what: str, given: object) -> None:
        """
        Set a variable if the call of the stub *label*, which gave *given*, does that.
        """
        owner, _, name = label.rpartition(".")
        kind, variable = self._done(label)
        if kind == "set":
            for each in variable.split(","):
                self._tokens[id(given)] = given, self._set(each, what)
        elif kind == "get":
            self._read[str(given)] = variable
        elif name == "set" and len(args) == 1:
            self._tokens[id(given)] = given, self._set(owner, what)
        elif name == "bind_contextvars":
            self._set("structlog", what)

    def enter(self, manager: object, label: str) -> None:
        """
        Set the variable of a context manager, if it is known to take it back.
        """
        name = label.removesuffix("()").rpartition(".")[2]
        if name in self._managers:
            self._tokens[id(manager)] = manager, self._set(name, "entered")

    def leave(self, manager: object, label: str) -> bool:
        """
        Take back the variable of a context manager that is known for that.
        """
        if id(manager) not in self._tokens:
            return False
        name = label.removesuffix("()").rpartition(".")[2]
        self.known[name].reset(self._tokens.pop(id(manager))[1])
        return True
