from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Conversion", "Converted", "Diagnostic"]

Severity = Literal["error", "notice"]


@dataclass(frozen=True, slots=True, order=True)
class Diagnostic:
    """
    What a person should know about one place in a file.

    Attributes:
        path: The file.
        line: The line, from 1.
        column: The column, from 1.
        code: The code, such as `HM101`; docs/migrate-codes.md has a section on each.
        message: What is the case, and why it matters.
        remedy: What to write instead, or what to look at.
        severity: `"error"`: the function was left as it was; `"notice"`: it was converted, and
            something about it changed or has to be done by hand.
        function: The qualified name of the function or class it is about, empty for a file.
    """

    path: str
    line: int
    column: int
    code: str
    message: str
    remedy: str
    severity: Severity
    function: str = ""

    def as_dict(self) -> dict[str, Any]:
        """
        Give the fields as a dictionary, for JSON.
        """
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Converted:
    """
    One function that was converted.

    Attributes:
        kind: `"class"` (a `dispatch` method), `"decorator"` (`@app.middleware("http")`),
            `"function"`, `"object"` (a `__call__` or another method) or `"helper"` (a function
            that was handed `call_next`).
        qualname: Its qualified name, as `Outer.method` or `outer.<locals>.inner`.
        line: The line of its `def` before the conversion.
        registered: How it is registered in this run: `"class"`, `"decorator"`, `"dispatch="`,
            `'app.middleware("http")(fn)'`, `"delegation"`, or `"elsewhere"`.
        forgets: Whether context variables are taken back at the response start (HM218).
        managers: The context managers of other files that take them back behind it, and what
            functions of other files do with them, as `name=kind:variable`.
    """

    kind: str
    qualname: str
    line: int
    registered: str
    forgets: bool = False
    managers: tuple[str, ...] = ()


@dataclass(slots=True)
class Conversion:
    """
    What became of one file.

    Attributes:
        path: The file.
        source: The source before.
        code: The source afterwards; the same object as *source* where nothing changed.
        conversions: The functions that were converted, by their lines.
        diagnostics: What a person should know, by line.
    """

    path: str
    source: str
    code: str
    conversions: list[Converted] = field(default_factory=list)
    diagnostics: list[Diagnostic] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """
        Whether the code is another one than the source.
        """
        return self.code != self.source
