# The tree: what stands around what, the outermost first.
#
# Rule 1: a node says nothing but what can be read without running anything of the application.
# Rule 2: what a node is made from stays in it, for those who put probes there; what is written
# out, as JSON or as text, is made of strings, numbers and bools, and holds no secret.

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from starlette.types import ASGIApp

Kind: TypeAlias = Literal[
    "application", "layer", "router", "route", "websocket", "mount", "host", "app"
]
"""
What a node is.

An "application" has layers of its own; a "layer" is one middleware around what is further in; a
"router" has the routes below it; a "route", a "websocket" route, a "mount" and a "host" are what
it leads to; an "app" is any other ASGI app, of which nothing further in is known.
"""

Scopes: TypeAlias = Literal["http", "http, websocket", "all"]


@dataclass(eq=False)
class Link:
    """
    Where a node has what is further in, so that something can be put in between.
    """

    app: ASGIApp
    # Puts another app there; raises where that cannot be.
    put: Callable[[Any], None]


@dataclass(eq=False)
class Node:
    """
    One part of an application: a layer, a router, a route, or an application itself.

    Attributes:
        kind: What it is.
        name: Of a layer its class or function, of a route its path.
        where: The file and the line where that was defined; None where it cannot be told.
        options: The options that were given, as text; secrets are masked.
        scopes: Of a layer, which scopes it looks at: "http", "http, websocket", or "all"
            where it does not tell them apart.
        run: The number of the run of fused layers that it belongs to; None: it is not fused.
        notes: What else there is to say, in words.
        children: What is further in; of a layer one node.
    """

    kind: Kind
    name: str
    where: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    scopes: Scopes | None = None
    run: int | None = None
    notes: list[str] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)
    # The thing itself, and where it has what is further in, in the order of `children`.
    subject: Any = field(default=None, repr=False)
    links: list[Link] = field(default_factory=list, repr=False)
    # Of a route its methods, and of all that belongs to one its whole path, with those of mounts.
    methods: tuple[str, ...] = ()
    path: str | None = None
    # A layer that is httpmw's, one on Starlette's `BaseHTTPMiddleware`, or any other.
    style: Literal["httpmw", "base", "asgi"] = "asgi"
    # What it is in the rules of order: "cors", "compression", "etag", "problem_details", ...
    role: str | None = None
    # The `MiddlewareStack` that it is a layer of, with its slot.
    slot: Any = field(default=None, repr=False)
    stack: Any = field(default=None, repr=False)

    @property
    def verbs(self) -> str:
        """
        What a route is for, in a word; that HEAD goes with GET is understood.
        """
        if self.kind == "websocket":
            return "WebSocket"
        methods = [each for each in self.methods if each != "HEAD" or "GET" not in self.methods]
        return ",".join(methods) or "any method"

    def walk(self) -> Iterator[Node]:
        """
        Give this node and all that is further in, the outermost first.
        """
        yield self
        for child in self.children:
            yield from child.walk()

    def as_json(self) -> dict[str, Any]:
        """
        Give it as what `json.dumps` takes.
        """
        written: dict[str, Any] = {"kind": self.kind, "name": self.name, "where": self.where}
        if self.methods:
            written["methods"] = list(self.methods)
        if self.kind == "layer":
            written |= {"style": self.style, "scopes": self.scopes, "fused": self.run}
        if self.options:
            written["options"] = self.options
        if self.notes:
            written["notes"] = self.notes
        if self.children:
            written["children"] = [each.as_json() for each in self.children]
        return written


@dataclass(frozen=True)
class Remark:
    """
    One warning about an application.

    Attributes:
        code: Which rule: "base-http", "split-run", "cors-inside", "compression-outside-etag",
            "http-only-gate" or "order".
        layer: The name of the layer that it is about.
        where: Where that was defined.
        message: What is wrong, and what comes of it.
        remedy: What to write instead.
    """

    code: str
    layer: str
    where: str | None
    message: str
    remedy: str


@dataclass(frozen=True, eq=False)
class Tree:
    """
    An application as a tree; `str()` of it draws it.

    Attributes:
        root: The outermost node.
        warnings: What is known to do harm, or to cost more than it has to.
    """

    root: Node
    warnings: tuple[Remark, ...]

    def as_json(self) -> dict[str, Any]:
        """
        Give it as what `json.dumps` takes.

        Returns:
            "root" is the outermost node with its "children", "warnings" a list.
        """
        return {
            "root": self.root.as_json(),
            "warnings": [
                {
                    "code": each.code,
                    "layer": each.layer,
                    "where": each.where,
                    "message": each.message,
                    "remedy": each.remedy,
                }
                for each in self.warnings
            ],
        }

    def __str__(self) -> str:
        from ._draw import draw  # noqa: PLC0415 - the model knows no drawing

        return draw(self)
