# The tree as text.

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Final

from ._model import Node, Remark, Tree

_WIDTH: Final = 100
_NAME_WIDTH: Final = 32
_SCOPES: Final = {
    "http": "HTTP",
    "http, websocket": "HTTP+WebSocket",
    "all": "all scopes",
}


def draw(tree: Tree) -> str:
    """
    Write a tree down, the outermost layer first, and its warnings below it.
    """
    lines = list(_lines(tree.root, "", is_root=True))
    if not tree.warnings:
        return "\n".join([*lines, "", "no warnings"])
    number = len(tree.warnings)
    lines += ["", f"{number} warning{'s' * (number > 1)}"]
    for each in tree.warnings:
        lines += ["", *_remark(each)]
    return "\n".join(lines)


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
