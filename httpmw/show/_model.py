# The tree: what stands around what, the outermost first.
#
# Rule 1: a node says nothing but what can be read without running anything of the application.
# Rule 2: what a node is made from stays in it, for those who put probes there; what is written
# out, as JSON or as text, is made of strings, numbers and bools, and holds no secret.

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

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

_WIDTH: Final = 100
_NAME_WIDTH: Final = 32
_SCOPES: Final = {
    "http": "HTTP",
    "http, websocket": "HTTP+WebSocket",
    "all": "all scopes",
}


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


# What is open comes first, what is only slow last.
CODES: Final = (
    "http-only-gate", "cors-inside", "compression-outside-etag", "order", "split-run", "base-http",
)  # fmt: skip


@dataclass(frozen=True)
class Remark:
    """
    One warning about an application.

    Attributes:
        code: Which rule, from the worst on: "http-only-gate", "cors-inside",
            "compression-outside-etag", "order", "split-run" or "base-http".
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
        return "\n".join(_drawn(self))


def _drawn(tree: Tree) -> Iterator[str]:
    # The outermost layer first, and the warnings below the tree.
    yield from _lines(tree.root, "", is_root=True)
    fused = any(each.run is not None for each in tree.root.walk())
    bracket = "; layers in a bracket are one adapter" * fused
    yield from ("", f"A request goes down, its response up{bracket}.")
    number = len(tree.warnings)
    yield from ("", f"{number or 'no'} warning{'s' * (number != 1)}")
    for each in tree.warnings:
        yield from ("", *_remark(each))


def _remark(remark: Remark) -> Iterator[str]:
    place = f" ({remark.where})" if remark.where else ""
    yield f"[{remark.code}] {remark.layer}{place}"
    yield from _wrapped(remark.message, "  ")
    yield from _wrapped(remark.remedy, "  → ")


def _wrapped(text: str, first: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _lines(node: Node, indent: str, *, is_root: bool = False) -> Iterator[str]:
    """
    Write a node, and what is further in: layers below one another, routes as branches.
    """
    if is_root:
        yield head(node)
    chain: list[Node] = []
    inner = node
    # What stands around one thing is a column.
    while len(inner.children) == 1 and inner.kind != "router":
        inner = inner.children[0]
        chain.append(inner)
    width = min(max((len(_name(each)) for each in chain), default=0), _NAME_WIDTH)
    for place, each in enumerate(chain):
        is_last = place == len(chain) - 1 and not each.children
        yield f"{indent}{'└' if is_last else '│'} {_bracket(chain, place)}{head(each, width)}"
    branches = inner.children
    for place, each in enumerate(branches):
        is_last = place == len(branches) - 1
        yield f"{indent}{'└─' if is_last else '├─'} {head(each)}"
        yield from _lines(each, indent + ("   " if is_last else "│  "))


def _bracket(chain: list[Node], place: int) -> str:
    if not any(each.run for each in chain):
        return ""
    run = chain[place].run
    if run is None:
        return "  "
    before = place > 0 and chain[place - 1].run == run
    after = place < len(chain) - 1 and chain[place + 1].run == run
    return {(False, True): "┌ ", (True, True): "│ ", (True, False): "└ "}.get((before, after), "  ")


def head(node: Node, width: int = 0) -> str:
    """
    Write what is to be said of one node on one line.

    Args:
        node: The node.
        width: How wide its name is at least.
    """
    words = [_name(node).ljust(width)]
    if node.scopes is not None:
        words.append(_SCOPES[node.scopes].ljust(max(map(len, _SCOPES.values())) if width else 0))
    if node.options:
        words.append("(" + ", ".join(f"{key}={value}" for key, value in node.options.items()) + ")")
    notes = ["on BaseHTTPMiddleware", *node.notes] if node.style == "base" else node.notes
    if notes:
        words.append(" · ".join(notes))
    if node.where and node.kind in {"layer", "route", "websocket", "app"}:
        words.append(f"— {node.where}")
    return "  ".join(words).rstrip()


def _name(node: Node) -> str:
    if node.kind in {"route", "websocket"}:
        return f"{node.verbs} {node.name}"
    if node.kind == "mount":
        return f"mount {node.name or '/'}"
    if node.kind == "host":
        return f"host {node.name}"
    return node.name
